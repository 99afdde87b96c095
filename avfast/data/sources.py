"""Which clips or pictures there are: a folder, a CSV, a manifest or tar shards, with optional labels and splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from avfast.data.listing import Listing, folder_files, identify, look, remembered, walk
from avfast.data.lists import apply_labels, csv_rows, manifest_rows, read_manifest, refuse_escapes, shown
from avfast.data.records import ClipRecord, Codes, Columns, Records, Texts
from avfast.errors import DataError

EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".3gp", ".ogv")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ClipSource:
    """An ordered set of clips, or of pictures.

    ``records`` may be given as any sequence of :class:`ClipRecord`; it is kept in columns, at about 100 bytes each, and
    its items are made when asked for. ``classes`` is kept when a split is taken, so that class numbers agree between
    splits. ``missing`` counts files that a list names and the disk lacks (only with ``missing="drop"``); ``notes`` are
    sentences about what else was left out.

    >>> ClipSource.open("/no/such/folder")
    Traceback (most recent call last):
    ...
    avfast.errors.DataError: /no/such/folder: no such file or folder
    """

    root: Path
    records: Sequence[ClipRecord]
    classes: tuple[str, ...] = ()
    manifest: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    missing: int = 0
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", Records.of(self.root, self.records))

    def __len__(self) -> int:
        return len(self.records)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        labels: str | Path | None = None,
        allow_outside: bool = False,
        missing: str = "raise",
        damaged: str = "raise",
        extensions: tuple[str, ...] = EXTENSIONS,
        trust: bool = False,
    ) -> ClipSource:
        """Find the clips at ``path``.

        Every folder is listed once and every file looked at once; ids of files that kept their size and modification
        time come from an index in ``.avfast-index`` beside the data (or in the user's cache).

        Args:
            path: a folder (searched recursively), a CSV with columns ``path[,label][,split][,duration]``, a JSON
                manifest, or shards as :func:`avfast.data.shards.find_shards` takes them. A folder that holds a
                ``manifest.json`` is read through it. In a plain folder the parent folder is the label if there are at
                least two class folders and every file is in one; top folders called train, val or test are splits.
            labels: a CSV with columns ``path,label`` that names (and may override) labels.
            allow_outside: permit absolute paths and ``..`` in a CSV or manifest.
            missing: ``"raise"`` or ``"drop"`` for listed files (and shards) that do not exist.
            damaged: ``"raise"`` or ``"drop"`` for what is behind the damage of a shard that was cut off or changed.
            extensions: of the files to look for in a folder; ``IMAGE_EXTENSIONS`` finds pictures.
            trust: take the index as it is where no folder (or list) has changed; no file is looked at. For processes
                beside the one that has just listed the data.

        Raises:
            DataError: naming the file, the line and the cause.
        """
        from avfast.data.shards import is_shards, open_shards

        for name, policy in (("missing", missing), ("damaged", damaged)):
            if policy not in ("raise", "drop"):
                raise DataError(f"avfast.data.ClipSource.open: {name}: expected 'raise' or 'drop', got {policy!r}")
        shards = {"labels": labels, "missing": missing, "damaged": damaged, "extensions": extensions}
        if is_shards(path):
            return open_shards(cls, path, **shards)
        path = Path(path)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir() and not (path / MANIFEST).is_file():
            names, ids = folder_files(path, extensions, trust=trust)
            if not names and any(walk(path, (".tar", ".gz", ".tgz")).names):
                return open_shards(cls, path, **shards)
            return cls._open_folder(path, names, ids, extensions, labels)
        manifest = None
        if path.suffix.lower() == ".csv":
            list_file, rows = path, csv_rows(path)
        elif path.is_dir() or path.suffix.lower() == ".json":
            list_file = path / MANIFEST if path.is_dir() else path
            manifest = read_manifest(list_file)
            rows = manifest_rows(manifest, list_file)
        else:
            raise DataError(f"{path}: expected a folder, a .csv list, a .json manifest or .tar shards")
        if not allow_outside:
            refuse_escapes(path, rows)
        if labels is not None:
            apply_labels(rows, Path(labels))
        return cls._open_list(path, list_file, rows, manifest, missing, trust)

    @classmethod
    def _open_folder(
        cls, root: Path, names: list[str], ids: np.ndarray, extensions: tuple[str, ...], labels: str | Path | None
    ) -> ClipSource:
        if not names:
            kind = "pictures" if extensions == IMAGE_EXTENSIONS else "media files"
            raise DataError(f"{root}: holds no {kind}; looked for {' '.join(extensions)} in it and below")
        found, splits = folder_facts(names)
        if labels is not None:
            rows = [{"path": name, "label": label} for name, label in zip(names, found, strict=True)]
            apply_labels(rows, Path(labels))
            found = [row["label"] for row in rows]
        return cls.from_columns(Columns(root, Texts.of(names), ids, Codes.of(found), Codes.of(splits),
                                        np.full(len(names), np.nan)))  # fmt: skip

    @classmethod
    def _open_list(
        cls, path: Path, list_file: Path, rows: list[dict[str, Any]], manifest: Any, missing: str, trust: bool
    ) -> ClipSource:
        root, kind = list_file.parent, ("list", list_file.name)
        names = [row["path"] for row in rows]
        known = remembered(root, *kind) if trust else None
        if known is not None and set(known[0]) <= set(names) and (len(known[0]) == len(names) or missing == "drop"):
            place = {name: row for row, name in enumerate(known[0])}
            present = [row for row in rows if row["path"] in place]
            ids = known[1][[place[row["path"]] for row in present]]
            return cls.from_rows(root, present, ids=ids, manifest=manifest, missing=len(rows) - len(present))
        anchors = {list_file.name: list_file.stat().st_mtime_ns}
        stamps, there = look(root, names)
        absent = [name for name, found in zip(names, there.tolist(), strict=True) if not found]
        if absent and missing == "raise":
            first = ", ".join(map(shown, absent[:3])) + (", …" if len(absent) > 3 else "")
            raise DataError(
                f"{path}: {len(absent)} of {len(rows)} listed files do not exist ({first}); "
                'missing="drop" goes on without them'
            )
        present = [row for row, found in zip(rows, there.tolist(), strict=True) if found]
        if not present:
            raise DataError(f"{path}: lists no clips that exist")
        ids = identify(Listing(root, [row["path"] for row in present], stamps[there], anchors), *kind)
        return cls.from_rows(root, present, ids=ids, manifest=manifest, missing=len(absent))

    @classmethod
    def from_rows(
        cls, root: Path, rows: list[dict[str, Any]], *, ids: np.ndarray | None = None, **facts: Any
    ) -> ClipSource:
        """Clips of existing files: rows with ``path`` (below ``root``), and ``label``, ``split``, ``duration``,
        ``mask`` where known. ``ids`` uint8 ``[N, 32]`` are looked up if they are not given; ``facts`` are other fields
        of the source."""
        if ids is None:
            names = [row["path"] for row in rows]
            ids = identify(Listing(root, names, look(root, names)[0], {}), "rows")
        durations = [np.nan if row.get("duration") in (None, "") else float(row["duration"]) for row in rows]
        masks = [row.get("mask") or "" for row in rows]
        columns = Columns(
            root,
            Texts.of(row["path"] for row in rows),
            ids,
            Codes.of([row.get("label") or None for row in rows]),
            Codes.of([row.get("split") or None for row in rows]),
            np.array(durations, dtype=np.float64),
            Texts.of(masks) if any(masks) else None,
        )
        return cls.from_columns(columns, **facts)

    @classmethod
    def from_columns(cls, columns: Columns, **facts: Any) -> ClipSource:
        """A source of all records of some columns; ``facts`` are the other fields."""
        return cls(columns.root, Records(columns), columns.labels.names, **facts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, labels and splits in a fixed order: equal exactly if the sets are."""
        ids, labels, splits = self.records.ids, self.records.labels, self.records.splits
        ends = [f"\t{label}\t" for label in (*labels.names, "")], (*splits.names, "")
        whole = ids.tobytes().hex()
        lines = sorted(
            whole[64 * row : 64 * row + 64] + ends[0][label] + ends[1][split]
            for row, (label, split) in enumerate(zip(labels.number.tolist(), splits.number.tolist(), strict=True))
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def label_numbers(self) -> np.ndarray:
        """Class number of every record, int64; -1 where there is no label."""
        index = {name: i for i, name in enumerate(self.classes)}
        codes = self.records.labels
        return np.array([*(index[name] for name in codes.names), -1], dtype=np.int64)[codes.number]

    @property
    def labels(self) -> list[int]:
        """:attr:`label_numbers` as a list."""
        return self.label_numbers.tolist()

    @property
    def splits(self) -> dict[str, int]:
        """Split names with their sizes; empty if no record has a split."""
        codes = self.records.splits
        counts = np.bincount(codes.number + 1, minlength=len(codes.names) + 1)[1:].tolist()
        return {name: count for name, count in zip(codes.names, counts, strict=True) if count}

    def split(self, name: str) -> ClipSource:
        """The records of one split. Without splits in the data, :meth:`with_splits` makes them first.

        Raises:
            DataError: there is no such split.
        """
        source = self if self.splits else self.with_splits()
        codes = source.records.splits
        if not source.splits.get(name):
            raise DataError(f"{self.root}: no clips in split {name!r}; there are {source.splits}")
        chosen = source.records.rows[codes.number == codes.names.index(name)]
        return replace(source, records=Records(source.records.columns, chosen))

    def with_splits(self, *, val: float = 0.1, test: float = 0.2) -> ClipSource:
        """Deal records out by a hash of their content.

        A file stays in its split when others are added or the folder is reordered. Copies of one file share a
        split. A split that would come out empty gets the record nearest to its share, if there are three
        records or more.
        """
        if val < 0 or test < 0 or val + test >= 1:
            raise DataError(f"with_splits: expected val, test >= 0 with val + test < 1, got {val} and {test}")
        whole = self.records.ids.tobytes().hex()
        ids = [whole[start : start + 64] for start in range(0, len(whole), 64)]
        place = {i: int(hashlib.sha256(f"split {i}".encode()).hexdigest()[:15], 16) / 16**15 for i in ids}
        names = {i: "test" if u < test else "val" if u < test + val else "train" for i, u in place.items()}
        for name, share in (("test", test), ("val", val)):
            if share and name not in names.values() and len(place) >= 3:
                rest = [(u, i) for i, u in place.items() if names[i] == "train"]
                if rest:
                    names[min(rest)[1]] = name
        codes = Codes.of([names[i] for i in ids])
        return replace(self, records=self.records.with_splits(codes.names, codes.number))


def media_files(folder: Path, extensions: tuple[str, ...] = EXTENSIONS) -> list[Path]:
    """Media files under a folder, by extension, in a fixed order. Hidden files and folders are left out."""
    return [folder / name for name in walk(folder, extensions).names]


def folder_facts(names: list[str]) -> tuple[list[str | None], list[str | None]]:
    """Labels and splits of files by the folders they are in (see :meth:`ClipSource.open`).

    >>> folder_facts(["train/cat/1.mp4", "test/dog/2.mp4"])
    (['cat', 'dog'], ['train', 'test'])
    """
    parts = [name.split("/") for name in names]
    tops = {p[0].lower() for p in parts if len(p) > 1}
    in_splits = bool(tops) and tops <= set(SPLIT_NAMES) and all(len(p) > 1 for p in parts)
    depth = 2 if in_splits else 1
    folders = [p[-2] if len(p) > depth else None for p in parts]
    labelled = None not in folders and len(set(folders)) > 1
    splits = [SPLIT_NAMES[p[0].lower()] if in_splits else None for p in parts]
    return folders if labelled else [None] * len(names), splits
