"""CSV lists and JSON manifests as rows: dictionaries with ``path`` and what else is known of a clip."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from avfast.errors import DataError
from avfast.printable import printable


def csv_rows(path: Path, *, needs: Iterable[str] = ("path",)) -> list[dict[str, Any]]:
    """The rows of a CSV file.

    Raises:
        DataError: naming the file and the line.
    """
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


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, an object with a list ``clips``.

    Raises:
        DataError: it is something else.
    """
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("clips"), list):
        raise DataError(f"{path}: expected an object with a list 'clips'")
    return manifest


def manifest_rows(manifest: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The clips of a manifest.

    Raises:
        DataError: naming the entry.
    """
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


def refuse_escapes(source: Path, rows: list[dict[str, Any]]) -> None:
    """A list may come with downloaded data: it must not reach files the user did not point at.

    Links on the disk are followed: a list cannot make them, and folders that lie on other disks are every day's work.

    Raises:
        DataError: a path is absolute or has a part ``..``, in the writing of this system or of Windows.
    """
    for name in (row[key] for row in rows for key in ("path", "mask") if row.get(key)):
        if leaves(name):
            raise DataError(
                f"{source}: the path '{shown(name)}' leaves the folder of the list; allow_outside=True permits that"
            )


def leaves(name: str) -> bool:
    """Whether a name is absolute or has a part ``..``, in the writing of this system or of Windows.

    >>> leaves("a/b.mp4"), leaves("../a.mp4"), leaves("C:\\\\a.mp4")
    (False, True, True)
    """
    if not (name.startswith("/") or ".." in name or "\\" in name or ":" in name):
        return False
    return any(path.is_absolute() or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))


def shown(name: str) -> str:
    """A listed name as messages show it: in one line, and not longer than that.

    >>> len(shown("x" * 4000 + ".mp4")), shown("a\\nb.mp4") == "a\\\\nb.mp4"
    (111, True)
    """
    return printable(name if len(name) <= 120 else f"{name[:60]}…{name[-50:]}")


def apply_labels(rows: list[dict[str, Any]], path: Path) -> None:
    """Labels by path out of a CSV file, over those that rows have.

    Raises:
        DataError: the file cannot be read, or names files that are not among the rows.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such label file")
    given = {row["path"]: row["label"] for row in csv_rows(path, needs=("path", "label"))}
    for row in rows:
        row["label"] = given.get(row["path"], row.get("label"))
    if unknown := sorted(set(given) - {row["path"] for row in rows}):
        raise DataError(f"{path}: names {len(unknown)} files that are not in the data (first: {shown(unknown[0])})")


def _check_duration(row: dict[str, Any], where: str) -> None:
    value = row.get("duration")
    try:
        good = value in (None, "") or 0 < float(value) < math.inf
    except (TypeError, ValueError):
        good = False
    if not good:
        raise DataError(f"{where}: duration: expected seconds, got {value!r}")
