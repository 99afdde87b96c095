"""Row and column log-sum-exps of in-batch scores in Triton, both from one pass over the tiles.

Idea: a program owns a tile of rows and a part of the columns. Of each tile it keeps the row sums and writes the
log of the column sums; a second kernel merges the parts in order. Of a batch against itself, where scores are
symmetric, only tiles on and above the diagonal are made, and the column sums serve as row sums of the others.
Positives given by an offset are left out here and come in when parts are merged (see pair_rows_triton.py);
positives given by labels are compared in registers.

Numerics: scores in the type of the rows, sums in float32 (all float64 for float64). Lengths enter with the scale,
so no row is rounded when it is normalised. Where rows are of unit length and the temperature, which is read on
the device, is moderate, one shift serves all rows and columns, and one exponential both directions. Otherwise
each row keeps a running maximum and each column of a tile has its own.

Cost model: one product of N x M x D (half of it for a batch against itself), one exponential per score (two
with maxima), one float per column and tile of rows. Not yet measured on a GPU.

Reference: avfast.reference.contrastive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import LN_2, LOG2_E, product
from .pair_rows_triton import COSINE, EUCLIDEAN, MIN_DISTANCE, Rows
from .triton_tiles import (
    FIXED_SHIFT_RANGE,
    TYPES,
    load_tile,
    parts,
    pointer,
    precision_of,
    products_by_chunks,
    score_tiles,
    wide_type,
)

MERGE_PARTS, MERGE_ROWS = 16, 128
LEAST_SQUARE = tl.constexpr(MIN_DISTANCE * MIN_DISTANCE)
SHIFT_RANGE = tl.constexpr(FIXED_SHIFT_RANGE)


@triton.jit
def logits_of(products, inverse_i, inverse_j, squares_i, squares_j, unit, DISTANCE: tl.constexpr):
    """Logits times log2(e), from products of raw rows; `unit` is log2(e) / temperature."""
    cosine = products * (inverse_i * unit)[:, None] * inverse_j[None, :]
    if DISTANCE == 1:
        square = squares_i[:, None] + squares_j[None, :] - 2.0 * products * inverse_i[:, None] * inverse_j[None, :]
        cosine = -unit * tl.sqrt(tl.maximum(square, LEAST_SQUARE, propagate_nan=tl.PropagateNan.ALL))
    return cosine


@triton.jit
def kept(i, j, N, M, positive, exclude, LABELS: tl.constexpr):
    """Scores that tiles add up: all but the excluded ones and positives that are known by their place."""
    keep = (i < N)[:, None] & (j < M)[None, :] & (j[None, :] != (i + exclude)[:, None])
    if not LABELS:
        partner = i + positive
        partner = tl.where(partner >= M, partner - M, partner)
        keep = keep & (j[None, :] != partner[:, None])
    return keep


@triton.jit
def pair_scores_kernel(
    a, b, inverse_a, inverse_b, squares_a, squares_b, temperature, labels_a, labels_b,
    row_parts, column_parts, row_targets, column_targets, row_counts, column_counts,
    N, M, D, a_n, b_n, positive, exclude, tiles_per_part,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, DISTANCE: tl.constexpr,
    BOUNDED: tl.constexpr, COLUMNS: tl.constexpr, LABELS: tl.constexpr, HALF: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK)
    tile, part = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    i = tile * BLOCK + tl.arange(0, BLOCK)
    exists = i < N
    rows = i.to(tl.int64) * a_n
    if WHOLE:
        d = tl.arange(0, CHUNK)
        x = load_tile(a, rows, exists, d, D, 1, OPERAND)
    inverse_i = tl.load(inverse_a + i, mask=exists, other=0.0)
    squares_i = tl.load(squares_a + i, mask=exists, other=0.0)
    if LABELS:
        label_i = tl.load(labels_a + i, mask=exists, other=0)
    unit = LOG2_E / tl.load(temperature)
    bound = unit if DISTANCE == 0 else unit * 0.0  # the largest logit of unit rows
    fixed = BOUNDED & (2.0 * unit < SHIFT_RANGE)

    shift = tl.full([BLOCK], float("-inf"), WIDE)
    shift = tl.where(fixed, bound, shift)
    total = tl.zeros([BLOCK], WIDE)
    target = tl.zeros([BLOCK], WIDE)
    count = tl.zeros([BLOCK], tl.int32)
    first_tile, last_tile = part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tl.cdiv(M, BLOCK))
    if HALF:
        first_tile = tl.maximum(first_tile, tile)
    for at in range(first_tile, last_tile):
        j = at * BLOCK + tl.arange(0, BLOCK)
        columns, within = j.to(tl.int64) * b_n, j < M
        if WHOLE:
            y = load_tile(b, columns, within, d, D, 1, OPERAND)
            products = product(x, tl.trans(y), tl.zeros([BLOCK, BLOCK], WIDE), PRECISION)
        else:
            products = products_by_chunks(
                a, rows, exists, 1, b, columns, within, 1, D, WIDE, OPERAND, PRECISION, BLOCK, BLOCK, CHUNK
            )
        inverse_j = tl.load(inverse_b + j, mask=within, other=0.0)
        squares_j = tl.load(squares_b + j, mask=within, other=0.0)
        t = logits_of(products, inverse_i, inverse_j, squares_i, squares_j, unit, DISTANCE)
        keep = kept(i, j, N, M, positive, exclude, LABELS)
        t = tl.where(keep, t, float("-inf"))
        column_shift = tl.zeros([BLOCK], WIDE) + bound
        if fixed:
            e = tl.exp2(t - bound)
            total += tl.sum(e, 1)
            column_total = tl.sum(e, 0)
        else:
            higher = tl.maximum(shift, tl.max(t, 1))
            total *= tl.exp2(shift - tl.where(higher == float("-inf"), 0.0, higher))
            shift = higher
            total += tl.sum(tl.exp2(t - tl.where(shift == float("-inf"), 0.0, shift)[:, None]), 1)
            column_total = tl.zeros([BLOCK], WIDE)
            if COLUMNS:
                highest = tl.max(t, 0)
                column_shift = tl.where(highest == float("-inf"), 0.0, highest)
                column_total = tl.sum(tl.exp2(t - column_shift[None, :]), 0)
        stored = within
        if HALF:
            stored = within & (at > tile)
        if COLUMNS:
            column = (column_shift + tl.log2(column_total)) * LN_2
            tl.store(column_parts + tile.to(tl.int64) * M + j, column, mask=stored)
        if LABELS:
            label_j = tl.load(labels_b + j, mask=within, other=0)
            same = keep & (label_i[:, None] == label_j[None, :])
            t = tl.where(same, t, 0.0)
            target += tl.sum(t, 1)
            count += tl.sum(same.to(tl.int32), 1)
            if COLUMNS:
                out = tile.to(tl.int64) * M + j
                tl.store(column_targets + out, tl.sum(t, 0) * LN_2, mask=stored)
                tl.store(column_counts + out, tl.sum(same.to(tl.int32), 0), mask=stored)

    out = part.to(tl.int64) * N + i
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    tl.store(row_parts + out, (shift + tl.log2(total)) * LN_2, mask=exists)
    if LABELS:
        tl.store(row_targets + out, target * LN_2, mask=exists)
        tl.store(row_counts + out, count, mask=exists)


@triton.jit
def merge_kernel(
    parts, extra, lse, P, N, extras, offset,
    WIDE: tl.constexpr, EXTRA: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp over P parts [P, N] and, from `offset` on, one more logit per column: alone, it is the result."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = i < N
    shift = tl.full([BLOCK_N], float("-inf"), WIDE)
    total = tl.zeros([BLOCK_N], WIDE)
    if EXTRA:
        own = i - offset
        there = exists & (own >= 0) & (own < extras)
        shift = tl.load(extra + own, mask=there, other=float("-inf"))
        total = tl.where(there, 1.0, total)
    for first in range(0, P, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        at = p.to(tl.int64)[:, None] * N + i[None, :]
        part = tl.load(parts + at, mask=(p < P)[:, None] & exists[None, :], other=float("-inf"))
        higher = tl.maximum(shift, tl.max(part, 0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(shift - safe) + tl.sum(tl.exp(part - safe[None, :]), 0)
        shift = higher
    tl.store(lse + i, shift + tl.log(total), mask=exists)


def merged(parts: Tensor, extra: Tensor | None = None, offset: int = 0) -> Tensor:
    """Log-sum-exp of each column of parts [P, N], with logit `extra[i - offset]` where there is one."""
    count, n = parts.shape
    lse = torch.empty(n, dtype=parts.dtype, device=parts.device)
    if n:
        merge_kernel[(triton.cdiv(n, MERGE_ROWS),)](
            parts, parts if extra is None else extra, lse, count, n, 0 if extra is None else len(extra), offset,
            WIDE=TYPES[parts.dtype], EXTRA=extra is not None, BLOCK_P=MERGE_PARTS, BLOCK_N=MERGE_ROWS, num_warps=4,
        )  # fmt: skip
    return lse


class Scores(NamedTuple):
    """Log-sum-exps of rows and of columns, in parts [parts, N]; with labels the sum and the number of positive
    logits in as many parts as the rows have (None without)."""

    rows: Tensor
    columns: Tensor
    targets: Tensor | None
    counts: Tensor | None


def pair_scores(
    a: Tensor, b: Tensor, rows: Rows, temperature: Tensor, labels: tuple[Tensor, Tensor] | None,
    positive: int, exclude: int, distance: int, normalize: bool, columns: bool, half: bool = False,
) -> Scores:  # fmt: skip
    """Of packed a [N, D] and b [M, D]. `exclude` below 0 leaves no score out. `half` is for a with itself: parts of
    columns are parts of rows as well then, and `rows`, `targets` and `counts` hold both."""
    n, m, wide = len(a), len(b), rows.inverse_a.dtype
    precision = precision_of(a.dtype)
    how = score_tiles(a.dtype, precision, a.shape[1], labels is not None)
    row_tiles, column_tiles = triton.cdiv(n, how.rows), triton.cdiv(m, how.walked)
    per_part = triton.cdiv(column_tiles, parts(row_tiles, column_tiles))
    count, across = triton.cdiv(column_tiles, per_part), row_tiles if columns else 0

    def buffers(fill: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Parts of rows, parts of columns, and the parts that rows are merged from. Tiles that `half` leaves out keep
        `fill`."""
        flat = torch.full((count * n + across * m,), fill, dtype=dtype, device=a.device)
        of_rows, of_columns = flat[: count * n].view(count, n), flat[count * n :].view(across, m)
        return of_rows, of_columns, flat.view(-1, n) if half else of_rows

    row_parts, column_parts, all_rows = buffers(float("-inf"), wide)
    targets = counts = (row_parts, column_parts, None)
    if labels is not None:
        targets, counts = buffers(0.0, wide), buffers(0, torch.int32)
    label_a, label_b = (x.contiguous() for x in labels) if labels is not None else (a, b)
    with torch.cuda.device_of(a):
        pair_scores_kernel[(row_tiles * count,)](
            a, b, *rows[:4], temperature, label_a, label_b,
            row_parts, column_parts, *targets[:2], *counts[:2],
            n, m, a.shape[1], a.stride(0), b.stride(0), positive, exclude if exclude >= 0 else m, per_part,
            WIDE=TYPES[wide], OPERAND=TYPES[a.dtype], PRECISION=precision, DISTANCE=distance,
            BOUNDED=normalize, COLUMNS=columns, LABELS=labels is not None, HALF=half,
            WHOLE=how.whole, BLOCK=how.rows, CHUNK=how.chunk, **how.options,
        )  # fmt: skip
    return Scores(all_rows, column_parts, targets[2], counts[2])


