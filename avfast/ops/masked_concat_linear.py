"""A linear layer over two modalities, either of which may be absent, without their concatenation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import concat_linear as reference
from . import _check, _registry
from ._double import own_nodes, wanted_gradients

Maybe = Tensor | None


def masked_concat_linear(
    a: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_a: Tensor | None = None,
    mask_v: Tensor | None = None,
) -> Tensor:
    r"""``F.linear(torch.cat([m_a a, m_v v], -1), weight, bias)``, of which only what is present is computed.

    .. math:: y = W_a (m_a a) + W_v (m_v v) + b, \qquad W = [W_a, W_v]

    Rows are sorted by what they have, so that one without a modality costs neither a load nor a product of it; the
    concatenation is never built. A row with neither gives the bias. Masked values may be NaN.

    Source: the concatenation head of Xia, Wei et al. 2023, "Revisiting Pre-training in Audio-Visual Learning", and of
    Peng et al. 2022, section 4.1.

    Args:
        a: ``[B, *, Da]``, float32, float64, float16 or bfloat16; products are summed in float32 (float64 for float64).
        v: ``[B, *, Dv]`` of the same leading dimensions and dtype.
        weight: ``[C, Da + Dv]``, as ``nn.Linear(Da + Dv, C)`` holds it.
        bias: ``[C]``, or None.
        mask_a, mask_v: bool, True where present: of samples ``[B]`` or of any leading dimensions, up to all of them.

    Under autocast, all are cast to its dtype, as for ``F.linear``.

    Returns:
        ``[B, *, C]``, contiguous, of the dtype of ``a``. Deterministic, for any number of threads.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.

    >>> a, v, weight = torch.ones(2, 3), torch.ones(2, 2), torch.ones(1, 5)
    >>> masked_concat_linear(a, v, weight, mask_v=torch.tensor([True, False])).tolist()
    [[5.0], [3.0]]
    """
    name = "masked_concat_linear"
    for argument, x in (("a", a), ("v", v), ("weight", weight), *((("bias", bias),) if bias is not None else ())):
        _check.floating(name, argument, x)
        if x.device != a.device:
            _check.fail(name, argument, f"a tensor on {a.device}", x.device)
    autocast = torch.amp.is_autocast_available(a.device.type) and torch.is_autocast_enabled(a.device.type)
    if autocast and a.dtype != torch.float64:
        kind = torch.get_autocast_dtype(a.device.type)
        a, v, weight = a.to(kind), v.to(kind), weight.to(kind)
        bias = None if bias is None else bias.to(kind)
    _check_shapes(name, a, v, weight, bias)
    lead = a.shape[:-1]
    masks = (_rows(name, "mask_a", mask_a, a), _rows(name, "mask_v", mask_v, a))
    rows, others = (x.reshape(lead.numel(), x.shape[-1]) for x in (a, v))
    tensors = (rows, others, weight, bias)
    if _check.differentiated(*tensors):
        out = _MaskedConcatLinear.apply(*tensors, *masks)
    else:
        out = _forward(*tensors, *masks)
    return out.view(*lead, weight.shape[0])


def _check_shapes(name: str, a: Tensor, v: Tensor, weight: Tensor, bias: Maybe) -> None:
    if a.dim() < 2:
        _check.fail(name, "a", "shape [B, *, Da]", tuple(a.shape))
    if v.shape[:-1] != a.shape[:-1] or v.dim() != a.dim():
        _check.fail(name, "v", f"shape {(*a.shape[:-1], 'Dv')}", tuple(v.shape))
    wanted = a.shape[-1] + v.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != wanted:
        _check.fail(name, "weight", f"shape ('C', {wanted}), Da + Dv columns", tuple(weight.shape))
    if bias is not None and bias.shape != weight.shape[:1]:
        _check.fail(name, "bias", f"shape ({weight.shape[0]},)", tuple(bias.shape))
    for argument, x in (("v", v), ("weight", weight), *((("bias", bias),) if bias is not None else ())):
        if x.dtype != a.dtype:
            _check.fail(name, argument, f"the dtype of a, {a.dtype}", x.dtype, TypeError)


def _rows(name: str, argument: str, mask: object, a: Tensor) -> Tensor | None:
    """bool ``[R]``."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        _check.fail(name, argument, "a bool tensor", got, TypeError)
    _check.strided(name, argument, mask)
    lead = a.shape[:-1]
    if not 1 <= mask.dim() <= len(lead) or mask.shape != lead[: mask.dim()]:
        _check.fail(name, argument, f"leading dimensions of {tuple(lead)}", tuple(mask.shape))
    if mask.device != a.device:
        _check.fail(name, argument, f"a tensor on {a.device}", mask.device)
    return mask.view(*mask.shape, *(1,) * (len(lead) - mask.dim())).expand(lead).reshape(lead.numel())


class _MaskedConcatLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, v, weight, bias, mask_a, mask_v) -> Tensor:
        ctx.save_for_backward(a, v, weight, bias, mask_a, mask_v)
        return _forward(a, v, weight, bias, mask_a, mask_v)

    @staticmethod
    def backward(ctx, grad: Tensor):
        a, v, weight, bias, mask_a, mask_v = ctx.saved_tensors
        needed = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            given = [x for x in (a, v, weight, bias) if x is not None]
            nodes = iter(own_nodes(*given))
            leaves = tuple(None if x is None else next(nodes) for x in (a, v, weight, bias))
            out = reference.concat_linear_forward(*leaves, mask_a, mask_v)
            return (*wanted_gradients(out, leaves, grad, needed), None, None)
        found = _backward(
            grad, a, v, weight, mask_a, mask_v, needed[0] or needed[1], needed[2], bias is not None and needed[3]
        )
        return (*(g if need else None for g, need in zip(found, needed, strict=True)), None, None)


def _fake_forward(a, v, weight, bias, mask_a, mask_v) -> Tensor:
    return a.new_empty(a.shape[0], weight.shape[0])


def _fake_backward(grad, a, v, weight, mask_a, mask_v, need_inputs: bool, need_weight: bool, need_bias: bool):
    def made(needed: bool, *shape):
        return a.new_empty(shape if needed else (0,))

    return (made(need_inputs, *a.shape), made(need_inputs, *v.shape), made(need_weight, *weight.shape),
            made(need_bias, weight.shape[0]))  # fmt: skip


_forward = _registry.define(
    "concat_linear_fwd(Tensor a, Tensor v, Tensor weight, Tensor? bias, Tensor? mask_a, Tensor? mask_v) -> Tensor",
    op="masked_concat_linear",
    reference=reference.concat_linear_forward,
    fake=_fake_forward,
)
_backward = _registry.define(
    "concat_linear_bwd(Tensor grad, Tensor a, Tensor v, Tensor weight, Tensor? mask_a, Tensor? mask_v, "
    "bool need_inputs, bool need_weight, bool need_bias) -> (Tensor da, Tensor dv, Tensor dweight, Tensor dbias)",
    op="masked_concat_linear",
    reference=reference.concat_linear_backward,
    fake=_fake_backward,
)
