"""For each position of one feature map, the most similar position of another, in Triton.

Idea: a program takes a tile of positions of one image and walks over the other map's positions; channels stream
through a tile of products once per pair of tiles, and the lengths of the keys are summed as they pass. A query's
length cannot change its argmax, so it only divides the winner. Neither map is copied, transposed or normalised.

Numerics: products in the type of the maps, which is exact for float16 and bfloat16; sums in float32 (all float64 for
float64). TF32 is never used: the index is the result. Ties go to the lowest index; NaN is larger than any number,
and the first one wins, as in torch.argmax.

Cost model: both maps once where a map has at most 64 positions, 2 B C S elements: 103 MB at B = 256, C = 2048,
S = 49 in bfloat16. Not yet measured on a GPU.

Reference: avfast.reference.match.dense_match.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import product
from .triton_tiles import TYPES, Tiles, load_tile, pointer, wide_type

EPSILON = tl.constexpr(1e-12)  # of torch.nn.functional.normalize


@triton.jit
def dense_match_kernel(
    feat_q, feat_k, index, similarity,
    S, L, C, q_b, q_c, q_s, k_b, k_c, k_l,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(S, BLOCK)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    s = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    exists = s < S
    rows = image * q_b + s.to(tl.int64) * q_s
    best = tl.full([BLOCK], float("-inf"), WIDE)
    place = tl.zeros([BLOCK], tl.int32)
    lost = tl.zeros([BLOCK], tl.int32)  # 1 once a NaN was found: nothing is larger
    row_squares = tl.zeros([BLOCK], WIDE)
    for first in range(0, L, BLOCK):
        j = first + tl.arange(0, BLOCK)
        within = j < L
        key_rows = image * k_b + j.to(tl.int64) * k_l
        scores = tl.zeros([BLOCK, BLOCK], WIDE)
        key_squares = tl.zeros([BLOCK], WIDE)
        row_squares = tl.zeros([BLOCK], WIDE)
        for first_channel in range(0, C, CHUNK):
            c = first_channel + tl.arange(0, CHUNK)
            x = load_tile(feat_q, rows, exists, c, C, q_c, OPERAND)
            y = load_tile(feat_k, key_rows, within, c, C, k_c, OPERAND)
            scores = product(x, tl.trans(y), scores, "ieee")
            row_squares += tl.sum(x.to(WIDE) * x.to(WIDE), 1)
            key_squares += tl.sum(y.to(WIDE) * y.to(WIDE), 1)
        scores = scores / tl.maximum(tl.sqrt(key_squares), EPSILON)[None, :]

        nan = (scores != scores) & within[None, :]
        first_nan = tl.min(tl.where(nan, j[None, :], L), 1)
        scores = tl.where(within[None, :] & (scores == scores), scores, float("-inf"))
        highest = tl.max(scores, 1)
        first_highest = tl.min(tl.where((scores == highest[:, None]) & within[None, :], j[None, :], L), 1)
        has_nan = first_nan < L
        found = tl.where(has_nan, first_nan, first_highest)
        better = (lost == 0) & (has_nan | (highest > best))
        place = tl.where(better, found, place)
        best = tl.where(better, tl.where(has_nan, float("nan"), highest), best)
        lost = tl.where(has_nan, 1, lost)

    out = image * S + s
    tl.store(index + out, place.to(tl.int64), mask=exists)
    tl.store(similarity + out, best / tl.maximum(tl.sqrt(row_squares), EPSILON), mask=exists)


def dense_match_fwd_triton(feat_q: Tensor, feat_k: Tensor) -> tuple[Tensor, Tensor]:
    """Index (int64) and cosine [B, S] of the position of feat_k [B, C, L] most similar to each of feat_q [B, C, S]."""
    b, channels, s = feat_q.shape
    wide = wide_type(feat_q)
    index = torch.empty(b, s, dtype=torch.int64, device=feat_q.device)
    similarity = torch.empty(b, s, dtype=wide, device=feat_q.device)
    how = match_tiles(feat_q.dtype)
    if index.numel():
        with torch.cuda.device_of(feat_q):
            dense_match_kernel[(b * triton.cdiv(s, how.rows),)](
                feat_q, feat_k, index, similarity,
                s, feat_k.shape[2], channels, *feat_q.stride(), *feat_k.stride(),
                WIDE=TYPES[wide], OPERAND=TYPES[feat_q.dtype], BLOCK=how.rows, CHUNK=how.chunk, **how.options,
            )  # fmt: skip
    return index, similarity


def match_tiles(dtype: torch.dtype) -> Tiles:
    if dtype is torch.float64:
        return Tiles(32, 32, 16, 16, False, 4, 2, registers=255)
    return (
        Tiles(64, 64, 16, 16, False, 8, 2, registers=255)
        if dtype is torch.float32
        else Tiles(64, 64, 64, 64, False, 4, 3)
    )


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: every type, B = 256 maps of 2048 channels and 7 x 7 positions."""
    cases = []
    for dtype in TYPES:
        how, wide = match_tiles(dtype), wide_type(torch.empty(0, dtype=dtype))
        maps = {f"{x}_{axis}": size for x in "qk" for axis, size in (("b", 2048 * 49), ("c", 49))}
        cases.append(
            {
                "name": f"dense_match_kernel[{TYPES[dtype]}]",
                "kernel": dense_match_kernel,
                "pointers": {
                    **{x: pointer(dtype) for x in ("feat_q", "feat_k")}, "index": "*i64", "similarity": pointer(wide),
                },
                "integers": {"S": 49, "L": 49, "C": 2048, **maps, "q_s": 1, "k_l": 1},
                "constants": {"WIDE": TYPES[wide], "OPERAND": TYPES[dtype], "BLOCK": how.rows, "CHUNK": how.chunk},
                "options": how.options,
                "wide_loads": False,
            }
        )  # fmt: skip
    return cases
