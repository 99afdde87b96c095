"""Softmax losses of a batch against itself in Triton: NT-Xent, and with labels supervised contrastive learning.

Idea: the scores are symmetric. Forward, only tiles on and above the diagonal are made, and their column sums are
row sums of the tiles below (pair_scores_triton.py). Backward, the weight of a pair is the same for both of its
rows, grad_i p_ij + grad_j p_ji, so a slab above the diagonal serves two blocks of rows (weighted_sums_triton.py).

Cost model: half a product of N x N x D forward, 3/2 backward, plus what tiles and slabs on the diagonal waste. Not
yet measured on a GPU.

Reference: avfast.reference.contrastive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .pair_nce_triton import positives_of
from .pair_rows_triton import COSINE, rows_of
from .pair_scores_triton import merged, pair_scores, scores_case
from .pair_weights_triton import Labels, Softmax, softmax_sums, weights_case
from .triton_tiles import packed, wide_type
from .weighted_sums_triton import finish_gradient


def self_nce_fwd_triton(
    z: Tensor, temperature: Tensor, labels: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp over all other rows, mean positive logit and number of positives (int32) of each row of z [N, D]."""
    n, wide = len(z), wide_type(z)
    if n == 0:
        nothing = torch.empty(0, dtype=wide, device=z.device)
        return nothing, nothing.clone(), nothing.to(torch.int32)
    z, apart = packed(z), n // 2
    rows = rows_of(z, z, apart if labels is None else None, COSINE, normalize)
    both = None if labels is None else (labels, labels)
    scores = pair_scores(z, z, rows, temperature, both, apart, 0, COSINE, normalize, columns=True, half=True)
    if labels is not None:
        return merged(scores.rows), *positives_of(scores.targets, scores.counts)
    target = rows.similarity / temperature
    return merged(scores.rows, target), target, torch.ones(n, dtype=torch.int32, device=z.device)


def self_nce_bwd_triton(
    grad: Tensor, z: Tensor, temperature: Tensor, lse: Tensor, labels: Tensor | None, count: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to z [N, D] and the temperature of the sum of grad (lse - target)."""
    n, features = z.shape
    if n == 0:
        return torch.zeros(z.shape, dtype=z.dtype, device=z.device), torch.zeros_like(temperature)
    z, apart = packed(z), n // 2
    rows = rows_of(z, z, apart if labels is None else None, COSINE, normalize)
    side = Softmax(lse, grad)
    by_label = None if labels is None else Labels(labels, labels, count, count)
    sums, _, moment = softmax_sums(
        z, z, rows, temperature, side, side, by_label, apart, 0, COSINE, normalize, half=True
    )
    weights = None
    if labels is None:
        target = rows.similarity / temperature
        pull = grad * torch.expm1(target - lse)  # -(1 - p)
        moment = moment + (pull * target).sum()
        weights = pull + pull.roll(apart)
    factor = temperature.reciprocal()
    dz = finish_gradient(
        z, z, sums, rows.inverse_a, rows.inverse_b, weights, factor, apart, features, COSINE, normalize
    )
    return dz, -moment * factor


def aot_cases() -> list[dict]:
    """What the kernels' own files leave out."""
    return [
        scores_case("bf16, labels, half", torch.bfloat16, 128, labels=True, half=True),
        weights_case("bf16, labels", torch.bfloat16, 128, labels=True),
    ]
