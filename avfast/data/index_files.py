"""Where the index of a data set is kept, and how: arrays in one file, beside the data or in the user's cache."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from avfast.data.replacing import clear_half_written, replacing

FOLDER = ".avfast-index"
VERSION = 1
STEM = "[0-9a-f]{16}"


def index_folder(root: Path) -> Path:
    """``root/.avfast-index``, made if need be; where that cannot be written, a folder of the user's cache. What killed
    writers left in it goes."""
    folder = root / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        if not os.access(folder, os.W_OK):
            folder = user_folder(root)
    except OSError:
        folder = user_folder(root)
    clear_half_written(folder, STEM)
    return folder


def user_folder(root: Path) -> Path:
    """The folder of the user's cache for what is known of the data in ``root``."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "avfast" / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]


def index_name(*facts: object) -> str:
    """A file name that stands for what an index depends on."""
    return hashlib.sha256(repr((VERSION, *facts)).encode()).hexdigest()[:16] + ".npz"


def load_index(path: Path, lengths: Mapping[str, str]) -> dict[str, np.ndarray] | None:
    """The arrays of an index, or None where there is none or it is damaged.

    ``lengths`` maps every array that is needed to the one that says how long it is; nothing is unpickled.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError):
        return None
    if any(name not in found or like not in found for name, like in lengths.items()):
        return None
    return found if all(len(found[name]) == len(found[like]) for name, like in lengths.items()) else None


def save_index(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write it whole or not at all; an index that cannot be written costs time and nothing else."""
    with suppress(OSError), replacing(path, path.stem) as file:
        np.savez(file, **arrays)
        os.fchmod(file.fileno(), 0o644)
