"""Channel statistics in Triton: mean, biased variance, zeros and dead samples per channel in one read.

For CUDA machines where no nvcc was there when avfast was built; elsewhere channel_stats_cuda.cu serves.

Idea: a program takes one tile of channels and one slice of positions, as in activation_walk.cuh: whole
samples where maps are small, a part of one map where they are large. Its tile is [samples, positions,
channels], one channel wide for [N, C, S] and one map run long for [N, S, C], so that neighbouring lanes
always read neighbouring addresses.

Numerics: sums in float32 (float64 for float64) around the mean of the program's first tile, then in float64
around the channel's first element, where they add up:  sum(x - r) = s + n a,  sum((x - r)^2) = q + 2 a s + n
a^2,  a = shift - r.

Cost model: the bytes of x once, the first tile of each program twice (from cache); 28 bytes per channel and
slice; one launch and a handful of small torch ones to combine. Not yet measured on a GPU.

Reference: avfast.reference.batch_norm.channel_stats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import counting, finite_or_zero, limit_bits, load_wide, magnitude_bits

WANTED_PROGRAMS = 2112  # 16 per multiprocessor of an H100; a constant, so that results do not depend on the card
TILE = 1024
# Told no limit, ptxas spills a word or two to fit one more block.
OPTIONS = {"num_warps": 4, "maxnreg": 128}


@triton.jit
def channel_stats_kernel(
    x, sums, squares, zeros, dead,
    N, C, S, stride_n, stride_c, stride_s,
    samples_per_slice, segment, segments, limit,
    WIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(C, BLOCK_C)  # a one-dimensional grid: the other two end at 65535
    slice_index = tl.program_id(0) // tiles
    n_begin = counting(slice_index // segments, N) * samples_per_slice
    s_begin = counting(slice_index % segments, S) * segment
    n_end = tl.minimum(n_begin + samples_per_slice, N)
    s_end = tl.minimum(s_begin + segment, S)

    n_own, s_own = counting(tl.arange(0, BLOCK_N), N), counting(tl.arange(0, BLOCK_S), S)
    n_tile, s_tile = n_own[:, None, None], s_own[None, :, None]
    c = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < C
    columns = x + (c * stride_c)[None, None, :]
    reference = finite_or_zero(load_wide(x + c * stride_c, c_mask, WIDE)).to(tl.float64)

    n, s = n_begin + n_tile, s_begin + s_tile
    mask = (n < n_end) & (s < s_end) & c_mask[None, None, :]
    tile = load_wide(columns + n.to(tl.int64) * stride_n + s.to(tl.int64) * stride_s, mask, WIDE)
    lead = tl.minimum(n_end - n_begin, BLOCK_N) * tl.minimum(s_end - s_begin, BLOCK_S)
    shift = finite_or_zero(tl.sum(tl.sum(tile, axis=1), axis=0) / lead.to(WIDE))

    total = tl.zeros([BLOCK_N, BLOCK_S, BLOCK_C], dtype=WIDE)
    total_squares = tl.zeros([BLOCK_N, BLOCK_S, BLOCK_C], dtype=WIDE)
    zero_count = tl.zeros([BLOCK_C], dtype=tl.int32)
    dead_count = tl.zeros([BLOCK_C], dtype=tl.int32)
    for n_first in range(n_begin, n_end, BLOCK_N):
        n = n_first + n_tile
        rows = columns + n.to(tl.int64) * stride_n
        zero_tile = tl.zeros([BLOCK_N, BLOCK_S, BLOCK_C], dtype=tl.int32)
        for s_first in range(s_begin, s_end, BLOCK_S):
            s = s_first + s_tile
            mask = (n < n_end) & (s < s_end) & c_mask[None, None, :]
            v = load_wide(rows + s.to(tl.int64) * stride_s, mask, WIDE)
            d = tl.where(mask, v - shift[None, None, :], 0.0)
            total += d
            total_squares += d * d
            zero_tile += (mask & (magnitude_bits(v, WIDE) <= limit)).to(tl.int32)
        per_sample = tl.sum(zero_tile, axis=1)  # [BLOCK_N, BLOCK_C]
        exists = (n_first + n_own < n_end)[:, None]
        zero_count += tl.sum(per_sample, axis=0)
        dead_count += tl.sum((exists & (per_sample == s_end - s_begin)).to(tl.int32), axis=0)

    a = shift.to(tl.float64) - reference
    plain = tl.sum(tl.sum(total.to(tl.float64), axis=1), axis=0)
    square = tl.sum(tl.sum(total_squares.to(tl.float64), axis=1), axis=0)
    terms = ((n_end - n_begin) * (s_end - s_begin)).to(tl.float64)
    out = slice_index.to(tl.int64) * C + c
    tl.store(sums + out, plain + terms * a, mask=c_mask)
    tl.store(squares + out, square + 2 * a * plain + terms * a * a, mask=c_mask)
    tl.store(zeros + out, zero_count, mask=c_mask)
    tl.store(dead + out, dead_count, mask=c_mask)


@dataclass(frozen=True)
class Cut:
    """Tile shape and slices, from the activation's shape and layout alone."""

    block_n: int
    block_s: int
    block_c: int
    samples_per_slice: int
    segment: int
    segments: int
    slices: int


