"""Contrastive losses inside a batch, in plain PyTorch: the operators' forward and backward formulas, and the whole
losses as differentiable expressions.

Rows ``a`` [N, D] meet columns ``b`` [M, D] in logits ``l_ij = s_ij / temperature`` with ``s`` the dot product
(``distance`` 0) or minus the Euclidean distance, at least :data:`MIN_DISTANCE` (1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this distance the square root has no useful slope; its gradient is defined as zero there.
MIN_DISTANCE = 1e-6
EPS = 1e-12  # of F.normalize
KEPT_BLOCK = 128  # rows of either side in a block of kept logits
HOLE = -1e30  # a kept logit that counts for nothing


def wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rows(x: Tensor, normalize: bool) -> Tensor:
    wide = x.to(wide_dtype(x))
    return F.normalize(wide, dim=1) if normalize else wide


def _through_normalize(x: Tensor, unit: Tensor, grad: Tensor, normalize: bool) -> Tensor:
    """Gradient with respect to x [N, D], from the one with respect to its rows scaled to unit length."""
    if not normalize:
        return grad
    norm = x.to(grad.dtype).norm(dim=1, keepdim=True)
    along = torch.where(norm > EPS, (grad * unit).sum(1, keepdim=True), 0.0)
    return (grad - along * unit) / norm.clamp_min(EPS)


def _similarity(a: Tensor, b: Tensor, distance: int) -> Tensor:
    """s [N, M]. Distances from ``|u|^2 + |v|^2 - 2 u.v``: one product, and no NaN slope at zero as cdist has."""
    products = a @ b.T
    if distance == 0:
        return products
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2 * products.to(a.dtype)
    return -squares.clamp_min(MIN_DISTANCE**2).sqrt()


def _pair_similarity(a: Tensor, b: Tensor, distance: int) -> Tensor:
    """s of row i with row i, [N]: distances from differences, exact where the rows coincide."""
    if distance == 0:
        return (a * b).sum(1)
    return -(a - b).square().sum(1).clamp_min(MIN_DISTANCE**2).sqrt()


def _columns_of(n: int, offset: int, device: torch.device) -> Tensor:
    return torch.arange(offset, offset + n, device=device)


def pair_logits(
    a: Tensor, b: Tensor, temperature: Tensor, positive: int, exclude: int, distance: int
) -> tuple[Tensor, Tensor | None]:
    """Logits [N, M] of prepared rows, -inf where excluded; and the positive pairs' own [N] (None: ``positive`` < 0)."""
    logits = _similarity(a, b, distance) / temperature
    own = None
    if positive >= 0:
        index = _columns_of(len(a), positive, a.device)
        own = _pair_similarity(a, b[index], distance) / temperature
        logits = logits.to(own.dtype).scatter(1, index[:, None], own[:, None])
    if exclude >= 0:
        index = _columns_of(len(a), exclude, a.device)
        logits = logits.scatter(1, index[:, None], -torch.inf)
    return logits, own


def _same_label(labels_a: Tensor, labels_b: Tensor, exclude: int) -> Tensor:
    same = labels_a[:, None] == labels_b[None, :]
    if exclude >= 0:
        same = same.scatter(1, _columns_of(len(labels_a), exclude, same.device)[:, None], False)
    return same


