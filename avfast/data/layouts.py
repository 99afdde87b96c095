"""Published data sets as they lie on disk after their own download scripts: ``--data vggsound:DIR`` and so on.

=================== ============================================================= ================================
name                what is read                                                  splits
=================== ============================================================= ================================
``kinetics``        Kinetics CSVs                                                 as the CSVs say
                    (``label,youtube_id,time_start,time_end,split``), also of
                    subsets such as Kinetics-Sounds
``kinetics-sounds`` the lists of OGM-GE, ``my_train.txt`` and ``my_test.txt``     as they say; val dealt from train
                    (``id_start,10,class number``)
``vggsound``        ``vggsound.csv`` (id, start, label, split; no header)         train, test; val dealt from train
``crema-d``         ``VideoFlash/1001_DFA_ANG_XX.flv``, and the lists of OGM-GE   by ``train.csv`` and ``test.csv``
                    where they lie beside it                                      if there, else dealt by actor
``ave``             ``trainSet.txt``, ``valSet.txt``, ``testSet.txt``             as they say
``esc50``           ``meta/esc50.csv`` and ``audio/``                             fold 5 is test; val dealt by source
``ucf101``          ``classInd.txt``, ``trainlist01.txt``, ``testlist01.txt``     list 1; val dealt by group
=================== ============================================================= ================================

ESC-50 is sound alone and UCF-101 in good part pictures alone: they train recipes that need no more, such as one stage
of ``fusion-tuning`` (``method.stage=audio``).

Dealt: by a hash of what must not be in two splits (the actor, the recording, the group), so that it is the same on
every machine. Files are found by name wherever they lie below the folder; those that a list names and the disk lacks
are counted in :attr:`ClipSource.missing`, as half of YouTube is gone.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from avfast.data.listing import folder_files
from avfast.data.sources import EXTENSIONS, SPLIT_NAMES, ClipSource
from avfast.errors import DataError

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".m4a")
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
"""Codes of CREMA-D (Cao et al. 2014, table 1)."""


@dataclass(frozen=True)
class Entry:
    """One clip of a list: its file name without ending, class, split, and what deals it out where ``split`` is None
    (or is ``"train"`` and there is no ``val``). ``other`` is a second name that the file may go by."""

    stem: str
    label: str
    split: str | None
    group: str
    other: str = ""


@dataclass(frozen=True)
class Layout:
    """How one data set lies on disk.

    Attributes:
        needs: what is looked for, any one of each tuple; patterns relative to the folder.
        entries: reads the lists of a folder.
        test: whether test clips are dealt too, or only validation.
        extensions: of the clips.
    """

    needs: tuple[tuple[str, ...], ...]
    entries: Callable[[Path], Iterator[Entry]]
    test: bool = False
    extensions: tuple[str, ...] = EXTENSIONS


def open_source(path: str | Path, *, trust: bool = False, **options: Any) -> ClipSource:
    """What a ``--data`` word names: a published data set (``vggsound:DIR``), or anything that
    :meth:`ClipSource.open` takes, with its ``options``."""
    name, colon, folder = str(path).partition(":")
    if colon and name in LAYOUTS:
        return open_layout(name, folder, trust=trust)
    return ClipSource.open(path, trust=trust, **options)


def open_layout(name: str, folder: str | Path, *, trust: bool = False) -> ClipSource:
    """The clips of a published data set.

    Args:
        name: a key of :data:`LAYOUTS`.
        folder: where it was unpacked.
        trust: as for :meth:`ClipSource.open`.

    Raises:
        DataError: unknown name; a folder that does not hold what is looked for; a list that cannot be read; or none of
            the listed clips on the disk.

    >>> open_layout("vggsound", "/no/such/folder")
    Traceback (most recent call last):
    ...
    avfast.errors.DataError: /no/such/folder: no such folder
    """
    if name not in LAYOUTS:
        raise DataError(f"layout '{name}': expected one of {', '.join(LAYOUTS)}")
    layout, root = LAYOUTS[name], Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    for patterns in layout.needs:
        if not any(next(root.glob(pattern), None) for pattern in patterns):
            raise DataError(f"{root}: no {name} in the published layout: looked for {' or '.join(patterns)}")
    try:
        entries = list(layout.entries(root))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{root}: the lists of {name} cannot be read ({error})") from error
    names, ids = folder_files(root, layout.extensions, trust=trust)
    files = _by_stem(names)
    rows = [
        {"path": path, "label": entry.label, "split": entry.split or "train", "group": entry.group}
        for entry in entries if (path := files.get(entry.stem) or files.get(entry.other))
    ]  # fmt: skip
    if not rows:
        example = f", for instance '{entries[0].stem}'" if entries else ""
        raise DataError(f"{root}: none of the {len(entries)} clips that {name} lists is on the disk{example}")
    _deal(rows, layout.test and not any(entry.split == "test" for entry in entries))
    place = {name: row for row, name in enumerate(names)}
    own = ids[[place[row["path"]] for row in rows]]
    return ClipSource.from_rows(root, rows, ids=own, missing=len(entries) - len(rows))


def _by_stem(names: list[str]) -> dict[str, str]:
    """Files by name without ending; the first in the order of ``names`` where several share it."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(PurePosixPath(name).stem, name)
    return found


