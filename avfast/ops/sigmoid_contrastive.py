"""Sigmoid loss: every pair of two batches is a binary decision of its own."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..reference import contrastive as reference
from . import _check, _double, _in_batch, _layout, _registry
from ._distributed import gather_with_gradient, require_even, warn_if_not_gathering


def sigmoid_contrastive(
    z_a: Tensor,
    z_b: Tensor,
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    normalize: bool = True,
    gather: bool = False,
    process_group: dist.ProcessGroup | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Loss of SigLIP: does row i of ``z_a`` belong to row j of ``z_b``?

    .. math:: \ell_i = -\sum_j \log \sigma(y_{ij} (\mathrm{scale}\; a_i \cdot b_j + \mathrm{bias})),
              \quad y_{ii} = 1, \; y_{ij} = -1

    No normaliser, so for ``"mean"`` and ``"sum"`` the loss and all gradients come from one pass over the pairs. Source:
    Zhai et al. 2023, SigLIP, section 3.2 (which starts from scale 10 and bias -10).

    Args:
        z_a, z_b: features ``[N, D]``, any float dtype, same shape, dtype and device.
        scale: positive number, or a 0-d tensor (which may be learned): one over a temperature.
        bias: number, or a 0-d tensor (which may be learned).
        normalize: scale rows to unit length first.
        gather: compare with the columns of all processes, see :func:`info_nce`.
        process_group: the group to gather over; the default group if left out.
        reduction: ``"mean"`` over the N rows (each a sum over columns), ``"sum"``, or ``"none"``: ``[N]``.

    Raises:
        TypeError, ValueError: as :func:`info_nce`.

    >>> round(sigmoid_contrastive(torch.eye(2), torch.eye(2), scale=10.0, bias=-10.0).item(), 4)  # log 2, nearly
    0.6932
    """
    name = "sigmoid_contrastive"
    _in_batch.check_features(name, "z_a", z_a)
    _check.like(name, "z_b", z_b, z_a, "z_a")
    _check.one_of(name, "reduction", reduction, _in_batch.REDUCTIONS)
    s = _in_batch.scalar(name, "scale", scale, z_a)
    b = _in_batch.scalar(name, "bias", bias, z_a, positive=False)
    offset, columns = 0, z_b
    if gather:
        require_even(name, "z_a", z_a, process_group)
        offset, columns = gather_with_gradient(z_b, process_group)
    else:
        warn_if_not_gathering(name)
    if not _check.differentiated(z_a, columns, s, b):
        return _in_batch.reduced(_forward(z_a, columns, s, b, offset, normalize), reduction)
    if reduction == "none":
        return _SigmoidRows.apply(z_a, columns, s, b, offset, normalize)
    share = 1.0 / len(z_a) if reduction == "mean" else 1.0
    return _SigmoidTotal.apply(z_a, columns, s, b, offset, normalize, share)


class _SigmoidTotal(torch.autograd.Function):
    """``share`` times the sum of all rows. The gradient is known when the loss is; backward only scales it."""

    @staticmethod
    def forward(ctx, a, b, scale, bias, positive, normalize, share):
        weights = a.new_full((len(a),), share, dtype=_layout.accumulation_dtype(a))
        loss, *grads = _backward(weights, a, b, scale, bias, positive, normalize)
        ctx.save_for_backward(a, b, scale, bias, *grads)
        ctx.options = positive, normalize, share
        return loss.sum() * share

    @staticmethod
    def backward(ctx, grad: Tensor):
        a, b, scale, bias, *grads = ctx.saved_tensors
        positive, normalize, share = ctx.options
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            leaves = _double.own_nodes(a, b, scale, bias)
            loss = reference.sigmoid_nce_forward(*leaves, positive, normalize).sum() * share
            found = _double.wanted_gradients(loss, leaves, grad, ctx.needs_input_grad)
            return (*found, None, None, None)
        return (*((g.to(grad.dtype) * grad).to(g.dtype) for g in grads), None, None, None)


class _SigmoidRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, scale, bias, positive, normalize):
        ctx.save_for_backward(a, b, scale, bias)
        ctx.options = positive, normalize
        return _forward(a, b, scale, bias, positive, normalize)

    @staticmethod
    def backward(ctx, grad: Tensor):
        leaves, options = ctx.saved_tensors, ctx.options
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            leaves = _double.own_nodes(*leaves)
            loss = reference.sigmoid_nce_forward(*leaves, *options)
            return (*_double.wanted_gradients(loss, leaves, grad, ctx.needs_input_grad), None, None)
        return (*_backward(grad.contiguous(), *leaves, *options)[1:], None, None)


def _fake_backward(grad_row, a, b, scale, bias, positive, normalize):
    loss = grad_row.new_empty(a.shape[0])
    return loss, a.new_empty(a.shape), b.new_empty(b.shape), scale.new_empty(1), bias.new_empty(1)


_forward = _registry.define(
    "sigmoid_nce_fwd(Tensor a, Tensor b, Tensor scale, Tensor bias, int positive, bool normalize) -> Tensor",
    op="sigmoid_contrastive",
    reference=reference.sigmoid_nce_forward,
    fake=lambda a, b, *_: a.new_empty(a.shape[0], dtype=_layout.accumulation_dtype(a)),
    triton="avfast.kernels.contrastive.sigmoid_nce_triton:sigmoid_nce_fwd_triton",
)
_backward = _registry.define(
    "sigmoid_nce_bwd(Tensor grad_row, Tensor a, Tensor b, Tensor scale, Tensor bias, int positive, bool normalize)"
    " -> (Tensor loss, Tensor da, Tensor db, Tensor dscale, Tensor dbias)",
    op="sigmoid_contrastive",
    reference=reference.sigmoid_nce_backward,
    fake=_fake_backward,
    triton="avfast.kernels.contrastive.sigmoid_nce_triton:sigmoid_nce_bwd_triton",
)
