"""Two modalities of which either may be absent, joined in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("sum", "gated", "film", "concat")
SUM, GATED, FILM, CONCAT = range(4)

Maybe = Tensor | None


def masked_fusion_forward(
    a: Tensor, v: Tensor, mask_a: Maybe, mask_v: Maybe, weight_a: Maybe, weight_v: Maybe, mode: int, renormalize: bool
) -> Tensor:
    """Rows a ``[R, D]`` and v ``[R, D]`` (``[R, 2 D]`` for film, ``[R, Dv]`` for concat), masks bool and weights, each
    ``[1 or R, 1 or D]``, to ``[R, D]`` (``[R, D + Dv]``), computed in float32, float64 for float64.

    What is absent is left out, not multiplied by 0: a NaN in it reaches nothing.
    """
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    there_a, there_v = (_there(mask, a) for mask in (mask_a, mask_v))
    w_a, w_v = (None if w is None else w.to(wide) for w in (weight_a, weight_v))
    if mode == CONCAT:
        parts = ((a, there_a, w_a), (v, there_v, w_v))
        return torch.cat([_weighted(_present(x.to(wide), m), w) for x, m, w in parts], dim=1).to(a.dtype)
    if mode == FILM:
        gamma, beta = (_present(half, there_v) for half in v.to(wide).chunk(2, dim=1))
        values = _present(a.to(wide), there_a)
        if renormalize:
            gamma = torch.where(there_v, gamma, 1.0)
        return (gamma * values + beta).to(a.dtype)
    if mode == GATED:
        w_a = w_a.sigmoid()
        w_v = 1 - w_a
    from_a, from_v = (_present(x.to(wide), m) for x, m in ((a, there_a), (v, there_v)))
    if renormalize:  # who is alone has both weights
        one = a.new_ones(1, 1, dtype=wide)
        both = None if w_a is None and w_v is None else (one if w_a is None else w_a) + (one if w_v is None else w_v)
        total = one if mode == GATED else 2 * one if both is None else both
        w_a = torch.where(there_v, one if w_a is None else w_a, total)
        w_v = torch.where(there_a, one if w_v is None else w_v, total)
    return (_weighted(from_a, w_a) + _weighted(from_v, w_v)).to(a.dtype)


def _there(mask: Maybe, x: Tensor) -> Tensor:
    return torch.ones(1, 1, dtype=torch.bool, device=x.device) if mask is None else mask


def _present(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0.0)


def _weighted(x: Tensor, weight: Maybe) -> Tensor:
    return x if weight is None else weight * x


def masked_fusion_backward(
    grad: Tensor, a: Tensor, v: Tensor, mask_a: Maybe, mask_v: Maybe, weight_a: Maybe, weight_v: Maybe, mode: int,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``<grad, out>`` with respect to a, v and the weights (empty without one), of their types."""
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().to(wide).requires_grad_() for x in (a, v, weight_a, weight_v)]
        out = masked_fusion_forward(leaves[0], leaves[1], mask_a, mask_v, leaves[2], leaves[3], mode, renormalize)
        given = [x for x in leaves if x is not None]
        found = iter(torch.autograd.grad(out, given, grad.to(wide), allow_unused=True, materialize_grads=True))
    results = [a.new_empty(0, dtype=wide) if x is None else next(found) for x in leaves]
    kinds = [a.dtype, v.dtype, *(wide if w is None else w.dtype for w in (weight_a, weight_v))]
    return tuple(x.to(kind).contiguous() for x, kind in zip(results, kinds, strict=True))
