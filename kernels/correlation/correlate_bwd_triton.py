"""Gradients of cross-attention to exemplars in Triton: probabilities made again, sums over exemplars on chip.

Idea: a program owns a tile of queries of one head and walks over the exemplars; the gradient of its queries is added
up over all of them in registers and stored once. Where one tile holds all queries, as for the context of an image, it
writes the gradients of keys and values too: one kernel, five products. Otherwise it leaves one float per row,
sum_j P dP, to a second kernel whose programs own keys and walk over the queries. No atomics, every sum in one order.

Numerics: as correlate_triton.py; probabilities and slopes are rounded to bfloat16 for bfloat16, to TF32 for float16,
whose exponent is too short for slopes. Keys that may not be attended are not read, and their gradients are 0.

Cost model: 5 products of N_q x N_k x d per exemplar and head, 7 and a second read of the gradient of the output where
queries do not fit one tile (two more where keys do not). Bytes at 256 contexts of 101 positions, 6 exemplars of 17, 16
heads of 32, bfloat16: 319 MB. Not yet measured on a GPU.

Reference: avfast.reference.correlation.correlate_backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import LOG2_E, product
from ..contrastive.triton_tiles import (
    TYPES,
    Tiles,
    padded,
    pointer,
    precision_of,
    weight_type,
    wide_type,
)
from .triton_scores import key_flags, keys_allowed, probabilities, products, slice_of, tile_if_whole

LSE, MAX, MEAN_PROB = (tl.constexpr(n) for n in (1, 2, 3))  # numbers of the maps, as the operator takes them


@triton.jit
def probabilities_and_slopes(
    x, q, rows, exists, q_d, y, k, key_rows, allowed, k_d,
    g, grad_out, grad_rows, g_d, z, v, value_rows, v_d, grad_map, map_at, lse, D, H, unit,
    MAP: tl.constexpr, WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Scores times log2(e), probabilities, and the slopes of the probabilities."""
    t = products(
        x, q, rows, exists, q_d, y, k, key_rows, allowed, k_d, D,
        WIDE, OPERAND, PRECISION, WHOLE, BLOCK_Q, BLOCK_K, CHUNK,
    )  # fmt: skip
    t = tl.where(allowed[None, :], t * unit, float("-inf"))
    p = probabilities(t, lse, allowed)
    slope = products(
        g, grad_out, grad_rows, exists, g_d, z, v, value_rows, allowed, v_d, D,
        WIDE, OPERAND, PRECISION, WHOLE, BLOCK_Q, BLOCK_K, CHUNK,
    )  # fmt: skip
    if MAP == MEAN_PROB:
        slope += tl.load(grad_map + map_at, mask=exists[:, None] & allowed[None, :], other=0.0) / H
    return t, p, slope


@triton.jit
def score_slopes(p, slope, delta, of_map, first_key, j, allowed, MAP: tl.constexpr):
    """Slopes of the scores. `of_map`: gradient of the map's row, over the number of heads."""
    if MAP == LSE:
        delta = delta - of_map
    s = p * (slope - delta[:, None])
    if MAP == MAX:
        s += tl.where(j[None, :] == first_key[:, None], of_map[:, None], 0.0)
    return tl.where(allowed[None, :], s, 0.0)


