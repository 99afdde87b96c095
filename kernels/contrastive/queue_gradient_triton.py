"""Gradient of the queue's rows in Triton, for the rare queue that is learned.

Idea: a program owns a tile of keys and walks over all queries; the softmax is recomputed from its stored
log-sum-exp, so nothing N x K is stored and no two programs add to the same row. Queries are packed to rows
[N, D] first: every program reads all of them.

Cost model: 2 products of N x K x D, the queue once, the packed queries once per tile of keys, from L2. Not yet
measured on a GPU.

Reference: avfast.reference.queue.queue_nce_backward_queue.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import product
from .triton_tiles import (
    TYPES,
    Tiles,
    load_tile,
    operand_type,
    pointer,
    precision_of,
    products_by_chunks,
    walk_tiles,
    weight_type,
    wide_type,
)


@triton.jit
def queue_gradient_kernel(
    queue, rows, scales, shifts, weights, dqueue,
    N, D, K, queue_k, queue_d,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    WEIGHT: tl.constexpr, WEIGHT_PRECISION: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    within = j < K
    key_rows = j.to(tl.int64) * queue_k
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    if WHOLE:
        keys = load_tile(queue, key_rows, within, d, D, queue_d, OPERAND)
    total = tl.zeros([BLOCK_K, BLOCK_D], WIDE)
    for first in range(0, N, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        exists = i < N
        offsets = i.to(tl.int64) * D
        scale = tl.load(scales + i, mask=exists, other=0.0)
        shift = tl.load(shifts + i, mask=exists, other=float("inf"))
        weight = tl.load(weights + i, mask=exists, other=0.0)
        if WHOLE:
            x = load_tile(rows, offsets, exists, d, D, 1, OPERAND)
            t = product(keys, tl.trans(x), tl.zeros([BLOCK_K, BLOCK_N], WIDE), PRECISION)
        else:
            t = products_by_chunks(
                queue, key_rows, within, queue_d, rows, offsets, exists, 1, D,
                WIDE, OPERAND, PRECISION, BLOCK_K, BLOCK_N, CHUNK,
            )  # fmt: skip
            x = load_tile(rows, offsets, exists, d, D, 1, OPERAND)
        w = tl.exp2(t * scale[None, :] - shift[None, :]) * weight[None, :]
        total = product(w.to(WEIGHT), x.to(WEIGHT), total, WEIGHT_PRECISION)
    out = (j.to(tl.int64) * D)[:, None] + d[None, :]
    tl.store(dqueue + out, total, mask=within[:, None] & (d < D)[None, :])


def gradient_tiles(operand: torch.dtype, precision: str, features: int) -> Tiles:
    """A scale, a shift and a weight per walked row leave registers for half as many rows as forward."""
    how = walk_tiles(operand, precision, features)
    return replace(how, walked=min(how.walked, 64 if how.width <= 128 else 32))


def queue_nce_bwd_queue_triton(
    grad: Tensor, q: Tensor, queue: Tensor, lse: Tensor, match: Tensor | None, temperature: float, normalize: bool
) -> Tensor:
    """Gradient of sum(grad * loss) with respect to queue [K, D], for row gradients and log-sum-exps [B, S]."""
    b, features, s = q.shape
    dqueue = torch.zeros(queue.shape, dtype=queue.dtype, device=queue.device)
    rows = q.movedim(1, 2).reshape(b * s, features).contiguous()
    if dqueue.numel() == 0 or len(rows) == 0:
        return dqueue
    wide = wide_type(q)
    inverse = torch.linalg.vector_norm(rows, dim=1, dtype=wide).clamp_min(1e-12).reciprocal()
    if not normalize:
        inverse = torch.ones_like(inverse)
    weights = grad.reshape(-1) * inverse / temperature
    shifts = lse.reshape(-1) * math.log2(math.e)
    if match is not None:  # infinity makes the weights zero, whatever the logits of a row that does not count
        missing = match.reshape(-1) < 0
        shifts = shifts.masked_fill(missing, float("inf"))
        weights = weights.masked_fill(missing, 0.0)

    operand = operand_type(q, queue)
    precision = precision_of(operand)
    how = gradient_tiles(operand, precision, features)
    weight, weight_precision = weight_type(operand)
    grid = (triton.cdiv(queue.shape[0], how.rows), triton.cdiv(features, how.width))
    with torch.cuda.device_of(q):
        queue_gradient_kernel[grid](
            queue, rows, inverse * (math.log2(math.e) / temperature), shifts, weights, dqueue,
            len(rows), features, queue.shape[0], *queue.stride(),
            WIDE=TYPES[wide], OPERAND=TYPES[operand], PRECISION=precision,
            WEIGHT=TYPES[weight], WEIGHT_PRECISION=weight_precision,
            WHOLE=how.whole, BLOCK_K=how.rows, BLOCK_N=how.walked, BLOCK_D=how.width, CHUNK=how.chunk, **how.options,
        )  # fmt: skip
    return dqueue


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: every type, 12544 queries, K = 65536, D = 128 or 256."""
    cases = []
    for dtype, features in (*((dtype, 128) for dtype in TYPES), (torch.float16, 256)):
        precision, wide = precision_of(dtype), wide_type(torch.empty(0, dtype=dtype))
        how = gradient_tiles(dtype, precision, features)
        weight, weight_precision = weight_type(dtype)
        floats = {x: pointer(wide) for x in ("scales", "shifts", "weights")}
        cases.append(
            {
                "name": f"queue_gradient_kernel[{TYPES[dtype]}, {features} features]",
                "kernel": queue_gradient_kernel,
                "pointers": {x: pointer(dtype) for x in ("queue", "rows", "dqueue")} | floats,
                "integers": {"N": 12544, "D": features, "K": 65536, "queue_k": features, "queue_d": 1},
                "constants": {
                    "WIDE": TYPES[wide], "OPERAND": TYPES[dtype], "PRECISION": precision,
                    "WEIGHT": TYPES[weight], "WEIGHT_PRECISION": weight_precision, "WHOLE": how.whole,
                    "BLOCK_K": how.rows, "BLOCK_N": how.walked, "BLOCK_D": how.width, "CHUNK": how.chunk,
                },
                "options": how.options,
                "wide_loads": True,
            }
        )  # fmt: skip
    return cases
