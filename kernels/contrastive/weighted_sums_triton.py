"""Gradients of both sides of in-batch losses from slabs of weights, in Triton.

Idea: da_i = sum_j w_ij b_j and db_j = sum_i w_ij a_i are plain matrix products. The weights of one slab, a matrix of
at most 32 MB, are written, multiplied with both sides while they are in the L2 cache, and overwritten by the next
slab's. Scores are so made once for both sides, where programs that own rows would make them once for each side;
every sum is added in one fixed order, without atomics. The last kernel adds the positive, which tiles leave out,
and takes the gradient through the normalisation.

Numerics: bfloat16 weights for bfloat16 rows; TF32 for float16, whose exponent is too short for weights;
otherwise the type of the rows. Sums in float32 (float64) over all slabs, rounded once.

Cost model: two products of N x M x D (one if a batch meets itself); 6 bytes per score, through L2; the sums read
and written once per slab. Not yet measured on a GPU.

Reference: avfast.reference.contrastive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import product
from .pair_rows_triton import row_width
from .triton_tiles import TYPES, Tiles, load_tile, pointer, weight_type, wide_type

SLAB = {2: 4096, 4: 2048, 8: 2048}  # rows and columns, by the bytes of a weight
FINISH_ROWS = 16
EPSILON = tl.constexpr(1e-12)  # of torch.nn.functional.normalize


@triton.jit
def add_weighted_rows(
    weights, own_stride, walked_stride, x, x_n, own, own_n, sums, owned, walked, D, first, tile,
    WIDE: tl.constexpr, WEIGHT: tl.constexpr, PRECISION: tl.constexpr, APART: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """sums_i += sum_k w_ik x_k, or of x_k - own_i where APART, for one tile of [owned, D]."""
    tiles = tl.cdiv(D, BLOCK_D)
    i = (tile // tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = (tile % tiles) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists = i < owned
    out = (i.to(tl.int64) * D)[:, None] + d[None, :]
    inside = exists[:, None] & (d < D)[None, :]
    total = tl.load(sums + out, mask=inside & (first == 0), other=0.0)
    apart = tl.zeros([BLOCK_N], WIDE)
    for begin in range(0, walked, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        within = k < walked
        at = (i.to(tl.int64) * own_stride)[:, None] + (k.to(tl.int64) * walked_stride)[None, :]
        w = tl.load(weights + at, mask=exists[:, None] & within[None, :], other=0.0)
        y = load_tile(x, k.to(tl.int64) * x_n, within, d, D, 1, WEIGHT)
        total = product(w, y, total, PRECISION)
        if APART:
            apart += tl.sum(w.to(WIDE), 1)
    if APART:
        total -= apart[:, None] * load_tile(own, i.to(tl.int64) * own_n, exists, d, D, 1, WIDE)
    tl.store(sums + out, total, mask=inside)


@triton.jit
def weighted_sums_kernel(
    weights, a, b, sums_a, sums_b, rows, columns, D, a_n, b_n, width, first_a, first_b,
    WIDE: tl.constexpr, WEIGHT: tl.constexpr, PRECISION: tl.constexpr, APART: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles_a = tl.cdiv(rows, BLOCK_N) * tl.cdiv(D, BLOCK_D)
    tile = tl.program_id(0)
    if tile < tiles_a:
        add_weighted_rows(
            weights, width, 1, b, b_n, a, a_n, sums_a, rows, columns, D, first_a, tile,
            WIDE, WEIGHT, PRECISION, APART, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip
    else:
        add_weighted_rows(
            weights, 1, width, a, a_n, b, b_n, sums_b, columns, rows, D, first_b, tile - tiles_a,
            WIDE, WEIGHT, PRECISION, APART, BLOCK_N, BLOCK_K, BLOCK_D,
        )  # fmt: skip


@triton.jit
def finish_gradient_kernel(
    x, other, sums, inverse_x, inverse_other, weights, factor, gradient,
    N, M, D, features, x_n, other_n, offset,
    WIDE: tl.constexpr, NORMALIZE: tl.constexpr, PAIRED: tl.constexpr, DISTANCE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = i < N
    inverse = tl.load(inverse_x + i, mask=exists, other=0.0)
    scale = tl.load(factor)
    if PAIRED:
        partner = i + offset
        partner = tl.where(partner >= M, partner - M, partner)
        paired = exists & (partner >= 0) & (partner < M)
        weight = tl.load(weights + i, mask=exists, other=0.0) * inverse
        partner_inverse = tl.load(inverse_other + partner, mask=paired, other=0.0)
    along = tl.zeros([BLOCK_N], WIDE)
    # With unit rows the gradient loses what points along the row; a second sweep takes it away.
    for sweep in tl.static_range(2 if NORMALIZE else 1):
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            g = load_tile(sums, i.to(tl.int64) * D, exists, d, D, 1, WIDE)
            row = load_tile(x, i.to(tl.int64) * x_n, exists, d, D, 1, WIDE) * inverse[:, None]
            if PAIRED:
                y = load_tile(other, partner.to(tl.int64) * other_n, paired, d, D, 1, WIDE) * partner_inverse[:, None]
                if DISTANCE == 1:
                    y = y - row
                g += weight[:, None] * y
            g *= scale
            if NORMALIZE and sweep == 0:
                along += tl.where(inverse * EPSILON < 1.0, tl.sum(g * row, 1), 0.0)
            else:
                g -= along[:, None] * row
                out = (i.to(tl.int64) * features)[:, None] + d[None, :]
                tl.store(gradient + out, g, mask=exists[:, None] & (d < features)[None, :])


class Slab(NamedTuple):
    """Rows and columns of the matrix of weights that are made and used up at once."""

    row_begin: int
    row_end: int
    column_begin: int
    column_end: int


def slabs(n: int, m: int, weight: torch.dtype, half: bool) -> list[Slab]:
    """Of an n x m matrix; `half` leaves out those below the diagonal."""
    edge = SLAB[weight.itemsize]
    return [
        Slab(r, min(r + edge, n), c, min(c + edge, m))
        for r in range(0, n, edge)
        for c in range(r if half else 0, m, edge)
    ]


def weighted_sums(
    a: Tensor, b: Tensor, operand: torch.dtype, weigh: Callable[[Slab, Tensor], None], apart: bool, half: bool
) -> tuple[Tensor, Tensor]:
    """Sums over packed rows a [N, D] and b [M, D] of the weights that `weigh` writes, slab by slab, into a [rows,
    columns] buffer. `apart`: of differences instead. `half`: a is b and the weights are symmetric."""
    n, m, features = len(a), len(b), a.shape[1]
    weight, precision = weight_type(operand)
    edge, wide = SLAB[weight.itemsize], wide_type(a)
    width = min(triton.cdiv(m, 16) * 16, edge)
    weights = torch.empty(min(n, edge), width, dtype=weight, device=a.device)
    sums_a = torch.empty(n, features, dtype=wide, device=a.device)
    sums_b = sums_a if half else torch.empty(m, features, dtype=wide, device=a.device)
    how = sum_tiles(weight, precision, features)
    for slab in slabs(n, m, weight, half):
        weigh(slab, weights)
        rows, columns = slab.row_end - slab.row_begin, slab.column_end - slab.column_begin
        diagonal = half and slab.row_begin == slab.column_begin
        tiles = triton.cdiv(rows, how.rows) + (0 if diagonal else triton.cdiv(columns, how.rows))
        with torch.cuda.device_of(a):
            weighted_sums_kernel[(tiles * triton.cdiv(features, how.width),)](
                weights, a[slab.row_begin :], b[slab.column_begin :],
                sums_a[slab.row_begin :], sums_b[slab.column_begin :],
                rows, columns, features, a.stride(0), b.stride(0), width,
                int(slab.column_begin == 0), int(slab.row_begin == 0),
                WIDE=TYPES[wide], WEIGHT=TYPES[weight], PRECISION=precision, APART=apart,
                BLOCK_N=how.rows, BLOCK_K=how.walked, BLOCK_D=how.width, **how.options,
            )  # fmt: skip
    return sums_a, sums_b


def finish_gradient(
    x: Tensor, other: Tensor, sums: Tensor, inverse_x: Tensor, inverse_other: Tensor, weights: Tensor | None,
    factor: Tensor, offset: int, features: int, distance: int, normalize: bool,
) -> Tensor:  # fmt: skip
    """Gradient [N, features] of packed rows x [N, D], from their sums and, with `weights` [N], from the pair with row
    (i + offset) % M of `other` [M, D]; all times `factor` [1]."""
    n, wide = len(x), sums.dtype
    gradient = torch.empty(n, features, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        finish_gradient_kernel[(triton.cdiv(n, FINISH_ROWS),)](
            x, other, sums, inverse_x, inverse_other, sums if weights is None else weights, factor, gradient,
            n, len(other), x.shape[1], features, x.stride(0), other.stride(0), offset,
            WIDE=TYPES[wide], NORMALIZE=normalize, PAIRED=weights is not None, DISTANCE=distance,
            BLOCK_N=FINISH_ROWS, BLOCK_D=row_width(wide, x.shape[1]), num_warps=4,
        )  # fmt: skip
    return gradient


def sum_tiles(weight: torch.dtype, precision: str, features: int) -> Tiles:
    if weight is torch.float64:
        return Tiles(32, 16, 32, 16, False, 4, 2, registers=255)
    if weight is torch.float32 and precision == "ieee":
        return Tiles(64, 16, 64, 16, False, 8, 3)
    if weight is torch.float32:
        return Tiles(64, 32, 128, 32, False, 8, 3, registers=168)
    return Tiles(64 if features <= 128 else 128, 64, 128, 64, False, 8, 3)


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: slabs of 32768 rows on each side, of 512 features."""
    types = ((torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float64, False))
    return [_sums_case(*case) for case in types] + [
        _finish_case(dtype, distance) for dtype, distance in ((torch.bfloat16, 0), (torch.float64, 1))
    ]


