"""Contrastive loss against a queue and its gradient in Triton: a flash-attention forward whose values are its keys.

Idea: a program owns a tile of queries and a part of the queue. It walks over the keys and keeps, per query,
sum_j e_j and sum_j e_j k_j with e_j = 2^(t_j - shift), t = log2(e) q.k / (temperature |q|); nothing N x K is
stored. The finishing kernel adds the parts in order, fetches the positive by its index, in float32, and turns
both sums into loss and gradient; see NOTES_triton.md.

Numerics: products in the type of the queries, sums in float32 (all float64 for float64). Queries are not
rounded when they are normalised: their length enters with the scale. With unit queries and a moderate
temperature, shift = log2(e) / temperature serves all rows, and needs unit keys: a key may be at most
1 + 80 temperature long. Otherwise, and for float16, whose exponent is too short, the shift is the running maximum.
The queue is read in the type of the queries; float16 queries of a bfloat16 queue are read as bfloat16.

Cost model: 2 products of N x K x D; per part of the queue N (D + 2) floats written and read. At B = 256,
S = 49, K = 65536, D = 128 that is 421 GFLOP and 51 MB. Not yet measured on a GPU.

Reference: avfast.reference.queue.queue_nce_forward.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import LN_2, LOG2_E, log1p_of_fraction, product
from .queue_gradient_triton import queue_nce_bwd_queue_triton
from .triton_tiles import (
    FIXED_SHIFT_RANGE,
    HALF_HEADROOM,
    TYPES,
    load_tile,
    operand_type,
    padded,
    parts,
    pointer,
    precision_of,
    products_by_chunks,
    walk_tiles,
    wide_type,
)

__all__ = ["queue_nce_bwd_queue_triton", "queue_nce_fwd_triton"]

FINISH_ROWS = 16
EPSILON = tl.constexpr(1e-12)  # of torch.nn.functional.normalize


@triton.jit
def queue_walk_kernel(
    q, queue, shifts, totals, sums,
    N, S, D, K, q_b, q_d, q_s, queue_k, queue_d, keys_per_part, inverse_temperature: tl.float64,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    NORMALIZE: tl.constexpr, ONLINE: tl.constexpr, HEADROOM: tl.constexpr, GRADIENT: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK_N)
    part = tl.program_id(0) // tiles
    i = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = i < N
    rows = (i // S).to(tl.int64) * q_b + (i % S).to(tl.int64) * q_s
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)

    squares = tl.zeros([BLOCK_N], WIDE)
    if WHOLE:
        x = load_tile(q, rows, exists, d, D, q_d, OPERAND)
        wide = x.to(WIDE)
        squares += tl.sum(wide * wide, 1)
    elif NORMALIZE:
        for first in range(0, D, CHUNK):
            wide = load_tile(q, rows, exists, first + tl.arange(0, CHUNK), D, q_d, WIDE)
            squares += tl.sum(wide * wide, 1)
    unit = tl.full([], inverse_temperature, WIDE) * LOG2_E
    if NORMALIZE:
        scale = unit / tl.maximum(tl.sqrt(squares), EPSILON)
    else:
        scale = unit + tl.zeros([BLOCK_N], WIDE)

    begin = part * keys_per_part
    end = tl.minimum(begin + keys_per_part, K)
    shift = tl.zeros([BLOCK_N], WIDE) + unit
    if ONLINE:
        shift = tl.full([BLOCK_N], float("-inf"), WIDE)
    total = tl.zeros([BLOCK_N], WIDE)
    weighted = tl.zeros([BLOCK_N, BLOCK_D], WIDE)
    for first in range(begin, end, BLOCK_K):
        j = first + tl.arange(0, BLOCK_K)
        key_rows, within = j.to(tl.int64) * queue_k, j < end
        if WHOLE:
            keys = load_tile(queue, key_rows, within, d, D, queue_d, OPERAND)
            t = product(x, tl.trans(keys), tl.zeros([BLOCK_N, BLOCK_K], WIDE), PRECISION)
        else:
            t = products_by_chunks(
                q, rows, exists, q_d, queue, key_rows, within, queue_d, D,
                WIDE, OPERAND, PRECISION, BLOCK_N, BLOCK_K, CHUNK,
            )  # fmt: skip
        t = t * scale[:, None]
        if ONLINE:
            t = tl.where(within[None, :], t, float("-inf"))
            higher = tl.maximum(shift, tl.max(t, 1) - HEADROOM)
            fade = tl.exp2(shift - higher)
            shift = higher
            e = tl.exp2(t - shift[:, None])
            total = total * fade
            weighted = weighted * fade[:, None]
        else:
            e = tl.where(within[None, :], tl.exp2(t - shift[:, None]), 0.0)
        total += tl.sum(e, 1)
        if GRADIENT:
            if not WHOLE:
                keys = load_tile(queue, key_rows, within, d, D, queue_d, OPERAND)
            weighted = product(e.to(OPERAND), keys, weighted, PRECISION)

    out = part.to(tl.int64) * N + i
    if tl.program_id(1) == 0:
        tl.store(shifts + out, shift, mask=exists)
        tl.store(totals + out, total, mask=exists)
    if GRADIENT:
        tl.store(sums + (out * D)[:, None] + d[None, :], weighted, mask=exists[:, None] & (d < D)[None, :])


@triton.jit
def queue_finish_kernel(
    q, k, match, shifts, totals, sums, loss, positive, lse, dq,
    N, S, D, q_b, q_d, q_s, k_b, k_d, k_l, count, inverse_temperature: tl.float64,
    WIDE: tl.constexpr, MATCHED: tl.constexpr, NORMALIZE: tl.constexpr, GRADIENT: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = i < N
    b, s = (i // S).to(tl.int64), (i % S).to(tl.int64)
    partner = s
    if MATCHED:
        partner = tl.load(match + i, mask=exists, other=-1)
    counts = exists & (partner >= 0)
    rows, key_rows = b * q_b + s * q_s, b * k_b + partner * k_l
    inverse = tl.full([], inverse_temperature, WIDE)

    row_squares = tl.zeros([BLOCK_N], WIDE)
    key_squares = tl.zeros([BLOCK_N], WIDE)
    both = tl.zeros([BLOCK_N], WIDE)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x = load_tile(q, rows, exists, d, D, q_d, WIDE)
        y = load_tile(k, key_rows, counts, d, D, k_d, WIDE)
        row_squares += tl.sum(x * x, 1)
        key_squares += tl.sum(y * y, 1)
        both += tl.sum(x * y, 1)
    row_norm = tl.sqrt(row_squares)
    row_scale = tl.full([BLOCK_N], 1.0, WIDE)
    key_scale = tl.full([BLOCK_N], 1.0, WIDE)
    if NORMALIZE:
        row_scale = 1.0 / tl.maximum(row_norm, EPSILON)
        key_scale = 1.0 / tl.maximum(tl.sqrt(key_squares), EPSILON)
    logit = both * row_scale * key_scale * inverse

    p = tl.arange(0, PARTS)
    at = p.to(tl.int64)[:, None] * N + i[None, :]
    some = (p < count)[:, None] & exists[None, :]
    part_shifts = tl.load(shifts + at, mask=some, other=float("-inf"))
    shift = tl.max(part_shifts, 0)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    total = tl.sum(tl.load(totals + at, mask=some, other=0.0) * tl.exp2(part_shifts - shift[None, :]), 0)

    gap = (shift + tl.log2(total)) * LN_2 - logit  # of the negatives' log-sum-exp above the positive
    small = tl.exp(-tl.abs(gap))
    row_loss = tl.maximum(gap, 0.0) + log1p_of_fraction(small, WIDE)
    tl.store(loss + i, tl.where(counts, row_loss, 0.0), mask=exists)
    tl.store(positive + i, tl.where(counts, logit, 0.0), mask=exists)
    tl.store(lse + i, tl.where(counts, logit + row_loss, 0.0), mask=exists)

    if GRADIENT:
        share = tl.where(gap > 0, 1.0, small) / (1.0 + small)  # of all negatives in the softmax: 1 - p of the positive
        weight = tl.where(total > 0, share / total, total)
        along = tl.zeros([BLOCK_N], WIDE)
        # With unit rows the gradient loses what points along the row; a second sweep takes it away.
        for sweep in tl.static_range(2 if NORMALIZE else 1):
            for first in range(0, D, BLOCK_D):
                d = first + tl.arange(0, BLOCK_D)
                y = load_tile(k, key_rows, counts, d, D, k_d, WIDE)
                weighted = tl.zeros([BLOCK_N, BLOCK_D], WIDE)
                there = i.to(tl.int64)
                for _ in range(count):
                    fade = tl.exp2(tl.load(shifts + there, mask=exists, other=0.0) - shift)
                    weighted += load_tile(sums, there * D, exists, d, D, 1, WIDE) * fade[:, None]
                    there += N
                g = (weighted * weight[:, None] - y * (share * key_scale)[:, None]) * inverse
                if NORMALIZE:
                    row = load_tile(q, rows, exists, d, D, q_d, WIDE) * row_scale[:, None]
                    if sweep == 0:
                        along += tl.where(row_norm > EPSILON, tl.sum(g * row, 1), 0.0)
                    else:
                        g = (g - row * along[:, None]) * row_scale[:, None]
                if sweep == 1 or not NORMALIZE:
                    out = (b * D * S + s)[:, None] + (d.to(tl.int64) * S)[None, :]
                    value = tl.where(counts[:, None], g, 0.0)
                    tl.store(dq + out, value, mask=exists[:, None] & (d < D)[None, :])


def finish_width(wide: torch.dtype, features: int) -> int:
    return min(padded(features), 32 if wide is torch.float64 else 128)


def queue_nce_fwd_triton(
    q: Tensor, k: Tensor, queue: Tensor, match: Tensor | None, temperature: float, normalize: bool, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, positive logit, log-sum-exp [B, S] and the gradient of each loss with respect to q [B, D, S].

    q [B, D, S], k [B, D, L] and queue [K, D] with any strides; match int64 [B, S], negative where a row does not count.
    """
    b, features, s = q.shape
    n, keys = b * s, queue.shape[0]
    wide = wide_type(q)
    outputs = [torch.empty(b, s, dtype=wide, device=q.device) for _ in range(3)]
    dq = torch.empty(q.shape if need_grad else 0, dtype=wide, device=q.device)
    if n == 0:
        return *outputs, dq

    operand = operand_type(q, queue)
    precision = precision_of(operand)
    half = operand is torch.float16
    how = walk_tiles(operand, precision, features)
    row_tiles, key_tiles = triton.cdiv(n, how.rows), triton.cdiv(keys, how.walked)
    count = parts(row_tiles, key_tiles)
    per_part = max(triton.cdiv(key_tiles, count), 1) * how.walked
    count = max(triton.cdiv(keys, per_part), 1)
    shifts, totals = torch.empty(2, count, n, dtype=wide, device=q.device)
    sums = torch.empty(count if need_grad else 0, n, features, dtype=wide, device=q.device)
    online = not normalize or half or 2 * math.log2(math.e) / temperature >= FIXED_SHIFT_RANGE
    slices = max(triton.cdiv(features, how.width), 1) if need_grad else 1
    with torch.cuda.device_of(q):
        queue_walk_kernel[(row_tiles * count, slices)](
            q, queue, shifts, totals, sums,
            n, s, features, keys, *q.stride(), *queue.stride(), per_part, 1 / temperature,
            WIDE=TYPES[wide], OPERAND=TYPES[operand], PRECISION=precision,
            NORMALIZE=normalize, ONLINE=online, HEADROOM=HALF_HEADROOM if half else 0.0, GRADIENT=need_grad,
            WHOLE=how.whole, BLOCK_N=how.rows, BLOCK_K=how.walked, BLOCK_D=how.width, CHUNK=how.chunk, **how.options,
        )  # fmt: skip
        queue_finish_kernel[(triton.cdiv(n, FINISH_ROWS),)](
            q, k, q if match is None else match.contiguous(), shifts, totals, sums, *outputs, dq,
            n, s, features, *q.stride(), *k.stride(), count, 1 / temperature,
            WIDE=TYPES[wide], MATCHED=match is not None, NORMALIZE=normalize, GRADIENT=need_grad,
            PARTS=triton.next_power_of_2(count), BLOCK_N=FINISH_ROWS, BLOCK_D=finish_width(wide, features), num_warps=4,
        )  # fmt: skip
    return *outputs, dq


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: B = 256, S = 49, K = 65536, and D = 128 unless said."""
    half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    walks = (
        ("bf16", brain, "ieee", 128, False, True),
        ("bf16, running maximum", brain, "ieee", 128, True, True),
        ("bf16, loss alone", brain, "ieee", 128, False, False),
        ("bf16, 256 features", brain, "ieee", 256, False, True),
        ("bf16, 512 features", brain, "ieee", 512, False, True),
        ("fp16", half, "ieee", 128, True, True),
        ("fp32", single, "ieee", 128, False, True),
        ("fp32 as tf32", single, "tf32", 128, False, True),
        ("fp64", double, "ieee", 128, False, True),
    )
    return [_walk_case(*walk) for walk in walks] + [_finish_case(brain, single), _finish_case(double, double)]


def _sizes(features: int) -> dict[str, int]:
    maps = {f"{x}_{axis}": size for x in "qk" for axis, size in zip("bds", (features * 49, 49, 1), strict=True)}
    return {"N": 12544, "S": 49, "D": features, "K": 65536, "queue_k": features, "queue_d": 1, "k_l": 1, **maps}


def _walk_case(name: str, dtype: torch.dtype, precision: str, features: int, online: bool, gradient: bool) -> dict:
    how, wide = walk_tiles(dtype, precision, features), wide_type(torch.empty(0, dtype=dtype))
    sizes = {**_sizes(features), "keys_per_part": 16384}
    constants = {
        "WIDE": TYPES[wide], "OPERAND": TYPES[dtype], "PRECISION": precision, "NORMALIZE": True, "ONLINE": online,
        "HEADROOM": HALF_HEADROOM if dtype is torch.float16 else 0.0, "GRADIENT": gradient,
        "WHOLE": how.whole, "BLOCK_N": how.rows, "BLOCK_K": how.walked, "BLOCK_D": how.width, "CHUNK": how.chunk,
    }  # fmt: skip
    return {
        "name": f"queue_walk_kernel[{name}]",
        "kernel": queue_walk_kernel,
        "pointers": {x: pointer(dtype) for x in ("q", "queue")}
        | {x: pointer(wide) for x in ("shifts", "totals", "sums")},
        "integers": {n: v for n, v in sizes.items() if n in queue_walk_kernel.arg_names},
        "doubles": ("inverse_temperature",),
        "constants": constants,
        "options": how.options,
        "wide_loads": True,
    }


def _finish_case(dtype: torch.dtype, wide: torch.dtype) -> dict:
    outputs = ("shifts", "totals", "sums", "loss", "positive", "lse", "dq")
    return {
        "name": f"queue_finish_kernel[{TYPES[dtype]}]",
        "kernel": queue_finish_kernel,
        "pointers": {x: pointer(dtype) for x in "qk"} | {"match": "*i64"} | {x: pointer(wide) for x in outputs},
        "integers": {n: v for n, v in {**_sizes(128), "count": 4}.items() if n in queue_finish_kernel.arg_names},
        "doubles": ("inverse_temperature",),
        "constants": {
            "WIDE": TYPES[wide], "MATCHED": True, "NORMALIZE": True, "GRADIENT": True,
            "PARTS": 4, "BLOCK_N": FINISH_ROWS, "BLOCK_D": finish_width(wide, 128),
        },
        "options": {"num_warps": 4},
        "wide_loads": True,
    }  # fmt: skip
