"""Pictures from noise and an image feature: BigGAN's generator without classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.errors import ConfigError
from avfast.nn.map_attention import MapAttention
from avfast.nn.spectral_norm import SNConv2d, SNLinear, fold_spectral_norm
from avfast.nn.up_block import UpBlock
from avfast.ops import _check

__all__ = ["GENERATORS", "Generator", "GeneratorConfig", "build_generator", "fold_spectral_norm"]

START = 4
"""Side of the first map."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a generator.

    Attributes:
        size: side of the picture: 4 times a power of two, at least 8.
        width: channels of a map are a multiple of this.
        multipliers: that multiple for the maps of side 4, 8, ... ``size``.
        condition: D, width of the feature.
        noise_chunk: noise of the first map and of each block; the noise has ``noise_chunk * (blocks + 1)`` values.
        shared: width of the feature after the linear layer that all blocks share.
        attention: side of the map after which self-attention sits; 0 for none.
        class_table: shape of a table of classes that is kept, never read and not trained; None for none.

    Raises:
        ConfigError: sizes that do not fit together.

    >>> GeneratorConfig(16, 8, (4, 2, 1), condition=32, attention=8).noise_dim
    60
    """

    size: int
    width: int
    multipliers: tuple[int, ...]
    condition: int
    noise_chunk: int = 20
    shared: int = 512
    attention: int = 64
    class_table: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        # Lists are what a configuration read from JSON has.
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        if self.class_table is not None:
            object.__setattr__(self, "class_table", tuple(self.class_table))
        sides = map_sides(self.size, "GeneratorConfig", self.multipliers)
        for name in ("width", "condition", "noise_chunk", "shared"):
            if getattr(self, name) < 1:
                _check.fail("GeneratorConfig", name, "a positive number", getattr(self, name), ConfigError)
        if self.attention and self.attention not in sides[1:]:
            expected = f"0 or one of {', '.join(map(str, sides[1:]))}"
            _check.fail("GeneratorConfig", "attention", expected, self.attention, ConfigError)

    @property
    def noise_dim(self) -> int:
        return self.noise_chunk * len(self.multipliers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``GeneratorConfig(**config.to_dict())`` is the same configuration."""
        return asdict(self)


def map_sides(size: int, owner: str, multipliers: tuple[int, ...]) -> tuple[int, ...]:
    """Sides 4, 8, ... `size` of the maps of a network, one multiplier each.

    >>> map_sides(32, "GeneratorConfig", (8, 8, 4, 2))
    (4, 8, 16, 32)
    """
    sides = [START]
    while sides[-1] < size:
        sides.append(2 * sides[-1])
    if sides[-1] != size or size == START:
        _check.fail(owner, "size", "4 times a power of two, at least 8", size, ConfigError)
    if len(multipliers) != len(sides) or min(multipliers) < 1:
        expected = f"{len(sides)} positive numbers, one for each side from 4 to {size}"
        _check.fail(owner, "multipliers", expected, multipliers, ConfigError)
    return tuple(sides)


GENERATORS: dict[str, GeneratorConfig] = {
    "scene-32": GeneratorConfig(32, 8, (8, 8, 4, 2), condition=2048, shared=64, attention=16),
    "scene-64": GeneratorConfig(64, 8, (8, 8, 8, 4, 2), condition=2048, shared=64, attention=16),
    "icgan-128": GeneratorConfig(128, 96, (16, 16, 8, 4, 2, 1), condition=2048, class_table=(1000, 128)),
}
"""Generators by name. The small ones are ours, sized for one processor thread.

icgan-128 has the sizes of Casanova et al. 2021, IC-GAN, for 128 pixels, on the body of Brock et al. 2019, BigGAN,
appendix B: 77,160,132 parameters and 42 layers of spectral norm. Convolutions outside of attention and the linear
layers on noise and feature have biases, those inside attention and conditional batch norms have none: 77,032,132. The
other 128,000 are a 1000 x 128 table of classes, which the body has and a generator without classes never reads."""


