"""A labelled set in which one modality is strong and the other weak: the demonstration clips with noise by class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from avfast.data.demo.clips import Take, write_set

GENERATOR = "avfast demo-data --kind labelled"
KINDS = ("ear", "both", "eye", "ear")
"""How the classes 0, 1, 2, 3, 4, ... can be told: half of them by ear, a quarter by eye, a quarter by either."""
WRONG_SOUND = {"ear": 0.1, "both": 0.2, "eye": 0.7}
WRONG_PHOTO = {"ear": 0.7, "both": 0.2, "eye": 0.1}
"""Shares of a class's clips that play a sound, or show a photograph, of another class."""
PIXELS, WAVEFORM = 30.0, 0.02


def make_labelled_clips(
    dir: str | Path,
    *,
    clips: int = 320,
    seed: int = 0,
    photos: str | Path | None = None,
    sounds: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the labelled set to ``dir`` and return its manifest.

    Real photographs with recordings (or modelled sounds, where none are installed), as in
    :func:`~avfast.data.demo.make_demo_clips`, but a clip of class k shows or plays something of another class with the
    probabilities of :data:`WRONG_PHOTO` and :data:`WRONG_SOUND`, and pixels and waveform carry white noise. Who only
    hears can be right in at most about three clips of four, who only sees in about three of five, and which of the two
    to trust depends on the class: nothing but both together tells all of them. The labels are right always.

    Args:
        clips, seed, photos, sounds, progress: as for :func:`~avfast.data.demo.make_demo_clips`.

    Raises:
        DataError, MissingDependency: as there.
    """
    recipe = {"version": 1, "clips": clips, "seed": seed, "faults": False,
              "photos": photos and str(photos), "sounds": sounds and str(sounds)}  # fmt: skip
    return write_set(dir, recipe, GENERATOR, with_noise, "make_labelled_clips", progress)


def with_noise(label: int, classes: int, rng: np.random.Generator) -> Take:
    """Photograph and sound of a clip of class ``label``, each perhaps of another class."""
    kind = KINDS[label % len(KINDS)]
    wrong = rng.random(2) < (WRONG_PHOTO[kind], WRONG_SOUND[kind])
    photo, sound = ((label + rng.integers(1, classes)) % classes if w else label for w in wrong)
    return Take(int(photo), int(sound), PIXELS, WAVEFORM)
