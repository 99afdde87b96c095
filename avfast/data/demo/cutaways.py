"""Clips that cut away: what is heard is on screen only for part of the time, so which frame is taken matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from avfast.data.demo.clips import Take, write_set

GENERATOR = "avfast demo-data --kind cutaways"
SHARE = 0.4
"""Of a clip, during which its own photograph is on screen; before and after it shows that of another class."""


def make_cutaway_clips(
    dir: str | Path,
    *,
    clips: int = 160,
    seed: int = 0,
    photos: str | Path | None = None,
    sounds: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the set to ``dir`` and return its manifest, in which ``shown`` is when a clip's own photograph is seen.

    As :func:`~avfast.data.demo.make_demo_clips`, but the photograph of the clip's class is on screen for
    :data:`SHARE` of it, at a random time, and one of another class, drawn for each clip, for the rest. Any frame is the
    right one with that probability; the middle one for two clips in three.

    Args:
        clips, seed, photos, sounds, progress: as for :func:`~avfast.data.demo.make_demo_clips`.

    Raises:
        DataError, MissingDependency: as there.
    """
    recipe = {"version": 1, "clips": clips, "seed": seed, "faults": False,
              "photos": photos and str(photos), "sounds": sounds and str(sounds)}  # fmt: skip
    return write_set(dir, recipe, GENERATOR, cutting_away, "make_cutaway_clips", progress)


def cutting_away(label: int, classes: int, rng: np.random.Generator) -> Take:
    """The photograph and the sound of the class, and a photograph of another class for the rest of the time."""
    other = int((label + rng.integers(1, classes)) % classes)
    start = float(rng.uniform(0, 1 - SHARE))
    return Take(label, label, cutaway=other, shown=(start, start + SHARE))
