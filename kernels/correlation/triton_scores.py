"""Tiles of scores between context queries and the keys of one exemplar in Triton, for one head, and their sizes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import LOG2_E, product
from ..contrastive.triton_tiles import Tiles, load_tile, padded, products_by_chunks


@triton.jit
def keys_allowed(mask, exemplar, j, K, MASKED: tl.constexpr):
    """Which of keys j exist and may be attended. Others are never read."""
    allowed = j < K
    if MASKED:
        allowed = allowed & (tl.load(mask + exemplar * K + j, mask=allowed, other=0) != 0)
    return allowed


@triton.jit
def tile_if_whole(a, rows, exists, a_d, D, TYPE: tl.constexpr, WHOLE: tl.constexpr, CHUNK: tl.constexpr):
    """Rows of a that stay on chip; their offsets where features are read chunk by chunk."""
    if WHOLE:
        return load_tile(a, rows, exists, tl.arange(0, CHUNK), D, a_d, TYPE)
    else:
        return rows


@triton.jit
def slice_of(x, a, rows, exists, d, a_d, D, TYPE: tl.constexpr, WHOLE: tl.constexpr):
    """Features d of rows of a: of x, what `tile_if_whole` made of them, where they are WHOLE."""
    if WHOLE:
        return x.to(TYPE)
    else:
        return load_tile(a, rows, exists, d, D, a_d, TYPE)


@triton.jit
def products(
    x, a, a_rows, a_mask, a_d, y, b, b_rows, b_mask, b_d, D,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Products of rows of a with rows of b; of x and y, what `tile_if_whole` made of them, where they are WHOLE."""
    if WHOLE:
        return product(x, tl.trans(y), tl.zeros([BLOCK_A, BLOCK_B], WIDE), PRECISION)
    else:
        return products_by_chunks(
            a, a_rows, a_mask, a_d, b, b_rows, b_mask, b_d, D,
            WIDE, OPERAND, PRECISION, BLOCK_A, BLOCK_B, CHUNK,
        )  # fmt: skip


@triton.jit
def probabilities(t, lse, allowed):
    """From scores times log2(e) and the log-sum-exp of their rows, -inf where a row has no key."""
    live = lse != float("-inf")
    p = tl.exp2(t - tl.where(live, lse * LOG2_E, 0.0)[:, None])
    return tl.where(allowed[None, :] & live[:, None], p, 0.0)


def score_tiles(operand: torch.dtype, precision: str, queries: int, keys: int, width: int) -> Tiles:
    """`rows` queries, `walked` keys, `width` of the features that a program adds up."""
    rows, walked = (max(triton.next_power_of_2(n), 16) for n in (queries, keys))
    features = padded(width)
    if operand is torch.float64:
        return Tiles(min(rows, 32), 16, min(features, 32), 16, False, 4, 2, registers=255)
    if operand is torch.float32 and precision == "ieee":
        return Tiles(min(rows, 64), min(walked, 32), min(features, 64), 16, False, 8, 2, registers=255)
    if operand is torch.float32:
        whole = features <= 64
        return Tiles(min(rows, 64), min(walked, 32), min(features, 64), min(features, 64), whole, 4, 2)
    whole = features <= 128
    rows, walked = min(rows, 128 if features <= 64 else 64), min(walked, 64)
    warps = 4 if rows * max(walked, min(features, 128)) <= 4096 else 8
    limit = None if whole else 168
    return Tiles(rows, walked, min(features, 128), features if whole else 64, whole, warps, 2, registers=limit)


def key_flags(key_mask: Tensor | None, q: Tensor) -> Tensor:
    """The mask as integers [B, E, K]; any tensor where there is none.

    Not as bytes: Triton lays out the operands of products by the narrowest type that was loaded on their way, and
    multiplies no float64 in the layout of bytes.
    """
    if key_mask is None:
        return q
    return key_mask.to(torch.int64 if q.dtype is torch.float64 else torch.int32).contiguous()
