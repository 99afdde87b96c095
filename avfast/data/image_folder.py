"""Pictures as training samples: any folder of image files."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avfast.data.keyed import KeyedDataset
from avfast.data.limits import Refused, check_pixels, max_pixels
from avfast.data.members import Member, opened
from avfast.data.randomness import key64
from avfast.data.sources import ClipSource
from avfast.errors import MissingDependency, UnreadableFile


class PictureError(UnreadableFile):
    """A picture that cannot be used."""


class ImageDataset(KeyedDataset):
    """Pictures of a :class:`ClipSource`, asked for by ``(epoch, index)``.

    A sample is a dictionary: ``image`` uint8 ``[3, S, S]`` RGB, the largest central square resized to ``size``;
    ``label`` (class number, -1 if none); ``index`` into the source; ``id`` (content hash); ``seed``, an integer made of
    ``(seed, epoch, id)`` from which views are drawn; ``mask`` uint8 ``[M, M]`` where every record of the source has one
    (class numbers, the same central square at ``mask_size``, nearest neighbour); and ``errors``.

    Args:
        source: where the pictures are; open it with ``extensions=IMAGE_EXTENSIONS``.
        size: side in pixels.
        seed: of the views.
        train: whether ``seed`` of a sample changes with the epoch.
        on_error: ``"raise"``, ``"skip"`` or ``"resample"``, as for :class:`ClipDataset`.
        cache: None, or ``"memory"`` to keep decoded pictures: ``3 S S`` bytes each.
        mask_size: side of the masks; ``size`` if left out.
        timeout: seconds that reading a picture may take; 0 for no limit.
    """

    noun = "pictures"

    def __init__(
        self,
        source: ClipSource,
        *,
        size: int,
        seed: int,
        train: bool,
        on_error: str = "raise",
        cache: str | None = None,
        mask_size: int | None = None,
        timeout: float = 0.0,
    ) -> None:
        super().__init__(source, seed=seed, train=train, on_error=on_error, cache=cache, timeout=timeout)
        if size < 1:
            raise ValueError(f"avfast.data.ImageDataset: size: expected a positive number of pixels, got {size}")
        self.size, self.mask_size = size, mask_size or size
        self.has_masks = source.records.masked
        self._decoded: dict[int, dict[str, Tensor]] = {}

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        record = self.source.records[index]
        seed = key64(self.seed, epoch if self.train else "fixed", record.id) >> 1  # fits a signed integer
        facts = {"label": int(self._labels[index]), "index": index, "id": record.id, "seed": seed}
        return self._pictures(index) | facts

    def _pictures(self, index: int) -> dict[str, Tensor]:
        if index in self._decoded:
            return self._decoded[index]
        record = self.source.records[index]
        pictures = {"image": read_picture(record.path, self.size)}
        if self.has_masks:
            pictures["mask"] = read_mask(record.mask, self.mask_size)
        if self.cache == "memory":
            self._decoded[index] = pictures
        return pictures


def read_picture(path: str | Path | Member, size: int) -> Tensor:
    """The largest central square of a picture, uint8 ``[3, size, size]`` RGB.

    Turned as its EXIF orientation says; grey, palette, 16-bit and transparent pictures (over white) become RGB.

    Raises:
        PictureError: the file is missing, empty, broken, no picture, or larger than ``AVFAST_MAX_PIXELS``
            (:mod:`avfast.data.limits`).
        MissingDependency: Pillow is not installed.
    """
    image = _open(path)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        largest = float(values.max(initial=0.0))
        # 16 bits where values say so; a 32-bit picture may hold bytes; a float one has no scale but its own.
        top = 65535.0 if 255 < largest <= 65535 or ";16" in image.mode else max(largest, 255.0)
        top = max(largest, 1e-12) if image.mode == "F" else top
        image = _pillow().Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = _pillow().Image.new("RGBA", image.size, "white")
        image = _pillow().Image.alpha_composite(paper, image)
    pillow = _pillow().Image
    square = _square(image.convert("RGB"), size, pillow.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def read_mask(path: str | Path | Member, size: int) -> Tensor:
    """Class numbers of the same central square, uint8 ``[size, size]``, by nearest neighbour.

    Raises:
        PictureError: the file is missing or broken, or is not a picture of one channel.
    """
    image = _open(path)
    if image.mode not in ("L", "P"):
        raise PictureError(path, "mask", f"is a mask of mode {image.mode}; expected one channel of class numbers")
    square = _square(image, size, _pillow().Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(square, dtype=np.uint8))


def _open(path: str | Path | Member) -> Any:
    pillow = _pillow()
    path, most = path if isinstance(path, Member) else Path(path), max_pixels()
    if most > (pillow.Image.MAX_IMAGE_PIXELS or math.inf):  # Pillow has a limit of its own
        pillow.Image.MAX_IMAGE_PIXELS = most
    try:
        with opened(path) as file, pillow.Image.open(file) as image:
            check_pixels(image.width, image.height, "is a picture")
            image.load()
            return _upright(image)
    except FileNotFoundError as error:
        raise PictureError(path, "missing", "does not exist") from error
    except UnreadableFile as error:
        raise PictureError(path, error.cause, error.detail) from error.__cause__
    except Refused as error:
        raise PictureError(path, error.cause, error.detail) from None
    except Exception as error:  # noqa: BLE001 - garbage makes decoders fail in ways nobody can list
        empty = isinstance(path, Path) and path.is_file() and path.stat().st_size == 0
        why = (str(error) or type(error).__name__).splitlines()[0]
        detail = "is empty" if empty else f"cannot be read as a picture ({why})"
        raise PictureError(path, "empty" if empty else "broken", detail) from error


def _upright(image: Any) -> Any:
    """Turned as its EXIF block says; a block that cannot be read says nothing."""
    try:
        return _pillow().ImageOps.exif_transpose(image)
    except (struct.error, ValueError, TypeError, SyntaxError, KeyError, OSError):
        return image.copy()


def _square(image: Any, size: int, filter: Any) -> Any:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), filter, box=(left, top, left + side, top + side))


def _pillow() -> Any:
    try:
        import PIL
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise MissingDependency("pillow", extra="train", purpose="reading pictures") from error
    return PIL
