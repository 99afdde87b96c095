"""Pairwise sigmoid loss (SigLIP) in Triton: row losses, and with them all gradients in one pass.

Idea: the loss has no normaliser, so a tile of scores gives its row losses and its weights at once; weights are
multiplied with both sides slab by slab (weighted_sums_triton.py). The positive of each row is left out of the
tiles and joins in float32.

Numerics: products in the type of the rows, sums in float32 (all float64 for float64). log(1 + e^x) is taken to the
last places also where x is far below zero, as it is for nearly all pairs at the usual bias.

Cost model: 1 product of N x M x D for the loss, 3 for loss and gradients; scale and bias stay on the device. Not
yet measured on a GPU.

Reference: avfast.reference.contrastive.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import log1p_of_fraction
from .pair_rows_triton import COSINE, Rows, rows_of
from .pair_scores_triton import kept
from .pair_weights_triton import weight_tiles
from .triton_tiles import TYPES, Tiles, packed, pointer, precision_of, products_by_chunks, weight_type, wide_type
from .weighted_sums_triton import SLAB, Slab, finish_gradient, slabs, weighted_sums


@triton.jit
def sigmoid_tile_kernel(
    a, b, inverse_a, inverse_b, scale, bias, row_grad, losses, weights, moments,
    N, M, D, a_n, b_n, positive, row_begin, column_begin, row_end, column_end, width,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(column_end - column_begin, BLOCK)
    tile = tl.program_id(0) % tiles
    i_in_slab = (tl.program_id(0) // tiles) * BLOCK + tl.arange(0, BLOCK)
    j_in_slab = tile * BLOCK + tl.arange(0, BLOCK)
    i, j = row_begin + i_in_slab, column_begin + j_in_slab
    exists, within = i < row_end, j < column_end
    products = products_by_chunks(
        a, i.to(tl.int64) * a_n, exists, 1, b, j.to(tl.int64) * b_n, within, 1, D,
        WIDE, OPERAND, PRECISION, BLOCK, BLOCK, CHUNK,
    )  # fmt: skip
    inverse_i = tl.load(inverse_a + i, mask=exists, other=0.0)
    inverse_j = tl.load(inverse_b + j, mask=within, other=0.0)
    cosine = products * inverse_i[:, None] * inverse_j[None, :]
    x = cosine * tl.load(scale) + tl.load(bias)
    keep = kept(i, j, N, M, positive, M, False) & exists[:, None] & within[None, :]
    small = tl.exp(-tl.abs(x))
    loss = tl.maximum(x, 0.0) + log1p_of_fraction(small, WIDE)
    column_tile = (column_begin // BLOCK + tile).to(tl.int64)
    tl.store(losses + column_tile * N + i, tl.sum(tl.where(keep, loss, 0.0), 1), mask=exists)
    if GRADIENT:
        row_weight = tl.load(row_grad + i, mask=exists, other=0.0)
        w = tl.where(x > 0, 1.0, small) / (1.0 + small) * row_weight[:, None]
        w = tl.where(keep, w, 0.0)
        tl.store(moments + 2 * tl.program_id(0), tl.sum(tl.where(keep, w * cosine, 0.0)))
        tl.store(moments + 2 * tl.program_id(0) + 1, tl.sum(w))
        w *= inverse_i[:, None] * inverse_j[None, :]
        out = i_in_slab.to(tl.int64)[:, None] * width + j_in_slab[None, :]
        tl.store(weights + out, w, mask=exists[:, None] & within[None, :])


def sigmoid_nce_fwd_triton(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, positive: int, normalize: bool) -> Tensor:
    """Loss of each row [N] of a [N, D] against all of b [M, D]; row i's positive is b[positive + i]."""
    n, m = len(a), len(b)
    if n == 0:
        return torch.empty(0, dtype=wide_type(a), device=a.device)
    a, b = packed(a), packed(b)
    rows = rows_of(a, b, positive, COSINE, normalize)
    how = tiles_of(a)
    losses = rows.similarity.new_empty(triton.cdiv(m, how.walked), n)
    _launch(a, b, rows, scale, bias, None, losses, None, None, positive, Slab(0, n, 0, m), how)
    return losses.sum(0) - F.logsigmoid(rows.similarity * scale + bias)


