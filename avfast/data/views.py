"""Two random views of every picture of a batch, with the crops known: the augmentation of MoCo-v2."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.data.images import NormalizeFrames
from avfast.errors import MissingDependency
from avfast.ops._counter import GOLDEN
from avfast.ops._counter import Uniforms as CounterUniforms

CROP_TRIES = 10
"""Boxes drawn until one fits into the picture, as torchvision draws them."""


class Views(NamedTuple):
    """Two views of a batch.

    Attributes:
        view_q, view_k: float32 ``[B, 3, S, S]``, normalised.
        crop_q, crop_k: float32 ``[B, 5]``: top, left, height and width of the box as fractions of the picture, and 1
            where the view was flipped left to right.
    """

    view_q: Tensor
    view_k: Tensor
    crop_q: Tensor
    crop_k: Tensor


class Uniforms:
    """Columns of uniform numbers in [0, 1), one row per sample, a function of the samples' seeds alone."""

    def __init__(self, seeds: Tensor, stream: int) -> None:
        with np.errstate(over="ignore"):
            keys = seeds.cpu().numpy().astype(np.uint64) + np.uint64(stream) * GOLDEN
        self._numbers = CounterUniforms(keys)
        self._device = seeds.device

    def draw(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32, of the shape of the seeds, in [low, high)."""
        return torch.from_numpy(low + (high - low) * self._numbers.draw()).to(self._device, torch.float32)


class TwoViews(nn.Module):
    """Draws the two views of each picture: crop, colour, grey, blur, flip.

    The recipe of MoCo-v2 (Chen et al. 2020), which DenseCL takes over: a crop of 20 to 100 % of the area and an aspect
    from 3:4 to 4:3, resized to ``size``; with probability 0.8 brightness, contrast and saturation by up to 40 % and hue
    by up to a tenth of the circle, in random order; grey with 0.2; Gaussian blur with 0.5, its sigma from 0.1 to 2;
    flip with 0.5. Everything runs on the whole batch, where the pictures are, in kornia.

    Args:
        size: side of a view in pixels.
        scale: range of the share of the area that a view shows.
        jitter: strength of brightness, contrast, saturation and hue.
        jitter_p, gray_p, blur_p, flip_p: probabilities.
        blur_sigma: range of the blur in pixels of the view.

    Raises:
        ValueError: an option out of range.

    >>> images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    >>> views = TwoViews(32)(images, torch.tensor([1, 2]))
    >>> views.view_q.shape, views.crop_k.shape
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.2, 1.0),
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_p: float = 0.8,
        gray_p: float = 0.2,
        blur_p: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        flip_p: float = 0.5,
    ) -> None:
        super().__init__()
        where = "avfast.data.TwoViews"
        if size < 1:
            raise ValueError(f"{where}: size: expected a positive number of pixels, got {size}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"{where}: scale: expected 0 < low <= high <= 1, got {scale}")
        if not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ValueError(f"{where}: blur_sigma: expected 0 < low <= high, got {blur_sigma}")
        for name, p in (("jitter_p", jitter_p), ("gray_p", gray_p), ("blur_p", blur_p), ("flip_p", flip_p)):
            if not 0 <= p <= 1:
                raise ValueError(f"{where}: {name}: expected a probability, got {p}")
        self.size, self.scale, self.jitter, self.blur_sigma = size, scale, jitter, blur_sigma
        self.jitter_p, self.gray_p, self.blur_p, self.flip_p = jitter_p, gray_p, blur_p, flip_p
        self.normalize = NormalizeFrames()

    @torch.no_grad()
    def forward(self, images: Tensor, seeds: Tensor) -> Views:
        """Views of ``images`` uint8 ``[B, 3, H, W]``, drawn from ``seeds`` int64 ``[B]`` and nothing else.

        Raises:
            TypeError, ValueError: not such a batch, or not one seed per picture.
        """
        where = "avfast.data.TwoViews"
        if images.dtype != torch.uint8 or seeds.dtype != torch.int64:
            raise TypeError(f"{where}: expected uint8 images and int64 seeds, got {images.dtype} and {seeds.dtype}")
        if images.dim() != 4 or images.shape[1] != 3 or seeds.shape != images.shape[:1]:
            raise ValueError(
                f"{where}: expected images [B, 3, H, W] and seeds [B], got {tuple(images.shape)}, {tuple(seeds.shape)}"
            )
        pictures = images.to(torch.float32) / 255
        (view_q, crop_q), (view_k, crop_k) = (self._view(pictures, Uniforms(seeds, s)) for s in (1, 2))
        return Views(view_q, view_k, crop_q, crop_k)

    def _view(self, pictures: Tensor, uniforms: Uniforms) -> tuple[Tensor, Tensor]:
        crop = self._boxes(uniforms, pictures.shape[2], pictures.shape[3])
        crop[:, 4] = (uniforms.draw() < self.flip_p).float()
        view = cut(pictures, crop, self.size)
        view = self._colours(view, uniforms)
        gray = uniforms.draw() < self.gray_p
        view[gray] = _kornia().color.rgb_to_grayscale(view[gray]).expand(-1, 3, -1, -1)
        view = self._blur(view, uniforms)
        return self._normalised(view), crop

    def _boxes(self, uniforms: Uniforms, height: int, width: int) -> Tensor:
        """The first of ten random boxes that fits, else the largest central one of a permitted aspect."""
        ratio = width / height
        low, high = 3 / 4, 4 / 3
        aspect = min(max(ratio, low), high)
        tall, wide = (1.0, aspect / ratio) if aspect < ratio else (ratio / aspect, 1.0)
        box_h = box_w = None
        for _ in range(CROP_TRIES):
            area = uniforms.draw(*self.scale)
            stretch = uniforms.draw(math.log(low), math.log(high)).exp()  # in pixels: width / height
            h, w = (area * ratio / stretch).sqrt(), (area * stretch / ratio).sqrt()
            if box_h is None:
                found = torch.zeros_like(h, dtype=torch.bool)
                box_h, box_w = torch.full_like(h, tall), torch.full_like(w, wide)
            take = ~found & (h <= 1) & (w <= 1)
            box_h, box_w, found = torch.where(take, h, box_h), torch.where(take, w, box_w), found | take
        top, left = (1 - box_h) * uniforms.draw(), (1 - box_w) * uniforms.draw()
        central = ~found
        top, left = torch.where(central, (1 - box_h) / 2, top), torch.where(central, (1 - box_w) / 2, left)
        return torch.stack([top, left, box_h, box_w, torch.zeros_like(top)], dim=1)

    def _colours(self, view: Tensor, uniforms: Uniforms) -> Tensor:
        enhance = _kornia().enhance
        applied = uniforms.draw() < self.jitter_p
        brightness, contrast, saturation, hue = self.jitter
        factors = [uniforms.draw(max(0.0, 1 - x), 1 + x) for x in (brightness, contrast, saturation)]
        factors.append(uniforms.draw(-hue, hue) * 2 * math.pi)
        change = (
            enhance.adjust_brightness_accumulative,
            enhance.adjust_contrast_with_mean_subtraction,
            enhance.adjust_saturation_with_gray_subtraction,
            enhance.adjust_hue,
        )
        order = torch.stack([uniforms.draw() for _ in change], dim=1).argsort(dim=1)  # [B, 4]
        for place in range(len(change)):
            for kind, (adjust, factor) in enumerate(zip(change, factors, strict=True)):
                chosen = (applied & (order[:, place] == kind)).nonzero()[:, 0]
                if len(chosen):
                    view[chosen] = adjust(view[chosen], factor[chosen]).clamp(0, 1)
        return view

    def _blur(self, view: Tensor, uniforms: Uniforms) -> Tensor:
        applied = uniforms.draw() < self.blur_p
        sigma = uniforms.draw(*self.blur_sigma)
        chosen = applied.nonzero()[:, 0]
        if len(chosen):
            taps = 2 * math.ceil(3 * self.blur_sigma[1]) + 1
            taps = min(taps, 2 * ((self.size - 1) // 2) + 1)  # reflection needs a picture larger than half the kernel
            sides = sigma[chosen, None].expand(-1, 2).contiguous()
            view[chosen] = _kornia().filters.gaussian_blur2d(view[chosen], (taps, taps), sides)
        return view

    def _normalised(self, view: Tensor) -> Tensor:
        return torch.addcmul(self.normalize.shift, view, self.normalize.scale * 255)


def cut(pictures: Tensor, crop: Tensor, size: int) -> Tensor:
    """The boxes ``crop`` [B, 5] of ``pictures`` float [B, C, H, W], resized to ``[B, C, size, size]``, bilinear.

    Pixel centres are half a pixel from the border, in the picture and in the view, so a whole box is a plain resize.
    """
    top, left, height, width, flip = crop.unbind(1)
    sign = 1 - 2 * flip
    zero = torch.zeros_like(top)
    # From the view's coordinates in [-1, 1] to the picture's.
    affine = torch.stack(
        [
            torch.stack([sign * width, zero, 2 * left + width - 1], dim=1),
            torch.stack([zero, height, 2 * top + height - 1], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, [len(pictures), pictures.shape[1], size, size], align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _kornia():
    try:
        import kornia
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("kornia", extra="train", purpose="augmenting pictures") from error
    return kornia
