"""Colour augmentation of whole batches: jitter, grey, blur and solarising, drawn for each picture by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avfast.ops.recolour import recolour


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

    def forward(self, pictures: Tensor, uniforms) -> Tensor:
        """New pictures of the shape of ``pictures``, uint8 or floating-point in [0, 1] ``[N, 3, H, W]``; in [0, 1].

        ``uniforms`` is an :class:`avfast.data.views.Uniforms` of ``N`` rows: a picture depends on its own row only.
        """
        return recolour(pictures, **self.draw(uniforms))

    def draw(self, uniforms) -> dict[str, Tensor]:
        """What :func:`avfast.recolour` does to each picture: its arguments by name."""
        jittered = uniforms.draw() < self.jitter_p
        factors = [uniforms.draw(max(0.0, 1 - x), 1 + x) for x in self.jitter[:3]]
        factors.append(uniforms.draw(-self.jitter[3], self.jitter[3]))
        order = torch.stack([uniforms.draw() for _ in factors], dim=1).argsort(dim=1)
        unchanged = factors[0].new_tensor([1.0, 1.0, 1.0, 0.0])
        drawn = {"factors": torch.where(jittered[:, None], torch.stack(factors, dim=1), unchanged), "order": order}
        # Each takes two numbers, whether it needs the second or not.
        for name, p in (("gray", self.gray_p), ("sigma", self.blur_p), ("solarize", self.solarize_p)):
            applied, strength = uniforms.draw() < p, uniforms.draw(*self.blur_sigma)
            drawn[name] = torch.where(applied, strength, 0.0) if name == "sigma" else applied
        return drawn