def _deal(rows: list[dict], test: bool, *, val_share: float = 0.1, test_share: float = 0.2) -> None:
    """Give validation (and test) clips to data that come without, a whole group at a time."""
    has_val = any(row["split"] == "val" for row in rows)
    for row in rows:
        group = row.pop("group")
        if row["split"] != "train" or (has_val and not test):
            continue
        place = int(hashlib.sha256(f"deal {group}".encode()).hexdigest()[:15], 16) / 16**15
        if test and place < test_share:
            row["split"] = "test"
        elif not has_val and place >= 1 - val_share:
            row["split"] = "val"


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _first(root: Path, *patterns: str) -> Path:
    return next(path for pattern in patterns for path in sorted(root.glob(pattern)))


def _split_name(name: str, where: str) -> str:
    if name.lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: split: expected one of {', '.join(SPLIT_NAMES)}, got '{name}'")
    return SPLIT_NAMES[name.lower()]


def _kinetics(root: Path) -> Iterator[Entry]:
    for path in sorted([*root.glob("*.csv"), *root.glob("annotations/*.csv")]):
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            wanted = {"label", "youtube_id", "time_start", "time_end", "split"}
            if lacking := wanted - set(reader.fieldnames or ()):
                raise DataError(
                    f"{path}: expected columns {', '.join(sorted(wanted))}; {', '.join(sorted(lacking))} lack"
                )
            for line, row in enumerate(reader, start=2):
                where = f"{path}: line {line}"
                start, end = (_integer(row[key], where, key) for key in ("time_start", "time_end"))
                split = _split_name(row["split"], where)
                yield Entry(f"{row['youtube_id']}_{start:06d}_{end:06d}", row["label"], split, row["youtube_id"])


def _lacking(path: Path, wanted: set[str], lacking: set[str]) -> DataError:
    return DataError(f"{path}: expected columns {', '.join(sorted(wanted))}; {', '.join(sorted(lacking))} lack")


def _integer(text: str | None, where: str, name: str) -> int:
    try:
        return int(float(text or ""))
    except (ValueError, OverflowError):
        raise DataError(f"{where}: {name}: expected seconds, got '{text}'") from None


def _vggsound(root: Path) -> Iterator[Entry]:
    path = _first(root, "vggsound.csv")
    with path.open(newline="", encoding="utf-8-sig") as file:
        for line, row in enumerate(csv.reader(file), start=1):
            where = f"{path}: line {line}"
            if len(row) != 4:
                raise DataError(f"{where}: expected id, start, label, split; got {len(row)} fields")
            start = _integer(row[1], where, "start")
            split = _split_name(row[3].strip(), where)
            yield Entry(f"{row[0]}_{start:06d}", row[2], split, row[0], f"{row[0]}_{start}")


