"""``metrics.jsonl``: one JSON object per line, always written, never sent anywhere.

A line is written whole, at once, and only by the main process; it can be read while the run goes on. It is valid JSON:
a number that is not finite stands as the string ``"nan"``, ``"inf"`` or ``"-inf"``. Every line has

* ``kind``: ``"train"``, ``"val"`` or ``"fault"``; a reader leaves out kinds that it does not know;
* ``step``: optimiser steps done, from 1;
* ``time``: seconds since 1970, whole.

``train``: means over the steps since the last such line (``run.log_every`` of them) unless said otherwise.

* ``epoch``: passes over the training split so far; ``lr``: learning rate of the next step;
* ``loss``, and every metric of the recipe. Contrastive ones log how similar positives and negatives are (cosines:
  ``pos_sim`` and ``neg_sim``, or ``cos_pos`` and ``cos_neg``); those with a queue log ``queue_fill``, the share of it
  that holds features of real samples;
* ``grad_norm``: norm of the gradient before clipping; without clipping, of the last step only; absent where it is not
  known (FSDP without clipping);
* ``samples_per_s``; ``data_s`` and ``compute_s``: seconds per step spent waiting for data, and in everything else;
* ``collapse``: by embedding, ``std``, ``effective_rank`` and ``mean_cosine`` of the last batch, see
  :func:`avfast.evaluate.collapse_indicators`;
* ``broken``: failures to read a file so far; ``dropped``: steps dropped so far because something was not finite, absent
  if none was;
* ``rss_mib``: memory of the main process now, absent where the system does not tell; ``cuda_peak_mib``: most memory
  that tensors have taken on the GPU so far, absent without one;
* ``warnings``: what is wrong, by subject; absent if nothing is;
* ``partial``: true where an interruption cut the interval short; the line goes when the run goes on.

``fault``: what went wrong at this step. ``cause`` is ``"nonfinite"`` (the step was dropped; ``loss``, and ``id`` and
``path`` of the samples in its batch) or ``"data"`` (the run ended after it; ``text`` says why).

``val``: ``loss`` over the whole validation split, accuracies or recall by name, and ``NAME chance`` beside each score
that has a chance level.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from avfast.data.outputs import writing
from avfast.engine.board import Board
from avfast.engine.checkpoint import write_atomic

MEASURED = ("time", "samples_per_s", "data_s", "compute_s", "rss_mib", "cuda_peak_mib")
"""Values of a row that differ when the same is computed again."""


class Journal:
    """Append-only log of a run.

    Args:
        path: the file; None keeps nothing (other ranks).
        resume_step: rows of later steps are dropped, since they are about to be computed again; so are those that are
            marked ``partial``: an interruption cut their interval short, and it goes on now.
        board: gets every row too.
    """

    def __init__(self, path: Path | None, *, resume_step: int | None = None, board: Board | None = None) -> None:
        self.path, self.board = path, board
        if path is None:
            return
        rows = read_rows(path) if resume_step is not None and path.is_file() else []
        rows = [row for row in rows if row["step"] <= resume_step and not row.get("partial")]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def write(self, kind: str, *, step: int, **values: Any) -> dict[str, Any]:
        row = {"kind": kind, "step": step, "time": int(time.time()), **{k: _plain(v) for k, v in values.items()}}
        if self.path is not None:
            _append(self.path, (json.dumps(row, allow_nan=False) + "\n").encode())
        if self.board is not None:
            self.board.row(row)
        return row

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, read from the file: kept in memory, those of a run of weeks would fill it."""
        return [] if self.path is None else read_rows(self.path)

    def sync(self) -> None:
        """What was written is on the disk: a checkpoint must not outlive the rows before it."""
        if self.path is not None:
            with writing(self.path), open(self.path, "rb") as handle:
                os.fsync(handle.fileno())


def _append(path: Path, line: bytes) -> None:
    """All of a line or, where the disk is full, none of it: half a line would spoil the next one too."""
    with writing(path), open(path, "ab", buffering=0) as handle:
        size = handle.seek(0, os.SEEK_END)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[handle.write(rest) :]
        except OSError:
            handle.truncate(size)
            raise


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; lines that cannot be read, such as a last one torn by a kill, are left out."""
    return parse_rows(path)[0]


def parse_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Rows of a log, and the numbers (from 1) of the lines that are none."""
    rows, torn = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            good = isinstance(row, dict) and isinstance(row["kind"], str) and isinstance(row["step"], int)
        except (ValueError, KeyError, RecursionError):
            good = False
        rows.append(row) if good else torn.append(number)
    return rows, torn


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what depends on the clock and the machine: those of two runs that computed the same are equal."""
    kept = [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]
    for row in kept:
        if "warnings" in row:
            row["warnings"] = {name: text for name, text in row["warnings"].items() if name != "loader-bound"}
    return [{name: value for name, value in row.items() if (name, value) != ("warnings", {})} for row in kept]


def _plain(value: Any) -> Any:
    """Six digits of a float, in types that JSON has."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):  # a scalar of torch or NumPy
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value
