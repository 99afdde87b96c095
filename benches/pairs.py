"""What the in-batch benches share: two batches of features of which row i of one belongs to row i of the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .training import Step


@dataclass
class Pairs:
    """Leaves ``z_a`` and ``z_b`` ``[N, D]``, the second of which may be frozen, and learned scalars by name."""

    z_a: Tensor
    z_b: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)

    def step(self, forward: Callable[[Pairs], Tensor]) -> Step:
        leaves = {name: z for name, z in (("z_a", self.z_a), ("z_b", self.z_b)) if z.requires_grad}
        return Step(lambda: forward(self), {**leaves, **self.scalars}, None, inputs=leaves.values())


@functools.lru_cache(maxsize=1)
def _values(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Half of what a row says is said by its partner too, at lengths far from one."""
    generator = torch.Generator().manual_seed(0)
    common, a, b = torch.randn(3, rows, width, generator=generator)
    return tuple((3 * (common + own)).to(dtype) for own in (a, b))


def pairs(rows: int, width: int, dtype: torch.dtype, device: str, *, frozen: bool = False, **scalars: float) -> Pairs:
    """Fresh leaves of equal values; ``frozen``: without a gradient for ``z_b``."""
    z_a, z_b = (z.to(device, copy=True).requires_grad_() for z in _values(rows, width, dtype))
    z_b.requires_grad_(not frozen)
    learned = {name: torch.tensor(value, device=device).requires_grad_() for name, value in scalars.items()}
    return Pairs(z_a, z_b, learned)


def unit(z: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to unit length in float64, and their lengths."""
    wide = z.detach().double()
    length = wide.norm(dim=1, keepdim=True)
    return wide / length, length


def through_unit(gradient: Tensor, rows: Tensor, length: Tensor) -> Tensor:
    """Gradient of the raw rows from that of the unit rows."""
    return (gradient - (gradient * rows).sum(1, keepdim=True) * rows) / length
