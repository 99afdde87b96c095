"""Boxes of rotated images, resized, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exemplar_crop(images: Tensor, boxes: Tensor, out: int, cubic: bool, antialias: bool) -> Tensor:
    """Boxes [B, E, 5] of images [B, C, H, W] as [B, E, C, out, out], of the images' dtype.

    A box is sampled upright in the rotated image, bilinearly and at the image's own resolution, then resized along rows
    and columns as a whole picture would be.
    """
    b, c, h, w = images.shape
    wide = torch.float64 if images.dtype == torch.float64 else torch.float32
    crops = images.new_empty(b, boxes.shape[1], c, out, out)
    longest = 2 * max(h, w)
    for image, boxes_of_it, to in zip(images.to(wide), boxes.double().tolist(), crops, strict=True):
        for (theta, top, left, bottom, right), crop in zip(boxes_of_it, to, strict=True):
            y, x = samples(top, bottom, longest), samples(left, right, longest)
            turn = math.radians(theta) if math.isfinite(theta) else math.nan
            cos, sin = math.cos(turn), math.sin(turn)
            upright = bilinear(
                image,
                sin * x[None] + cos * y[:, None] + (h - 1) / 2,
                cos * x[None] - sin * y[:, None] + (w - 1) / 2,
            )
            down, along = (resize_matrix(len(axis), out, cubic, antialias).to(wide) for axis in (y, x))
            small = down @ (upright @ along.T)
            if images.dtype == torch.uint8:
                small = (small.clamp(0, 255) + 0.5).floor()
            crop.copy_(small)
    return crops


def samples(start: float, end: float, longest: int) -> Tensor:
    """Points from one edge to the other, about a pixel apart, float64. At least one, at most ``longest``."""
    length = abs(end - start)
    n = int(min(max(round(length), 1), longest)) if math.isfinite(length) else (1 if math.isnan(length) else longest)
    step = (end - start) / n
    return start + 0.5 * step + step * torch.arange(n, dtype=torch.float64)


def bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """[C, H, W] at points given in pixels; beyond its border a picture goes on as its border."""
    h, w = image.shape[1:]
    y, x = y.nan_to_num(0.0).clamp(0, h - 1), x.nan_to_num(0.0).clamp(0, w - 1)
    y0, x0 = y.floor().long(), x.floor().long()
    y1, x1 = (y0 + 1).clamp_max(h - 1), (x0 + 1).clamp_max(w - 1)
    down, right = (y - y0).to(image.dtype), (x - x0).to(image.dtype)
    above = torch.lerp(image[:, y0, x0], image[:, y0, x1], right)
    below = torch.lerp(image[:, y1, x0], image[:, y1, x1], right)
    return torch.lerp(above, below, down)


def resize_matrix(n: int, out: int, cubic: bool, antialias: bool) -> Tensor:
    """Weights [out, n], float64, of a resize: the filter about the centre of each output, as wide as an output where
    that is larger than an input, cut off at the border and summing to one.

    The filters of Pillow and of ``torch.nn.functional.interpolate(antialias=True)``: a triangle, or the cubic of Keys
    1981, "Cubic convolution interpolation for digital image processing", with a = -0.5.
    """
    scale = n / out
    wider = max(scale, 1.0) if antialias else 1.0
    support = (2 if cubic else 1) * wider
    centre = scale * (torch.arange(out, dtype=torch.float64)[:, None] + 0.5)
    at = torch.arange(n, dtype=torch.float64)[None]
    first, end = (centre - support + 0.5).clamp_min(0).floor(), (centre + support + 0.5).floor().clamp_max(n)
    distance = ((at - centre + 0.5) / wider).abs()
    if cubic:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    else:
        weights = (1 - distance).clamp_min(0)
    weights = torch.where((at >= first) & (at < end), weights, 0.0)
    return weights / weights.sum(1, keepdim=True)
