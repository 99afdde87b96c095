"""Cross-attention of one context to several exemplars in Triton: output, log-sum-exps and the map; no scores stored.

Idea: a program owns a tile of queries of one head and walks over the exemplars, each with a softmax of its own. With
few keys an exemplar is one tile and its softmax one pass; more keys are walked over with a running maximum. Programs of
neighbouring heads are neighbours, so that rows of all heads are read and written together. The maps "lse" and "max"
are means of one float per row and head. For "mean_prob" a second kernel makes the scores again, tile by tile, and adds
up the probabilities of all heads in registers.

Numerics: products in the type of the queries, sums in float32 (all float64 for float64); weights, at most 1, are
rounded to the type of the values. Keys that may not be attended are never read.

Cost model: 2 products of N_q x N_k x d per exemplar and head, with N_k rounded up to a power of two; one exponential
per score. Bytes: queries once, keys and values once per tile of queries, the output. At 256 contexts of 101 positions,
6 exemplars of 17, 16 heads of 32, bfloat16: 239 MB. Not yet measured on a GPU.

Reference: avfast.reference.correlation.correlate_forward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import LN_2, LOG2_E, product
from ..contrastive.triton_tiles import TYPES, load_tile, pointer, precision_of, wide_type
from .correlate_bwd_triton import correlate_bwd_triton
from .triton_scores import key_flags, keys_allowed, probabilities, products, score_tiles, tile_if_whole

__all__ = ["correlate_bwd_triton", "correlate_fwd_triton"]

MAX, MEAN_PROB = 2, 3  # numbers of the maps, as the operator takes them; 1 is "lse"
WANTED_PROGRAMS = 528  # 4 per multiprocessor of an H100; a constant, so that nothing depends on the card


@triton.jit
def correlate_kernel(
    q, k, v, mask, out, lse, peaks,
    Q, K, E, H, D, q_b, q_n, q_h, q_d, k_b, k_e, k_n, k_h, k_d, v_b, v_e, v_n, v_h, v_d, per_program,
    scale: tl.float64,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr, PEAK: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(Q, BLOCK_Q)
    h = (tl.program_id(0) % H).to(tl.int64)
    rest = tl.program_id(0) // H
    i = (rest % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    rest = rest // tiles
    groups = tl.cdiv(E, per_program)
    begin = (rest % groups) * per_program
    b = (rest // groups).to(tl.int64)
    exists = i < Q
    rows = b * q_b + h * q_h + i.to(tl.int64) * q_n
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    unit = tl.full([], scale, WIDE) * LOG2_E
    x = tile_if_whole(q, rows, exists, q_d, D, OPERAND, WHOLE, CHUNK)

    for step in range(tl.minimum(per_program, E - begin)):
        e = begin.to(tl.int64) + step
        exemplar = b * E + e
        key_base = b * k_b + e * k_e + h * k_h
        value_base = b * v_b + e * v_e + h * v_h
        shift = tl.full([BLOCK_Q], float("-inf"), WIDE)
        total = tl.zeros([BLOCK_Q], WIDE)
        weighted = tl.zeros([BLOCK_Q, BLOCK_D], WIDE)
        for first in range(0, K, BLOCK_K):
            j = first + tl.arange(0, BLOCK_K)
            allowed = keys_allowed(mask, exemplar, j, K, MASKED)
            key_rows = key_base + j.to(tl.int64) * k_n
            y = tile_if_whole(k, key_rows, allowed, k_d, D, OPERAND, WHOLE, CHUNK)
            t = products(
                x, q, rows, exists, q_d, y, k, key_rows, allowed, k_d, D,
                WIDE, OPERAND, PRECISION, WHOLE, BLOCK_Q, BLOCK_K, CHUNK,
            )  # fmt: skip
            t = tl.where(allowed[None, :], t * unit, float("-inf"))
            higher = tl.maximum(shift, tl.max(t, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            fade = tl.exp2(shift - base)
            weights = tl.exp2(t - base[:, None])
            shift = higher
            total = total * fade + tl.sum(weights, 1)
            values = load_tile(v, value_base + j.to(tl.int64) * v_n, allowed, d, D, v_d, OPERAND)
            weighted = product(weights.to(OPERAND), values, weighted * fade[:, None], PRECISION)
        result = weighted / tl.where(total == 0, 1.0, total)[:, None]
        at = ((exemplar * Q + i) * H + h) * D
        tl.store(out + at[:, None] + d[None, :], result, mask=exists[:, None] & (d < D)[None, :])
        if tl.program_id(1) == 0:
            row = (exemplar * H + h) * Q + i
            tl.store(lse + row, (shift + tl.log2(total)) * LN_2, mask=exists)
            if PEAK:
                tl.store(peaks + row, tl.where(total == total, shift * LN_2, total), mask=exists)


@triton.jit
def mean_probability_kernel(
    q, k, mask, lse, heat,
    Q, K, E, H, D, q_b, q_n, q_h, q_d, k_b, k_e, k_n, k_h, k_d, scale: tl.float64,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tiles, key_tiles = tl.cdiv(Q, BLOCK_Q), tl.cdiv(K, BLOCK_K)
    j = (tl.program_id(0) % key_tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
    rest = tl.program_id(0) // key_tiles
    i = (rest % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    exemplar = (rest // tiles).to(tl.int64)
    b, e = exemplar // E, exemplar % E
    exists = i < Q
    allowed = keys_allowed(mask, exemplar, j, K, MASKED)
    rows = b * q_b + i.to(tl.int64) * q_n
    key_rows = b * k_b + e * k_e + j.to(tl.int64) * k_n
    unit = tl.full([], scale, WIDE) * LOG2_E
    total = tl.zeros([BLOCK_Q, BLOCK_K], WIDE)
    row = exemplar * H * Q + i
    for _ in range(H):
        x = tile_if_whole(q, rows, exists, q_d, D, OPERAND, WHOLE, CHUNK)
        y = tile_if_whole(k, key_rows, allowed, k_d, D, OPERAND, WHOLE, CHUNK)
        t = products(
            x, q, rows, exists, q_d, y, k, key_rows, allowed, k_d, D,
            WIDE, OPERAND, PRECISION, WHOLE, BLOCK_Q, BLOCK_K, CHUNK,
        )  # fmt: skip
        total += probabilities(t * unit, tl.load(lse + row, mask=exists, other=0.0), allowed)
        rows += q_h
        key_rows += k_h
        row += Q
    at = (exemplar * Q + i)[:, None] * K + j[None, :]
    tl.store(heat + at, total / H, mask=exists[:, None] & (j < K)[None, :])


def correlate_fwd_triton(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, scale: float, map: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, Q, H, D] against k, v [B, E, K, H, D]: out [B, E, Q, H * D], lse [B, E, H, Q] and the map."""
    batch, queries, heads, width = q.shape
    exemplars, keys = k.shape[1:3]
    wide, device = wide_type(q), q.device
    out = torch.empty(batch, exemplars, queries, heads * width, dtype=q.dtype, device=device)
    lse = torch.empty(batch, exemplars, heads, queries, dtype=wide, device=device)
    peaks = torch.empty_like(lse) if map == MAX else lse
    precision = precision_of(q.dtype)
    how = score_tiles(q.dtype, precision, queries, keys, width)
    tiles = triton.cdiv(queries, how.rows)
    programs = batch * heads * tiles
    sizes = queries, keys, exemplars, heads, width
    types = {"WIDE": TYPES[wide], "OPERAND": TYPES[q.dtype], "PRECISION": precision, "MASKED": key_mask is not None}
    types |= {"WHOLE": how.whole, "BLOCK_Q": how.rows, "BLOCK_K": how.walked, "CHUNK": how.chunk, **how.options}
    mask = key_flags(key_mask, q)
    if lse.numel():
        groups = min(exemplars, triton.cdiv(WANTED_PROGRAMS, programs))
        per_program = triton.cdiv(exemplars, groups)
        grid = (programs * triton.cdiv(exemplars, per_program), triton.cdiv(width, how.width))
        with torch.cuda.device_of(q):
            correlate_kernel[grid](
                q, k, v, mask, out, lse, peaks, *sizes, *q.stride(), *k.stride(), *v.stride(), per_program, scale,
                PEAK=map == MAX, BLOCK_D=how.width, **types,
            )  # fmt: skip
    if map == 0:
        return out, lse, torch.empty(0, dtype=wide, device=device)
    if map != MEAN_PROB:
        return out, lse, peaks.mean(2)
    heat = torch.empty(batch, exemplars, queries, keys, dtype=wide, device=device)
    if heat.numel():
        grid = (batch * exemplars * tiles * triton.cdiv(keys, how.walked),)
        with torch.cuda.device_of(q):
            mean_probability_kernel[grid](
                q, k, mask, lse, heat, *sizes, *q.stride(), *k.stride(), scale, **types
            )  # fmt: skip
    return out, lse, heat


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: 101 positions, 6 exemplars of 17, 16 heads of 32, unless said."""
    half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    types = (
        ("bf16", brain, "ieee", {}),
        ("bf16, 300 keys of 64", brain, "ieee", {"K": 300, "D": 64}),
        ("bf16, 300 keys of 128", brain, "ieee", {"K": 300, "D": 128}),
        ("bf16, 256 features", brain, "ieee", {"D": 256}),
        ("fp16", half, "ieee", {}),
        ("fp32", single, "ieee", {}),
        ("fp32 as tf32", single, "tf32", {}),
        ("fp64", double, "ieee", {}),
    )
    cases = [_case(correlate_kernel, *case) for case in types]
    return cases + [_case(mean_probability_kernel, *case) for case in (types[0], types[5], types[7])]


def aot_sizes(**changed: int) -> dict[str, int]:
    sizes = {"Q": 101, "K": 17, "E": 6, "H": 16, "D": 32, "per_program": 6} | changed
    q, k, h, d = sizes["Q"], sizes["K"], sizes["H"], sizes["D"]
    sizes |= {"q_b": q * h * d, "q_n": h * d, "q_h": d, "q_d": 1}
    for x in "kv":
        sizes |= {f"{x}_b": 6 * k * h * d, f"{x}_e": k * h * d, f"{x}_n": h * d, f"{x}_h": d, f"{x}_d": 1}
    return sizes


def _case(kernel, name: str, dtype: torch.dtype, precision: str, changed: dict[str, int]) -> dict:
    wide, sizes = wide_type(torch.empty(0, dtype=dtype)), aot_sizes(**changed)
    how = score_tiles(dtype, precision, sizes["Q"], sizes["K"], sizes["D"])
    pointers = {x: pointer(dtype) for x in ("q", "k", "v", "out")} | {
        "mask": "*i64" if dtype is torch.float64 else "*i32"
    }
    pointers |= {x: pointer(wide) for x in ("lse", "peaks", "heat")}
    constants = {
        "WIDE": TYPES[wide], "OPERAND": TYPES[dtype], "PRECISION": precision, "MASKED": True, "PEAK": True,
        "WHOLE": how.whole, "BLOCK_Q": how.rows, "BLOCK_K": how.walked, "BLOCK_D": how.width, "CHUNK": how.chunk,
    }  # fmt: skip
    return {
        "name": f"{kernel.__name__}[{name}]",
        "kernel": kernel,
        "pointers": {n: p for n, p in pointers.items() if n in kernel.arg_names},
        "integers": {n: s for n, s in sizes.items() if n in kernel.arg_names},
        "doubles": ("scale",),
        "constants": {n: c for n, c in constants.items() if n in kernel.arg_names},
        "options": how.options,
        "wide_loads": True,
    }