@triton.jit
def correlate_queries_kernel(
    grad_out, grad_map, q, k, v, mask, lse, dq, dk, dv, deltas, first_keys,
    Q, K, E, H, D, g_b, g_e, g_n, g_d, q_b, q_n, q_h, q_d, k_b, k_e, k_n, k_h, k_d, v_b, v_e, v_n, v_h, v_d,
    scale: tl.float64,
    MAP: tl.constexpr, MASKED: tl.constexpr, ALONE: tl.constexpr, SHORT: tl.constexpr,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, WEIGHT: tl.constexpr,
    WEIGHT_PRECISION: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(Q, BLOCK_Q)
    h = (tl.program_id(0) % H).to(tl.int64)
    rest = tl.program_id(0) // H
    i = (rest % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    b = (rest // tiles).to(tl.int64)
    exists = i < Q
    rows = b * q_b + h * q_h + i.to(tl.int64) * q_n
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    factor = tl.full([], scale, WIDE)
    unit = factor * LOG2_E
    x = tile_if_whole(q, rows, exists, q_d, D, OPERAND, WHOLE, CHUNK)
    total = tl.zeros([BLOCK_Q, BLOCK_D], WIDE)

    for step in range(E):
        e = b * 0 + step
        exemplar = b * E + e
        row = (exemplar * H + h) * Q + i
        row_lse = tl.load(lse + row, mask=exists, other=0.0)
        grad_rows = b * g_b + e * g_e + h * D * g_d + i.to(tl.int64) * g_n
        g = tile_if_whole(grad_out, grad_rows, exists, g_d, D, OPERAND, WHOLE, CHUNK)
        of_map = tl.zeros([BLOCK_Q], WIDE)
        if (MAP == LSE) or (MAP == MAX):
            of_map = tl.load(grad_map + exemplar * Q + i, mask=exists, other=0.0) / H
        delta = tl.zeros([BLOCK_Q], WIDE)
        first_key = tl.zeros([BLOCK_Q], tl.int32)
        highest = tl.full([BLOCK_Q], float("-inf"), WIDE)
        # The first sweep adds up delta, which the second needs; with one tile of keys there is no second.
        for sweep in tl.static_range(1 if SHORT else 2):
            for first in range(0, K, BLOCK_K):
                j = first + tl.arange(0, BLOCK_K)
                allowed = keys_allowed(mask, exemplar, j, K, MASKED)
                key_rows = b * k_b + e * k_e + h * k_h + j.to(tl.int64) * k_n
                value_rows = b * v_b + e * v_e + h * v_h + j.to(tl.int64) * v_n
                y = tile_if_whole(k, key_rows, allowed, k_d, D, OPERAND, WHOLE, CHUNK)
                z = tile_if_whole(v, value_rows, allowed, v_d, D, OPERAND, WHOLE, CHUNK)
                map_at = (exemplar * Q + i)[:, None] * K + j[None, :]
                t, p, slope = probabilities_and_slopes(
                    x, q, rows, exists, q_d, y, k, key_rows, allowed, k_d,
                    g, grad_out, grad_rows, g_d, z, v, value_rows, v_d, grad_map, map_at, row_lse, D, H, unit,
                    MAP, WIDE, OPERAND, PRECISION, WHOLE, BLOCK_Q, BLOCK_K, CHUNK,
                )  # fmt: skip
                if sweep == 0:
                    delta += tl.sum(tl.where(allowed[None, :], p * slope, 0.0), 1)
                    if MAP == MAX:
                        here = tl.max(t, 1)
                        at = tl.min(tl.where(t == here[:, None], j[None, :], K), 1)
                        first_key = tl.where(here > highest, at, first_key)
                        highest = tl.maximum(highest, here)
                if SHORT or sweep == 1:
                    s = score_slopes(p, slope, delta, of_map, first_key, j, allowed, MAP).to(WEIGHT)
                    keys = slice_of(y, k, key_rows, allowed, d, k_d, D, WEIGHT, WHOLE)
                    total = product(s, keys, total, WEIGHT_PRECISION)
                    if ALONE:
                        queries = slice_of(x, q, rows, exists, d, q_d, D, WEIGHT, WHOLE)
                        grads = slice_of(g, grad_out, grad_rows, exists, d, g_d, D, WEIGHT, WHOLE)
                        none = tl.zeros([BLOCK_K, BLOCK_D], WIDE)
                        of_keys = product(tl.trans(s), queries, none, WEIGHT_PRECISION) * factor
                        of_values = product(tl.trans(p.to(WEIGHT)), grads, none, WEIGHT_PRECISION)
                        out = (((exemplar * K + j) * H + h) * D)[:, None] + d[None, :]
                        inside = (j < K)[:, None] & (d < D)[None, :]
                        tl.store(dk + out, tl.where(allowed[:, None], of_keys, 0.0), mask=inside)
                        tl.store(dv + out, tl.where(allowed[:, None], of_values, 0.0), mask=inside)
        if (not ALONE) and tl.program_id(1) == 0:
            tl.store(deltas + row, delta, mask=exists)
            if MAP == MAX:
                tl.store(first_keys + row, first_key, mask=exists)
    out = (((b * Q + i) * H + h) * D)[:, None] + d[None, :]
    tl.store(dq + out, total * factor, mask=exists[:, None] & (d < D)[None, :])


@triton.jit
def correlate_keys_kernel(
    grad_out, grad_map, q, k, v, mask, lse, deltas, first_keys, dk, dv,
    Q, K, E, H, D, g_b, g_e, g_n, g_d, q_b, q_n, q_h, q_d, k_b, k_e, k_n, k_h, k_d, v_b, v_e, v_n, v_h, v_d,
    scale: tl.float64,
    MAP: tl.constexpr, MASKED: tl.constexpr,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, WEIGHT: tl.constexpr,
    WEIGHT_PRECISION: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(K, BLOCK_K)
    h = (tl.program_id(0) % H).to(tl.int64)
    rest = tl.program_id(0) // H
    j = (rest % tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
    exemplar = (rest // tiles).to(tl.int64)
    b, e = exemplar // E, exemplar % E
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    factor = tl.full([], scale, WIDE)
    unit = factor * LOG2_E
    allowed = keys_allowed(mask, exemplar, j, K, MASKED)
    key_rows = b * k_b + e * k_e + h * k_h + j.to(tl.int64) * k_n
    value_rows = b * v_b + e * v_e + h * v_h + j.to(tl.int64) * v_n
    y = tile_if_whole(k, key_rows, allowed, k_d, D, OPERAND, WHOLE, CHUNK)
    z = tile_if_whole(v, value_rows, allowed, v_d, D, OPERAND, WHOLE, CHUNK)
    of_keys = tl.zeros([BLOCK_K, BLOCK_D], WIDE)
    of_values = tl.zeros([BLOCK_K, BLOCK_D], WIDE)
    for first in range(0, Q, BLOCK_Q):
        i = first + tl.arange(0, BLOCK_Q)
        exists = i < Q
        rows = b * q_b + h * q_h + i.to(tl.int64) * q_n
        grad_rows = b * g_b + e * g_e + h * D * g_d + i.to(tl.int64) * g_n
        row = (exemplar * H + h) * Q + i
        row_lse = tl.load(lse + row, mask=exists, other=0.0)
        delta = tl.load(deltas + row, mask=exists, other=0.0)
        of_map = tl.zeros([BLOCK_Q], WIDE)
        if (MAP == LSE) or (MAP == MAX):
            of_map = tl.load(grad_map + exemplar * Q + i, mask=exists, other=0.0) / H
        first_key = tl.zeros([BLOCK_Q], tl.int32)
        if MAP == MAX:
            first_key = tl.load(first_keys + row, mask=exists, other=0)
        x = tile_if_whole(q, rows, exists, q_d, D, OPERAND, WHOLE, CHUNK)
        g = tile_if_whole(grad_out, grad_rows, exists, g_d, D, OPERAND, WHOLE, CHUNK)
        map_at = (exemplar * Q + i)[:, None] * K + j[None, :]
        _, p, slope = probabilities_and_slopes(
            x, q, rows, exists, q_d, y, k, key_rows, allowed, k_d,
            g, grad_out, grad_rows, g_d, z, v, value_rows, v_d, grad_map, map_at, row_lse, D, H, unit,
            MAP, WIDE, OPERAND, PRECISION, WHOLE, BLOCK_Q, BLOCK_K, CHUNK,
        )  # fmt: skip
        s = score_slopes(p, slope, delta, of_map, first_key, j, allowed, MAP).to(WEIGHT)
        queries = slice_of(x, q, rows, exists, d, q_d, D, WEIGHT, WHOLE)
        grads = slice_of(g, grad_out, grad_rows, exists, d, g_d, D, WEIGHT, WHOLE)
        of_keys = product(tl.trans(s), queries, of_keys, WEIGHT_PRECISION)
        of_values = product(tl.trans(p.to(WEIGHT)), grads, of_values, WEIGHT_PRECISION)
    out = (((exemplar * K + j) * H + h) * D)[:, None] + d[None, :]
    inside = (j < K)[:, None] & (d < D)[None, :]
    tl.store(dk + out, tl.where(allowed[:, None], of_keys * factor, 0.0), mask=inside)
    tl.store(dv + out, tl.where(allowed[:, None], of_values, 0.0), mask=inside)


def slope_tiles(operand: torch.dtype, precision: str, queries: int, keys: int, width: int) -> Tiles:
    """`rows` queries, `walked` keys, `width` of the features that a program adds up."""
    rows, walked = (max(triton.next_power_of_2(n), 16) for n in (queries, keys))
    features = padded(width)
    if operand is torch.float64:
        return Tiles(min(rows, 32), 16, min(features, 16), 16, False, 4, 2, registers=255)
    if operand is torch.float32 and precision == "ieee":
        return Tiles(min(rows, 64), min(walked, 32), min(features, 32), 16, False, 8, 2, registers=255)
    if operand is torch.float32:
        whole = features <= 64
        return Tiles(min(rows, 64), min(walked, 32), min(features, 64), features if whole else 32, whole, 4, 1)
    if features <= 64:
        return Tiles(min(rows, 128), min(walked, 32), features, features, True, 8, 1)
    return Tiles(min(rows, 64), min(walked, 64), 128, 64, False, 8, 1)


def correlate_bwd_triton(
    grad_out: Tensor, grad_map: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, lse: Tensor,
    scale: float, map: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of <grad_out, out> + <grad_map, map> with respect to q, k and v."""
    batch, queries, heads, width = q.shape
    exemplars, keys = k.shape[1:3]
    device = q.device
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=device) for x in (q, k, v))
    if q.numel() == 0:
        return dq, dk.zero_(), dv.zero_()
    wide, precision = wide_type(q), precision_of(q.dtype)
    weight, weight_precision = weight_type(q.dtype)
    how = slope_tiles(q.dtype, precision, queries, keys, width)
    tiles, slices = triton.cdiv(queries, how.rows), triton.cdiv(width, how.width)
    alone = tiles == 1
    deltas = torch.empty(0 if alone else lse.shape, dtype=wide, device=device)
    first_keys = torch.empty(deltas.shape if map == MAX.value else 0, dtype=torch.int32, device=device)
    grad_map, lse = grad_map.contiguous(), lse.contiguous()
    strides = *grad_out.stride(), *q.stride(), *k.stride(), *v.stride()
    sizes = queries, keys, exemplars, heads, width
    mask = key_flags(key_mask, q)
    types = {"MAP": map, "MASKED": key_mask is not None, "WIDE": TYPES[wide], "OPERAND": TYPES[q.dtype]}
    types |= {"PRECISION": precision, "WEIGHT": TYPES[weight], "WEIGHT_PRECISION": weight_precision}
    types |= {"WHOLE": how.whole, "BLOCK_Q": how.rows, "BLOCK_K": how.walked, "BLOCK_D": how.width, "CHUNK": how.chunk}
    with torch.cuda.device_of(q):
        correlate_queries_kernel[(batch * heads * tiles, slices)](
            grad_out, grad_map, q, k, v, mask, lse, dq, dk, dv, deltas, first_keys, *sizes, *strides, scale,
            ALONE=alone, SHORT=keys <= how.walked, **types, **how.options,
        )  # fmt: skip
        if not alone and dk.numel():
            correlate_keys_kernel[(batch * exemplars * heads * triton.cdiv(keys, how.walked), slices)](
                grad_out, grad_map, q, k, v, mask, lse, deltas, first_keys, dk, dv, *sizes, *strides, scale,
                **types, **how.options,
            )  # fmt: skip
    return dq, dk, dv


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: 101 positions, 6 exemplars of 17, 16 heads of 32, unless said."""
    half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    types = (
        ("bf16", brain, "ieee", 0, {}),
        ("bf16, mean_prob", brain, "ieee", 3, {}),
        ("bf16, max of 300 keys of 64", brain, "ieee", 2, {"Q": 400, "K": 300, "D": 64}),
        ("bf16, max of 300 keys of 128", brain, "ieee", 2, {"Q": 400, "K": 300, "D": 128}),
        ("bf16, 256 features", brain, "ieee", 1, {"D": 256}),
        ("fp16", half, "ieee", 1, {}),
        ("fp32", single, "ieee", 3, {}),
        ("fp32 as tf32", single, "tf32", 1, {}),
        ("fp64", double, "ieee", 2, {}),
    )
    cases = [_case(correlate_queries_kernel, *case) for case in types]
    return cases + [_case(correlate_keys_kernel, *types[n]) for n in range(1, len(types))]


def _case(kernel, name: str, dtype: torch.dtype, precision: str, map: int, changed: dict[str, int]) -> dict:
    sizes = {"Q": 101, "K": 17, "E": 6, "H": 16, "D": 32} | changed
    queries, keys, width = sizes["Q"], sizes["K"], sizes["D"]
    line = 16 * width
    sizes |= {"g_b": 6 * queries * line, "g_e": queries * line, "g_n": line, "g_d": 1}
    sizes |= {"q_b": queries * line, "q_n": line, "q_h": width, "q_d": 1}
    for x in "kv":
        sizes |= {f"{x}_b": 6 * keys * line, f"{x}_e": keys * line, f"{x}_n": line, f"{x}_h": width, f"{x}_d": 1}
    wide = wide_type(torch.empty(0, dtype=dtype))
    weight, weight_precision = (dtype, precision) if dtype is torch.float32 else weight_type(dtype)
    how = slope_tiles(dtype, precision, queries, keys, width)
    pointers = {x: pointer(dtype) for x in ("grad_out", "q", "k", "v", "dq", "dk", "dv")}
    pointers |= {x: pointer(wide) for x in ("grad_map", "lse", "deltas")} | {
        "mask": "*i64" if dtype is torch.float64 else "*i32",
        "first_keys": "*i32",
    }
    constants = {
        "MAP": map, "MASKED": True, "ALONE": queries <= how.rows, "SHORT": keys <= how.walked,
        "WIDE": TYPES[wide], "OPERAND": TYPES[dtype], "PRECISION": precision,
        "WEIGHT": TYPES[weight], "WEIGHT_PRECISION": weight_precision,
        "WHOLE": how.whole, "BLOCK_Q": how.rows, "BLOCK_K": how.walked, "BLOCK_D": how.width, "CHUNK": how.chunk,
    }  # fmt: skip
    return {
        "name": f"{kernel.__name__}[{name}]",
        "kernel": kernel,
        "pointers": {n: p for n, p in pointers.items() if n in kernel.arg_names},
        "integers": sizes,
        "doubles": ("scale",),
        "constants": {n: c for n, c in constants.items() if n in kernel.arg_names},
        "options": how.options,
        "wide_loads": True,
    }
