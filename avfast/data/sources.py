"""Which clips or pictures there are: a folder, a CSV or a manifest, with optional labels and splits."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avfast.data.filecache import FileCache
from avfast.errors import DataError

EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".3gp", ".ogv")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ClipRecord:
    """One media file. ``id`` is the SHA-256 of its bytes: it survives renaming, reordering and copying.

    ``mask`` is a picture of class numbers of the same size, where a manifest names one.
    """

    path: Path
    id: str
    label: str | None = None
    split: str | None = None
    duration: float | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class ClipSource:
    """An ordered set of clips, or of pictures.

    ``classes`` is kept when a split is taken, so that class numbers agree between splits. ``missing`` counts
    files that a list names and the disk lacks (only with ``missing="drop"``).

    >>> ClipSource.open("/no/such/folder")
    Traceback (most recent call last):
    ...
    avfast.errors.DataError: /no/such/folder: no such file or folder
    """

    root: Path
    records: tuple[ClipRecord, ...]
    classes: tuple[str, ...] = ()
    manifest: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    missing: int = 0

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
        extensions: tuple[str, ...] = EXTENSIONS,
    ) -> ClipSource:
        """Find the clips at ``path``.

        Args:
            path: a folder (searched recursively), a CSV with columns ``path[,label][,split][,duration]``, or
                a JSON manifest. A folder that holds a ``manifest.json`` is read through it. In a plain folder
                the parent folder is the label if there are at least two class folders and every file is in
                one; top folders called train, val or test are splits.
            labels: a CSV with columns ``path,label`` that names (and may override) labels.
            allow_outside: permit absolute paths and ``..`` in a CSV or manifest.
            missing: ``"raise"`` or ``"drop"`` for listed files that do not exist.
            extensions: of the files to look for in a folder; ``IMAGE_EXTENSIONS`` finds pictures.

        Raises:
            DataError: naming the file, the line and the cause.
        """
        path = Path(path)
        if missing not in ("raise", "drop"):
            raise DataError(f"avfast.data.ClipSource.open: missing: expected 'raise' or 'drop', got {missing!r}")
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        manifest = None
        if path.is_dir() and not (path / MANIFEST).is_file():
            root, rows = path, _folder_rows(path, extensions)
        elif path.suffix.lower() == ".csv":
            root, rows = path.parent, _csv_rows(path)
        elif path.is_dir() or path.suffix.lower() == ".json":
            file = path / MANIFEST if path.is_dir() else path
            root, manifest = file.parent, _read_manifest(file)
            rows = _manifest_rows(manifest, file)
        else:
            raise DataError(f"{path}: expected a folder, a .csv list or a .json manifest")

        if not allow_outside:
            _refuse_escapes(path, rows)
        if labels is not None:
            _apply_labels(rows, Path(labels))
        present = [row for row in rows if (root / row["path"]).is_file()]
        absent = [row["path"] for row in rows if not (root / row["path"]).is_file()]
        if absent and missing == "raise":
            shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
            raise DataError(
                f"{path}: {len(absent)} of {len(rows)} listed files do not exist ({shown}); "
                'missing="drop" goes on without them'
            )
        if not present:
            raise DataError(f"{path}: lists no clips that exist")
        return cls.from_rows(root, present, manifest=manifest, missing=len(absent))

    @classmethod
    def from_rows(
        cls, root: Path, rows: list[dict[str, Any]], *, manifest: dict[str, Any] | None = None, missing: int = 0
    ) -> ClipSource:
        """Clips of existing files: rows with ``path`` (below ``root``), and ``label``, ``split``, ``duration``,
        ``mask`` where known."""
        cache = FileCache(root, "sha256")
        records = []
        for row in rows:
            file = root / row["path"]
            if (digest := cache.get(file)) is None:
                digest = file_sha256(file)
                cache.put(file, digest)
            duration = row.get("duration")
            records.append(
                ClipRecord(file, digest, row.get("label") or None, row.get("split") or None,
                           float(duration) if duration not in (None, "") else None,
                           root / row["mask"] if row.get("mask") else None)
            )  # fmt: skip
        cache.save()
        classes = tuple(sorted({r.label for r in records if r.label is not None}))
        return cls(root, tuple(records), classes, manifest, missing)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids, labels and splits in a fixed order: equal exactly if the sets are."""
        lines = sorted(f"{r.id}\t{r.label or ''}\t{r.split or ''}" for r in self.records)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def labels(self) -> list[int]:
        """Class number of every record; -1 where there is no label."""
        index = {name: i for i, name in enumerate(self.classes)}
        return [-1 if r.label is None else index[r.label] for r in self.records]

    @property
    def splits(self) -> dict[str, int]:
        """Split names with their sizes; empty if no record has a split."""
        counts: dict[str, int] = {}
        for record in self.records:
            if record.split is not None:
                counts[record.split] = counts.get(record.split, 0) + 1
        return counts

    def split(self, name: str) -> ClipSource:
        """The records of one split. Without splits in the data, :meth:`with_splits` makes them first.

        Raises:
            DataError: there is no such split.
        """
        source = self if self.splits else self.with_splits()
        chosen = tuple(r for r in source.records if r.split == name)
        if not chosen:
            raise DataError(f"{self.root}: no clips in split {name!r}; there are {source.splits}")
        return replace(source, records=chosen)

    def with_splits(self, *, val: float = 0.1, test: float = 0.2) -> ClipSource:
        """Deal records out by a hash of their content.

        A file stays in its split when others are added or the folder is reordered. Copies of one file share a
        split. A split that would come out empty gets the record nearest to its share, if there are three
        records or more.
        """
        if val < 0 or test < 0 or val + test >= 1:
            raise DataError(f"with_splits: expected val, test >= 0 with val + test < 1, got {val} and {test}")
        place = {r.id: int(hashlib.sha256(f"split {r.id}".encode()).hexdigest()[:15], 16) / 16**15
                 for r in self.records}  # fmt: skip
        names = {i: "test" if u < test else "val" if u < test + val else "train" for i, u in place.items()}
        for name, share in (("test", test), ("val", val)):
            rest = sorted((u, i) for i, u in place.items() if names[i] == "train")
            if share and name not in names.values() and len(place) >= 3 and rest:
                names[rest[0][1]] = name
        return replace(self, records=tuple(replace(r, split=names[r.id]) for r in self.records))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def media_files(folder: Path, extensions: tuple[str, ...] = EXTENSIONS) -> list[Path]:
    """Media files under a folder, by extension, in a fixed order. Hidden files and folders are left out."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in extensions and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _folder_rows(root: Path, extensions: tuple[str, ...]) -> list[dict[str, Any]]:
    files = [p.relative_to(root) for p in media_files(root, extensions)]
    if not files:
        kind = "pictures" if extensions == IMAGE_EXTENSIONS else "media files"
        raise DataError(f"{root}: holds no {kind}; looked for {' '.join(extensions)} in it and below")
    tops = {f.parts[0].lower() for f in files if len(f.parts) > 1}
    in_splits = bool(tops) and tops <= set(SPLIT_NAMES) and all(len(f.parts) > 1 for f in files)
    depth = 2 if in_splits else 1
    names = {f.parts[-2] if len(f.parts) > depth else None for f in files}
    labelled = None not in names and len(names) > 1
    return [
        {
            "path": str(f),
            "label": f.parts[-2] if labelled else None,
            "split": SPLIT_NAMES[f.parts[0].lower()] if in_splits else None,
        }
        for f in files
    ]


def _csv_rows(path: Path, *, needs: Iterable[str] = ("path",)) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [c.strip() for c in reader.fieldnames or []]
            lacking = [c for c in needs if c not in columns]
            if lacking:
                raise DataError(
                    f"{path}: expected a column {lacking[0]!r} in the first line, found {columns or 'nothing'}"
                )
            reader.fieldnames = columns
            rows = [{k: v.strip() for k, v in row.items() if isinstance(v, str)} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    for line, row in enumerate(rows, start=2):
        if not row.get("path"):
            raise DataError(f"{path}: line {line}: the path is empty")
        _check_duration(row, f"{path}: line {line}")
    if not rows:
        raise DataError(f"{path}: has a header and no rows")
    return rows


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("clips"), list):
        raise DataError(f"{path}: expected an object with a list 'clips'")
    return manifest


def _manifest_rows(manifest: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, clip in enumerate(manifest["clips"]):
        where = f"{path}: clips[{number}]"
        if not isinstance(clip, dict) or not isinstance(clip.get("path"), str) or not clip["path"]:
            raise DataError(f"{where}: expected an object with a 'path'")
        row = {key: clip.get(key) for key in ("path", "label", "split", "duration", "mask")}
        for key in ("label", "split", "mask"):
            row[key] = None if row[key] is None else str(row[key])
        _check_duration(row, where)
        rows.append(row)
    return rows


def _check_duration(row: dict[str, Any], where: str) -> None:
    value = row.get("duration")
    try:
        good = value in (None, "") or float(value) > 0
    except (TypeError, ValueError):
        good = False
    if not good:
        raise DataError(f"{where}: duration: expected seconds, got {value!r}")


def _refuse_escapes(source: Path, rows: list[dict[str, Any]]) -> None:
    """A list may come with downloaded data: it must not reach files the user did not point at."""
    for name in (row[key] for row in rows for key in ("path", "mask") if row.get(key)):
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{source}: the path {name!r} leaves the folder of the list; allow_outside=True permits that"
            )


def _apply_labels(rows: list[dict[str, Any]], path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such label file")
    given = {row["path"]: row["label"] for row in _csv_rows(path, needs=("path", "label"))}
    for row in rows:
        row["label"] = given.get(row["path"], row.get("label"))
    if unknown := sorted(set(given) - {row["path"] for row in rows}):
        raise DataError(f"{path}: names {len(unknown)} files that are not in the data (first: {unknown[0]})")
