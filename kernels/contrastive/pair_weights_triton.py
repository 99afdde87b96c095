"""One slab of the gradient of in-batch losses with respect to their products of rows, in Triton.

Idea: the scores of a slab of at most a few thousand rows and columns are made again, one tile per program, and
turned into weights, small enough as a matrix to stay in the L2 cache until weighted_sums_triton.py has multiplied
it with both sides. Positives given by an offset are left out: their weight -(1 - p) joins in float32 at the end.

Numerics: as in pair_scores_triton.py; weights are rounded to the type in which they are multiplied. They hold
both inverse lengths, so that they serve raw rows on both sides, and lack the factor 1 / temperature.

Cost model: one product of N x M x D, two exponentials and one write per score. Not yet measured on a GPU.

Reference: avfast.reference.contrastive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import LN_2, LOG2_E
from .pair_rows_triton import COSINE, EUCLIDEAN, Rows
from .pair_scores_triton import LEAST_SQUARE, kept, logits_of
from .triton_tiles import TYPES, Tiles, pointer, precision_of, products_by_chunks, score_tiles, weight_type, wide_type
from .weighted_sums_triton import SLAB, slabs, weighted_sums


@triton.jit
def pair_weights_kernel(
    a, b, inverse_a, inverse_b, squares_a, squares_b, temperature, row_lse, column_lse, row_grad, column_grad,
    labels_a, labels_b, row_count, column_count, weights, moments,
    N, M, D, a_n, b_n, positive, exclude, row_begin, column_begin, row_end, column_end, width, counted,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, DISTANCE: tl.constexpr,
    COLUMNS: tl.constexpr, LABELS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(column_end - column_begin, BLOCK)
    i_in_slab = (tl.program_id(0) // tiles) * BLOCK + tl.arange(0, BLOCK)
    j_in_slab = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    i, j = row_begin + i_in_slab, column_begin + j_in_slab
    exists, within = i < row_end, j < column_end
    products = products_by_chunks(
        a, i.to(tl.int64) * a_n, exists, 1, b, j.to(tl.int64) * b_n, within, 1, D,
        WIDE, OPERAND, PRECISION, BLOCK, BLOCK, CHUNK,
    )  # fmt: skip
    inverse_i = tl.load(inverse_a + i, mask=exists, other=0.0)
    inverse_j = tl.load(inverse_b + j, mask=within, other=0.0)
    squares_i = tl.load(squares_a + i, mask=exists, other=0.0)
    squares_j = tl.load(squares_b + j, mask=within, other=0.0)
    unit = LOG2_E / tl.load(temperature)
    t = logits_of(products, inverse_i, inverse_j, squares_i, squares_j, unit, DISTANCE)

    row_shift = tl.load(row_lse + i, mask=exists, other=0.0) * LOG2_E
    row_weight = tl.load(row_grad + i, mask=exists, other=0.0)
    w = tl.exp2(t - row_shift[:, None]) * row_weight[:, None]
    if COLUMNS:
        column_shift = tl.load(column_lse + j, mask=within, other=0.0) * LOG2_E
        column_weight = tl.load(column_grad + j, mask=within, other=0.0)
        w += tl.exp2(t - column_shift[None, :]) * column_weight[None, :]
    if LABELS:
        same = (
            tl.load(labels_a + i, mask=exists, other=0)[:, None] == tl.load(labels_b + j, mask=within, other=0)[None, :]
        )
        share = row_weight / tl.maximum(tl.load(row_count + i, mask=exists, other=1), 1).to(WIDE)
        positives = share[:, None] + tl.zeros([BLOCK, BLOCK], WIDE)
        if COLUMNS:
            share = column_weight / tl.maximum(tl.load(column_count + j, mask=within, other=1), 1).to(WIDE)
            positives += share[None, :]
        w -= tl.where(same, positives, 0.0)
    keep = kept(i, j, N, M, positive, exclude, LABELS) & exists[:, None] & within[None, :]
    w = tl.where(keep, w, 0.0)
    moment = tl.sum(tl.where(keep, w * t, 0.0)) * LN_2
    tl.store(moments + tl.program_id(0), moment / counted)
    if DISTANCE == 1:
        distance = -t / unit
        w = tl.where(distance * distance > LEAST_SQUARE, w / distance, 0.0)
    w *= inverse_i[:, None] * inverse_j[None, :]
    out = i_in_slab.to(tl.int64)[:, None] * width + j_in_slab[None, :]
    tl.store(weights + out, w, mask=exists[:, None] & within[None, :])


class Softmax(NamedTuple):
    """Of one side: log-sum-exps and upstream gradients [N]."""

    lse: Tensor
    grad: Tensor


class Labels(NamedTuple):
    """Labels (int64) of rows and columns, and how many positives each has (int32)."""

    rows: Tensor
    columns: Tensor
    row_count: Tensor
    column_count: Tensor


def softmax_sums(
    a: Tensor, b: Tensor, rows: Rows, temperature: Tensor, by_row: Softmax, by_column: Softmax | None,
    labels: Labels | None, positive: int, exclude: int, distance: int, normalize: bool, half: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Weighted sums over packed a [N, D] and b [M, D], and the sum of all weights times their logits.

    Weights are grad_i (p_ij - positives) by rows and, unless that is None, by columns. `half`: b is a, and the weights
    are symmetric.
    """
    n, m, wide = len(a), len(b), rows.inverse_a.dtype
    precision, weight = precision_of(a.dtype), weight_type(a.dtype)[0]
    how = weight_tiles(a.dtype, precision, labels is not None or distance == EUCLIDEAN)
    cut = slabs(n, m, weight, half)
    most = triton.cdiv(SLAB[weight.itemsize], how.rows) ** 2
    moments = torch.zeros(len(cut), most, dtype=wide, device=a.device)
    row_lse, row_grad = (x.contiguous() for x in by_row)
    column_lse, column_grad = (x.contiguous() for x in by_column or by_row)
    by_label = (a,) * 4 if labels is None else [x.contiguous() for x in labels]

    def weigh(slab, weights: Tensor) -> None:
        row_tiles = triton.cdiv(slab.row_end - slab.row_begin, how.rows)
        column_tiles = triton.cdiv(slab.column_end - slab.column_begin, how.walked)
        counted = 2 if half and slab.row_begin == slab.column_begin else 1  # how often a pair is in the slab
        with torch.cuda.device_of(a):
            pair_weights_kernel[(row_tiles * column_tiles,)](
                a, b, *rows[:4], temperature, row_lse, column_lse, row_grad, column_grad, *by_label,
                weights, moments[cut.index(slab)],
                n, m, a.shape[1], a.stride(0), b.stride(0), positive, exclude if exclude >= 0 else m,
                slab.row_begin, slab.column_begin, slab.row_end, slab.column_end, weights.stride(0), counted,
                WIDE=TYPES[wide], OPERAND=TYPES[a.dtype], PRECISION=precision, DISTANCE=distance,
                COLUMNS=by_column is not None, LABELS=labels is not None,
                BLOCK=how.rows, CHUNK=how.chunk, **how.options,
            )  # fmt: skip

    apart = distance == EUCLIDEAN and not normalize
    return *weighted_sums(a, b, a.dtype, weigh, apart, half), moments.sum()