def pair_nce_forward(
    a: Tensor, b: Tensor, temperature: Tensor, labels_a: Tensor | None, labels_b: Tensor | None, positive: int,
    exclude: int, distance: int, normalize: bool, columns: bool, keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Log-sum-exp of rows [N] and (with ``columns``) of columns [M], mean logit of each row's positives [N], how many
    there are, int32 [N]. With ``keep`` also what spares a kernel's backward pass a product, else [0]: the logits, and
    float64 [N + M + N] the lengths of all rows and the similarity (distance) of each row with its single positive.
    Differentiable but for those two."""
    raw_a, raw_b = a, b
    a, b = _rows(a, normalize), _rows(b, normalize)
    logits, own = pair_logits(a, b, temperature, positive if labels_a is None else -1, exclude, distance)
    if labels_a is None:
        target, count = own, torch.ones(len(a), dtype=torch.int32, device=a.device)
    else:
        same = _same_label(labels_a, labels_b, exclude)
        number = same.sum(1)
        target = torch.where(same, logits, 0.0).sum(1) / number.clamp_min(1)
        count = number.to(torch.int32)
    column = _logsumexp(logits, 0) if columns else logits.new_empty(0)
    kept, lengths = a.new_empty(0), a.new_empty(0, dtype=torch.float64)
    if keep:
        kept = _kept(logits.detach().to(a.dtype), positive if own is not None else -1)
        similarity = torch.zeros(len(a)) if own is None else own * temperature * (-1 if distance else 1)
        parts = (raw_a.double().norm(dim=1), raw_b.double().norm(dim=1), similarity)
        lengths = torch.cat([part.detach().to(a.device, torch.float64) for part in parts])
    return _logsumexp(logits, 1), column, target.to(a.dtype), count, kept, lengths


def kept_shape(n: int, m: int) -> tuple[int, int, int, int]:
    """Of the logits of N rows of a and M of b: blocks of b, blocks of a, rows of b and rows of a in a block."""
    return -(-m // KEPT_BLOCK), -(-n // KEPT_BLOCK), KEPT_BLOCK, KEPT_BLOCK


def _kept(logits: Tensor, positive: int) -> Tensor:
    """Logits [N, M] in powers of two and in blocks, as kernels keep them: :data:`HOLE` where there is none, or it is
    left out, or the row's single positive."""
    n, m = logits.shape
    shape = kept_shape(n, m)
    powers = torch.where(logits == -torch.inf, HOLE, logits / math.log(2.0))
    if positive >= 0:
        powers = powers.scatter(1, _columns_of(n, positive, logits.device)[:, None], HOLE)
    padded = F.pad(powers.T, (0, shape[1] * KEPT_BLOCK - n, 0, shape[0] * KEPT_BLOCK - m), value=HOLE)
    return padded.view(shape[0], KEPT_BLOCK, shape[1], KEPT_BLOCK).transpose(1, 2).contiguous()


def _logsumexp(logits: Tensor, dim: int) -> Tensor:
    """-inf over nothing, where torch refuses an empty tensor or gives NaN slopes."""
    if logits.shape[dim] == 0:
        return logits.new_full((logits.shape[1 - dim],), -torch.inf)
    return logits.float().logsumexp(dim) if logits.dtype in (torch.float16, torch.bfloat16) else logits.logsumexp(dim)


def pair_nce_backward(
    grad_row: Tensor, grad_col: Tensor, a: Tensor, b: Tensor, temperature: Tensor, row_lse: Tensor, col_lse: Tensor,
    labels_a: Tensor | None, labels_b: Tensor | None, count: Tensor, positive: int, exclude: int, distance: int,
    normalize: bool, columns: bool, kept: Tensor | None = None, lengths: Tensor | None = None, need_a: bool = True,
    need_b: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients da, db, dtemperature [1] of ``sum grad_row (row_lse - target) + sum grad_col (col_lse - own logit)``,
    the second own logit only for columns whose positive row is here. Empty [0] where not needed. ``kept`` and
    ``lengths`` save kernels the logits; here they are made again."""
    unit_a, unit_b = _rows(a, normalize), _rows(b, normalize)
    wide = unit_a.dtype
    logits, own = pair_logits(unit_a, unit_b, temperature, positive if labels_a is None else -1, exclude, distance)
    logits = logits.to(wide)
    weights = grad_row[:, None] * _probability(logits, row_lse[:, None])  # [N, M]
    if columns:
        weights = weights + grad_col[None, :] * _probability(logits, col_lse[None, :])
    direct = None
    if labels_a is None:
        index = _columns_of(len(a), positive, a.device)
        # p - 1 rather than p and a subtraction of 1 later: exact where p is near 1.
        pull = grad_row * torch.expm1(own - row_lse)
        if columns:
            pull = pull + grad_col[index] * torch.expm1(own - col_lse[index])
        weights = weights.scatter(1, index[:, None], 0.0)
        direct = (pull, index, own)
    else:
        same = _same_label(labels_a, labels_b, exclude)
        weights = weights - torch.where(same, (grad_row / count.clamp_min(1).to(wide))[:, None], 0.0)
    d_a, d_b, d_temperature = _through_logits(weights, logits, unit_a, unit_b, temperature, distance)
    if direct is not None:
        pull, index, own = direct
        e_a, e_b, e_temperature = _through_pairs(pull, own, unit_a, unit_b[index], temperature, distance)
        d_a, d_b, d_temperature = d_a + e_a, d_b.index_add(0, index, e_b), d_temperature + e_temperature
    d_a = _through_normalize(a, unit_a, d_a, normalize).to(a.dtype) if need_a else a.new_empty(0)
    d_b = _through_normalize(b, unit_b, d_b, normalize).to(b.dtype) if need_b else b.new_empty(0)
    return d_a, d_b, d_temperature.reshape(1).to(wide)


def _probability(logits: Tensor, lse: Tensor) -> Tensor:
    """exp(logits - lse), and 0 for what is left out, also where a whole row is."""
    return torch.where(logits == -torch.inf, 0.0, (logits - lse).exp())


def _through_logits(weights, logits, a, b, temperature, distance) -> tuple[Tensor, Tensor, Tensor]:
    """From dL/dl [N, M] to rows, columns and temperature."""
    finite = torch.where(weights != 0, logits, 0.0)
    d_temperature = -(weights * finite).sum() / temperature
    if distance == 0:
        return (weights @ b / temperature).to(a.dtype), (weights.T @ a / temperature).to(a.dtype), d_temperature
    # dd/du = (u - v) / d, zero where d is clamped
    length = -finite * temperature
    pull = torch.where(length > MIN_DISTANCE, -weights / (temperature * length.clamp_min(MIN_DISTANCE)), 0.0)
    d_a = pull.sum(1, keepdim=True) * a - (pull @ b).to(a.dtype)
    d_b = pull.sum(0)[:, None] * b - (pull.T @ a).to(a.dtype)
    return d_a, d_b, d_temperature


def _through_pairs(weights, logits, a, b, temperature, distance) -> tuple[Tensor, Tensor, Tensor]:
    """The same for single pairs: dL/dl [N] of row i with row i."""
    d_temperature = -(weights * logits).sum() / temperature
    weights = weights[:, None]
    if distance == 0:
        return weights * b / temperature, weights * a / temperature, d_temperature
    length = (-logits * temperature)[:, None]
    pull = torch.where(length > MIN_DISTANCE, -weights / (temperature * length.clamp_min(MIN_DISTANCE)), 0.0)
    return pull * (a - b), pull * (b - a), d_temperature


def _self_positives(n: int, labels: Tensor | None, device: torch.device) -> Tensor:
    if labels is not None:
        return labels
    return torch.arange(n // 2, device=device).repeat(2)


def self_nce_forward(
    z: Tensor, temperature: Tensor, labels: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch [N, D] against itself without the diagonal: log-sum-exp [N], mean logit of the positives [N], and how
    many there are, int32 [N]. Without labels the positive of row i is row i + N / 2, wrapped around."""
    same = _self_positives(len(z), labels, z.device)
    row_lse, _, target, count, *_ = pair_nce_forward(z, z, temperature, same, same, 0, 0, 0, normalize, False)
    return row_lse, target, count


def self_nce_backward(
    grad: Tensor, z: Tensor, temperature: Tensor, lse: Tensor, labels: Tensor | None, count: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Gradients dz and dtemperature [1] of ``sum grad (lse - target)``."""
    same = _self_positives(len(z), labels, z.device)
    nothing = lse.new_empty(0)
    unit = _rows(z, normalize)
    args = (unit, unit, temperature, lse, nothing, same, same, count, 0, 0, 0, False, False)
    d_rows, d_columns, d_temperature = pair_nce_backward(grad, nothing, *args)
    return _through_normalize(z, unit, d_rows + d_columns, normalize).to(z.dtype), d_temperature


def sigmoid_nce_forward(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, positive: int, normalize: bool) -> Tensor:
    """Loss rows [N]: ``-sum_j log sigmoid(y_ij (scale a_i.b_j + bias))`` with y = 1 at column positive + i, else -1."""
    a, b = _rows(a, normalize), _rows(b, normalize)
    logits = (a @ b.T).to(a.dtype) * scale + bias
    return -F.logsigmoid(logits * _signs(logits, positive)).sum(1)


def _signs(logits: Tensor, positive: int) -> Tensor:
    index = _columns_of(len(logits), positive, logits.device)
    return torch.full_like(logits, -1.0).scatter(1, index[:, None], 1.0)


def sigmoid_nce_backward(
    grad_row: Tensor, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, positive: int, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss rows again, and da, db, dscale [1], dbias [1] of ``sum grad_row loss``."""
    unit_a, unit_b = _rows(a, normalize), _rows(b, normalize)
    products = (unit_a @ unit_b.T).to(unit_a.dtype)
    logits = products * scale + bias
    signs = _signs(logits, positive)
    loss = -F.logsigmoid(logits * signs).sum(1)
    weights = -grad_row[:, None] * signs * torch.sigmoid(-logits * signs)
    d_a = _through_normalize(a, unit_a, (weights @ unit_b).to(unit_a.dtype) * scale, normalize)
    d_b = _through_normalize(b, unit_b, (weights.T @ unit_a).to(unit_a.dtype) * scale, normalize)
    d_scale, d_bias = (weights * products).sum().reshape(1), weights.sum().reshape(1)
    return loss, d_a.to(a.dtype), d_b.to(b.dtype), d_scale, d_bias
