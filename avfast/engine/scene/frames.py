"""Clips as pictures: the frames of every clip in a folder of their own, for the stages that learn from stills."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avfast.data.media import MediaError, read_clip
from avfast.data.outputs import require_folder
from avfast.data.sources import MANIFEST, ClipRecord
from avfast.engine.checkpoint import write_atomic
from avfast.engine.sources import DataBundle
from avfast.errors import DataError, MissingDependency

GENERATOR, VERSION = "avfast scene frames", 1
QUALITY = 95


def extract_frames(
    bundle: DataBundle,
    folder: Path,
    *,
    frames: int,
    size: int,
    duration: float,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``frames`` pictures of every clip below ``folder``, with a manifest that keeps splits and labels.

    The pictures are those on screen at the centres of equal parts of the middle ``duration`` seconds, the largest
    central square at ``size`` pixels. A folder made from the same clips with the same arguments is kept. Clips that
    cannot be read are left out and listed in the manifest under ``unreadable``.

    Raises:
        DataError: no clip could be read, or the folder holds a manifest of something else.
        MissingDependency: Pillow is not installed.
    """
    pillow = _pillow()
    require_folder(folder, "frames")
    recipe = {"version": VERSION, "source": bundle.fingerprint, "frames": frames, "size": size, "duration": duration}
    if _kept(folder, recipe):
        return folder
    entries: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    records = bundle.source.records
    for number, record in enumerate(records):
        try:
            clip = read_clip(
                record.path, start=None, duration=duration, frames=frames, size=size, sample_rate=16000
            )  # fmt: skip
        except MediaError as error:
            unreadable.append({"path": str(error.path), "cause": error.cause})
            continue
        place = folder / "pictures" / f"{number // 1000:03d}"  # folders of a thousand clips: listing stays quick
        place.mkdir(parents=True, exist_ok=True)
        for k, frame in enumerate(clip.frames):
            path = place / f"{number:06d}_{k:02d}.jpg"
            picture = pillow.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
            picture.save(path, quality=QUALITY, subsampling=0)
            entries.append(_entry(record, path.relative_to(folder), k))
        if progress is not None:
            progress(number + 1, len(records))
    if not entries:
        raise DataError(f"no clip of {bundle.source.root} could be read; `avfast media-scan` names the causes")
    about = bundle.source.manifest or {}
    made = {"media": about["media"], "source": about.get("generator", "")} if "media" in about else {}
    manifest = {"generator": GENERATOR, "recipe": recipe, **made, "clips": entries, "unreadable": unreadable}
    write_atomic(folder / MANIFEST, lambda path: path.write_text(json.dumps(manifest)))
    return folder


def _entry(record: ClipRecord, path: Path, k: int) -> dict[str, Any]:
    known = {"label": record.label, "split": record.split}
    return {"path": path.as_posix(), "clip": record.id, "frame": k} | {n: v for n, v in known.items() if v is not None}


def _kept(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether the frames are there already; those of other clips or settings are removed."""
    file = folder / MANIFEST
    if not file.is_file():
        return False
    try:
        manifest = json.loads(file.read_text())
    except (OSError, ValueError):
        manifest = {}
    if not isinstance(manifest, dict) or manifest.get("generator") != GENERATOR:
        raise DataError(f"{file}: not written by this recipe; choose another --out")
    if manifest["recipe"] == recipe and all((folder / c["path"]).is_file() for c in manifest["clips"]):
        return True
    file.unlink()
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    return False


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingDependency("pillow", extra="train", purpose="writing frames") from error
    return PIL.Image
