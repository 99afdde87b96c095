"""The demonstration set: short mp4 clips in which a picture moves with a sound.

Class ``i`` is photograph ``i`` with sound ``i``, always. Within a clip the picture drifts at random and zooms
in with the loudness of the sound, so that there is identity to learn, and synchrony beside it. Pairing and
motion are
artificial: numbers on this set show that code learns, and nothing about any method.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from avfast.data.demo.encode import AAC, H264, first_codec, write_clip
from avfast.data.demo.faults import plant_faults
from avfast.data.demo.modelled import RATE
from avfast.data.demo.photos import Photo, choose_photos
from avfast.data.demo.sounds import Sound, choose_sounds
from avfast.data.identity import file_sha256
from avfast.data.media import read_all
from avfast.data.outputs import require_folder
from avfast.data.sources import MANIFEST
from avfast.errors import DataError

CLASSES, SECONDS, FPS, SIZE = 16, 2.0, 12, 96
VERSION = 1
GENERATOR = "avfast demo-data"


def make_demo_clips(
    dir: str | Path,
    *,
    clips: int = 160,
    seed: int = 0,
    faults: bool = False,
    photos: str | Path | None = None,
    sounds: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the demonstration set to ``dir`` and return its manifest (also at ``dir/manifest.json``).

    Clips are 2 s of 96 x 96 H.264 at 12 frames/s with 16 kHz AAC. A set that is already there with the same
    arguments is kept; one with other arguments is replaced. Files that avfast did not write are never
    touched.

    Args:
        clips: how many, at least 6; 16 classes from 48 clips on, fewer below. Of each class a fifth is the
            test split and a tenth validation (at least one each): other crops and other moments of the same
            pairs.
        seed: of everything random. The same seed and the same FFmpeg give the same files.
        faults: also write broken files of each kind to ``dir/faults`` for ``avfast media-scan``.
        photos, sounds: folders to take pictures and recordings from.
        progress: called with (done, total).

    Raises:
        DataError: a folder cannot be used, or ``dir`` holds another program's ``manifest.json``.
        MissingDependency: PyAV is not installed.
    """
    recipe = {"version": VERSION, "clips": clips, "seed": seed, "faults": faults,
              "photos": photos and str(photos), "sounds": sounds and str(sounds)}  # fmt: skip
    return write_set(dir, recipe, GENERATOR, as_paired, "make_demo_clips", progress)


@dataclass(frozen=True)
class Take:
    """What one clip shows and plays: classes of its photograph and of its sound, and noise added to them (of pixels
    in 0 to 255, and of a waveform in -1 to 1, standard deviations). Outside of ``shown``, shares of the clip's time, it
    shows the photograph of class ``cutaway`` instead."""

    photo: int
    sound: int
    pixels: float = 0.0
    waveform: float = 0.0
    cutaway: int | None = None
    shown: tuple[float, float] = (0.0, 1.0)


def as_paired(label: int, classes: int, rng: np.random.Generator) -> Take:
    """The photograph and the sound of the class, clean."""
    return Take(label, label)