class Generator(nn.Module):
    """Pictures ``[B, 3, S, S]`` in [-1, 1] from noise and a feature.

    The first chunk of the noise becomes the first map. The feature, brought to unit length, passes one linear layer;
    with a chunk of noise of its own it is the condition of all batch norms of a block. Batch norm, ReLU, convolution
    and tanh end it. In training batch norms use the batch and update stored statistics, in eval they use these.

    Args:
        config: sizes.

    >>> generator = Generator(GeneratorConfig(16, 4, (4, 2, 1), condition=32, shared=8, attention=8))
    >>> noise = generator.sample_noise(2)
    >>> generator(noise, torch.randn(2, 32)).shape, noise.shape
    (torch.Size([2, 3, 16, 16]), torch.Size([2, 60]))
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        channels = [config.width * m for m in config.multipliers]
        condition = config.shared + config.noise_chunk
        self.shared = SNLinear(config.condition, config.shared)
        self.start = SNLinear(config.noise_chunk, channels[0] * START**2)
        self.blocks = nn.ModuleList(
            UpBlock(i, o, condition=condition) for i, o in zip(channels[:-1], channels[1:], strict=True)
        )
        sides = map_sides(config.size, "Generator", config.multipliers)
        self.attended = sides.index(config.attention) - 1 if config.attention else None
        self.attention = MapAttention(channels[self.attended + 1]) if config.attention else None
        self.norm = nn.BatchNorm2d(channels[-1])
        self.to_rgb = SNConv2d(channels[-1], 3, 3)
        if config.class_table is not None:
            self.class_table = nn.Parameter(torch.zeros(config.class_table), requires_grad=False)

    @property
    def noise_dim(self) -> int:
        return self.config.noise_dim

    def sample_noise(self, batch: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise ``[batch, noise_dim]`` beside the weights; with a generator on the CPU, drawn there."""
        weight = self.start.weight
        device = weight.device if generator is None else generator.device
        noise = torch.randn(batch, self.noise_dim, generator=generator, device=device)
        return noise.to(weight.device, weight.dtype)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """
        Args:
            noise: ``[B, noise_dim]``.
            condition: features ``[B, D]`` of any length; one of zeros stays zeros.

        Returns:
            ``[B, 3, S, S]`` in [-1, 1].

        Raises:
            TypeError, ValueError: not floating, other shapes, or NaN or infinity.
        """
        matrix("Generator", "noise", noise, self.noise_dim)
        matrix("Generator", "condition", condition, self.config.condition, rows=len(noise))
        first, *chunks = noise.split(self.config.noise_chunk, dim=1)
        shared = self.shared(F.normalize(condition, dim=1))
        # Channels last: convolutions of few channels are a third faster so on the CPU, and on a GPU in half precision.
        x = self.start(first).unflatten(1, (-1, START, START)).contiguous(memory_format=torch.channels_last)
        for i, (block, chunk) in enumerate(zip(self.blocks, chunks, strict=True)):
            x = block(x, torch.cat([shared, chunk], dim=1))
            if i == self.attended:
                x = self.attention(x)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))))


def matrix(owner: str, argument: str, x: Tensor, columns: int, *, rows: int | None = None) -> None:
    """Fail unless `x` is a finite floating matrix of that many columns, and rows if given."""
    _check.floating(owner, argument, x)
    if x.dim() != 2 or x.shape[1] != columns or not len(x) or (rows is not None and len(x) != rows):
        _check.fail(owner, argument, f"shape ({'B' if rows is None else rows}, {columns})", tuple(x.shape))
    if _check.readable(x) and not bool(x.isfinite().all()):
        _check.fail(owner, argument, "finite values", "NaN or infinity")


def build_generator(name: str, *, condition: int = 2048) -> Generator:
    """A generator with random weights by its name in :data:`GENERATORS`.

    Args:
        name: as above.
        condition: D, width of the feature.

    Raises:
        ConfigError: unknown name or a width below 1.

    >>> build_generator("scene-32", condition=128).noise_dim
    80
    """
    if name not in GENERATORS:
        raise ConfigError(f"generator '{name}' is not one of {', '.join(GENERATORS)}")
    return Generator(replace(GENERATORS[name], condition=condition))
