"""Folders, lists and published sets as tar shards that avfast and webdataset read: ``avfast shards``."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from avfast.data.members import Member, opened
from avfast.data.randomness import permutation
from avfast.data.shards import ABOUT
from avfast.data.sources import ClipRecord, ClipSource
from avfast.errors import ConfigError, DataError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """Bytes out of ``1GB``, ``500M`` or a number; units of a thousand.

    >>> parse_size("1.5GB")
    1500000000

    Raises:
        ConfigError: it is no size, or less than 1 kB.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([KMGT]?)B?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1000:
        raise ConfigError(f"--size: expected a size such as 500MB or 1GB, got '{text}'")
    return size


def write_shards(
    source: ClipSource,
    folder: Path,
    *,
    size: int = 10**9,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Pack the files of a source, unchanged, into ``folder/NAME-000000.tar`` and so on; their paths.

    A sample is ``STEM.mp4`` (the file's own ending), ``STEM.json`` with ``label``, ``split`` and ``duration`` where
    they are known, and ``STEM.mask.png``. ``STEM`` is the path of the file without its ending, with ``_`` for dots
    in the name. Shards are called after the split of their samples, ``shard`` where the source has none, and hold them
    in a random order, so that readers who go through them in order see a mixture.

    Args:
        size: bytes after which a shard ends.
        seed: of the order.
        progress: called with (done, total).

    Raises:
        DataError: a file cannot be read; ``folder`` holds shards already.
    """
    if any(folder.glob("*.tar")):
        raise DataError(f"{folder}: holds shards already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    stems, splits, written, done = _Stems(source.root), source.records.splits, [], 0
    for split in (*splits.names, None):
        wanted = -1 if split is None else splits.names.index(split)
        rows = np.flatnonzero(splits.number == wanted).tolist()
        with _Shards(folder, re.sub(r"\W+", "_", split or "shard"), size) as shards:
            for place in permutation(len(rows), "shards", seed, split or "").tolist():
                record = source.records[rows[place]]
                shards.add(stems.of(record), record)
                done += 1
                if progress is not None:
                    progress(done, len(source))
        written += shards.written
    about = {key: value for key, value in (source.manifest or {}).items() if key != "clips"}
    (folder / ABOUT).write_text(json.dumps({"generator": "avfast shards", **about, "samples": len(source)}))
    return written


class _Stems:
    """A stem for every record, none twice."""

    def __init__(self, root: Path) -> None:
        self.root, self.used = root, set()

    def of(self, record: ClipRecord) -> str:
        if isinstance(record.path, Member):
            path = PurePosixPath(record.path.member)
        elif record.path.is_relative_to(self.root) and ".." not in record.path.parts:
            path = PurePosixPath(record.path.relative_to(self.root))
        else:
            path = PurePosixPath(record.path.name)  # a list may name files that lie elsewhere
        stem = str(path.parent / path.stem.lstrip(".").replace(".", "_"))
        if not path.stem.strip("._") or stem in self.used:
            stem = f"{stem.rstrip('_')}_{record.id[:16]}"
        number, base = 1, stem
        while stem in self.used:  # copies of one file
            number += 1
            stem = f"{base}_{number}"
        self.used.add(stem)
        return stem


class _Shards:
    """Tar files that follow one another, each written under another name until it is whole."""

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        self.folder, self.name, self.limit = folder, name, limit
        self.written: list[Path] = []
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if self._tar is None:
            return
        if kind is None:
            self._finish()
        else:
            self._tar.fileobj.close()
            self._draft.unlink()

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}-{len(self.written):06d}.tar"

    @property
    def _draft(self) -> Path:
        return self.folder / f".{self._path.name}.part"

    def _finish(self) -> None:
        self._tar.close()
        self._tar = None
        os.replace(self._draft, self._path)
        self.written.append(self._path)

    def add(self, stem: str, record: ClipRecord) -> None:
        if self._tar is not None and self._tar.offset >= self.limit:
            self._finish()
        if self._tar is None:
            self._tar = tarfile.open(self._draft, "w")  # noqa: SIM115 - closed in _finish()
        facts = {"label": record.label, "split": record.split, "duration": record.duration}
        known = {key: value for key, value in facts.items() if value is not None}
        self._copy(stem + record.path.suffix.lower(), record.path)
        if known:
            data = json.dumps(known).encode()
            self._put(f"{stem}.json", io.BytesIO(data), len(data))
        if record.mask is not None:
            if record.mask.suffix.lower() != ".png":
                raise DataError(f"{record.mask}: expected a mask in a .png file, to be read from shards")
            self._copy(f"{stem}.mask.png", record.mask)

    def _copy(self, name: str, path: Path | Member) -> None:
        try:
            with opened(path) as file:
                self._put(name, file, file.seek(0, os.SEEK_END))
        except OSError as error:
            raise DataError(f"{path}: cannot be packed ({error.strerror or error})") from error

    def _put(self, name: str, file: BinaryIO, size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        file.seek(0)
        self._tar.addfile(info, file)
