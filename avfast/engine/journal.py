"""``metrics.jsonl``: one JSON object per line, always written, never sent anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avfast.engine.board import Board
from avfast.engine.checkpoint import write_atomic


class Journal:
    """Append-only log of a run.

    Args:
        path: the file; None keeps rows in memory only (other ranks).
        resume_step: rows of later steps are dropped, since they are about to be computed again.
        board: gets every row too.
    """

    def __init__(self, path: Path | None, *, resume_step: int | None = None, board: Board | None = None) -> None:
        self.path, self.board = path, board
        self.rows: list[dict[str, Any]] = []
        if path is None:
            return
        if resume_step is not None and path.is_file():
            self.rows = [row for row in read_rows(path) if row.get("step", 0) <= resume_step]
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_atomic(path, lambda temporary: temporary.write_text(text))

    def write(self, kind: str, **values: Any) -> dict[str, Any]:
        row = {"kind": kind, **{k: _short(v) for k, v in values.items()}}
        self.rows.append(row)
        if self.path is not None:
            with open(self.path, "a") as handle:
                handle.write(json.dumps(row) + "\n")
        if self.board is not None:
            self.board.row(row)
        return row


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; a last line torn by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else str(value)
    return {k: _short(v) for k, v in value.items()} if isinstance(value, dict) else value
