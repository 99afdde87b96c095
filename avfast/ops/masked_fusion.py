"""Two modalities joined where either may be absent: sum, gate, FiLM and concatenation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import fusion as reference
from . import _check, _layout, _registry
from ._double import own_nodes, wanted_gradients

Weight = float | Tensor | None


def masked_fusion(
    a: Tensor,
    v: Tensor,
    *,
    mask_a: Tensor | None = None,
    mask_v: Tensor | None = None,
    mode: str = "sum",
    weight_a: Weight = None,
    weight_v: Weight = None,
    renormalize: bool = True,
) -> Tensor:
    r"""Join audio and visual features; what a mask says is absent is not read, and takes and gives no gradient.

    With :math:`m_a, m_v` 1 where present and the weights :math:`w_a, w_v` (1 if not given):

    * ``"sum"``: :math:`w_a m_a a + w_v m_v v`. With ``renormalize``, one that is alone has both weights,
      :math:`(w_a + w_v) a`: sums keep their size.
    * ``"gated"``: the same with :math:`w_a = \sigma(\mathrm{weight}_a)` and :math:`w_v = 1 - w_a`.
    * ``"film"``: v holds :math:`(\gamma, \beta)`, ``[..., 2 D]``: :math:`\gamma\, m_a a + \beta`. Without v: a with
      ``renormalize``, else 0.
    * ``"concat"``: :math:`[w_a m_a a, w_v m_v v]`; ``renormalize`` changes nothing.

    Both absent gives 0 (film: neither). Masked values may be NaN.

    Sources: sum, concatenation, FiLM (Perez et al. 2018, section 2) and gating (Kiela et al. 2018, section 3) as
    compared by Peng et al. 2022, "Balanced multimodal learning via on-the-fly gradient modulation".

    Args:
        a: ``[B, *, D]``, float32, float64, float16 or bfloat16; sums are kept in float32 (float64 for float64).
        v: like ``a``; ``[B, *, 2 D]`` for film; ``[B, *, Dv]`` for concat.
        mask_a, mask_v: bool, True where present: of samples ``[B]``, of tokens ``[B, T]`` (any leading dimensions), or
            of elements (the shape of the modality; for film, of ``a``).
        mode: as above.
        weight_a, weight_v: a number, or a tensor that broadcasts to the modality: ``[D]`` for channels, ``[B, 1]`` for
            samples, and so on. With gradient. For ``"gated"`` only ``weight_a``, the gate before its sigmoid.
        renormalize: as above.

    Returns:
        ``[B, *, D]``, for concat ``[B, *, D + Dv]``, contiguous, of the dtype of ``a``. Deterministic.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    >>> a, v = torch.ones(3, 2), 2 * torch.ones(3, 2)
    >>> sees, hears = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    >>> masked_fusion(a, v, mask_a=hears, mask_v=sees).tolist()
    [[3.0, 3.0], [4.0, 4.0], [0.0, 0.0]]
    >>> masked_fusion(a, v, mask_a=hears, mask_v=sees, mode="concat")[1].tolist()
    [0.0, 0.0, 2.0, 2.0]
    """
    name = "masked_fusion"
    _check.one_of(name, "mode", mode, reference.MODES)
    _check.floating(name, "a", a)
    _check.floating(name, "v", v)
    if a.dim() < 2:
        _check.fail(name, "a", "shape [B, *, D]", tuple(a.shape))
    lead, depth = a.shape[:-1], a.shape[-1]
    wanted = {"film": 2 * depth, "concat": v.shape[-1] if v.dim() else 0}.get(mode, depth)
    if v.shape != (*lead, wanted):
        _check.fail(name, "v", f"shape {(*lead, 'Dv' if mode == 'concat' else wanted)}", tuple(v.shape))
    if v.dtype != a.dtype:
        _check.fail(name, "v", f"the dtype of a, {a.dtype}", v.dtype, TypeError)
    if v.device != a.device:
        _check.fail(name, "v", f"a tensor on {a.device}", v.device)
    _check_weights(name, mode, weight_a, weight_v)
    rows = a.reshape(-1, depth) if a.numel() else a.flatten(0, -2)
    others = v.reshape(-1, wanted) if v.numel() else v.flatten(0, -2)
    arguments = (
        _mask(name, "mask_a", mask_a, a.shape, a.device),
        _mask(name, "mask_v", mask_v, a.shape if mode == "film" else v.shape, a.device),
        _weight(name, "weight_a", weight_a, a),
        _weight(name, "weight_v", weight_v, v),
    )
    options = reference.MODES.index(mode), bool(renormalize)
    tensors = (rows, others, *arguments)
    if _check.differentiated(*tensors):
        out = _MaskedFusion.apply(*tensors, *options)
    else:
        out = _forward(*tensors, *options)
    return out.view(*lead, out.shape[-1])


def _check_weights(name: str, mode: str, weight_a: Weight, weight_v: Weight) -> None:
    if mode == "gated" and weight_a is None:
        _check.fail(name, "weight_a", "the gate before its sigmoid, for mode 'gated'", None)
    for argument, weight in (("weight_a", weight_a), ("weight_v", weight_v)):
        if weight is not None and (mode == "film" or (mode == "gated" and argument == "weight_v")):
            _check.fail(name, argument, f"None for mode '{mode}'", "a weight")


def _mask(name: str, argument: str, mask: object, shape: torch.Size, device: torch.device) -> Tensor | None:
    """``[R, 1]`` or ``[R, D]``."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        _check.fail(name, argument, "a bool tensor", type(mask).__name__, TypeError)
    if mask.dtype != torch.bool:
        _check.fail(name, argument, "a bool tensor", mask.dtype, TypeError)
    _check.strided(name, argument, mask)
    if not mask.dim() or mask.shape != shape[: mask.dim()]:
        _check.fail(name, argument, f"leading dimensions of {tuple(shape)}, or all", tuple(mask.shape))
    if mask.device != device:
        _check.fail(name, argument, f"a tensor on {device}", mask.device)
    if mask.dim() == len(shape):
        return mask.reshape(shape[:-1].numel(), shape[-1])
    missing = len(shape) - 1 - mask.dim()
    return mask.view(*mask.shape, *(1,) * missing).expand(shape[:-1]).reshape(-1, 1)


