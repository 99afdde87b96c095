"""Shards: tar files of samples, as the webdataset library writes and reads them.

A sample is the files of one stem, ``dog/0001.mp4`` and ``dog/0001.json``; the stem ends at the first dot of the name.
One of them is a clip (or a picture). ``json`` may hold ``label``, ``split`` and ``duration``, ``cls`` a label,
``mask.png`` a picture of class numbers; other files are left alone. Without labels the folders inside the shards are
classes as those of a plain folder are, and without splits the names of the shards may say them
(``train-000000.tar``).

Every shard is read through once and its index kept, by size and modification time; samples are then read where they
lie, in any order. That is why the order of an epoch and a resumed run are the same as those of a folder, and why
compressed shards are refused. Nothing is unpacked to disk.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avfast.data.brace import expand_braces
from avfast.data.identity import THREADS
from avfast.data.index_files import index_folder, index_name, save_index
from avfast.data.listing import walk
from avfast.data.lists import apply_labels
from avfast.data.records import Codes, Columns, Regions, Texts
from avfast.data.shard_index import index_shard, load_shard_index
from avfast.data.waiting import waiting
from avfast.errors import DataError

if TYPE_CHECKING:
    from avfast.data.sources import ClipSource

PREFIX = "wds:"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
ABOUT = "shards.json"
"""Beside the shards: what `avfast shards` keeps of a manifest that belongs to no single clip."""


def is_shards(path: str | Path) -> bool:
    """Whether a ``--data`` word names shards by its form: ``wds:…``, ``….tar``, or a pattern of them."""
    text = str(path)
    return text.startswith(PREFIX) or text.endswith((".tar", *COMPRESSED))


def find_shards(path: str | Path) -> tuple[Path, list[Path]]:
    """The folder they are in, and the shards.

    Args:
        path: a folder (searched recursively), one ``.tar`` file, or a pattern with braces such as
            ``DIR/train-{000..099}.tar``; ``wds:`` may stand before it.

    Raises:
        DataError: no such folder; no shards; or they are compressed.
    """
    text = str(path).removeprefix(PREFIX)
    if re.match(r"[a-z0-9+]+:", text) and not Path(text).exists():
        raise DataError(f"{path}: shards are read from files of this machine; streams cannot be read in any order")
    folder = Path(text)
    if folder.is_dir():
        endings = {".tar", *("." + ending.rpartition(".")[2] for ending in COMPRESSED)}
        names = [name for name in walk(folder, tuple(endings)).names if name.lower().endswith((".tar", *COMPRESSED))]
        paths = [folder / name for name in names]
        if not paths:
            raise DataError(f"{folder}: holds no .tar files")
    else:
        paths = [Path(name) for name in expand_braces(text)]
        folder = Path(os.path.commonpath([p.parent for p in paths])) if len(paths) > 1 else paths[0].parent
    for shard in paths:
        if str(shard).lower().endswith(COMPRESSED):
            raise DataError(
                f"{shard}: compressed shards cannot be read in any order; unpack it to a .tar file first "
                "(clips and pictures are compressed already)"
            )
    return folder, paths


def open_shards(
    kind: type[ClipSource],
    path: str | Path,
    *,
    labels: str | Path | None,
    missing: str,
    damaged: str,
    extensions: tuple[str, ...],
) -> ClipSource:
    """The samples of shards, in the order of their names; arguments as for :meth:`ClipSource.open`.

    Raises:
        DataError: a shard is refused, for what no honest one holds (links, devices, names that leave it, a name twice,
            two clips of one stem) or, with ``damaged="raise"``, because it was cut off or changed. With ``"drop"`` the
            samples before the damage are used, and ``notes`` say so.
    """
    root, paths = find_shards(path)
    found, notes = _present(paths, missing)
    stamps = [(s.st_size, s.st_mtime_ns) for s in map(os.stat, found)]
    parts = _indexes(root, found, stamps, extensions)
    for shard, part in zip(found, parts, strict=True):
        lacking, count = part["lacking"].tolist()
        if (damage := str(part["damage"][0])) and damaged == "raise":
            raise DataError(f"{shard}: {damage}; data.on_error=skip (damaged='drop') uses what is before that")
        if damage:
            notes.append(f"{shard.name} {damage}; the {len(part['offset'])} samples before that are used")
        if lacking:
            notes.append(f"{shard.name} holds {lacking} of {count} samples without such a file as is looked for")
    names = [name for part in parts for name in Texts(part["names"], part["names_ends"]).tolist()]
    if not names:
        raise DataError(f"{path}: the shards hold no files such as {', '.join(extensions[:3])}")
    number = np.repeat(np.arange(len(parts)), [len(part["offset"]) for part in parts])
    order = np.array(sorted(range(len(names)), key=lambda row: (names[row].split("/"), number[row])), dtype=np.int64)
    columns = _columns(root, found, stamps, parts, names, number, order, labels)
    return kind.from_columns(columns, manifest=_about(root), missing=len(paths) - len(found), notes=tuple(notes))


def _present(paths: list[Path], missing: str) -> tuple[list[Path], list[str]]:
    there = [shard for shard in paths if shard.is_file()]
    if len(there) == len(paths):
        return there, []
    first = next(shard for shard in paths if not shard.is_file())
    if len(paths) == 1:
        raise DataError(f"{first}: no such file or folder")
    text = f"{len(paths) - len(there)} of {len(paths)} shards do not exist (first: {first})"
    if missing == "raise" or not there:
        raise DataError(text)
    return there, [text]


def _columns(
    root: Path, shards: list[Path], stamps: list, parts: list[dict], names: list[str], number: np.ndarray,
    order: np.ndarray, label_file: str | Path | None,
) -> Columns:  # fmt: skip
    from avfast.data.sources import SPLIT_NAMES, folder_facts

    def joined(key: str) -> np.ndarray:
        return np.concatenate([part[key] for part in parts])[order]

    def texts(key: str) -> list[str]:
        every = [text for part in parts for text in Texts(part[key], part[f"{key}_ends"]).tolist()]
        return [every[row] for row in order]

    names, number = [names[row] for row in order], number[order].astype(np.int32)
    labels: list[str | None] = [text or None for text in texts("labels")]
    splits: list[str | None] = [text or None for text in texts("splits")]
    by_folder = folder_facts(names)
    if not any(labels):
        labels = by_folder[0]
    if not any(splits):
        of_shard = [re.match(r"[a-z]*", shard.name.lower())[0] for shard in shards]
        named = all(name in SPLIT_NAMES for name in of_shard)
        splits = [SPLIT_NAMES[of_shard[n]] for n in number] if named else by_folder[1]
    if label_file is not None:
        rows = [{"path": name, "label": label} for name, label in zip(names, labels, strict=True)]
        apply_labels(rows, Path(label_file))
        labels = [row["label"] for row in rows]
    masks = texts("masks")
    place = (tuple(shards), tuple(stamps), number)
    return Columns(
        root, Texts.of(names), joined("ids"), Codes.of(labels), Codes.of(splits), joined("durations"),
        Texts.of(masks) if any(masks) else None,
        Regions(*place, joined("offset"), joined("size")),
        Regions(*place, joined("mask_offset"), joined("mask_size")) if any(masks) else None,
    )  # fmt: skip


def _about(root: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((root / ABOUT).read_text())
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def _indexes(root: Path, shards: list[Path], stamps: list, extensions: tuple[str, ...]) -> list[dict]:
    folder, report, done = index_folder(root), waiting(str(root), "shards"), 0

    def one(shard: Path, stamp: tuple[int, int]) -> dict:
        file = folder / index_name("shard", os.path.relpath(shard, root), stamp, extensions)
        if (known := load_shard_index(file, stamp[0])) is None:
            known = index_shard(shard, extensions)
            save_index(file, known)
        return known

    parts = []
    pool = ThreadPoolExecutor(THREADS)
    try:
        for part in pool.map(one, shards, stamps):
            parts.append(part)
            done += 1
            report(done, len(shards))
    finally:
        pool.shutdown(cancel_futures=True)
    return parts
