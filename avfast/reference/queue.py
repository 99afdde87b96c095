"""Contrastive loss of each query against one positive key and a queue of negatives, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rows(x: Tensor, normalize: bool) -> Tensor:
    """Rows [B, S, D] of features [B, D, S], in the accumulation type."""
    rows = x.movedim(1, 2).to(_wide(x))
    return F.normalize(rows, dim=2) if normalize else rows


def _positives(q: Tensor, k: Tensor, match: Tensor | None, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query rows and their positive keys, both [B, S, D], and which rows count, [B, S]."""
    rows, keys = _rows(q, normalize), _rows(k, normalize)
    if match is None:
        return rows, keys, torch.ones(rows.shape[:2], dtype=torch.bool, device=q.device)
    if keys.shape[1] == 0:
        return rows, torch.zeros_like(rows), match >= 0
    index = match.clamp_min(0)[:, :, None].expand(-1, -1, keys.shape[2])
    return rows, keys.gather(1, index), match >= 0


def _through_unit(gradient: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    """Gradient [B, S, D] of unit ``rows`` of x [B, D, S] as one of x itself, with the clamp of ``F.normalize``."""
    norm = x.movedim(1, 2).to(rows.dtype).norm(dim=2, keepdim=True)
    along = torch.where(norm > 1e-12, (gradient * rows).sum(2, keepdim=True), 0.0)
    return (gradient - along * rows) / norm.clamp_min(1e-12)


def queue_nce(
    q: Tensor, k: Tensor, queue: Tensor, match: Tensor | None, temperature: float, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, positive logit and log-sum-exp of all logits, each [B, S]; differentiable in q, k and queue.

    q [B, D, S], k [B, D, L], queue [K, D], match [B, S] with negative entries for rows that do not count.
    """
    rows, keys, counts = _positives(q, k, match, normalize)
    negatives = (rows @ queue.to(rows.dtype).T / temperature).logsumexp(2)
    positive = (rows * keys).sum(2) / temperature
    loss = -F.logsigmoid(positive - negatives)  # softplus would drop terms below e^-20
    parts = (loss, positive, positive + loss)
    return tuple(torch.where(counts, x, 0.0) for x in parts)


def queue_nce_forward(
    q: Tensor, k: Tensor, queue: Tensor, match: Tensor | None, temperature: float, normalize: bool, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, and the gradient of every row's loss with respect to q, [B, D, S] (empty unless asked for)."""
    loss, positive, lse = queue_nce(q, k, queue, match, temperature, normalize)
    if not need_grad:
        return loss, positive, lse, loss.new_empty(0)
    rows, keys, counts = _positives(q, k, match, normalize)
    wide = queue.to(rows.dtype)
    p = (rows @ wide.T / temperature - lse[:, :, None]).exp()
    g = (p @ wide - p.sum(2, keepdim=True) * keys) / temperature
    if normalize:
        g = _through_unit(g, rows, q)
    g = torch.where(counts[:, :, None], g, 0.0)
    return loss, positive, lse, g.movedim(2, 1).contiguous()


def queue_nce_backward_keys(
    weights: Tensor, q: Tensor, k: Tensor, match: Tensor | None, temperature: float, normalize: bool
) -> Tensor:
    """Gradient of ``sum(weights * positive logit)``, weights [B, S], with respect to k [B, D, L].

    Each key collects from the queries that share it.
    """
    rows, keys = _rows(q, normalize), _rows(k, normalize)
    if keys.shape[1] == 0:
        return torch.zeros_like(k)
    g = rows * (weights / temperature)[:, :, None]
    if match is not None:
        g = torch.where((match >= 0)[:, :, None], g, 0.0)
        g = torch.zeros_like(keys).scatter_add(1, match.clamp_min(0)[:, :, None].expand_as(g), g)
    if normalize:
        g = _through_unit(g, keys, k)
    return g.movedim(2, 1).to(k.dtype)


def queue_nce_backward_queue(
    grad: Tensor, q: Tensor, queue: Tensor, lse: Tensor, match: Tensor | None, temperature: float, normalize: bool
) -> Tensor:
    """Gradient of ``sum(grad * loss)`` with respect to queue [K, D], for row gradients [B, S]."""
    rows = _rows(q, normalize)
    if match is not None:
        grad = torch.where(match >= 0, grad, 0.0)
        rows = torch.where((match >= 0)[:, :, None], rows, 0.0)
    p = (rows @ queue.to(rows.dtype).T / temperature - lse[:, :, None]).exp()  # [B, S, K]
    weights = p * (grad / temperature)[:, :, None]
    return (weights.flatten(0, 1).T @ rows.flatten(0, 1)).to(queue.dtype)