def _weight(name: str, argument: str, weight: Weight, x: Tensor) -> Tensor | None:
    """``[1 or R, 1 or D]`` of the accumulation type."""
    if weight is None:
        return None
    wide = _layout.accumulation_dtype(x)
    if not isinstance(weight, Tensor):
        _check.number(name, argument, weight)
        return torch.full((1, 1), weight, dtype=wide, device=x.device)
    _check.floating(name, argument, weight)
    if weight.device != x.device:
        _check.fail(name, argument, f"a tensor on {x.device}", weight.device)
    shape = (1,) * (x.dim() - weight.dim()) + tuple(weight.shape)
    if len(shape) != x.dim() or any(n != 1 and n != m for n, m in zip(shape, x.shape, strict=True)):
        _check.fail(name, argument, f"a number or a shape that broadcasts to {tuple(x.shape)}", tuple(weight.shape))
    lead = (1,) * (x.dim() - 1) if all(n == 1 for n in shape[:-1]) else x.shape[:-1]
    return weight.to(wide).expand(*lead, shape[-1]).reshape(torch.Size(lead).numel(), shape[-1])


class _MaskedFusion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, v, mask_a, mask_v, weight_a, weight_v, mode: int, renormalize: bool) -> Tensor:
        ctx.save_for_backward(a, v, mask_a, mask_v, weight_a, weight_v)
        ctx.options = mode, renormalize
        return _forward(a, v, mask_a, mask_v, weight_a, weight_v, mode, renormalize)

    @staticmethod
    def backward(ctx, grad: Tensor):
        a, v, mask_a, mask_v, weight_a, weight_v = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            given = [x is not None for x in (a, v, weight_a, weight_v)]
            nodes = iter(own_nodes(*(x for x in (a, v, weight_a, weight_v) if x is not None)))
            leaves = tuple(next(nodes) if there else None for there in given)
            out = reference.masked_fusion_forward(*leaves[:2], mask_a, mask_v, *leaves[2:], *ctx.options)
            needed = [ctx.needs_input_grad[i] for i in (0, 1, 4, 5)]
            found = wanted_gradients(out, leaves, grad, needed)
        else:
            found = _backward(grad, a, v, mask_a, mask_v, weight_a, weight_v, *ctx.options)
            found = [
                g if need else None
                for g, need in zip(found, [ctx.needs_input_grad[i] for i in (0, 1, 4, 5)], strict=True)
            ]
        return (found[0], found[1], None, None, found[2], found[3], None, None)


def _fake_forward(a, v, mask_a, mask_v, weight_a, weight_v, mode: int, renormalize: bool) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1] + v.shape[1] if mode == reference.CONCAT else a.shape[1])


def _fake_backward(grad, a, v, mask_a, mask_v, weight_a, weight_v, mode: int, renormalize: bool):
    wide = _layout.accumulation_dtype(a)
    weights = (a.new_empty(0 if w is None else w.shape, dtype=wide) for w in (weight_a, weight_v))
    return (a.new_empty(a.shape), v.new_empty(v.shape), *weights)


_ARGUMENTS = (
    "Tensor a, Tensor v, Tensor? mask_a, Tensor? mask_v, Tensor? weight_a, Tensor? weight_v, int mode, bool renormalize"
)
_forward = _registry.define(
    f"masked_fusion_fwd({_ARGUMENTS}) -> Tensor",
    op="masked_fusion",
    reference=lambda *a: reference.masked_fusion_forward(*a).contiguous(),
    fake=_fake_forward,
    triton="avfast.kernels.fusion.masked_fusion_triton:masked_fusion_fwd_triton",
)
_backward = _registry.define(
    f"masked_fusion_bwd(Tensor grad, {_ARGUMENTS}) -> (Tensor da, Tensor dv, Tensor dweight_a, Tensor dweight_v)",
    op="masked_fusion",
    reference=reference.masked_fusion_backward,
    fake=_fake_backward,
    triton="avfast.kernels.fusion.masked_fusion_bwd_triton:masked_fusion_bwd_triton",
)
