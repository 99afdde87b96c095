"""Random boxes of rotated images: the exemplars of correlational image modelling."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..reference import exemplars as reference
from . import _check
from ._counter import Uniforms, combine

TRIES = 10
"""Shapes drawn until one fits into the image, as torchvision draws its random crops."""

Range = tuple[float, float]


class Exemplars(NamedTuple):
    """``boxes``: float32 ``[B, E, 5]`` with theta, top, left, bottom, right.

    Theta is in degrees, counter-clockwise. The edges are those of an upright box in the image rotated by theta, in
    source pixels from the image's centre: a source point ``(X, Y)``, y down, lies inside where
    ``left <= cos X + sin Y < right`` and ``top <= -sin X + cos Y < bottom``. This is what :func:`crop_exemplars` cuts
    and ``rotated_box_bce`` draws.

    >>> sample_exemplars(2, count=3, generator=0).boxes.shape
    torch.Size([2, 3, 5])
    """

    boxes: Tensor


def sample_exemplars(
    batch: int,
    *,
    count: int = 6,
    area: Range = (0.05, 0.48),
    aspect: Range = (1 / 3, 3),
    angle: Range = (-45, 45),
    size: int = 224,
    generator: torch.Generator | int,
    sample_ids: Tensor | None = None,
    step: int = 0,
    device: torch.device | str | None = None,
) -> Exemplars:
    r"""Draw ``count`` boxes for each of ``batch`` square images, as CIM draws its exemplars.

    A box of whole pixels: its share of the image uniform in ``area``, its width over height log-uniform in ``aspect``,
    anywhere in the image; shapes that do not fit are drawn again. The image is then rotated by theta about its centre
    and the upright box around the rotated box taken; where this reaches beyond the rotated image, its edges move
    inwards, in CIM's order, until its corners lie on it (:func:`avfast.reference.exemplars.revise`). With theta = 0
    boxes are as drawn.

    What is reproducible: sample ``i`` gets a box that is a function of ``(seed, sample_ids[i], step)``, the number of
    the exemplar and the options, and of nothing else. Batches may be cut, ordered and spread over workers, processes
    and devices in any way; exemplars 0..2 are the same whether 3 or 6 are asked for. Everything is computed on the CPU
    in float64 and only then moved to ``device``.

    Source: Li et al. 2023, "Correlational Image Modeling for Self-Supervised Visual Pre-Training", section 3.

    Args:
        batch: number of images.
        count: exemplars of each.
        area: smallest and largest share of the image, above 0 and at most 1, before it is rotated.
        aspect: smallest and largest width / height.
        angle: whole degrees, ``low <= theta < high``, between -90 and 90; equal bounds give that angle.
        size: side of the images in pixels.
        generator: a seed, or a generator that one seed is taken from.
        sample_ids: int64 ``[batch]``, numbers of the samples; 0, 1, ... if left out.
        step: an epoch or iteration.
        device: where the boxes go; the CPU if left out.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range, or no box of such a share and aspect fits.

    >>> all_of_them = sample_exemplars(4, generator=7)
    >>> one = sample_exemplars(1, generator=7, sample_ids=torch.tensor([2]))
    >>> torch.equal(one.boxes[0], all_of_them.boxes[2])
    True
    >>> bool((sample_exemplars(2, angle=(0, 0), generator=7).boxes % 1 == 0).all())
    True
    """
    name = "sample_exemplars"
    for argument, value, least in (("batch", batch, 0), ("count", count, 0), ("size", size, 1)):
        _whole(name, argument, value)
        if value < least:
            _check.fail(name, argument, f"an integer >= {least}", value)
    _whole(name, "step", step)
    _ranges(name, area, aspect, angle)
    ids = _ids(name, sample_ids, batch)
    keys = combine(_seed(name, generator), ids[:, None], step, np.arange(count)[None])
    theta, edges = _draw(Uniforms(keys), size, area, aspect, angle)
    box = reference.revise(theta, reference.bounding_box(theta, edges), size / 2)
    return Exemplars(torch.stack([theta, *box], dim=-1).to(device, torch.float32))


def _draw(uniforms: Uniforms, size: int, area: Range, aspect: Range, angle: Range) -> tuple[Tensor, reference.Edges]:
    """Angles, and the drawn boxes in centred pixels, float64."""
    low, high = angle
    theta = np.floor(low + uniforms.draw() * (high - low))
    # What is left should no try fit: the smallest share at the permitted aspect nearest to a square.
    calm = min(max(1.0, aspect[0]), aspect[1])
    h = np.full_like(theta, _side(size, area[0], 1 / calm))
    w = np.full_like(theta, _side(size, area[0], calm))
    found = np.zeros(theta.shape, dtype=bool)
    for _ in range(TRIES):
        share = area[0] + uniforms.draw() * (area[1] - area[0])
        stretch = np.exp(math.log(aspect[0]) + uniforms.draw() * math.log(aspect[1] / aspect[0]))
        tall, wide = np.rint(size * np.sqrt(share / stretch)), np.rint(size * np.sqrt(share * stretch))
        take = ~found & (tall >= 1) & (wide >= 1) & (tall <= size) & (wide <= size)
        h, w, found = np.where(take, tall, h), np.where(take, wide, w), found | take
    top, left = (np.floor(uniforms.draw() * (size - side + 1)) - size / 2 for side in (h, w))
    return torch.from_numpy(theta), tuple(map(torch.from_numpy, (top, left, top + h, left + w)))


def _side(size: int, share: float, stretch: float) -> float:
    return min(max(1.0, float(np.rint(size * math.sqrt(share * stretch)))), float(size))


def _whole(name: str, argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        _check.fail(name, argument, "an integer", type(value).__name__, TypeError)


def _ranges(name: str, area: Range, aspect: Range, angle: Range) -> None:
    for argument, pair in (("area", area), ("aspect", aspect), ("angle", angle)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            _check.fail(name, argument, "two numbers", pair, TypeError)
        for bound in pair:
            _check.number(name, argument, bound)
    if not 0 < area[0] <= area[1] <= 1:
        _check.fail(name, "area", "0 < low <= high <= 1", area)
    if not 0 < aspect[0] <= aspect[1]:
        _check.fail(name, "aspect", "0 < low <= high", aspect)
    if not -90 <= angle[0] <= angle[1] <= 90 or any(bound % 1 for bound in angle):
        _check.fail(name, "angle", "whole degrees, -90 <= low <= high <= 90", angle)
    calm = min(max(1.0, aspect[0]), aspect[1])
    if area[0] * max(calm, 1 / calm) > 1:
        _check.fail(name, "area", f"a share of the image that fits into it at an aspect in {aspect}", area)


def _seed(name: str, generator: torch.Generator | int) -> int:
    if isinstance(generator, torch.Generator):
        return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    if isinstance(generator, bool) or not isinstance(generator, int):
        _check.fail(name, "generator", "a torch.Generator or an integer seed", type(generator).__name__, TypeError)
    return generator


def _ids(name: str, sample_ids: Tensor | None, batch: int) -> np.ndarray:
    if sample_ids is None:
        return np.arange(batch)
    if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64:
        got = sample_ids.dtype if isinstance(sample_ids, Tensor) else type(sample_ids).__name__
        _check.fail(name, "sample_ids", "an int64 tensor", got, TypeError)
    if tuple(sample_ids.shape) != (batch,):
        _check.fail(name, "sample_ids", f"shape ({batch},)", tuple(sample_ids.shape))
    return sample_ids.cpu().numpy()
