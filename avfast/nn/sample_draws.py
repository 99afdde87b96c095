"""Random numbers that belong to samples, not to the process or the batch that holds them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..ops._counter import Uniforms, combine

STEPS = 2.0**24
"""Distances between uniform numbers, so that float32 holds them exactly and 1 is never reached."""


class SampleDraws:
    """Draws for the samples of a batch, one row each: several processes draw for their shares what one process draws
    for the whole batch.

    Args:
        keys: int64 ``[B]``, another one wherever a draw shall be another, such as ``seed`` of a batch of pictures.
        salt: of this use of the keys.

    Each call continues where the one before ended; results are float32 on the device of the keys.

    >>> keys = torch.tensor([3, 8])
    >>> both, second = SampleDraws(keys), SampleDraws(keys[1:])
    >>> torch.equal(both.uniform(4)[1:], second.uniform(4)), torch.equal(both.normal(3)[1:], second.normal(3))
    (True, True)
    """

    def __init__(self, keys: Tensor, salt: int = 0) -> None:
        self._keys = combine(keys.cpu().numpy(), salt)[:, None]
        self._device, self._used = keys.device, 0

    def uniform(self, count: int) -> Tensor:
        """``[B, count]`` in [0, 1)."""
        return self._tensor(np.floor(self._draw(count) * STEPS) / STEPS)

    def normal(self, count: int) -> Tensor:
        """``[B, count]``, standard normal (Box and Muller)."""
        radius, angle = self._draw(count), self._draw(count)
        return self._tensor(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))

    def _draw(self, count: int) -> np.ndarray:
        places = np.arange(self._used, self._used + count)
        self._used += count
        return Uniforms(combine(self._keys, places)).draw()

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device)
