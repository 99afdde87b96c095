"""Checkpoints on disk: written whole or not at all, read without running code, checked before use."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from avfast.data.outputs import writing
from avfast.engine.seal import add_seal, check_seal
from avfast.errors import CheckpointError

SCHEMA = 2
"""Version of the state dictionary; a reader migrates older ones and refuses newer ones.

==================== ===============================================================================================
``schema``           this number
``model``            ``state_dict`` of the method: networks, momentum networks, queues with pointer and fill, counters
                     and random generators of its own
``optimizer``, ``scheduler``, ``scaler``  their ``state_dict``
``sampler``          ``epoch`` and ``step`` (batches of it that were used)
``rng``              one entry per process: generators of torch, CUDA, NumPy and Python
``local``            one entry per process: buffers in which processes differ (queues that are not shared)
``workers``          how samples are drawn: augmentation is a function of ``(seed, epoch, id)`` of a sample, so loader
                     processes hold no random state, and their number does not matter
``counters``         ``step``, ``looked`` (step of the last look at the validation split), ``best_step``,
                     ``best_loss``, ``errors``
``interval``         one entry per process: what the next line of the log has gathered so far
``config``           flat, with ``steps`` and ``processes``
``contents``         hashes of the files that the configuration names
``split_fingerprint``  of the data, by content
``kind``             "main" or "control"
``versions``         torch, avfast, and the number of threads: what the last bits of a sum depend on
==================== ===============================================================================================
"""

WORKERS = "augmentation is a function of (seed, epoch, id); workers hold no random state"

KEYS = {
    "schema", "model", "optimizer", "scheduler", "scaler", "sampler", "rng", "local", "workers", "counters", "interval",
    "config", "contents", "split_fingerprint", "kind", "versions",
}  # fmt: skip
ADDED = {"local", "workers", "interval", "contents"}
"""Keys that schema 1 did not have."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is not there, or not as it was written; another one may be."""


def write_atomic(path: Path, write: Any) -> None:
    """Call ``write(temporary_path)``, flush it to the disk and put it in place with one rename.

    A process killed at any moment leaves either the old file or the new one, and perhaps a temporary one, which
    :func:`clear_temporary` finds. So does a disk that is full, which is a RunFault that names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with writing(path):
            write(temporary)
        with writing(path), open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def temporary_of(path: Path) -> Path:
    """The name under which this process writes what will be `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sync_folder(folder: Path) -> None:
    """Names on the disk: a rename must survive a power cut."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        with writing(folder):
            os.fsync(directory)
    finally:
        os.close(directory)


def clear_temporary(*folders: Path) -> None:
    """Remove what killed processes left half written in these folders."""
    for folder in folders:
        for path in folder.glob(".*.*.tmp"):
            path.unlink(missing_ok=True)


def clear_temporary_below(*trees: Path) -> None:
    """The same in these folders and all below them."""
    for tree in trees:
        clear_temporary(tree, *(path for path in tree.rglob("*") if path.is_dir()))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a complete state, see :data:`SCHEMA`."""
    state = {"schema": SCHEMA, **state}
    if state.keys() != KEYS:
        raise CheckpointError(f"checkpoint '{path}': state lacks or exceeds the schema: {state.keys() ^ KEYS}")

    def write(temporary: Path) -> None:
        torch.save(state, temporary)
        add_seal(temporary)

    write_atomic(path, write)


def check_checkpoint(path: Path) -> bool:
    """Read the whole file and compare its checksum; whether it has one (files of schema 1 have it for tensors only).

    Raises:
        DamagedCheckpoint: missing, truncated or damaged.
    """
    if not path.is_file():
        raise DamagedCheckpoint(f"checkpoint '{path}': no such file")
    try:
        sealed, damaged = check_seal(path), None
        if sealed is None:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
    except Exception as error:  # zipfile raises a dozen types for a torn file
        raise _torn(path, error) from error
    if damaged is not None:
        raise DamagedCheckpoint(f"checkpoint '{path}' is damaged at '{damaged}'{_other(path)}")
    if sealed is False:
        raise DamagedCheckpoint(f"checkpoint '{path}' is damaged (its checksum is another one){_other(path)}")
    return bool(sealed)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state written by :func:`save_checkpoint`, of this schema or an older one, on the CPU and weights-only.

    Raises:
        DamagedCheckpoint: missing, truncated or damaged.
        CheckpointError: not a checkpoint of avfast, or of a newer schema.
    """
    sealed = check_checkpoint(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # so do pickle and torch
        raise _torn(path, error) from error
    if not isinstance(state, dict) or not isinstance(state.get("schema"), int):
        raise CheckpointError(f"checkpoint '{path}' was not written by avfast pretrain")
    schema = state["schema"]
    if not 1 <= schema <= SCHEMA:
        raise CheckpointError(
            f"checkpoint '{path}' has schema {schema}, this version of avfast reads 1 to {SCHEMA}; "
            "it was written by a newer version, which can continue it"
        )
    if schema >= 2 and not sealed:
        raise DamagedCheckpoint(f"checkpoint '{path}' is damaged (its checksum is missing){_other(path)}")
    expected = KEYS - ADDED if schema == 1 else KEYS
    if state.keys() != expected:
        odd = ", ".join(sorted(map(str, state.keys() ^ expected)))
        raise CheckpointError(f"checkpoint '{path}' does not follow its schema {schema}: {odd}")
    return _migrated(state) if schema == 1 else state


def _migrated(state: dict[str, Any]) -> dict[str, Any]:
    """A state of schema 1 as one of schema 2, which knows more: what it does not know is taken as at a new start."""
    counters = {"looked": state["counters"]["step"], **state["counters"]}
    nothing = [{} for _ in state["rng"]]
    added = {"local": nothing, "workers": WORKERS, "interval": nothing, "contents": {}}
    return {**state, **added, "counters": counters, "schema": SCHEMA}


def _torn(path: Path, error: Exception) -> DamagedCheckpoint:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DamagedCheckpoint(f"checkpoint '{path}' is truncated or damaged ({reason}){_other(path)}")


def _other(path: Path) -> str:
    others = [p for p in (path.with_name(n) for n in ("last.pt", "best.pt")) if p != path and p.is_file()]
    return f"; continue from '{others[0]}' with --resume {others[0]}" if others else ""
