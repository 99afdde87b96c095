"""Boxes of rotated images cut out and resized, all in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import exemplar_crop as reference
from . import _check, _registry
from .sample_exemplars import Exemplars

FILTERS = ("bicubic", "bilinear")


def crop_exemplars(
    images: Tensor,
    exemplars: Exemplars | Tensor,
    out: int = 64,
    filter: str = "bicubic",
    *,
    antialias: bool = True,
) -> Tensor:
    """Rotate each image, cut out each of its boxes and resize it to ``[C, out, out]``.

    The rotated image is never made: points of the upright box, one per source pixel, are read from the image
    bilinearly and resized along rows and columns by the antialiased filters of Pillow and
    ``torch.nn.functional.interpolate(antialias=True)``. With theta = 0 and whole pixels this is exactly crop and
    resize. A box whose right edge lies left of its left edge gives a mirrored crop; beyond its border an image goes on
    as its border. No gradient flows through.

    Source: Li et al. 2023, "Correlational Image Modeling for Self-Supervised Visual Pre-Training", section 3, where the
    whole image is rotated by nearest neighbours for every exemplar.

    Args:
        images: uint8 ``[B, C, H, W]``, or floating-point in any range. Any strides.
        exemplars: what :func:`sample_exemplars` drew for images of this size, or boxes ``[B, E, 5]`` like those
            (float32 or float64: theta in degrees, then edges in source pixels from the centre).
        out: side of a crop in pixels.
        filter: ``"bicubic"`` or ``"bilinear"``.
        antialias: whether the filter widens when a box is made smaller.

    Returns:
        ``[B, E, C, out, out]`` of the images' dtype; bytes are rounded and held in 0 to 255.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    >>> from avfast import sample_exemplars
    >>> images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    >>> crop_exemplars(images, sample_exemplars(2, size=32, generator=0), out=8).shape
    torch.Size([2, 6, 3, 8, 8])
    >>> whole = torch.tensor([[[0.0, -16, -16, 16, 16]]]).expand(2, 1, 5)
    >>> torch.equal(crop_exemplars(images, whole, out=32)[:, 0], images)
    True
    """
    name = "crop_exemplars"
    boxes = exemplars.boxes if isinstance(exemplars, Exemplars) else exemplars
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        _check.floating(name, "images", images)
    _check.strided(name, "images", images)
    _check.floating(name, "exemplars", boxes)
    if images.dim() != 4 or 0 in images.shape[2:]:
        _check.fail(name, "images", "shape [B, C, H, W] of at least one pixel", tuple(images.shape))
    if boxes.dtype not in (torch.float32, torch.float64):
        _check.fail(name, "exemplars", "float32 or float64 boxes", boxes.dtype, TypeError)
    if boxes.dim() != 3 or boxes.shape[0] != images.shape[0] or boxes.shape[2] != 5:
        _check.fail(name, "exemplars", f"boxes of shape ({images.shape[0]}, E, 5)", tuple(boxes.shape))
    if boxes.device != images.device:
        _check.fail(name, "exemplars", f"boxes on {images.device}", boxes.device)
    if isinstance(out, bool) or not isinstance(out, int):
        _check.fail(name, "out", "an integer", type(out).__name__, TypeError)
    if out < 1:
        _check.fail(name, "out", "an integer >= 1", out)
    _check.one_of(name, "filter", filter, FILTERS)
    return _crop(images.detach(), boxes.detach(), out, filter == "bicubic", bool(antialias))


def _fake(images: Tensor, boxes: Tensor, out: int, cubic: bool, antialias: bool) -> Tensor:
    return images.new_empty(images.shape[0], boxes.shape[1], images.shape[1], out, out)


_crop = _registry.define(
    "exemplar_crop(Tensor images, Tensor boxes, int out, bool cubic, bool antialias) -> Tensor",
    op="crop_exemplars",
    reference=reference.exemplar_crop,
    fake=_fake,
    triton="avfast.kernels.correlation.exemplar_crop_triton:exemplar_crop_triton",
)
