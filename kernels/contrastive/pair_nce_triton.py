"""In-batch softmax losses of rows against columns in Triton: log-sum-exps both ways, and all gradients.

Idea: forward, one pass over tiles gives row and column sums (pair_scores_triton.py). Backward, weights are made
slab by slab and multiplied with both sides (pair_weights_triton.py, weighted_sums_triton.py). What belongs to
single rows, lengths and positives, is made once, in float32 (pair_rows_triton.py).

Cost model: 1 product of N x M x D forward and 3 backward, where a pass per side costs 1 and 4, and adding with
atomics 1 and 3: the result is deterministic at the price of that. 32 MB for a slab of weights. Nothing is read
by the host: the temperature stays on the device. Not yet measured on a GPU.

Reference: avfast.reference.contrastive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .pair_rows_triton import EUCLIDEAN, MIN_DISTANCE, Rows, rows_of
from .pair_scores_triton import merged, pair_scores, scores_case
from .pair_weights_triton import Labels, Softmax, softmax_sums, weights_case
from .triton_tiles import packed, wide_type
from .weighted_sums_triton import finish_gradient


def pair_nce_fwd_triton(
    a: Tensor, b: Tensor, temperature: Tensor, labels_a: Tensor | None, labels_b: Tensor | None,
    positive: int, exclude: int, distance: int, normalize: bool, columns: bool, keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Log-sum-exp of each row [N] and, if asked for, of each column [M]; mean positive logit [N] and number of
    positives (int32 [N]) of a [N, D] against b [M, D], any strides. A GPU keeps nothing for backward,
    whatever `keep` says."""
    n, m, wide = len(a), len(b), wide_type(a)
    kept = tuple(torch.empty(0, dtype=t, device=a.device) for t in (wide, torch.float64))
    if n == 0 or m == 0:
        nothing = torch.full((n + m,), float("-inf"), dtype=wide, device=a.device)
        count = torch.zeros(n, dtype=torch.int32, device=a.device)
        column_lse = nothing[n:].clone() if columns else nothing[:0].clone()
        return nothing[:n].clone(), column_lse, count.to(wide), count, *kept
    labels = None if labels_a is None else (labels_a, labels_b)
    a, b = packed(a), packed(b)
    rows = rows_of(a, b, positive if labels is None else None, distance, normalize)
    scores = pair_scores(a, b, rows, temperature, labels, positive, exclude, distance, normalize, columns)
    if labels is None:
        target = rows.similarity / temperature
        count = torch.ones(n, dtype=torch.int32, device=a.device)
        row_lse = merged(scores.rows, target)
        column_lse = merged(scores.columns, target, positive) if columns else target.new_empty(0)
    else:
        target, count = positives_of(scores.targets, scores.counts)
        row_lse = merged(scores.rows)
        column_lse = merged(scores.columns) if columns else target.new_empty(0)
    return row_lse, column_lse, target, count, *kept


def positives_of(targets: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean positive logit and number of positives [N] from sums in parts [parts, N]."""
    count = counts.sum(0, dtype=torch.int32)
    return targets.sum(0) / count.clamp_min(1), count


def pair_nce_bwd_triton(
    grad_row: Tensor, grad_col: Tensor, a: Tensor, b: Tensor, temperature: Tensor, row_lse: Tensor, col_lse: Tensor,
    labels_a: Tensor | None, labels_b: Tensor | None, count: Tensor,
    positive: int, exclude: int, distance: int, normalize: bool, columns: bool,
    logits: Tensor | None = None, lengths: Tensor | None = None, need_a: bool = True, need_b: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to a, b and the temperature of the sum of grad_row (row_lse - target) and, with `columns`,
    the sum of grad_col (col_lse - the logit of the column's positive). A gradient that is not needed is empty, [0]."""
    n, m, features = len(a), len(b), a.shape[1]
    if columns and labels_a is not None:
        raise NotImplementedError("avfast.pair_nce_bwd: columns: expected False with labels, got True")
    if n == 0 or m == 0:
        shapes = (a.shape if need_a else 0, b.shape if need_b else 0)
        zeros = (torch.zeros(s, dtype=x.dtype, device=x.device) for s, x in zip(shapes, (a, b), strict=True))
        return *zeros, torch.zeros_like(temperature)
    paired = labels_a is None
    a, b = packed(a), packed(b)
    rows = rows_of(a, b, positive if paired else None, distance, normalize)
    by_row, by_column = Softmax(row_lse, grad_row), Softmax(col_lse, grad_col) if columns else None
    labels = None if paired else Labels(labels_a, labels_b, count, count)  # columns have no counts: they are not used
    sums_a, sums_b, moment = softmax_sums(
        a, b, rows, temperature, by_row, by_column, labels, positive, exclude, distance, normalize
    )
    weight_a = weight_b = None
    if paired:
        at = slice(positive, positive + n)
        target = rows.similarity / temperature
        pull = grad_row * torch.expm1(target - row_lse)  # -(1 - p)
        if columns:
            pull = pull + grad_col[at] * torch.expm1(target - col_lse[at])
        moment = moment + (pull * target).sum()
        weight_a = slope(pull, rows, distance)
        weight_b = weight_a.new_zeros(m)
        weight_b[at] = weight_a
    factor = temperature.reciprocal()
    da, db = a.new_empty(0), b.new_empty(0)
    if need_a:
        da = finish_gradient(
            a, b, sums_a, rows.inverse_a, rows.inverse_b, weight_a, factor, positive, features, distance, normalize
        )
    if need_b:
        db = finish_gradient(
            b, a, sums_b, rows.inverse_b, rows.inverse_a, weight_b, factor, -positive, features, distance, normalize
        )
    return da, db, -moment * factor


def slope(pull: Tensor, rows: Rows, distance: int) -> Tensor:
    """The weight of the positive's row, or of its difference from it: a distance under the clamp has no slope."""
    if distance != EUCLIDEAN:
        return pull
    return torch.where(rows.similarity < -MIN_DISTANCE, -pull / rows.similarity, 0.0)


def aot_cases() -> list[dict]:
    """What the kernels' own files leave out."""
    return [
        scores_case("bf16, labels", torch.bfloat16, 128, labels=True),
        weights_case("bf16, distance", torch.bfloat16, 512, distance=EUCLIDEAN),
    ]