def scores_case(
    name: str, dtype: torch.dtype, features: int, distance: int = COSINE, labels: bool = False, half: bool = False,
    normalize: bool = True,
) -> dict:  # fmt: skip
    """One of what tests compile ahead of time: 32768 rows on each side, rows and columns."""
    precision, wide = precision_of(dtype), wide_type(torch.empty(0, dtype=dtype))
    how = score_tiles(dtype, precision, features, labels)
    floats = ("inverse_a", "inverse_b", "squares_a", "squares_b", "temperature", "row_parts", "column_parts",
              "row_targets", "column_targets")  # fmt: skip
    integers = {"labels_a": "*i64", "labels_b": "*i64", "row_counts": "*i32", "column_counts": "*i32"}
    sizes = {"N": 32768, "M": 32768, "D": features, "a_n": features, "b_n": features}
    return {
        "name": f"pair_scores_kernel[{name}]",
        "kernel": pair_scores_kernel,
        "pointers": {x: pointer(dtype) for x in "ab"} | {x: pointer(wide) for x in floats} | integers,
        "integers": {**sizes, "positive": 0, "exclude": 32768, "tiles_per_part": 64},
        "constants": {
            "WIDE": TYPES[wide], "OPERAND": TYPES[dtype], "PRECISION": precision, "DISTANCE": distance,
            "BOUNDED": normalize, "COLUMNS": half or not labels, "LABELS": labels, "HALF": half,
            "WHOLE": how.whole, "BLOCK": how.rows, "CHUNK": how.chunk,
        },
        "options": how.options,
        "wide_loads": True,
    }  # fmt: skip


def aot_cases() -> list[dict]:
    merge = {
        "name": "merge_kernel",
        "kernel": merge_kernel,
        "pointers": dict.fromkeys(("parts", "extra", "lse"), "*fp32"),
        "integers": {"P": 256, "N": 32768, "extras": 32768, "offset": 0},
        "constants": {"WIDE": tl.float32, "EXTRA": True, "BLOCK_P": MERGE_PARTS, "BLOCK_N": MERGE_ROWS},
        "options": {"num_warps": 4},
        "wide_loads": False,
    }
    return [
        scores_case("bf16, 128 features", torch.bfloat16, 128),
        scores_case("bf16, 512 features", torch.bfloat16, 512),
        scores_case("fp32, 512 features", torch.float32, 512),
        scores_case("fp64, 512 features", torch.float64, 512),
        scores_case("fp32, distance", torch.float32, 512, distance=EUCLIDEAN, normalize=False),
        merge,
    ]
