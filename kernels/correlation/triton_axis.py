"""Linear interpolation along one axis of a map in Triton, and how map losses are cut into programs.

Positions are float64, products rounded as such (kernels are compiled without fused multiply-add and ask for it where
they want it): which outputs lie between two inputs must come out alike in every program.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

# Warps that keep an H100 or H200 busy, 16 per multiprocessor; a constant, so that sums are cut, and come out, the same
# on every card.
WANTED_WARPS = 2112
LEAST_ROWS = 4  # of inputs that a program owns: one more is computed again


def axis_steps(n: int, out: int, align_corners: bool) -> tuple[float, float]:
    """Inputs from one output to the next, and about how many outputs from one input to the next."""
    step = n / out
    if align_corners:
        step = (n - 1) / (out - 1) if out > 1 else 0.0
    return step, 1 / step if step else 1e30


@triton.jit
def source_of(i, step, ALIGN: tl.constexpr):
    """Position of output i among the inputs, float64."""
    if ALIGN:
        at = i.to(tl.float64) * step
    else:
        at = tl.maximum((i.to(tl.float64) + 0.5) * step - 0.5, 0.0)
    return at


@triton.jit
def first_of(at, n):
    return tl.minimum(at.to(tl.int32), n - 1)


@triton.jit
def begin_of(j, step, pace, n, out, ALIGN: tl.constexpr):
    """The first output that lies at or after input j: found among the neighbours of a first guess."""
    if ALIGN:
        guess = j.to(tl.float64) * pace
    else:
        guess = (j.to(tl.float64) + 0.5) * pace - 0.5
    low = tl.minimum(tl.maximum(guess, 2.0), out + 2.0).to(tl.int32) - 2
    begin = low
    for k in tl.static_range(5):
        i = low + k
        begin += ((i < out) & (first_of(source_of(i, step, ALIGN), n) < j)).to(tl.int32)
    return tl.where(j <= 0, 0, tl.where(j >= n, out, begin))


@triton.jit
def column_weights(first, share, x, w, WIDE: tl.constexpr):
    """What output columns [U] give to input columns x: [U, X]."""
    second = tl.minimum(first + 1, w - 1)
    left = tl.where(first[:, None] == x[None, :], 1.0 - share[:, None], 0.0)
    return (left + tl.where(second[:, None] == x[None, :], share[:, None], 0.0)).to(WIDE)


@dataclass(frozen=True)
class Cut:
    """Input rows and columns that a program owns, and how many such tiles a map has; from shapes alone."""

    rows: int
    columns: int
    tiles_y: int
    tiles_x: int


def cut(maps: int, h: int, w: int, width: int, warps: int) -> Cut:
    """`width` of the output, `warps` of a program."""
    power = triton.next_power_of_2
    # A tile should be met by a warp of output columns, also where a map is made smaller.
    columns = min(max(power(min(w, 16)), power(triton.cdiv(32 * w, width)), 16), 128)
    tiles_x = triton.cdiv(w, columns)
    rows = h
    while rows > LEAST_ROWS and maps * tiles_x * triton.cdiv(h, rows) * warps < WANTED_WARPS:
        rows = max(triton.cdiv(rows, 2), LEAST_ROWS)
    return Cut(rows, columns, triton.cdiv(h, rows), tiles_x)


def block_rows(h: int, height: int, align_corners: bool, most: int) -> int:
    """Output rows taken together, a power of two: outputs between two inputs should fill them."""
    run = max(height / max(h - align_corners, 1), 1.0)
    return min((2**k for k in range(most.bit_length())), key=lambda n: (-(-run // n) * n + 1.5 * -(-run // n), -n))
