"""Cross-attention of one context to several sets of keys, each with a softmax of its own, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

MAPS = (None, "lse", "max", "mean_prob")
NO_MAP, LSE, MAX, MEAN_PROB = range(4)


def correlate_forward(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, scale: float, map: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Context queries q [B, Nq, H, d] against k, v [B, E, Nk, H, d]: out [B, E, Nq, H * d], lse [B, E, H, Nq], map.

    Keys that may not be attended are replaced before any product: a NaN in them reaches nothing.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    values = _replaced(v.to(wide), key_mask)
    scores, allowed = _scores(q.to(wide), _replaced(k.to(wide), key_mask), key_mask, scale)
    prob, lse = _softmax(scores, allowed)
    out = torch.einsum("behqk,bekhd->beqhd", prob, values).flatten(3).to(q.dtype)
    return out, lse, _map(scores, prob, lse, map)


def correlate_backward(
    grad_out: Tensor, grad_map: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, lse: Tensor,
    scale: float, map: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of <grad_out, out> + <grad_map, map>, with the probabilities made again from ``lse``.

    dS = P (dP - sum_j P dP + g / H) for "lse"; for "max" g / H goes to the first largest key; for "mean_prob" the
    gradient of the map, divided by H, is added to dP.
    """
    wide, heads = lse.dtype, q.shape[2]
    queries, keys, values = q.to(wide), _replaced(k.to(wide), key_mask), _replaced(v.to(wide), key_mask)
    scores, allowed = _scores(queries, keys, key_mask, scale)
    live = lse > float("-inf")
    prob = torch.where(allowed & live[..., None], (scores - torch.where(live, lse, 0.0)[..., None]).exp(), 0.0)
    prob = torch.where(lse.isnan()[..., None], lse[..., None], prob)
    grad = grad_out.to(wide).unflatten(3, q.shape[2:])
    dprob = torch.einsum("beqhd,bekhd->behqk", grad, values)
    if map == MEAN_PROB:
        dprob = dprob + grad_map.unsqueeze(2) / heads
    dscores = dprob - (prob * dprob).sum(-1, keepdim=True)
    if map == LSE:
        dscores = dscores + grad_map[:, :, None, :, None] / heads
    dscores = torch.where(allowed, prob * dscores, 0.0)
    if map == MAX and scores.shape[-1]:
        first = torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1])
        dscores = dscores + torch.where(allowed, first * grad_map[:, :, None, :, None] / heads, 0.0)
    dq = scale * torch.einsum("behqk,bekhd->bqhd", dscores, keys)
    dk = scale * torch.einsum("behqk,bqhd->bekhd", dscores, queries)
    dv = torch.einsum("behqk,beqhd->bekhd", prob, grad)
    return dq.to(q.dtype), _replaced(dk, key_mask).to(k.dtype), _replaced(dv, key_mask).to(v.dtype)


def _replaced(x: Tensor, key_mask: Tensor | None) -> Tensor:
    return x if key_mask is None else x.masked_fill(~key_mask[..., None, None], 0.0)


def _scores(q: Tensor, k: Tensor, key_mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """scale * q.k [B, E, H, Nq, Nk], -inf where not allowed, and where it is allowed [B, E, 1, 1, Nk]."""
    scores = scale * torch.einsum("bqhd,bekhd->behqk", q, k)
    if key_mask is None:
        return scores, torch.ones(1, 1, 1, 1, k.shape[2], dtype=torch.bool, device=q.device)
    allowed = key_mask[:, :, None, None, :]
    return scores.masked_fill(~allowed, float("-inf")), allowed


def _softmax(scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, 0 in a row without an allowed key, and log-sum-exp, -inf in such a row."""
    live = allowed.any(-1)
    lse = torch.where(live[..., None], scores, 0.0).logsumexp(-1)
    prob = torch.where(allowed, (scores - lse[..., None]).exp(), 0.0)
    return prob, torch.where(live, lse, float("-inf"))


def _map(scores: Tensor, prob: Tensor, lse: Tensor, map: int) -> Tensor:
    if map == NO_MAP:
        return lse.new_empty(0)
    if map == MEAN_PROB:
        return prob.mean(2)
    return (scores.max(-1).values if map == MAX and scores.shape[-1] else lse).mean(2)
