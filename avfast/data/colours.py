"""Colour augmentation of whole batches: jitter, grey, blur and solarising, each picture with strengths of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GRAY = (0.299, 0.587, 0.114)
AT_A_TIME = 64
"""Pictures worked on together: so few stay in the cache from one change to the next."""


class Colours(nn.Module):
    """Draws and applies, to each picture by itself, what torchvision's and Pillow's functions of these names do.

    In this order: with ``jitter_p`` brightness, contrast, saturation and hue in random order; grey with ``gray_p``;
    Gaussian blur with ``blur_p``; solarising (what is brighter than half of white is inverted) with
    ``solarize_p``. Colours stay in [0, 1] after every change.

    Args:
        jitter: strength of brightness, contrast, saturation and hue.
        jitter_p, gray_p, blur_p, solarize_p: probabilities.
        blur_sigma: range of the blur in pixels.

    Raises:
        ValueError: an option out of range.

    >>> from avfast.data.views import Uniforms
    >>> pictures = torch.rand(2, 3, 8, 8)
    >>> Colours()(pictures, Uniforms(torch.tensor([1, 2]), 0)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        *,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1),
        jitter_p: float = 0.8,
        gray_p: float = 0.2,
        blur_p: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarize_p: float = 0.2,
    ) -> None:
        super().__init__()
        where = "avfast.data.Colours"
        if len(jitter) != 4 or not all(strength >= 0 for strength in jitter) or jitter[3] > 0.5:
            raise ValueError(f"{where}: jitter: expected four strengths >= 0, hue at most 0.5, got {jitter}")
        if not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ValueError(f"{where}: blur_sigma: expected 0 < low <= high, got {blur_sigma}")
        odds = {"jitter_p": jitter_p, "gray_p": gray_p, "blur_p": blur_p, "solarize_p": solarize_p}
        for name, p in odds.items():
            if not 0 <= p <= 1:
                raise ValueError(f"{where}: {name}: expected a probability, got {p}")
            setattr(self, name, p)
        self.jitter, self.blur_sigma = jitter, blur_sigma

    @torch.no_grad()
    def forward(self, pictures: Tensor, uniforms) -> Tensor:
        """Pictures float32 ``[N, 3, H, W]`` in [0, 1], changed in place and returned, the same under autocast.

        ``uniforms`` is an :class:`avfast.data.views.Uniforms` of ``N`` rows: a picture depends on its own row only.
        """
        with torch.autocast(pictures.device.type, enabled=False):
            return self._changed(pictures, uniforms)

    def _changed(self, pictures: Tensor, uniforms) -> Tensor:
        jittered = uniforms.draw() < self.jitter_p
        factors = [uniforms.draw(max(0.0, 1 - x), 1 + x) for x in self.jitter[:3]]
        factors.append(uniforms.draw(-self.jitter[3], self.jitter[3]))
        order = torch.stack([uniforms.draw() for _ in CHANGES], dim=1).argsort(dim=1)
        changes = [
            (jittered & (order[:, place] == kind), change, factors[kind])
            for place in range(len(CHANGES))
            for kind, change in enumerate(CHANGES)
        ]
        for p, change, strength in (
            (self.gray_p, grayed, None),
            (self.blur_p, blurred, self.blur_sigma),
            (self.solarize_p, solarized, None),
        ):
            applied = uniforms.draw() < p
            changes.append((applied, change, uniforms.draw(*(strength or (0.0, 1.0)))))
        for first in range(0, len(pictures), AT_A_TIME):
            some = slice(first, first + AT_A_TIME)
            for applied, change, factor in changes:
                chosen = applied[some].nonzero()[:, 0]
                if len(chosen):
                    pictures[some][chosen] = change(pictures[some][chosen], factor[some][chosen, None, None, None])
        return pictures


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
    """A Gaussian along rows and columns; at the border, over the pixels there are."""

    def kernel(n: int) -> Tensor:
        at = torch.arange(n, dtype=x.dtype, device=x.device)
        # Held above what denormal numbers are made of: those take a hundred times longer.
        weights = (at[:, None] - at).div(sigma[:, 0]).square_().mul_(-0.5).clamp_min_(-30).exp_()
        return weights / weights.sum(2, keepdim=True)  # [N, n, n]

    n, c, h, w = x.shape
    along = torch.bmm(x.reshape(n, c * h, w), kernel(w).transpose(1, 2)).view(n, c, h, w)
    return torch.matmul(kernel(h)[:, None], along).clamp_(0, 1)


def solarized(x: Tensor, _: Tensor) -> Tensor:
    return torch.minimum(x, 1 - x)


CHANGES = (brightened, contrasted, saturated, hue_turned)
