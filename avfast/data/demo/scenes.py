"""Scenes: small pictures of several objects with a mask of class numbers, made of photographs and written digits.

A scene is a piece of a photograph as background and two to four objects on it. An object is either a blob cut out of
another photograph (its texture is its class) or a handwritten digit in one colour. Arrangement is artificial: numbers
on this set show that code learns, and nothing about any method.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from avfast.data.demo.photos import shipped_photos
from avfast.data.outputs import require_folder
from avfast.data.sources import MANIFEST
from avfast.errors import DataError, MissingDependency

TEXTURES = ("brick", "grass", "gravel", "cell", "handwriting", "vessels")
DIGITS = (0, 1, 4, 7)
CLASSES = ("background", *TEXTURES, *(f"digit {n}" for n in DIGITS))
BACKGROUNDS = ("astronaut", "cat", "clock", "coffee", "galaxies", "horse", "photographer", "shuttle-model", "table")
SIZE, VERSION = 96, 1
GENERATOR = "avfast demo-data --kind scenes"
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
# The part of every photograph (left to right) and of all written digits that a split may use: they share no pixel.
PARTS = {"train": (0.0, 0.62), "val": (0.62, 0.76), "test": (0.76, 1.0)}


def make_scenes(
    dir: str | Path,
    *,
    images: int = 1200,
    seed: int = 0,
    size: int = SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write scenes and masks to ``dir`` and return the manifest (also at ``dir/manifest.json``).

    Pictures are ``images/NNNN.png`` (RGB), masks ``masks/NNNN.png`` (one channel of class numbers, 0 the background).
    The label of a scene is the class of its largest object. 70 % are for training, 10 % validation, 20 % test; splits
    share no pixel of a photograph and no written digit. A set that is already there with the same arguments is kept.

    Raises:
        DataError: fewer than 10 images, a size below 32, or ``dir`` holds another program's manifest.
        MissingDependency: Pillow, PyAV or scikit-learn is not installed.

    >>> import tempfile
    >>> make_scenes(tempfile.mkdtemp(), images=10, size=32)["clips"][0]["path"]
    'images/00000.png'
    """
    if images < 10:
        raise DataError(f"make_scenes: images: expected at least 10, got {images}")
    if size < 32:
        raise DataError(f"make_scenes: size: expected at least 32 pixels, got {size}")
    root = require_folder(dir, "make_scenes")
    recipe = {"version": VERSION, "images": images, "seed": seed, "size": size}
    if (kept := _previous(root, recipe)) is not None:
        return kept
    pillow = _pillow()
    photos = {photo.name: photo for photo in shipped_photos()}
    pixels = {name: photo.image.permute(1, 2, 0).numpy() for name, photo in photos.items()}
    written = _written_digits()
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(images):
        split = _split(number, images)
        rng = np.random.default_rng([seed, number])
        picture, mask = compose(rng, pixels, written, split, size)
        name = f"{number:05d}.png"
        pillow.fromarray(picture).save(root / "images" / name, compress_level=1)
        pillow.fromarray(mask).save(root / "masks" / name, compress_level=1)
        areas = np.bincount(mask.ravel(), minlength=len(CLASSES))
        label = CLASSES[1 + int(areas[1:].argmax())]
        entries.append({"path": f"images/{name}", "mask": f"masks/{name}", "label": label, "split": split})
        if progress is not None:
            progress(number + 1, images)
    credits = [
        {"name": p.name, "title": p.title, "licence": p.licence, "author": p.author, "source": p.source}
        for name, p in photos.items()
        if name in (*TEXTURES, *BACKGROUNDS)
    ]
    digits = "Optical Recognition of Handwritten Digits, Alpaydin and Kaynak 1998 (UCI, CC BY 4.0), from scikit-learn"
    manifest = {
        "generator": GENERATOR,
        "recipe": recipe,
        "mask_classes": CLASSES,
        "photos": credits,
        "digits": digits,
        "clips": entries,
    }
    partial = root / f"{MANIFEST}.part"
    partial.write_text(json.dumps(manifest, indent=1))
    os.replace(partial, root / MANIFEST)
    return manifest