def write_set(
    dir: str | Path,
    recipe: dict[str, Any],
    generator: str,
    choose: Callable[[int, int, np.random.Generator], Take],
    name: str,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Write clips and their manifest, or keep the set that is there if it is of the same recipe.

    ``choose`` says what a clip of a class shows and plays; errors begin with ``name``.
    """
    clips, seed = recipe["clips"], recipe["seed"]
    if clips < 6:
        raise DataError(f"{name}: clips: expected at least 6, got {clips}")
    if seed < 0:
        raise DataError(f"{name}: seed: expected 0 or more, got {seed}")
    root = require_folder(dir, name)
    if (kept := _previous(root, recipe, generator)) is not None:
        return kept
    classes = min(CLASSES, clips // 3)
    chosen_photos = choose_photos(classes, recipe["photos"])
    chosen_sounds, notes = choose_sounds(classes, seed=seed, folder=recipe["sounds"])
    (root / "clips").mkdir(parents=True, exist_ok=True)

    entries = []
    for number in range(clips):
        label, take = number % classes, number // classes
        takes = len(range(label, clips, classes))
        noise = np.random.default_rng([seed, label, take, 1])
        chosen = choose(label, classes, noise)
        photo, sound = chosen_photos[chosen.photo], chosen_sounds[chosen.sound]
        path = root / "clips" / f"{number:04d}.mp4"
        waveform, boxes = _plan(photo, sound, np.random.default_rng([seed, label, take]))
        frames = _render(photo, boxes)
        if chosen.cutaway is not None:
            other = chosen_photos[chosen.cutaway]
            _, elsewhere = _plan(other, sound, np.random.default_rng([seed, label, take, 2]))
            frames = _cut_away(frames, _render(other, elsewhere), chosen.shown)
        if chosen.pixels:
            frames = np.clip(frames + noise.normal(0, chosen.pixels, frames.shape), 0, 255).astype(np.uint8)
        if chosen.waveform:
            waveform = np.clip(waveform + noise.normal(0, chosen.waveform, waveform.shape), -1, 1).astype(np.float32)
        write_clip(path, frames, FPS, waveform, RATE)
        entries.append(
            {
                "path": path.relative_to(root).as_posix(),
                "label": f"{chosen_photos[label].name}+{chosen_sounds[label].name}",
                "split": _split(take, takes),
                "duration": SECONDS,
                "photo": _credit(photo) | {"title": photo.title},
                "sound": _credit(sound) | {"kind": sound.kind},
                "seed": [seed, label, take],
                "crop_path": [[round(float(v), 2) for v in box] for box in boxes],
                "sha256": file_sha256(path),
                "content": content_hash(path),
            }
            | ({} if chosen.cutaway is None else {"shown": [round(t * SECONDS, 4) for t in chosen.shown]})
        )
        if progress is not None:
            progress(number + 1, clips)
    recordings = sum(s.kind == "recording" for s in chosen_sounds)
    planted = []
    if recipe["faults"]:
        planted = plant_faults(root / "faults", root / entries[0]["path"], _render, chosen_photos[0])
    manifest = {
        "generator": generator,
        "recipe": recipe,
        "codecs": {"video": first_codec(H264), "audio": first_codec(AAC)},
        "media": {"photos": classes, "recordings": recordings, "synthetic": classes - recordings},
        "notes": notes,
        "clips": entries,
        "faults": planted,
    }
    partial = root / f".{MANIFEST}.part"
    partial.write_text(json.dumps(manifest, indent=1))
    os.replace(partial, root / MANIFEST)
    return manifest


def honesty_line(manifest: dict[str, Any] | None) -> str:
    """What a report on these data must say first.

    >>> honesty_line({"media": {"photos": 16, "recordings": 10, "synthetic": 6}}).split(";")[0]
    'demo data: real pictures, SYNTHETIC sounds (6 of 16)'
    """
    if (manifest or {}).get("generator") == "avfast demo-data --kind scenes":
        return (
            "demo data: real photographs and written digits; arrangement artificial: this shows that the code learns, "
            "not that a method is good"
        )
    media = (manifest or {}).get("media")
    if not isinstance(media, dict):
        return "media as given by the user"
    synthetic, total = media["synthetic"], media["synthetic"] + media["recordings"]
    sounds = f"SYNTHETIC sounds ({synthetic} of {total})" if synthetic else "real recordings"
    made = "pairing, motion and noise" if manifest.get("generator", "").endswith("labelled") else "pairing and motion"
    return (
        f"demo data: real pictures, {sounds}; {made} artificial: this shows that the code "
        "learns, not that a method is good"
    )


def content_hash(path: Path) -> str:
    """SHA-256 of what a clip decodes to (pictures as RGB bytes, sound as 16-bit samples).

    Encoded bytes differ between FFmpeg builds; this says what was made.
    """
    decoded = read_all(path, size=SIZE, sample_rate=RATE)
    digest = hashlib.sha256(decoded.frames.numpy().tobytes())
    digest.update((decoded.waveform.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _split(take: int, takes: int) -> str:
    test, val = max(1, round(0.2 * takes)), max(1, round(0.1 * takes))
    if take >= takes - test:
        return "test"
    return "val" if take >= takes - test - val else "train"


def _plan(photo: Photo, sound: Sound, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The waveform ``[S]`` and the crop ``(top, left, side)`` of every frame, ``[F, 3]``."""
    wave = _excerpt(sound.waveform, rng)
    count = round(SECONDS * FPS)
    for _ in range(rng.integers(1, 3)):  # gaps make the loudness, and so the motion, this clip's own
        first, length = rng.uniform(0, SECONDS - 0.3), rng.uniform(0.15, 0.35)
        t = np.arange(len(wave)) / RATE
        wave = wave * np.clip(np.maximum(first - t, t - first - length) / 0.01, 0, 1)
    edges = np.linspace(0, len(wave), count + 1).round().astype(int)
    power = np.add.reduceat(wave**2, edges[:-1]) / np.diff(edges)
    loudness = np.sqrt(np.convolve(np.pad(power, 1, "edge"), [0.25, 0.5, 0.25], "valid"))
    loudness /= max(loudness.max(), 1e-6)

    height, width = photo.image.shape[1:]
    side = min(height, width) * rng.uniform(0.78, 0.98) * (1 - 0.42 * loudness)
    drift = np.linspace(rng.uniform(0, 1, 2), rng.uniform(0, 1, 2), count)
    top, left = drift[:, 0] * (height - side), drift[:, 1] * (width - side)
    wave = wave * rng.uniform(0.4, 0.95) + 0.003 * rng.standard_normal(len(wave))
    return np.clip(wave, -1, 1).astype(np.float32), np.stack([top, left, side], 1)


def _excerpt(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two seconds from a random place not much quieter than the whole; short recordings are repeated."""
    n = round(SECONDS * RATE)
    if len(wave) < n + RATE:
        wave = np.tile(wave, -(-(n + RATE) // len(wave)))
    usual = np.sqrt((wave**2).mean())
    for _ in range(10):
        start = rng.integers(len(wave) - n + 1)
        out = wave[start : start + n]
        if np.sqrt((out**2).mean()) > 0.5 * usual:
            break
    return out / max(np.abs(out).max(), 1e-6)


def _render(photo: Photo, boxes: np.ndarray) -> np.ndarray:
    """Crops ``(top, left, side)`` of a photograph as uint8 ``[F, 96, 96, 3]``, sampled between pixels."""
    height, width = photo.image.shape[1:]
    steps = (torch.arange(SIZE) + 0.5) / SIZE
    top, left, side = torch.from_numpy(np.asarray(boxes, np.float32)).T[:, :, None]
    y = (2 * (top + steps * side) / height - 1)[:, :, None].expand(-1, -1, SIZE)
    x = (2 * (left + steps * side) / width - 1)[:, None, :].expand(-1, SIZE, -1)
    frames = F.grid_sample(
        photo.image.expand(len(boxes), -1, -1, -1),
        torch.stack([x, y], -1),
        padding_mode="border",
        align_corners=False,
    )
    return frames.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _cut_away(frames: np.ndarray, other: np.ndarray, shown: tuple[float, float]) -> np.ndarray:
    """`frames` while `shown`, `other` before and after."""
    time = (np.arange(len(frames)) + 0.5) / len(frames)
    own = (time >= shown[0]) & (time < shown[1])
    return np.where(own[:, None, None, None], frames, other)


def _credit(item: Photo | Sound) -> dict[str, str]:
    return {"name": item.name, "source": item.source, "licence": item.licence, "author": item.author}


def _previous(root: Path, recipe: dict[str, Any], generator: str) -> dict[str, Any] | None:
    """The set that is already there if it is the wanted one; otherwise its files are removed."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        manifest = {}
    if not isinstance(manifest, dict) or manifest.get("generator") != generator:
        raise DataError(f"{root / MANIFEST}: not written by {generator}; choose another folder")
    files = [(root / c["path"], c["sha256"]) for c in manifest["clips"] + manifest["faults"]]
    if manifest["recipe"] == recipe and all(p.is_file() and file_sha256(p) == digest for p, digest in files):
        return manifest
    (root / MANIFEST).unlink()
    for path, _ in files:
        if path.parent.parent == root and ".." not in path.parts:
            path.unlink(missing_ok=True)
    return None
