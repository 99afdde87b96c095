"""One shard, read through once: which samples it holds, where they lie, what they are called and labelled."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from avfast.data.identity import ID_BYTES, region_digest
from avfast.data.index_files import load_index
from avfast.data.lists import shown
from avfast.data.records import Texts
from avfast.data.tar import DamagedTar, HostileTar, TarMember, tar_members
from avfast.errors import DataError

FACTS = 1 << 20  # bytes of a json or cls file
TEXTS = ("names", "labels", "splits", "masks")
NUMBERS = ("ids", "offset", "size", "durations", "mask_offset", "mask_size")
LENGTHS = {name: "offset" for name in (*NUMBERS, *(f"{text}_ends" for text in TEXTS))}
LENGTHS |= {name: name for name in (*TEXTS, "damage", "lacking")}


def load_shard_index(path: Path, size: int) -> dict[str, np.ndarray] | None:
    """What :func:`index_shard` found before in a shard of ``size`` bytes; None where there is nothing to be trusted.

    An index may come with downloaded data: what it says must lie inside the shard.
    """
    known = load_index(path, LENGTHS)
    if known is None or known["ids"].shape[1:] != (ID_BYTES,) or known["ids"].dtype != np.uint8:
        return None
    if len(known["damage"]) != 1 or len(known["lacking"]) != 2:
        return None
    for first, length in (("offset", "size"), ("mask_offset", "mask_size")):
        a, b = known[first], known[length]
        if (
            a.dtype != np.int64
            or b.dtype != np.int64
            or not ((a >= 0) & (b >= 0) & (b <= size) & (a <= size - b)).all()
        ):
            return None
    return known if all(Texts(known[t], known[f"{t}_ends"]).sound for t in TEXTS) else None


def index_shard(shard: Path, extensions: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read a shard through once: its samples with ids and facts, as arrays.

    Raises:
        DataError: the shard cannot be opened, or holds what it must not.
    """
    samples: dict[str, dict[str, TarMember]] = {}
    rows: list[tuple] = []
    damage, lacking = "", 0
    try:
        try:
            for member in tar_members(shard):
                stem, ending = _split(member.name)
                if not stem:
                    continue
                if ending in samples.setdefault(stem, {}):
                    raise HostileTar(f"holds '{shown(member.name)}' twice")
                samples[stem][ending] = member
        except DamagedTar as error:
            damage = str(error)
        handle = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for files in samples.values():
                media = [f for e, f in files.items() if "." + e.rpartition(".")[2] in extensions and e[:5] != "mask."]
                if len(media) > 1:
                    raise HostileTar(
                        f"holds two clips or pictures of one stem: '{shown(media[0].name)}', '{shown(media[1].name)}'"
                    )
                lacking += not media
                rows += [_row(handle, shard, file, files) for file in media]
        finally:
            os.close(handle)
    except HostileTar as error:
        raise DataError(f"{shard}: refused, because it {error}") from error
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror})") from error
    return _arrays(rows) | {"damage": np.array([damage]), "lacking": np.array([lacking, len(samples)])}


def _split(name: str) -> tuple[str, str]:
    """Stem and ending, as webdataset has them; no stem for hidden files and for its ``__…__`` files."""
    path = PurePosixPath(name)
    stem, dot, ending = path.name.partition(".")
    if not stem or not dot or (stem.startswith("__") and stem.endswith("__")):
        return "", ""
    return str(path.parent / stem), ending.lower()


def _row(handle: int, shard: Path, file: TarMember, files: dict[str, TarMember]) -> tuple:
    facts = _facts(handle, shard, files)
    mask = files.get("mask.png")
    digest = region_digest(handle, file.offset, file.size)
    return (file, digest, facts["label"], facts["split"], facts["duration"], mask)


def _facts(handle: int, shard: Path, files: dict[str, TarMember]) -> dict[str, Any]:
    """What ``json`` and ``cls`` of a sample say."""
    from avfast.data.sources import SPLIT_NAMES

    found = {"label": "", "split": "", "duration": np.nan}
    if (file := files.get("cls")) is not None:
        found["label"] = _read(handle, shard, file).strip()
    if (file := files.get("json")) is None:
        return found
    try:
        facts = json.loads(_read(handle, shard, file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shard}/{shown(file.name)}: cannot be read as JSON ({error})") from error
    if not isinstance(facts, dict):
        return found
    for key in ("label", "split"):
        value = facts.get(key)
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            found[key] = str(value)
    found["split"] = SPLIT_NAMES.get(found["split"].lower(), found["split"])
    if (duration := facts.get("duration")) is not None:
        if not isinstance(duration, (int, float)) or not 0 < duration < float("inf"):
            raise DataError(f"{shard}/{shown(file.name)}: duration: expected seconds, got {duration!r}")
        found["duration"] = float(duration)
    return found


def _read(handle: int, shard: Path, file: TarMember) -> str:
    if file.size > FACTS:
        raise DataError(f"{shard}/{shown(file.name)}: has {file.size:,} bytes; expected at most {FACTS:,}")
    try:
        return os.pread(handle, file.size, file.offset).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{shard}/{shown(file.name)}: is no text ({error})") from error


def _arrays(rows: list[tuple]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        "ids": np.frombuffer(b"".join(row[1] for row in rows), np.uint8).reshape(-1, ID_BYTES),
        "offset": np.array([row[0].offset for row in rows], dtype=np.int64),
        "size": np.array([row[0].size for row in rows], dtype=np.int64),
        "durations": np.array([row[4] for row in rows], dtype=np.float64),
        "mask_offset": np.array([row[5].offset if row[5] else 0 for row in rows], dtype=np.int64),
        "mask_size": np.array([row[5].size if row[5] else 0 for row in rows], dtype=np.int64),
    }
    texts = zip(TEXTS, ([r[0].name for r in rows], [r[2] for r in rows], [r[3] for r in rows],
                        [r[5].name if r[5] else "" for r in rows]), strict=True)  # fmt: skip
    for key, values in texts:
        column = Texts.of(values)
        arrays |= {key: column.blob, f"{key}_ends": column.ends}
    return arrays
