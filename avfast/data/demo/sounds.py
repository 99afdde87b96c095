"""Where the sounds of the demonstration set come from: recordings that are there, or models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avfast.data.converters import require_av
from avfast.data.demo.modelled import MODELS, RATE
from avfast.errors import DataError

EXTENSIONS = (".wav", ".ogg", ".oga", ".flac", ".mp3", ".m4a", ".opus")
# Linux packages of event sounds and speaker tests; read where they are installed, never downloaded or copied.
INSTALLED = {
    "/usr/share/sounds/freedesktop": ("sound-theme-freedesktop", "GPL-2+, CC BY or CC BY-SA, by file"),
    "/usr/share/sounds/alsa": ("alsa-utils", "GPL-2"),
}
SECONDS = 8.0
# A group of recordings is used only if it gives every class a sound of its own of at least this length.
SHORTEST = 0.3


@dataclass(frozen=True)
class Sound:
    """A mono waveform at 16 kHz, float32 with peak 1, and where it is from."""

    name: str
    waveform: np.ndarray
    kind: str  # "recording" or "synthetic"
    licence: str
    author: str
    source: str


def choose_sounds(count: int, *, seed: int, folder: str | Path | None = None) -> tuple[list[Sound], list[str]]:
    """The first ``count`` sounds of the best source, and notes on what was chosen and why.

    Order of preference: the user's folder, installed sound packages, modelled sounds. Recordings are only
    used as a
    group: when there are fewer distinct ones than classes, modelled sounds fill the rest.
    """
    notes: list[str] = []
    chosen: list[Sound] = []
    if folder is not None:
        chosen = folder_sounds(Path(folder), "user", "as given by the user")
        if not chosen:
            raise DataError(f"{folder}: no recordings found; looked for {' '.join(EXTENSIONS)}")
        notes.append(f"{len(chosen)} distinct recordings in {folder}")
    else:
        for place, (package, licence) in INSTALLED.items():
            if Path(place).is_dir():
                chosen += folder_sounds(Path(place), package, licence)
        chosen = _distinct(chosen)
        if not chosen:
            notes.append("no sound packages are installed: all sounds are synthetic")
        elif len(chosen) < count:
            notes.append(f"only {len(chosen)} distinct recordings are installed: synthetic sounds fill the rest")
    if len(chosen) < count:
        chosen += synthetic_sounds(seed)[: count - len(chosen)]
    return chosen[:count], notes


def synthetic_sounds(seed: int) -> list[Sound]:
    """The sixteen modelled sounds of :mod:`avfast.data.demo.modelled`."""
    sounds = []
    for number, model in enumerate(MODELS):
        wave = model(np.random.default_rng([seed, number]), int(SECONDS * RATE))
        wave = _normalise(wave)
        name = model.__name__.replace("_", "-")
        sounds.append(
            Sound(name, wave, "synthetic", "CC0-1.0", "avfast", f"avfast.data.demo.modelled.{model.__name__}")
        )
    return sounds


def folder_sounds(folder: Path, author: str, licence: str) -> list[Sound]:
    """Distinct audible recordings below a folder, in a fixed order."""
    sounds = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()):
        wave = _read(path)
        if wave is not None and len(wave) >= SHORTEST * RATE and np.abs(wave).max() > 1e-3:
            sounds.append(Sound(path.stem, _normalise(wave), "recording", licence, author, str(path)))
    return _distinct(sounds)


def _distinct(sounds: list[Sound]) -> list[Sound]:
    """Themes hold many names for one recording; keep the first of equal waveforms and of equal names."""
    seen: set[object] = set()
    kept = []
    for sound in sounds:
        keys = {sound.name, np.round(sound.waveform, 2).tobytes()}
        if not keys & seen:
            kept.append(sound)
        seen |= keys
    return kept


def _normalise(wave: np.ndarray) -> np.ndarray:
    wave = wave - wave.mean()
    return (wave / max(np.abs(wave).max(), 1e-9)).astype(np.float32)


def _read(path: Path) -> np.ndarray | None:
    av = require_av()
    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
            frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
            frames += resampler.resample(None)
    except (av.FFmpegError, IndexError, OSError, ValueError):
        return None
    return np.concatenate([f.to_ndarray().reshape(-1) for f in frames]) if frames else None
