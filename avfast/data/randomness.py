"""Randomness that is a pure function of its keys.

Orders and augmentations of avfast depend on ``(seed, epoch, id)`` and on nothing else: not on the worker that
runs, the number of processes, what was drawn before, or the generator of a library release. That is what
makes a run that was killed and resumed equal to one that was not.
"""

from __future__ import annotations

import numpy as np

from avfast.ops._counter import GOLDEN, key64, mix64


def permutation(n: int, *keys: object) -> np.ndarray:
    """A permutation of ``range(n)``, int64, that depends on the keys only.

    >>> permutation(5, "seed", 0).tolist() == permutation(5, "seed", 0).tolist()
    True
    """
    with np.errstate(over="ignore"):
        counters = np.uint64(key64(*keys)) + np.arange(n, dtype=np.uint64) * GOLDEN
    return np.argsort(mix64(counters), kind="stable")


class Draws:
    """A stream of draws for one sample.

    >>> a, b = Draws(0, 1, "clip"), Draws(0, 1, "clip")
    >>> a.uniform() == b.uniform() and 0 <= a.uniform() < 1
    True
    """

    def __init__(self, *keys: object) -> None:
        self._state = key64(*keys)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in ``[low, high)``."""
        self._state = (self._state + int(GOLDEN)) % 2**64
        return low + (high - low) * (int(mix64(self._state)) >> 11) * 2.0**-53

    def integer(self, n: int) -> int:
        """An integer in ``range(n)``."""
        return min(int(self.uniform() * n), n - 1)

    def coin(self, probability: float = 0.5) -> bool:
        return self.uniform() < probability