def _kinetics_sounds(root: Path) -> Iterator[Entry]:
    for split, name in (("train", "my_train.txt"), ("test", "my_test.txt")):
        path = _first(root, name)
        for line, text in enumerate(_lines(path), start=1):
            where, fields = f"{path}: line {line}", text.split(",")
            if len(fields) != 3:
                raise DataError(f"{where}: expected id_start, seconds, class number; got '{text}'")
            video, _, begin = fields[0].rpartition("_")
            start, seconds = _integer(begin, where, "start"), _integer(fields[1], where, "seconds")
            label = f"{_integer(fields[2], where, 'class number'):02d}"
            yield Entry(fields[0], label, split, video, f"{video}_{start:06d}_{start + seconds:06d}")


def _crema_d(root: Path) -> Iterator[Entry]:
    listed = {}
    for split in ("train", "test"):
        for path in root.glob(f"{split}.csv"):
            listed |= {text.split(",")[0].removesuffix(".flv"): split for text in _lines(path)}
    for path in sorted(root.glob("VideoFlash/*")):
        parts = path.stem.split("_")  # actor, sentence, emotion, level
        if path.suffix.lower() not in EXTENSIONS:
            continue
        if len(parts) != 4 or parts[2] not in EMOTIONS:
            raise DataError(f"{path}: expected a name such as 1001_DFA_ANG_XX, with one of {', '.join(EMOTIONS)}")
        if listed and path.stem not in listed:
            continue  # what neither list names belongs to no split
        yield Entry(path.stem, EMOTIONS[parts[2]], listed.get(path.stem), parts[0])


def _ave(root: Path) -> Iterator[Entry]:
    for split, name in (("train", "trainSet.txt"), ("val", "valSet.txt"), ("test", "testSet.txt")):
        path = _first(root, name)
        for line, text in enumerate(_lines(path), start=1):
            fields = text.split("&")
            if len(fields) != 5:
                raise DataError(
                    f"{path}: line {line}: expected Category&VideoID&Quality&StartTime&EndTime, got '{text}'"
                )
            if fields[:2] != ["Category", "VideoID"]:  # the header
                yield Entry(fields[1], fields[0], split, fields[1])


def _esc50(root: Path) -> Iterator[Entry]:
    path = _first(root, "meta/esc50.csv")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        wanted = {"filename", "fold", "category", "src_file"}
        if lacking := wanted - set(reader.fieldnames or ()):
            raise _lacking(path, wanted, lacking)
        for row in reader:
            stem = PurePosixPath(row["filename"]).stem
            yield Entry(stem, row["category"], "test" if row["fold"] == "5" else "train", row["src_file"])


def _ucf101(root: Path) -> Iterator[Entry]:
    names = {}
    for text in _lines(_first(root, "classInd.txt", "*/classInd.txt")):
        number, _, name = text.partition(" ")
        names[number] = name
    for split, name in (("train", "trainlist01.txt"), ("test", "testlist01.txt")):
        for text in _lines(_first(root, name, f"*/{name}")):
            clip = PurePosixPath(text.split(" ")[0])
            if clip.parent.name not in names.values():
                raise DataError(f"{root}: {name}: class '{clip.parent.name}' is not in classInd.txt")
            # v_ApplyEyeMakeup_g08_c01: clips of one group are cut from one video.
            yield Entry(clip.stem, clip.parent.name, split, clip.stem.rsplit("_", 1)[0])


LAYOUTS: dict[str, Layout] = {
    "kinetics": Layout((("*.csv", "annotations/*.csv"),), _kinetics),
    "kinetics-sounds": Layout((("my_train.txt",), ("my_test.txt",)), _kinetics_sounds),
    "vggsound": Layout((("vggsound.csv",),), _vggsound),
    "crema-d": Layout((("VideoFlash/*",),), _crema_d, test=True),
    "ave": Layout((("trainSet.txt",), ("valSet.txt",), ("testSet.txt",)), _ave),
    "esc50": Layout((("meta/esc50.csv",), ("audio/*",)), _esc50, extensions=AUDIO_EXTENSIONS),
    "ucf101": Layout(
        tuple((name, f"*/{name}") for name in ("classInd.txt", "trainlist01.txt", "testlist01.txt")), _ucf101
    ),
}
