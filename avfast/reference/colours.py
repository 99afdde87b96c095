"""Changes of the colours of pictures, each with strengths of its own, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

GRAY = (0.299, 0.587, 0.114)
REACH = 6
"""Sigmas from its middle at which a Gaussian is cut off: less than 2e-8 of it lies beyond."""
AT_A_TIME = 64
"""Pictures worked on together: so few stay in the cache from one change to the next."""


def recolour(
    pictures: Tensor, factors: Tensor | None, order: Tensor | None, finish: Tensor | None, affine: Tensor
) -> Tensor:
    """Pictures [N, 3, H, W], bytes or numbers in [0, 1], changed and then multiplied and added to by ``affine`` [2, 3].

    ``factors`` [N, 4] of brightness, contrast, saturation and hue, applied as ``order`` [N, 4] says; ``finish`` [N, 3]:
    whether grey, sigma of the blur, whether solarised. What changes nothing (1; 0 for the hue and these) is left out.
    """
    wide = torch.float64 if pictures.dtype == torch.float64 else torch.float32
    x = pictures.to(wide)
    # Not clamp: NaN counts as 0.
    x = x * (1 / 255) if pictures.dtype == torch.uint8 else torch.where(x > 0, x, 0.0).clamp_max_(1)
    changes = []
    if factors is not None:
        neutral = factors.new_tensor([1.0, 1.0, 1.0, 0.0])
        for place in range(4):
            for kind, change in enumerate((brightened, contrasted, saturated, hue_turned)):
                applied = (order[:, place] == kind) & (factors[:, kind] != neutral[kind])
                changes.append((applied, change, factors[:, kind]))
    if finish is not None:
        gray, sigma, solarise = finish.unbind(1)
        changes += [(gray != 0, grayed, gray), (sigma > 0, blurred, sigma), (solarise != 0, solarized, solarise)]
    for first in range(0, len(x), AT_A_TIME):
        some = slice(first, first + AT_A_TIME)
        for applied, change, strength in changes:
            chosen = applied[some].nonzero()[:, 0]
            if len(chosen):
                x[some][chosen] = change(x[some][chosen], strength[some][chosen, None, None, None].to(wide))
    scale, shift = affine.to(wide)[..., None, None]
    return torch.addcmul(shift, x, scale).to(torch.float32 if pictures.dtype == torch.uint8 else pictures.dtype)


def gray_of(x: Tensor) -> Tensor:
    """Luma of ITU-R 601, ``[N, 1, H, W]``."""
    red, green, blue = x.unbind(1)
    return (red * GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])[:, None]


def brightened(x: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).clamp_(0, 1)


def contrasted(x: Tensor, factor: Tensor) -> Tensor:
    mean = gray_of(x).mean(dim=(2, 3), keepdim=True)
    return torch.addcmul((1 - factor) * mean, x, factor).clamp_(0, 1)


def saturated(x: Tensor, factor: Tensor) -> Tensor:
    return torch.addcmul(gray_of(x).mul_(1 - factor), x, factor).clamp_(0, 1)


def hue_turned(x: Tensor, turn: Tensor) -> Tensor:
    """Hue moved on by ``turn`` of the circle, in HSV: Smith 1978, "Color gamut transform pairs"."""
    red, green, blue = x.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    size = chroma.clamp_min(1e-12)
    # In sixths of the circle from red; the least of them is -1.
    after_green, after_blue = (blue - red).div_(size).add_(2), (red - green).div_(size).add_(4)
    # Blending by 0 and 1: torch.where is several times slower on a CPU.
    hue = after_blue.lerp_(after_green, (green == high).to(x.dtype))
    hue.lerp_((green - blue).div_(size), (red == high).to(x.dtype))
    # How far each of red, green and blue lies below the highest, as a share of the chroma: it is 0 for two sixths about
    # the colour itself, at 0, 2 and 4, and 1 on the other side of the circle.
    away = hue[:, None] + (6 * turn + x.new_tensor([3.0, 1.0, 5.0]).view(3, 1, 1))
    away = away.sub_(away.div(6).floor_(), alpha=6).sub_(3).abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(high[:, None], away, chroma[:, None], value=-1).clamp_(0, 1)


def grayed(x: Tensor, _: Tensor) -> Tensor:
    return gray_of(x).expand_as(x)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian along rows and columns, cut off at six sigmas; at the border, over the pixels there are."""

    def kernel(n: int) -> Tensor:
        at = torch.arange(n, dtype=x.dtype, device=x.device)
        away = (at[:, None] - at).div(sigma[:, 0])
        weights = away.square().mul_(-0.5).exp_().masked_fill_(away.abs() > REACH, 0)
        return weights / weights.sum(2, keepdim=True)  # [N, n, n]

    n, c, h, w = x.shape
    along = torch.bmm(x.reshape(n, c * h, w), kernel(w).transpose(1, 2)).view(n, c, h, w)
    return torch.matmul(kernel(h)[:, None], along).clamp_(0, 1)


def solarized(x: Tensor, _: Tensor) -> Tensor:
    return torch.minimum(x, 1 - x)
