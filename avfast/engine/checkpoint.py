"""Checkpoints on disk: written whole or not at all, read without running code, checked before use."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from avfast.errors import CheckpointError

SCHEMA = 1
"""Version of the state dictionary below; a reader refuses what it does not know.

``schema``, ``model``, ``optimizer``, ``scheduler``, ``scaler``, ``sampler`` (epoch, step), ``rng``,
``counters``, ``config`` (flat), ``split_fingerprint``, ``kind`` ("main" or "control") and ``versions``.
"""

KEYS = {
    "schema", "model", "optimizer", "scheduler", "scaler", "sampler", "rng", "counters", "config",
    "split_fingerprint", "kind", "versions",
}  # fmt: skip


def write_atomic(path: Path, write: Any) -> None:
    """Call ``write(temporary_path)``, flush it to the disk and put it in place with one rename.

    A process killed at any moment leaves either the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself must survive a power cut
    finally:
        os.close(directory)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a complete state, see :data:`SCHEMA`."""
    state = {"schema": SCHEMA, **state}
    if state.keys() != KEYS:
        raise CheckpointError(f"checkpoint '{path}': state lacks or exceeds the schema: {state.keys() ^ KEYS}")
    write_atomic(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state written by :func:`save_checkpoint`, on the CPU and weights-only.

    Raises:
        CheckpointError: missing, truncated, damaged, not a checkpoint of avfast, or of another schema.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint '{path}': no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums that torch.save writes
        if damaged is not None:
            raise CheckpointError(f"checkpoint '{path}' is damaged at '{damaged}'{_other(path)}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen types for a torn file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint '{path}' is truncated or damaged ({reason}){_other(path)}") from error
    if not isinstance(state, dict) or "schema" not in state:
        raise CheckpointError(f"checkpoint '{path}' was not written by avfast pretrain")
    if state["schema"] != SCHEMA:
        raise CheckpointError(f"checkpoint '{path}' has schema {state['schema']}, this version reads {SCHEMA}")
    return state


def _other(path: Path) -> str:
    others = [p for p in (path.with_name(n) for n in ("last.pt", "best.pt")) if p != path and p.is_file()]
    return f"; continue from '{others[0]}' with --resume {others[0]}" if others else ""
