"""What the in-batch losses need of single rows, in Triton: lengths, and each row's similarity to its positive.

The positive's score is made here, in float32 from the rows themselves, and left out of every tile: in bfloat16
tiles it would be the one term whose rounding does not average out, and a distance between two nearly equal rows
would be lost in |a|^2 + |b|^2 - 2 a.b.

Cost model: every row once, positives twice. Not yet measured on a GPU.

Reference: avfast.reference.contrastive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tiles import TYPES, load_tile, padded, pointer, wide_type

COSINE, EUCLIDEAN = 0, 1
MIN_DISTANCE = 1e-6
BLOCK_ROWS = 16
EPSILON = tl.constexpr(1e-12)  # of torch.nn.functional.normalize


@triton.jit
def pair_rows_kernel(
    a, b, inverse_a, inverse_b, squares_a, squares_b, similarity,
    N, M, D, a_n, b_n, positive,
    WIDE: tl.constexpr, NORMALIZE: tl.constexpr, PAIRED: tl.constexpr, DISTANCE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Programs beyond the rows of a take the rows of b; a row of a also reads its positive."""
    tiles = tl.cdiv(N, BLOCK_N)
    of_a = tl.program_id(0) < tiles
    i = tl.where(of_a, tl.program_id(0), tl.program_id(0) - tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = i < tl.where(of_a, N, M)
    partner = i + positive
    partner = tl.where(partner >= M, partner - M, partner)
    base = tl.where(of_a, a, b)
    rows, partner_rows = i.to(tl.int64) * tl.where(of_a, a_n, b_n), partner.to(tl.int64) * b_n
    paired = exists & of_a

    squares = tl.zeros([BLOCK_N], WIDE)
    partner_squares = tl.zeros([BLOCK_N], WIDE)
    both = tl.zeros([BLOCK_N], WIDE)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x = load_tile(base, rows, exists, d, D, 1, WIDE)
        squares += tl.sum(x * x, 1)
        if PAIRED:
            y = load_tile(b, partner_rows, paired, d, D, 1, WIDE)
            partner_squares += tl.sum(y * y, 1)
            both += tl.sum(x * y, 1)
    inverse = tl.full([BLOCK_N], 1.0, WIDE)
    partner_inverse = tl.full([BLOCK_N], 1.0, WIDE)
    if NORMALIZE:
        inverse = 1.0 / tl.maximum(tl.sqrt(squares), EPSILON)
        partner_inverse = 1.0 / tl.maximum(tl.sqrt(partner_squares), EPSILON)
    score = both * inverse * partner_inverse
    if PAIRED and DISTANCE == 1:
        apart = tl.zeros([BLOCK_N], WIDE)
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            x = load_tile(base, rows, exists, d, D, 1, WIDE) * inverse[:, None]
            y = load_tile(b, partner_rows, paired, d, D, 1, WIDE) * partner_inverse[:, None]
            apart += tl.sum((x - y) * (x - y), 1)
        score = -tl.sqrt(apart)

    tl.store(tl.where(of_a, inverse_a, inverse_b) + i, inverse, mask=exists)
    tl.store(tl.where(of_a, squares_a, squares_b) + i, squares * inverse * inverse, mask=exists)
    if PAIRED:
        tl.store(similarity + i, score, mask=paired)


class Rows(NamedTuple):
    """Inverse lengths (1 unless rows are normalised) and squared lengths after that, of a [N] and b [M]; the similarity
    of each row of a to its positive [N], None where labels choose the positives."""

    inverse_a: Tensor
    inverse_b: Tensor
    squares_a: Tensor
    squares_b: Tensor
    similarity: Tensor | None


def rows_of(a: Tensor, b: Tensor, positive: int | None, distance: int, normalize: bool) -> Rows:
    """For packed rows a [N, D] and b [M, D]; row i's positive is b[(positive + i) % M]."""
    n, m, wide = len(a), len(b), wide_type(a)
    of_a, of_b = (torch.empty(2, size, dtype=wide, device=a.device) for size in (n, m))
    similarity = torch.empty(n, dtype=wide, device=a.device)
    paired = positive is not None
    grid = (triton.cdiv(n, BLOCK_ROWS) + triton.cdiv(m, BLOCK_ROWS),)
    with torch.cuda.device_of(a):
        pair_rows_kernel[grid](
            a, b, of_a[0], of_b[0], of_a[1], of_b[1], similarity,
            n, m, a.shape[1], a.stride(0), b.stride(0), positive or 0,
            WIDE=TYPES[wide], NORMALIZE=normalize, PAIRED=paired, DISTANCE=distance,
            BLOCK_N=BLOCK_ROWS, BLOCK_D=row_width(wide, a.shape[1]), num_warps=4,
        )  # fmt: skip
    if paired and distance == EUCLIDEAN:
        similarity = similarity.clamp_max(-MIN_DISTANCE)
    return Rows(of_a[0], of_b[0], of_a[1], of_b[1], similarity if paired else None)


def row_width(wide: torch.dtype, features: int) -> int:
    return min(padded(features), 64 if wide is torch.float64 else 128)


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: 32768 rows of 512 features."""
    cases = []
    for dtype, distance in ((torch.bfloat16, COSINE), (torch.float32, EUCLIDEAN), (torch.float64, EUCLIDEAN)):
        wide = wide_type(torch.empty(0, dtype=dtype))
        outputs = ("inverse_a", "inverse_b", "squares_a", "squares_b", "similarity")
        cases.append(
            {
                "name": f"pair_rows_kernel[{TYPES[dtype]}, distance {distance}]",
                "kernel": pair_rows_kernel,
                "pointers": {x: pointer(dtype) for x in "ab"} | {x: pointer(wide) for x in outputs},
                "integers": {"N": 32768, "M": 32768, "D": 512, "a_n": 512, "b_n": 512, "positive": 0},
                "constants": {
                    "WIDE": TYPES[wide], "NORMALIZE": True, "PAIRED": True, "DISTANCE": distance,
                    "BLOCK_N": BLOCK_ROWS, "BLOCK_D": row_width(wide, 512),
                },
                "options": {"num_warps": 4},
                "wide_loads": True,
            }
        )  # fmt: skip
    return cases