def sigmoid_nce_bwd_triton(
    grad_row: Tensor, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, positive: int, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same losses [N], and the gradients of sum(grad_row loss) with respect to a, b, scale and bias."""
    n, m, features, wide = len(a), len(b), a.shape[1], wide_type(a)
    if n == 0:
        zeros = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (a, b, scale, bias)]
        return torch.empty(0, dtype=wide, device=a.device), *zeros
    a, b, grad_row = packed(a), packed(b), grad_row.contiguous()
    rows = rows_of(a, b, positive, COSINE, normalize)
    how, weight = tiles_of(a), weight_type(a.dtype)[0]
    cut = slabs(n, m, weight, half=False)
    losses = rows.similarity.new_empty(triton.cdiv(m, how.walked), n)
    moments = losses.new_zeros(len(cut), triton.cdiv(SLAB[weight.itemsize], how.rows) ** 2, 2)

    def weigh(slab: Slab, weights: Tensor) -> None:
        place = moments[cut.index(slab)]
        _launch(a, b, rows, scale, bias, grad_row, losses, weights, place, positive, slab, how)

    sums_a, sums_b = weighted_sums(a, b, a.dtype, weigh, apart=False, half=False)
    x = rows.similarity * scale + bias
    pull = -grad_row * torch.sigmoid(-x)
    dscale, dbias = moments.sum((0, 1)) + torch.stack([(pull * rows.similarity).sum(), pull.sum()])
    push = pull.new_zeros(m)
    push[positive : positive + n] = pull
    da = finish_gradient(
        a, b, sums_a, rows.inverse_a, rows.inverse_b, pull, scale, positive, features, COSINE, normalize
    )
    db = finish_gradient(
        b, a, sums_b, rows.inverse_b, rows.inverse_a, push, scale, -positive, features, COSINE, normalize
    )
    return losses.sum(0) - F.logsigmoid(x), da, db, dscale.reshape(1), dbias.reshape(1)


def tiles_of(a: Tensor) -> Tiles:
    return weight_tiles(a.dtype, precision_of(a.dtype), busy=True)


def _launch(
    a: Tensor, b: Tensor, rows: Rows, scale: Tensor, bias: Tensor, grad: Tensor | None, losses: Tensor,
    weights: Tensor | None, moments: Tensor | None, positive: int, slab: Slab, how: Tiles,
) -> None:  # fmt: skip
    row_tiles = triton.cdiv(slab.row_end - slab.row_begin, how.rows)
    column_tiles = triton.cdiv(slab.column_end - slab.column_begin, how.walked)
    gradient = grad is not None
    with torch.cuda.device_of(a):
        sigmoid_tile_kernel[(row_tiles * column_tiles,)](
            a, b, rows.inverse_a, rows.inverse_b, scale, bias,
            grad if gradient else losses, losses, weights if gradient else losses, moments if gradient else losses,
            len(a), len(b), a.shape[1], a.stride(0), b.stride(0), positive,
            slab.row_begin, slab.column_begin, slab.row_end, slab.column_end, weights.stride(0) if gradient else 0,
            WIDE=TYPES[losses.dtype], OPERAND=TYPES[a.dtype], PRECISION=precision_of(a.dtype), GRADIENT=gradient,
            BLOCK=how.rows, CHUNK=how.chunk, **how.options,
        )  # fmt: skip


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: a slab of 32768 rows on each side, of 768 features, with gradients."""
    cases = []
    for dtype in TYPES:
        precision, wide, weight = precision_of(dtype), wide_type(torch.empty(0, dtype=dtype)), weight_type(dtype)[0]
        how, edge = weight_tiles(dtype, precision, busy=True), SLAB[weight.itemsize]
        floats = ("inverse_a", "inverse_b", "scale", "bias", "row_grad", "losses", "moments")
        ends = {"row_begin": edge, "row_end": 2 * edge, "column_begin": edge, "column_end": 2 * edge, "width": edge}
        cases.append(
            {
                "name": f"sigmoid_tile_kernel[{TYPES[dtype]}]",
                "kernel": sigmoid_tile_kernel,
                "pointers": {
                    **{x: pointer(dtype) for x in "ab"}, **{x: pointer(wide) for x in floats},
                    "weights": pointer(weight),
                },
                "integers": {"N": 32768, "M": 32768, "D": 768, "a_n": 768, "b_n": 768, "positive": 0, **ends},
                "constants": {
                    "WIDE": TYPES[wide], "OPERAND": TYPES[dtype], "PRECISION": precision, "GRADIENT": True,
                    "BLOCK": how.rows, "CHUNK": how.chunk,
                },
                "options": how.options,
                "wide_loads": True,
            }
        )  # fmt: skip
    return cases
