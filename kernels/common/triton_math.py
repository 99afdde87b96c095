"""Small Triton functions that hold on a GPU and in the interpreter alike.

The interpreter computes on NumPy arrays: bfloat16 arithmetic there is wrong, so values are widened as they
are loaded, before anything else touches them, and `product` widens its operands. Comparisons against a
threshold that may be denormal are made on bit patterns, which no flush-to-zero mode can change.
"""

from __future__ import annotations

import os

import numpy as np
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_wide(pointer, mask, WIDE: tl.constexpr):
    """Values in the accumulation type, 0 where masked."""
    return tl.load(pointer, mask=mask, other=0.0).to(WIDE)


@triton.jit
def counting(index, size):
    """An index below `size` in as many bits as that: 64 where 32 do not hold it, which cost something only there."""
    return index + size * 0


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


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """total + a b, of two tiles of one type, summed in the type of `total`."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
    return total


@triton.jit
def log1p_of_fraction(x, WIDE: tl.constexpr):
    """log(1 + x) for 0 <= x <= 1, to a few units in the last place of the result also where x is tiny.

    2 atanh(z) with z = x / (2 + x) <= 1/3: its series leaves out terms below z^16 / 17, or z^36 / 37 in float64.
    """
    TERMS: tl.constexpr = 18 if WIDE == tl.float64 else 8
    z = x / (x + 2.0)
    squared = z * z
    series = tl.zeros_like(z) + 1.0 / (2 * TERMS - 1)
    for k in tl.static_range(TERMS - 1):
        series = series * squared + 1.0 / (2 * (TERMS - 2 - k) + 1)
    return 2.0 * z * series


@triton.jit
def softplus(x, WIDE: tl.constexpr):
    """log(1 + exp(x))."""
    return tl.maximum(x, 0.0) + log1p_of_fraction(tl.exp(-tl.abs(x)), WIDE)


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