def cut(n: int, c: int, s: int, channels_last: bool, wanted_programs: int = WANTED_PROGRAMS) -> Cut:
    power = triton.next_power_of_2
    block_c = min(power(c), 64) if channels_last else 1
    block_s = min(power(s), TILE // block_c)
    block_n = min(power(n), TILE // (block_c * block_s))
    tiles = triton.cdiv(c, block_c)
    tile = block_n * block_s
    wanted = min(max(triton.cdiv(n * s * tiles, wanted_programs), 4 * tile), 32 * tile)
    if s >= 2 * wanted:
        segment = triton.cdiv(triton.cdiv(s, triton.cdiv(s, wanted)), block_s) * block_s
        segments = triton.cdiv(s, segment)
        return Cut(1, block_s, block_c, 1, segment, segments, n * segments)
    groups = triton.cdiv(n, max(wanted // (s * block_n), 1) * block_n)
    per_slice = triton.cdiv(triton.cdiv(n, groups), block_n) * block_n
    return Cut(block_n, block_s, block_c, per_slice, s, 1, triton.cdiv(n, per_slice))


def channel_stats_triton(x: Tensor, dead_threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and biased variance (float64 [C]), elements and samples that are zero (int64 [C]) of x [N, C, *].

    Contiguous and channels-last x are read where they lie; any other layout is copied first.
    """
    n, c = x.shape[:2]
    s = x[0, 0].numel() if n and c else 0
    if x.numel() == 0:
        nan = torch.full((c,), float("nan"), dtype=torch.float64, device=x.device)
        none = torch.zeros(c, dtype=torch.int64, device=x.device)
        return nan, nan.clone(), none, none.clone()

    lanes = x.movedim(1, -1)  # [N, *, C]
    channels_last = lanes.is_contiguous()
    flat = lanes.reshape(n, s, c) if channels_last else x.contiguous().reshape(n, c, s)
    stride_n = c * s
    stride_c, stride_s = (1, c) if channels_last else (s, 1)
    how = cut(n, c, s, channels_last)
    wide = tl.float64 if x.dtype is torch.float64 else tl.float32

    sums = torch.empty(2, how.slices, c, dtype=torch.float64, device=x.device)
    counts = torch.empty(2, how.slices, c, dtype=torch.int32, device=x.device)
    grid = (triton.cdiv(c, how.block_c) * how.slices,)
    with torch.cuda.device_of(x):
        channel_stats_kernel[grid](
            flat, sums[0], sums[1], counts[0], counts[1],
            n, c, s, stride_n, stride_c, stride_s,
            how.samples_per_slice, how.segment, how.segments,
            limit_bits(dead_threshold, np.float64 if wide is tl.float64 else np.float32),
            WIDE=wide, BLOCK_N=how.block_n, BLOCK_S=how.block_s, BLOCK_C=how.block_c, **OPTIONS,
        )  # fmt: skip

    reference = (flat[0, 0] if channels_last else flat[0, :, 0]).double()
    reference = torch.where(reference.isfinite(), reference, 0.0)
    offset, spread = sums.sum(1) / (n * s)
    zeros = counts[0].sum(0, dtype=torch.int64)
    dead = counts[1].long()
    if how.segments > 1:  # a sample is dead when each of its segments is
        dead = dead.view(n, how.segments, c).sum(1) == how.segments
    return reference + offset, (spread - offset * offset).clamp(min=0), zeros, dead.sum(0)


def aot_cases() -> list[dict]:
    """What tests compile ahead of time for each architecture: every dtype, both layouts, at a ResNet's
    shapes."""
    pointers = {"sums": "*fp64", "squares": "*fp64", "zeros": "*i32", "dead": "*i32"}
    cases = []
    for dtype, wide in (
        ("fp32", tl.float32),
        ("fp16", tl.float32),
        ("bf16", tl.float32),
        ("fp64", tl.float64),
    ):
        for layout, (n, c, s) in (
            ("rows", (256, 64, 3136)),
            ("rows ragged", (256, 2048, 49)),
            ("lanes", (256, 256, 784)),
        ):
            lanes = layout == "lanes"
            how = cut(n, c, s, lanes)
            sizes = {"N": n, "C": c, "S": s, "stride_n": c * s}
            sizes |= {"stride_c": 1, "stride_s": c} if lanes else {"stride_c": s, "stride_s": 1}
            sizes |= {
                "samples_per_slice": how.samples_per_slice,
                "segment": how.segment,
                "segments": how.segments,
            }
            cases.append(
                {
                    "name": f"channel_stats_kernel[{dtype}, {layout}]",
                    "kernel": channel_stats_kernel,
                    "pointers": {"x": f"*{dtype}", **pointers},
                    "integers": {
                        **sizes,
                        "limit": limit_bits(1e-6, np.float64 if dtype == "fp64" else np.float32),
                    },
                    "constants": {
                        "WIDE": wide,
                        "BLOCK_N": how.block_n,
                        "BLOCK_S": how.block_s,
                        "BLOCK_C": how.block_c,
                    },
                    "options": OPTIONS,
                    "wide_loads": layout != "rows ragged",
                }
            )
    return cases