def _sums_case(dtype: torch.dtype, apart: bool) -> dict:
    (weight, precision), wide = weight_type(dtype), wide_type(torch.empty(0, dtype=dtype))
    how = sum_tiles(weight, precision, 512)
    edge = SLAB[weight.itemsize]
    pointers = {"weights": pointer(weight), **{x: pointer(dtype) for x in "ab"}}
    sizes = {"rows": edge, "columns": edge, "width": edge, "D": 512, "a_n": 512, "b_n": 512}
    return {
        "name": f"weighted_sums_kernel[{TYPES[dtype]}{', distance' if apart else ''}]",
        "kernel": weighted_sums_kernel,
        "pointers": pointers | {x: pointer(wide) for x in ("sums_a", "sums_b")},
        "integers": sizes | {"first_a": 0, "first_b": 0},
        "constants": {
            "WIDE": TYPES[wide], "WEIGHT": TYPES[weight], "PRECISION": precision, "APART": apart,
            "BLOCK_N": how.rows, "BLOCK_K": how.walked, "BLOCK_D": how.width,
        },
        "options": how.options,
        "wide_loads": True,
    }  # fmt: skip


def _finish_case(dtype: torch.dtype, distance: int) -> dict:
    wide = wide_type(torch.empty(0, dtype=dtype))
    floats = ("sums", "inverse_x", "inverse_other", "weights", "factor")
    sizes = {"N": 32768, "M": 32768, "D": 512, "features": 512, "x_n": 512, "other_n": 512, "offset": 0}
    return {
        "name": f"finish_gradient_kernel[{TYPES[dtype]}, distance {distance}]",
        "kernel": finish_gradient_kernel,
        "pointers": {x: pointer(dtype) for x in ("x", "other", "gradient")} | {x: pointer(wide) for x in floats},
        "integers": sizes,
        "constants": {
            "WIDE": TYPES[wide], "NORMALIZE": True, "PAIRED": True, "DISTANCE": distance,
            "BLOCK_N": FINISH_ROWS, "BLOCK_D": row_width(wide, 512),
        },
        "options": {"num_warps": 4},
        "wide_loads": True,
    }  # fmt: skip
