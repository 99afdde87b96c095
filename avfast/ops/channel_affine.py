"""Scale, shift and activate every channel: batch norm with statistics that are already known."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import batch_norm as reference
from . import _check, _layout, _registry

ACTIVATIONS = (None, "relu")


def channel_affine(x: Tensor, scale: Tensor, shift: Tensor, *, activation: str | None = None) -> Tensor:
    r"""``y = act(scale_c x + shift_c)``, in one read and one write.

    Evaluation-mode batch norm is this with ``scale = gamma / sqrt(var + eps)`` and ``shift = beta - mean scale``.
    Backward reads ``g`` and ``x`` once for all three gradients; the sign of ``y`` is recomputed, not kept.

    Args:
        x: ``[N, C, *]``, any float dtype, contiguous or channels-last without a copy.
        scale, shift: ``[C]``; used in float32 (float64 for float64 ``x``).
        activation: ``None`` or ``"relu"``.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or activation.

    >>> x = torch.tensor([[[1.0, -2.0]]])  # [N=1, C=1, W=2]
    >>> channel_affine(x, torch.tensor([2.0]), torch.tensor([1.0]), activation="relu").tolist()
    [[[3.0, 0.0]]]
    """
    name = "channel_affine"
    _check.floating(name, "x", x)
    if x.dim() < 2:
        _check.fail(name, "x", "shape [N, C, *]", tuple(x.shape))
    _check.one_of(name, "activation", activation, ACTIVATIONS)
    wide = _layout.accumulation_dtype(x)
    if not _check.are_vectors((scale, shift), x, wide):
        _check.vector(name, "scale", scale, x.shape[1], x)
        _check.vector(name, "shift", shift, x.shape[1], x)
        scale, shift = scale.to(wide), shift.to(wide)
    return apply(x, scale, shift, activation == "relu")


def apply(x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """The op on checked arguments: scale and shift in the accumulation type."""
    if _check.differentiated(x, scale, shift):
        return _ChannelAffine.apply(x, scale, shift, relu)
    return _forward(x, scale, shift, relu)


class _ChannelAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
        ctx.save_for_backward(x, scale, shift)
        ctx.relu = relu
        return _forward(x, scale, shift, relu)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, scale, shift = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the differentiable expression
            return (*reference.channel_affine_backward(grad, x, scale, shift, ctx.relu), None)
        return (*_backward(grad, x, scale, shift, ctx.relu), None)


def _fake_backward(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _layout.empty_like(x), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


_forward = _registry.define(
    "channel_affine_fwd(Tensor x, Tensor scale, Tensor shift, bool relu) -> Tensor",
    op="channel_affine",
    reference=_layout.conforming(reference.channel_affine_forward, 0),
    fake=lambda x, scale, shift, relu: _layout.empty_like(x),
)
_backward = _registry.define(
    "channel_affine_bwd(Tensor grad, Tensor x, Tensor scale, Tensor shift, bool relu)"
    " -> (Tensor dx, Tensor dscale, Tensor dshift)",
    op="channel_affine",
    reference=_layout.conforming(reference.channel_affine_backward, 1),
    fake=_fake_backward,
)
