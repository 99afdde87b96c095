"""Tensors as nobody lays them out on purpose: overlapping, misaligned, read-only, with holes, with odd values."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
VALUES = ("usual", "usual", "usual", "zeros", "nan", "inf", "-inf", "equal", "denormal", "huge")
# Where values are so large that a sum or product of them overflows, two right answers may differ in how they do.
INCOMPARABLE = ("huge", "inf", "-inf")


class Draw(Protocol):
    """Where a case comes from: a seeded generator here, hypothesis in the tests."""

    def integer(self, low: int, high: int) -> int: ...

    def choice(self, options: Sequence[Item]) -> Item: ...


class Seeded:
    """Draws of ``random.Random``."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(str(seed))

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def choice(self, options: Sequence[Item]) -> Item:
        return options[self._random.randrange(len(options))]


def size(draw: Draw, least: int = 0) -> int:
    """Mostly a few, also none, one, and just beyond a vector."""
    return max(least, draw.choice((0, 1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33)))


def values(draw: Draw, shape: Sequence[int], dtype: torch.dtype, kind: str) -> Tensor:
    """A contiguous tensor; NaN and infinities in one place."""
    generator = torch.Generator().manual_seed(draw.integer(0, 2**16))
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    if kind in ("zeros", "equal"):
        x.fill_(0.0 if kind == "zeros" else 0.5)
    elif kind in ("nan", "inf", "-inf") and x.numel():
        x.view(-1)[draw.integer(0, x.numel() - 1)] = float(kind)
    elif kind == "denormal":
        x *= 1e-40
    elif kind == "huge":
        x *= 1e30
    return x.to(dtype)


def laid_out(draw: Draw, x: Tensor) -> tuple[Tensor, str]:
    """``x`` (for the overlapping ones: part of it, repeated) in a layout drawn at random, and its name."""
    name = draw.choice(LAYOUTS)
    return globals()[f"_{name}"](draw, x), name


LAYOUTS = ("plain", "plain", "permuted", "holes", "offset", "repeated", "overlapping", "misaligned", "read_only",
           "reversed_order", "negated")  # fmt: skip


def _plain(draw: Draw, x: Tensor) -> Tensor:
    return x


def _permuted(draw: Draw, x: Tensor) -> Tensor:
    """Any order of dimensions in memory."""
    order = list(range(x.dim()))
    for i in range(len(order) - 1, 0, -1):
        j = draw.integer(0, i)
        order[i], order[j] = order[j], order[i]
    back = sorted(range(len(order)), key=order.__getitem__)
    return x.permute(order).contiguous().permute(back)


def _reversed_order(draw: Draw, x: Tensor) -> Tensor:
    back = list(range(x.dim()))[::-1]
    return x.permute(back).contiguous().permute(back)


def _holes(draw: Draw, x: Tensor) -> Tensor:
    if not x.dim():
        return x
    step = draw.choice((2, 3))
    wider = torch.full((*x.shape[:-1], step * x.shape[-1] + 1), _poison(x), dtype=x.dtype)
    view = wider[..., 1::step][..., : x.shape[-1]]
    view.copy_(x)
    return view


def _offset(draw: Draw, x: Tensor) -> Tensor:
    base = torch.full((x.numel() + 3,), _poison(x), dtype=x.dtype)
    base[1 : 1 + x.numel()] = x.reshape(-1)
    return base[1 : 1 + x.numel()].view(x.shape)


def _repeated(draw: Draw, x: Tensor) -> Tensor:
    """Stride 0 along one dimension: every index is the same memory."""
    if not x.numel() or not x.dim():
        return x
    d = draw.integer(0, x.dim() - 1)
    return x.narrow(d, 0, 1).expand(x.shape)


def _overlapping(draw: Draw, x: Tensor) -> Tensor:
    """Windows of one row of numbers, each a step further: most elements belong to several."""
    if not x.numel() or not x.dim():
        return x
    strides = [draw.choice((0, 1, 2)) for _ in x.shape]
    if x.shape[-1] <= sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) + 1 <= x.numel():
        return torch.as_strided(x.reshape(-1), x.shape, strides)
    return torch.as_strided(x.reshape(-1), x.shape, [0] * (x.dim() - 1) + [1])


def _misaligned(draw: Draw, x: Tensor) -> Tensor:
    """Starts at an odd address, as a field of a packed record does."""
    if not x.numel():
        return x
    memory = bytearray(x.numel() * x.element_size() + 1)
    y = torch.frombuffer(memory, dtype=torch.uint8)[1:]
    y.copy_(x.contiguous().view(-1).view(torch.uint8))
    return torch.frombuffer(memory, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)


def _read_only(draw: Draw, x: Tensor) -> Tensor:
    if x.dtype == torch.bfloat16:
        return x
    array = np.array(x.numpy())
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's own, that nobody may write to it
        return torch.from_numpy(array)


def _negated(draw: Draw, x: Tensor) -> Tensor:
    """A view that says "minus" without having computed it."""
    return torch._neg_view(-x) if x.is_floating_point() else x


def _poison(x: Tensor) -> float:
    """What lies between the elements, and must not be read."""
    return float("nan") if x.is_floating_point() else 1
