"""The files of a folder or list and their ids: one walk, one look at each file, and what was known before."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avfast.data.identity import ID_BYTES, content_digests
from avfast.data.index_files import index_folder, index_name, load_index, save_index
from avfast.data.records import Texts
from avfast.data.waiting import waiting
from avfast.errors import DataError

LENGTHS = {"names": "names", "ends": "ids", "sizes": "ids", "times": "ids", "anchors": "anchors",
           "anchor_ends": "anchor_times"}  # fmt: skip


@dataclass
class Listing:
    """Files below ``root``: ``names`` relative to it, ``stamps`` int64 ``[N, 2]`` of size and mtime in ns.

    ``anchors`` are the folders that were listed (or the list that was read) with their mtimes, taken before: as long
    as they are the same, so are the names.
    """

    root: Path
    names: list[str]
    stamps: np.ndarray
    anchors: dict[str, int]


def walk(root: Path, extensions: tuple[str, ...]) -> Listing:
    """All files with one of the endings, in a fixed order; hidden files and folders, and links to folders, are left
    out. Each folder is read once.

    Raises:
        DataError: the folder cannot be read.
    """
    found: list[tuple[str, int, int]] = []
    anchors: dict[str, int] = {}
    left = [""]
    while left:
        folder = left.pop()
        try:
            anchors[folder] = os.stat(root / folder).st_mtime_ns
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        left.append(name)
                    elif os.path.splitext(entry.name)[1].lower() in extensions and entry.is_file():
                        status = entry.stat()
                        found.append((name, status.st_size, status.st_mtime_ns))
        except OSError as error:
            if not folder:
                raise DataError(f"{root}: cannot be listed ({error.strerror})") from error
            anchors.pop(folder, None)  # a folder that is closed to us, or went away meanwhile, holds nothing
    found.sort(key=lambda file: file[0].split("/"))
    stamps = np.array([file[1:] for file in found], dtype=np.int64).reshape(-1, 2)
    return Listing(root, [file[0] for file in found], stamps, anchors)


def look(root: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Stamps of listed files, and which of them exist (bool ``[N]``)."""
    stamps, there = np.zeros((len(names), 2), np.int64), np.zeros(len(names), bool)
    for row, name in enumerate(names):
        try:
            status = os.stat(os.path.join(root, name))
        except (OSError, ValueError):
            continue
        there[row] = stat.S_ISREG(status.st_mode)
        stamps[row] = status.st_size, status.st_mtime_ns
    return stamps, there


def folder_files(root: Path, extensions: tuple[str, ...], *, trust: bool = False) -> tuple[list[str], np.ndarray]:
    """Names and ids of the files of a folder; with ``trust`` as another process has just found them, if one has."""
    kind = ("files", extensions)
    if trust and (known := remembered(root, *kind)) is not None:
        return known
    index_folder(root)  # made before the walk, because that changes the mtime of the root
    listing = walk(root, extensions)
    return listing.names, identify(listing, *kind)


def remembered(root: Path, *kind: object) -> tuple[list[str], np.ndarray] | None:
    """Names and ids as another process has just found them: no file is looked at, and each folder (or the list) only
    for its mtime. None where they have changed."""
    known = _load(index_folder(root) / index_name(*kind))
    if known is None:
        return None
    anchors = Texts(known["anchors"], known["anchor_ends"]).tolist()
    try:
        now = [os.stat(root / folder).st_mtime_ns for folder in anchors]
    except OSError:
        return None
    if not anchors or now != known["anchor_times"].tolist():
        return None
    return Texts(known["names"], known["ends"]).tolist(), known["ids"]


def identify(listing: Listing, *kind: object) -> np.ndarray:
    """Ids of the files, uint8 ``[N, 32]``; those that kept size and mtime since an earlier call are not read.

    ``kind`` tells indexes of one folder apart.

    Raises:
        DataError: a file cannot be read.
    """
    path = index_folder(listing.root) / index_name(*kind)
    count = len(listing.names)
    ids, fresh = np.zeros((count, ID_BYTES), np.uint8), np.ones(count, bool)
    texts, known = Texts.of(listing.names), _load(path)
    if known is not None:
        _recall(known, listing, texts, ids, fresh)
    rows = np.flatnonzero(fresh)
    whole = known is not None and len(known["ids"]) == count and not len(rows)
    if whole and Texts(known["anchors"], known["anchor_ends"]).tolist() == list(listing.anchors):
        if known["anchor_times"].tolist() == list(listing.anchors.values()):
            return ids
    paths = [os.path.join(listing.root, listing.names[row]) for row in rows.tolist()]
    complete = False
    try:
        content_digests(paths, ids, rows, waiting(str(listing.root)))
        complete = True
    finally:  # what was read before Ctrl-C or an error need not be read again
        stamps = listing.stamps.copy()
        if not complete:
            stamps[rows[~ids[rows].any(1)]] = -1
        anchors = listing.anchors if complete else {}
        save_index(path, _arrays(texts, stamps, ids, anchors))
    return ids


def _recall(known: dict[str, np.ndarray], listing: Listing, texts: Texts, ids: np.ndarray, fresh: np.ndarray) -> None:
    """Fill in the ids of files that are as they were; those rows are no longer fresh."""
    stamps = np.stack([known["sizes"], known["times"]], 1)
    if np.array_equal(known["ends"], texts.ends) and np.array_equal(known["names"], texts.blob):
        then = np.arange(len(fresh))
    else:
        place = {name: row for row, name in enumerate(Texts(known["names"], known["ends"]).tolist())}
        then = np.fromiter((place.get(name, -1) for name in listing.names), np.int64, len(listing.names))
    same = then >= 0
    same[same] = (stamps[then[same]] == listing.stamps[same]).all(1)
    ids[same] = known["ids"][then[same]]
    fresh[same] = False


def _arrays(texts: Texts, stamps: np.ndarray, ids: np.ndarray, anchors: dict[str, int]) -> dict[str, np.ndarray]:
    folders = Texts.of(anchors)
    return {
        "names": texts.blob, "ends": texts.ends, "ids": ids, "sizes": stamps[:, 0], "times": stamps[:, 1],
        "anchors": folders.blob, "anchor_ends": folders.ends,
        "anchor_times": np.fromiter(anchors.values(), np.int64, len(anchors)),
    }  # fmt: skip


def _load(path: Path) -> dict[str, np.ndarray] | None:
    known = load_index(path, LENGTHS)
    if known is None:
        return None
    if known["ids"].shape[1:] != (ID_BYTES,) or known["ids"].dtype != np.uint8:
        return None
    pairs = (("names", "ends"), ("anchors", "anchor_ends"))
    return known if all(Texts(known[blob], known[ends]).sound for blob, ends in pairs) else None
