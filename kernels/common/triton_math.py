"""Small Triton functions that hold on a GPU and in the interpreter alike.

The interpreter computes on NumPy arrays: bfloat16 arithmetic there is wrong, so values are widened as they
are loaded, before anything else touches them. Comparisons against a threshold that may be denormal are made
on bit patterns, which no flush-to-zero mode can change.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl


@triton.jit
def load_wide(pointer, mask, WIDE: tl.constexpr):
    """Values in the accumulation type, 0 where masked."""
    return tl.load(pointer, mask=mask, other=0.0).to(WIDE)


@triton.jit
def magnitude_bits(x, WIDE: tl.constexpr):
    """The bits of |x| as a signed integer: ordered like the magnitudes, with NaN above infinity."""
    if WIDE == tl.float64:
        return x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def finite_or_zero(x):
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


def limit_bits(threshold: float, wide: np.dtype) -> int:
    """Bits of the threshold rounded to `wide`, as torch rounds it; -1, below every magnitude, if it is negative.

    For x of that type, ``magnitude_bits(x) <= limit_bits(t)`` and ``abs(x) <= t`` in torch say the same.
    """
    if not threshold >= 0:
        return -1
    wide = np.dtype(wide)
    with np.errstate(over="ignore"):
        nearest = wide.type(threshold)
    return int(abs(nearest).view(np.int64 if wide.itemsize == 8 else np.int32))
