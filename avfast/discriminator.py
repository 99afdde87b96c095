"""Is this the picture that belongs to the feature? A projection discriminator."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.errors import ConfigError
from avfast.generator import map_sides, matrix
from avfast.nn.map_attention import MapAttention
from avfast.nn.spectral_norm import SNConv2d, SNLinear
from avfast.ops import _check

__all__ = ["DISCRIMINATORS", "Discriminator", "DiscriminatorConfig", "build_discriminator"]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a discriminator.

    Attributes:
        size: side of the picture: 4 times a power of two, at least 8.
        width: channels of a map are a multiple of this.
        multipliers: that multiple for the maps of side ``size / 2``, ... 4, and for a last one of side 4.
        condition: D, width of the feature.
        attention: side of the map after which self-attention sits; 0 for none.

    Raises:
        ConfigError: sizes that do not fit together.
    """

    size: int
    width: int
    multipliers: tuple[int, ...]
    condition: int
    attention: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        sides = map_sides(self.size, "DiscriminatorConfig", self.multipliers)[:-1]
        for name in ("width", "condition"):
            if getattr(self, name) < 1:
                _check.fail("DiscriminatorConfig", name, "a positive number", getattr(self, name), ConfigError)
        if self.attention and self.attention not in sides:
            expected = f"0 or one of {', '.join(map(str, sides))}"
            _check.fail("DiscriminatorConfig", "attention", expected, self.attention, ConfigError)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``DiscriminatorConfig(**config.to_dict())`` is the same configuration."""
        return asdict(self)


DISCRIMINATORS: dict[str, DiscriminatorConfig] = {
    "scene-32": DiscriminatorConfig(32, 8, (2, 4, 8, 8), condition=2048),
    "scene-64": DiscriminatorConfig(64, 8, (2, 4, 8, 8, 8), condition=2048),
}
"""The opponents of the generators of these names."""


class DownBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions; halves the sides of a map by averages of 2 x 2 cells if `down`.

    Args:
        first: the map is a picture, which no ReLU should cut.

    >>> DownBlock(3, 8, first=True)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, *, down: bool = True, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = SNConv2d(in_channels, out_channels, 3)
        self.conv2 = SNConv2d(out_channels, out_channels, 3)
        self.shortcut = SNConv2d(in_channels, out_channels, 1) if down or in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.down:
            # The mean and a 1 x 1 convolution commute: first the one, for a quarter of the cells.
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.shortcut is None else self.shortcut(x))


class Discriminator(nn.Module):
    r"""Logits :math:`w^\top h + b + (E c)^\top h` of a picture and a feature: Miyato and Koyama 2018, equation 3.

    h is the sum over the cells of the last map after ReLU, c the feature at unit length. All layers have spectral norm
    one. No batch norm: a picture's logit does not depend on the others of its batch.

    Args:
        config: sizes.

    >>> discriminator = Discriminator(DiscriminatorConfig(16, 4, (1, 2, 4), condition=32))
    >>> discriminator(torch.zeros(2, 3, 16, 16), torch.randn(2, 32)).shape
    torch.Size([2])
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        channels = [3, *(config.width * m for m in config.multipliers)]
        last = len(channels) - 2
        self.blocks = nn.ModuleList(
            DownBlock(channels[i], channels[i + 1], down=i < last, first=i == 0) for i in range(last + 1)
        )
        sides = map_sides(config.size, "Discriminator", config.multipliers)[-2::-1]
        self.attended = sides.index(config.attention) if config.attention else None
        self.attention = MapAttention(channels[self.attended + 1]) if config.attention else None
        self.to_logit = SNLinear(channels[-1], 1)
        self.embed = SNLinear(config.condition, channels[-1], bias=False)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        """
        Args:
            image: ``[B, 3, S, S]`` in [-1, 1].
            condition: features ``[B, D]`` of any length.

        Returns:
            Logits ``[B]``; positive for real.

        Raises:
            TypeError, ValueError: not floating, other shapes, or NaN or infinity in the condition.
        """
        _check.floating("Discriminator", "image", image)
        size = self.config.size
        if image.dim() != 4 or image.shape[1:] != (3, size, size) or not len(image):
            _check.fail("Discriminator", "image", f"shape (B, 3, {size}, {size})", tuple(image.shape))
        matrix("Discriminator", "condition", condition, self.config.condition, rows=len(image))
        x = image.contiguous(memory_format=torch.channels_last)  # as in the generator
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.attended:
                x = self.attention(x)
        x = F.relu(x).sum(dim=(2, 3))
        return self.to_logit(x).squeeze(1) + (self.embed(F.normalize(condition, dim=1)) * x).sum(dim=1)


def build_discriminator(name: str, *, condition: int = 2048) -> Discriminator:
    """A discriminator with random weights by its name in :data:`DISCRIMINATORS`.

    Raises:
        ConfigError: unknown name or a width below 1.

    >>> build_discriminator("scene-32", condition=128).config.size
    32
    """
    if name not in DISCRIMINATORS:
        raise ConfigError(f"discriminator '{name}' is not one of {', '.join(DISCRIMINATORS)}")
    return Discriminator(replace(DISCRIMINATORS[name], condition=condition))
