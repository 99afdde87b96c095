"""Many records in little memory: columns instead of objects.

A hundred thousand dataclasses with a ``Path`` each take 60 MB, and a worker that touches them gets a copy of its own,
because reference counts are written into them. The same facts in arrays take a sixth of that and stay shared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from avfast.data.identity import ID_BYTES
from avfast.data.members import Member


@dataclass(frozen=True)
class ClipRecord:
    """One media file, or one of a shard. ``id`` is made of its content (:mod:`avfast.data.identity`): it survives
    renaming, reordering, copying and packing into shards.

    ``mask`` is a picture of class numbers of the same size, where a manifest names one.
    """

    path: Path | Member
    id: str
    label: str | None = None
    split: str | None = None
    duration: float | None = None
    mask: Path | Member | None = None


class Texts:
    """Strings end to end in one array; undecodable file names survive.

    >>> Texts.of(["a", "", "bcd"])[2]
    'bcd'
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        encoded = [os.fsencode(text) for text in texts]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.blob[start : int(self.ends[row])].tobytes())

    @property
    def sound(self) -> bool:
        """Whether the ends, read from a file, fit the array."""
        if self.blob.dtype != np.uint8 or self.ends.dtype != np.int64:
            return False
        last = int(self.ends[-1]) if len(self.ends) else 0
        return last == len(self.blob) and bool((np.diff(self.ends, prepend=0) >= 0).all())

    def tolist(self) -> list[str]:
        whole, ends = self.blob.tobytes(), self.ends.tolist()
        return [os.fsdecode(whole[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Codes:
    """A column with few different texts: ``number`` int32 into ``names``, -1 for none."""

    names: tuple[str, ...]
    number: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> Codes:
        names = tuple(sorted({text for text in texts if text is not None}))
        place: dict[str | None, int] = {name: i for i, name in enumerate(names)} | {None: -1}
        return cls(names, np.fromiter((place[text] for text in texts), np.int32, len(texts)))

    def __getitem__(self, row: int) -> str | None:
        number = self.number[row]
        return None if number < 0 else self.names[number]


@dataclass(frozen=True)
class Regions:
    """Where records lie in shards: files of :attr:`shards` with their ``(size, mtime_ns)``; per record the number of
    its file, first byte and length."""

    shards: tuple[Path, ...]
    stamps: tuple[tuple[int, int], ...]
    number: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def member(self, row: int, name: str) -> Member:
        shard = int(self.number[row])
        return Member(self.shards[shard], name, int(self.offset[row]), int(self.size[row]), self.stamps[shard])


@dataclass(frozen=True)
class Columns:
    """The facts of all records of a source; ``names`` are relative to ``root`` (or absolute, if outside), of members
    of a shard as they stand in it. ``durations`` are NaN where unknown."""

    root: Path
    names: Texts
    ids: np.ndarray
    labels: Codes
    splits: Codes
    durations: np.ndarray
    masks: Texts | None = None
    regions: Regions | None = None
    mask_regions: Regions | None = None


class Records(Sequence[ClipRecord]):
    """A sequence of :class:`ClipRecord` that are made when asked for; splits of a source share its columns."""

    def __init__(self, columns: Columns, rows: np.ndarray | None = None) -> None:
        self.columns = columns
        self.rows = np.arange(len(columns.names)) if rows is None else rows

    @classmethod
    def of(cls, root: Path, records: Sequence[ClipRecord]) -> Records:
        """Columns of records that were made one by one."""
        if isinstance(records, Records):
            return records

        def name(path: Path | Member) -> str:
            if isinstance(path, Member):
                raise TypeError("avfast.data.Records.of: members of shards come from ClipSource.open")
            return str(path.relative_to(root) if path.is_relative_to(root) else path)

        durations = [np.nan if r.duration is None else r.duration for r in records]
        masked = any(r.mask is not None for r in records)
        return cls(
            Columns(
                root,
                Texts.of(name(r.path) for r in records),
                np.frombuffer(b"".join(bytes.fromhex(r.id) for r in records), np.uint8).reshape(-1, ID_BYTES),
                Codes.of([r.label for r in records]),
                Codes.of([r.split for r in records]),
                np.array(durations, dtype=np.float64),
                Texts.of("" if r.mask is None else name(r.mask) for r in records) if masked else None,
            )
        )

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ClipRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Records(self.columns, self.rows[index])
        c, row = self.columns, int(self.rows[index])
        duration, mask = float(c.durations[row]), c.masks[row] if c.masks is not None else ""
        return ClipRecord(
            self._path(c.regions, row, c.names[row]),
            c.ids[row].tobytes().hex(),
            c.labels[row],
            c.splits[row],
            None if duration != duration else duration,
            self._path(c.mask_regions, row, mask) if mask else None,
        )

    def __iter__(self) -> Iterator[ClipRecord]:
        return (self[i] for i in range(len(self)))

    def _path(self, regions: Regions | None, row: int, name: str) -> Path | Member:
        return self.columns.root / name if regions is None else regions.member(row, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Records):
            return NotImplemented
        return np.array_equal(self.ids, other.ids) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(hashlib.sha256(self.ids.tobytes()).digest())

    def __repr__(self) -> str:
        return f"<{len(self)} records in {self.columns.root}>"

    @property
    def ids(self) -> np.ndarray:
        """uint8 ``[N, 32]``."""
        return self.columns.ids[self.rows]

    @property
    def labels(self) -> Codes:
        return Codes(self.columns.labels.names, self.columns.labels.number[self.rows])

    @property
    def splits(self) -> Codes:
        return Codes(self.columns.splits.names, self.columns.splits.number[self.rows])

    @property
    def masked(self) -> bool:
        """Whether every record has a mask."""
        masks = self.columns.masks
        return masks is not None and bool((np.diff(masks.ends, prepend=0)[self.rows] > 0).all())

    def with_splits(self, names: tuple[str, ...], number: np.ndarray) -> Records:
        """The same records with the splits ``names[number]``."""
        whole = np.full(len(self.columns.names), -1, np.int32)
        whole[self.rows] = number
        return Records(replace(self.columns, splits=Codes(names, whole)), self.rows)
