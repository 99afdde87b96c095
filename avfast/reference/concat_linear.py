"""A linear layer over two concatenated modalities of which either may be absent, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

Maybe = Tensor | None


def concat_linear_forward(a: Tensor, v: Tensor, weight: Tensor, bias: Maybe, mask_a: Maybe, mask_v: Maybe) -> Tensor:
    """``[m_a a, m_v v] weight^T + bias``: rows a ``[R, Da]`` and v ``[R, Dv]``, weight ``[C, Da + Dv]``, bias ``[C]``,
    masks bool ``[R]``, to ``[R, C]``; computed in float32, float64 for float64. What is absent is not multiplied by 0
    but left out: a NaN in it reaches nothing."""
    wide = _wide(a)
    out = _joined(a, v, mask_a, mask_v).to(wide) @ weight.to(wide).T
    return (out if bias is None else out + bias.to(wide)).to(a.dtype)


def concat_linear_backward(
    grad: Tensor, a: Tensor, v: Tensor, weight: Tensor, mask_a: Maybe, mask_v: Maybe, need_inputs: bool,
    need_weight: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``<grad, out>`` with respect to a, v, weight and bias, of the type of a; empty if not needed."""
    wide, none = _wide(a), a.new_empty(0)
    g = grad.to(wide)
    da = dv = none
    if need_inputs:
        both = g @ weight.to(wide)
        da = _present(both[:, : a.shape[1]], mask_a).to(a.dtype).contiguous()
        dv = _present(both[:, a.shape[1] :], mask_v).to(a.dtype).contiguous()
    dweight = (g.T @ _joined(a, v, mask_a, mask_v).to(wide)).to(a.dtype).contiguous() if need_weight else none.clone()
    return da, dv if need_inputs else none.clone(), dweight, g.sum(0).to(a.dtype) if need_bias else none.clone()


def _wide(a: Tensor) -> torch.dtype:
    return torch.float64 if a.dtype == torch.float64 else torch.float32


def _joined(a: Tensor, v: Tensor, mask_a: Maybe, mask_v: Maybe) -> Tensor:
    return torch.cat([_present(a, mask_a), _present(v, mask_v)], dim=1)


def _present(x: Tensor, mask: Maybe) -> Tensor:
    return x if mask is None else torch.where(mask[:, None], x, 0.0)