def compose(
    rng: np.random.Generator, pixels: dict[str, np.ndarray], written: list[np.ndarray], split: str, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """One scene: uint8 ``[size, size, 3]`` and class numbers uint8 ``[size, size]``."""
    picture = _piece(rng, pixels[rng.choice(BACKGROUNDS)], PARTS[split], size)
    mask = np.zeros((size, size), np.uint8)
    for number in rng.permutation(len(CLASSES) - 1)[: rng.integers(2, 5)] + 1:
        side = int(size * rng.uniform(0.38, 0.58))
        if number <= len(TEXTURES):
            patch = _piece(rng, pixels[TEXTURES[number - 1]], PARTS[split], side)
            shape = _blob(rng, side)
        else:
            low, high = PARTS[split]
            bank = written[number - 1 - len(TEXTURES)]
            strokes = bank[rng.integers(int(low * len(bank)), int(high * len(bank)))]
            shape = _enlarged(strokes, side) > 0.45
            patch = np.broadcast_to(rng.integers(0, 256, 3), (side, side, 3)).astype(np.float32)
        y, x = rng.integers(0, size - side + 1, 2)
        picture[y : y + side, x : x + side][shape] = patch[shape]
        mask[y : y + side, x : x + side][shape] = number
    return picture.clip(0, 255).astype(np.uint8), mask


def _piece(rng: np.random.Generator, photo: np.ndarray, part: tuple[float, float], side: int) -> np.ndarray:
    """A random square of the permitted part of a photograph, resized, perhaps mirrored, brighter or darker."""
    height, width = photo.shape[:2]
    left, right = round(part[0] * width), round(part[1] * width)
    edge = int(min(right - left, height) * rng.uniform(0.6, 1.0))
    y, x = rng.integers(0, height - edge + 1), rng.integers(left, right - edge + 1)
    piece = _enlarged(photo[y : y + edge, x : x + edge], side)
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    return (piece * rng.uniform(0.8, 1.2)).astype(np.float32)


def _enlarged(values: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, [side, side, ...]; shrinks with averaging."""
    import torch
    import torch.nn.functional as F

    channels = values[..., None] if values.ndim == 2 else values
    planes = torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32)).permute(2, 0, 1)[None]
    out = F.interpolate(planes, (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    return out[..., 0] if values.ndim == 2 else out


def _blob(rng: np.random.Generator, side: int) -> np.ndarray:
    """A round shape with a wavy border, bool ``[side, side]``."""
    centre = (side - 1) / 2
    y, x = np.mgrid[:side, :side] - centre
    angle, radius = np.arctan2(y, x), np.hypot(y, x) / (side / 2)
    border = 0.85 + sum(
        rng.uniform(0.02, 0.1) / k * np.sin(k * angle + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 5)
    )
    return radius < border


def _written_digits() -> list[np.ndarray]:
    """Of each class in :data:`DIGITS`, its 8 x 8 samples in [0, 1]."""
    try:
        from sklearn.datasets import load_digits
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("scikit-learn", extra="train", purpose="the written digits of the scenes") from error
    digits = load_digits()
    return [digits.images[digits.target == n] / 16 for n in DIGITS]


def _split(number: int, images: int) -> str:
    place = number / images
    return "train" if place < SHARES["train"] else "val" if place < SHARES["train"] + SHARES["val"] else "test"


def _previous(root: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a set made with the same arguments; refuses to replace another program's."""
    path = root / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("generator") != GENERATOR:
        raise DataError(f"{path}: was not written by {GENERATOR}; choose another folder")
    if manifest.get("recipe") == recipe:
        return manifest
    for clip in manifest["clips"]:  # of the set that this one replaces
        for key in ("path", "mask"):
            (root / clip[key]).unlink(missing_ok=True)
    return None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("pillow", extra="train", purpose="writing pictures") from error
    return Image
