"""A context and its exemplars from every picture of a batch: the augmentation of correlational image modelling."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from avfast.data.colours import Colours
from avfast.data.views import Uniforms
from avfast.nn.pictures import IMAGENET_MEAN, IMAGENET_STD
from avfast.ops.crop_exemplars import crop_exemplars
from avfast.ops.recolour import recolour
from avfast.ops.sample_exemplars import sample_exemplars

ASPECT = (3 / 4, 4 / 3)
"""Width over height of the part of a picture that is searched, as torchvision's RandomResizedCrop has it."""
CROP_TRIES = 10
AT_A_TIME = 16
"""Pictures worked on together on a CPU. What is between the bytes and the batch then stays in memory that was used
before; fresh pages cost more than the arithmetic."""


class CorrelationBatch(NamedTuple):
    """What a batch of pictures gives.

    Attributes:
        context: float32 ``[B, 3, C, C]``, normalised: the searched part of the picture, small and plain.
        exemplars: float32 ``[B, E, 3, S, S]``, normalised, augmented.
        boxes: float32 ``[B, E, 5]``: where each exemplar lies, in pixels of the searched part
            (:class:`avfast.Exemplars`, of side ``search``).
    """

    context: Tensor
    exemplars: Tensor
    boxes: Tensor


class CorrelationViews(nn.Module):
    """Draws context and exemplars as CIM does (Li et al. 2023, and its released recipe).

    The searched part: half to all of the picture's area at an aspect from 3:4 to 4:3, flipped with ``flip_p``, resized
    to ``search`` (bicubic). The context is that part at size ``context``, in its own colours unless asked.
    Exemplars are boxes of the searched part (:func:`avfast.sample_exemplars`) at size ``exemplar``; each is mirrored
    with ``mirror_p`` without its box being, and has its colours changed (:class:`avfast.data.Colours`).

    Args:
        count: exemplars of each picture.
        search, context, exemplar: sides in pixels.
        scale: range of the share of the picture's area that is searched.
        area, aspect, angle: of exemplars, as in :func:`avfast.sample_exemplars`.
        flip_p, mirror_p: probabilities.
        colours: augmentation of exemplars; None leaves them as they are.
        context_colours: of the context, drawn by itself.

    Raises:
        ValueError: an option out of range.

    >>> pictures = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8)
    >>> views = CorrelationViews(count=3, search=48, context=32, exemplar=16)
    >>> batch = views(pictures, torch.tensor([1, 2]))
    >>> batch.context.shape, batch.exemplars.shape, batch.boxes.shape
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 3, 3, 16, 16]), torch.Size([2, 3, 5]))
    """

    def __init__(
        self,
        *,
        count: int = 6,
        search: int = 224,
        context: int = 160,
        exemplar: int = 64,
        scale: tuple[float, float] = (0.5, 1.0),
        area: tuple[float, float] = (0.05, 0.48),
        aspect: tuple[float, float] = (1 / 3, 3),
        angle: tuple[float, float] = (-45, 45),
        flip_p: float = 0.5,
        mirror_p: float = 0.5,
        colours: Colours | None = Colours(),  # noqa: B008  (it holds no state)
        context_colours: Colours | None = None,
    ) -> None:
        super().__init__()
        where = "avfast.data.CorrelationViews"
        for name, side in (("search", search), ("context", context), ("exemplar", exemplar)):
            if side < 1:
                raise ValueError(f"{where}: {name}: expected a positive number of pixels, got {side}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"{where}: scale: expected 0 < low <= high <= 1, got {scale}")
        for name, p in (("flip_p", flip_p), ("mirror_p", mirror_p)):
            if not 0 <= p <= 1:
                raise ValueError(f"{where}: {name}: expected a probability, got {p}")
        self.options = {"count": count, "size": search, "area": area, "aspect": aspect, "angle": angle}
        sample_exemplars(0, **self.options, generator=0)  # refuses what it would refuse later
        self.search, self.context, self.exemplar, self.scale = search, context, exemplar, scale
        self.flip_p, self.mirror_p, self.colours, self.context_colours = flip_p, mirror_p, colours, context_colours

    @torch.no_grad()
    def forward(self, images: Tensor, seeds: Tensor) -> CorrelationBatch:
        """Views of ``images`` uint8 ``[B, 3, H, W]``, drawn from ``seeds`` int64 ``[B]`` and nothing else.

        Raises:
            TypeError, ValueError: not such a batch, or not one seed per picture.
        """
        where = "avfast.data.CorrelationViews"
        if images.dtype != torch.uint8 or seeds.dtype != torch.int64:
            raise TypeError(f"{where}: expected uint8 images and int64 seeds, got {images.dtype} and {seeds.dtype}")
        if images.dim() != 4 or images.shape[1] != 3 or seeds.shape != images.shape[:1]:
            raise ValueError(
                f"{where}: expected images [B, 3, H, W] and seeds [B], got {tuple(images.shape)}, {tuple(seeds.shape)}"
            )
        part = self._searched(Uniforms(seeds, 1), *images.shape[2:])
        boxes = sample_exemplars(len(images), **self.options, generator=0, sample_ids=seeds, device=images.device).boxes
        count = boxes.shape[1]
        uniforms = Uniforms((seeds[:, None] * count + torch.arange(count, device=seeds.device)).flatten(), 2)
        mirrored = (uniforms.draw() < self.mirror_p).view(boxes.shape[:2])
        changes = [
            {} if colours is None else colours.draw(drawn)
            for colours, drawn in ((self.context_colours, Uniforms(seeds, 3)), (self.colours, uniforms))
        ]
        context = images.new_empty((len(images), 3, self.context, self.context), dtype=torch.float32)
        exemplars = images.new_empty((*boxes.shape[:2], 3, self.exemplar, self.exemplar), dtype=torch.float32)
        step = AT_A_TIME if images.device.type == "cpu" else max(len(images), 1)
        for first in range(0, len(images), step):
            some, each = slice(first, first + step), slice(first * count, (first + step) * count)
            of_context, of_each = ({k: v[s] for k, v in c.items()} for c, s in zip(changes, (some, each), strict=True))
            searched = crop_exemplars(images[some], part[some], self.search)[:, 0]
            context[some] = _finished(self._whole(searched), of_context)
            crops = crop_exemplars(searched, _mirrored(boxes[some], mirrored[some]), self.exemplar)
            exemplars[some] = _finished(crops.flatten(0, 1), of_each).view(crops.shape)
        return CorrelationBatch(context, exemplars, boxes)

    def _whole(self, searched: Tensor) -> Tensor:
        half = self.search / 2
        box = torch.tensor([0, -half, -half, half, half], device=searched.device).expand(len(searched), 1, 5)
        return crop_exemplars(searched, box, self.context)[:, 0]

    def _searched(self, uniforms: Uniforms, height: int, width: int) -> Tensor:
        """Boxes [B, 1, 5]: the first of ten that fits, else the largest central one of a permitted aspect."""
        calm = min(max(width / height, ASPECT[0]), ASPECT[1])
        h, w = min(height, round(width / calm)), min(width, round(height * calm))
        found = None
        for _ in range(CROP_TRIES):
            share = uniforms.draw(*self.scale) * height * width
            stretch = uniforms.draw(math.log(ASPECT[0]), math.log(ASPECT[1])).exp()
            tall, wide = (share / stretch).sqrt().round(), (share * stretch).sqrt().round()
            if found is None:
                found = torch.zeros_like(tall, dtype=torch.bool)
                h, w = torch.full_like(tall, h), torch.full_like(wide, w)
            take = ~found & (tall >= 1) & (wide >= 1) & (tall <= height) & (wide <= width)
            h, w, found = torch.where(take, tall, h), torch.where(take, wide, w), found | take
        top, left = (
            torch.where(
                found, (uniforms.draw() * (side - size + 1)).floor().minimum(side - size), ((side - size) / 2).floor()
            )
            for side, size in ((height, h), (width, w))
        )
        top, left = top - height / 2, left - width / 2
        flipped = uniforms.draw() < self.flip_p
        right = left + w
        left, right = torch.where(flipped, right, left), torch.where(flipped, left, right)
        return torch.stack([torch.zeros_like(top), top, left, top + h, right], dim=1)[:, None]


def _mirrored(boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Boxes [B, E, 5] with the left edge for the right one where ``mirrored`` [B, E]."""
    theta, top, left, bottom, right = boxes.unbind(2)
    edges = torch.where(mirrored, right, left), torch.where(mirrored, left, right)
    return torch.stack([theta, top, edges[0], bottom, edges[1]], dim=2)


def _finished(pictures: Tensor, changes: dict[str, Tensor]) -> Tensor:
    """Bytes with other colours, normalised, in one pass."""
    return recolour(pictures, **changes, mean=IMAGENET_MEAN, std=IMAGENET_STD)
