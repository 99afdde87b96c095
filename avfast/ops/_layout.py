"""The two orders of an activation [N, C, *] that kernels read without a copy, as the bindings in csrc/ see them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def channels_innermost(x: Tensor) -> bool:
    """Whether the channels of one position are neighbours: channels-last, for any number of dimensions."""
    return x.movedim(1, -1).is_contiguous()


def is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or channels_innermost(x)


def empty_like(x: Tensor) -> Tensor:
    """Uninitialised, in the order a kernel gives its output: x's own if that is dense, else contiguous."""
    if not x.is_contiguous() and channels_innermost(x):
        return x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1)
    return x.new_empty(x.shape)


def conform(result: Tensor, x: Tensor) -> Tensor:
    """``result`` in that order, copied only if it is in another."""
    same = result.stride() == x.stride() if is_dense(x) else result.is_contiguous()
    return result if same else empty_like(x).copy_(result)


def conforming(reference: Callable, position: int) -> Callable:
    """A reference whose first output follows its ``position``-th argument's order, as the kernels' does."""

    def run(*args):
        out = reference(*args)
        if isinstance(out, Tensor):
            return conform(out, args[position])
        return (conform(out[0], args[position]), *out[1:])

    return run


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Type of sums and parameters: float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