def weight_tiles(operand: torch.dtype, precision: str, busy: bool) -> Tiles:
    """Labels, distances and wide weights need registers of their own."""
    if operand.itemsize > 2:
        return score_tiles(operand, precision, 64, busy)
    busy = busy or operand is torch.float16
    return Tiles(64, 64, 64, 64, False, 8, 3) if busy else Tiles(128, 128, 64, 64, False, 16, 3)


def weights_case(name: str, dtype: torch.dtype, features: int, distance: int = COSINE, labels: bool = False) -> dict:
    """One of what tests compile ahead of time: a slab of 32768 rows on each side, weighed by rows and columns."""
    precision, wide = precision_of(dtype), wide_type(torch.empty(0, dtype=dtype))
    weight = weight_type(dtype)[0]
    how, edge = weight_tiles(dtype, precision, labels or distance == EUCLIDEAN), SLAB[weight.itemsize]
    floats = ("inverse_a", "inverse_b", "squares_a", "squares_b", "temperature", "row_lse", "column_lse", "row_grad",
              "column_grad", "moments")  # fmt: skip
    integers = {"labels_a": "*i64", "labels_b": "*i64", "row_count": "*i32", "column_count": "*i32"}
    ends = {"row_begin": edge, "row_end": 2 * edge, "column_begin": edge, "column_end": 2 * edge, "width": edge}
    sizes = {"N": 32768, "M": 32768, "D": features, "a_n": features, "b_n": features, "counted": 1}
    pointers = {x: pointer(dtype) for x in "ab"} | {x: pointer(wide) for x in floats} | integers
    return {
        "name": f"pair_weights_kernel[{name}]",
        "kernel": pair_weights_kernel,
        "pointers": pointers | {"weights": pointer(weight)},
        "integers": sizes | ends | {"positive": 0, "exclude": 32768},
        "constants": {
            "WIDE": TYPES[wide], "OPERAND": TYPES[dtype], "PRECISION": precision, "DISTANCE": distance,
            "COLUMNS": True, "LABELS": labels, "BLOCK": how.rows, "CHUNK": how.chunk,
        },
        "options": how.options,
        "wide_loads": True,
    }  # fmt: skip


def aot_cases() -> list[dict]:
    return [
        weights_case("bf16, 128 features", torch.bfloat16, 128),
        weights_case("bf16, 512 features", torch.bfloat16, 512),
        weights_case("fp16, 512 features", torch.float16, 512),
        weights_case("fp32, distance", torch.float32, 512, distance=EUCLIDEAN),
        weights_case("fp64, 512 features", torch.float64, 512),
    ]
