"""Counter-based random numbers: a pure function of their keys, whoever draws them, where and in what order."""

from __future__ import annotations

import hashlib

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: a bijection of 64-bit integers whose output passes for uniform.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = np.asarray(values, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = (z + GOLDEN).astype(np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def combine(*keys: int | np.ndarray) -> np.ndarray:
    """One 64-bit integer of several, broadcast: for fixed others, no two values of a key give the same."""
    state = np.uint64(0)
    for key in keys:
        bits = np.uint64(key % 2**64) if isinstance(key, int) else key.astype(np.uint64)
        state = mix64(state ^ bits)
    return state


def key64(*keys: object) -> int:
    """One 64-bit integer from any keys with a stable ``repr`` (integers and strings)."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def content_key(id: str) -> int:
    """The number of a sample, from its content id and nothing else, as int64 has it."""
    key = key64(id)
    return key - 2**64 if key >= 2**63 else key


class Uniforms:
    """Uniform numbers in [0, 1), float64, of the shape of ``keys``: the n-th draw depends on the key and n only.

    >>> import numpy as np
    >>> both, second = Uniforms(np.arange(2)), Uniforms(np.arange(1, 2))
    >>> both.draw()[1] == second.draw()[0]
    np.True_
    """

    def __init__(self, keys: np.ndarray) -> None:
        self._state = mix64(keys)

    def draw(self) -> np.ndarray:
        with np.errstate(over="ignore"):
            self._state = (self._state + GOLDEN).astype(np.uint64)
        return (mix64(self._state) >> np.uint64(11)).astype(np.float64) * 2.0**-53
