"""Cross-attention of one context to several exemplars, and the correlation map that falls out of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import correlation as reference
from . import _check, _layout, _registry
from ._double import own_nodes, wanted_gradients


def correlate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    correlation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Attend from every context position to the keys of each exemplar, one softmax per exemplar and head.

    .. math:: s_{behij} = \mathrm{scale}\; q_{bih} \cdot k_{bejh}, \quad p = \mathrm{softmax}_j(s), \quad
              \mathrm{out}_{bei} = \big[\textstyle\sum_j p_{behij} v_{bejh}\big]_h

    All exemplars share the queries, which are read once; their gradient is summed over exemplars before it is stored.
    Scores and probabilities never leave the cache. Results do not depend on the number of threads.

    Source: Li et al. 2023, "Correlational Image Modeling for Self-Supervised Visual Pre-Training", section 3.

    Args:
        q: ``[B, Nq, H, d]``, float32, float64, float16 or bfloat16; sums are kept in float32 (float64 for float64).
        k, v: ``[B, E, Nk, H, d]``, like ``q``. Any strides.
        key_mask: bool ``[B, E, Nk]``, True where a key may be attended. What is in the other keys and values, NaN
            included, changes nothing. A row without an allowed key gives 0 and has no gradient.
        scale: finite factor of the scores; ``d ** -0.5`` if None.
        correlation: what to return beside the output, averaged over heads: ``"lse"`` ``[B, E, Nq]``, the log of the
            summed exponentials of a row's scores; ``"max"`` ``[B, E, Nq]``, its largest score (gradients go to the
            first); ``"mean_prob"`` ``[B, E, Nq, Nk]``, the probabilities. Rows without an allowed key give ``-inf``,
            ``-inf`` and 0.

    Returns:
        ``[B, E, Nq, H * d]`` of the dtype of ``q``, contiguous; with ``correlation`` a pair of it and the map (float32,
        float64 for float64). Both have gradients; a second derivative is computed with plain PyTorch.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    >>> q = torch.zeros(1, 3, 2, 4)  # three context positions, two heads
    >>> k, v = torch.randn(1, 5, 7, 2, 4), torch.ones(1, 5, 7, 2, 4)  # five exemplars of seven positions
    >>> out, heat = correlate(q, k, v, correlation="mean_prob")
    >>> out.shape, heat.shape, round(heat[0, 0, 0, 0].item(), 4)  # a query of zeros attends to all alike
    (torch.Size([1, 5, 3, 8]), torch.Size([1, 5, 3, 7]), 0.1429)
    """
    name = "correlate"
    _check.floating(name, "q", q)
    if q.dim() != 4 or 0 in q.shape[2:]:
        _check.fail(name, "q", "shape [B, Nq, H, d] with at least one head and channel", tuple(q.shape))
    _check.floating(name, "k", k)
    batch, _, heads, width = q.shape
    if k.dim() != 5 or k.shape[0] != batch or k.shape[3:] != q.shape[2:]:
        _check.fail(name, "k", f"shape ({batch}, E, Nk, {heads}, {width})", tuple(k.shape))
    if k.dtype != q.dtype:
        _check.fail(name, "k", f"the dtype of q, {q.dtype}", k.dtype, TypeError)
    if k.device != q.device:
        _check.fail(name, "k", f"a tensor on {q.device}", k.device)
    _check.like(name, "v", v, k, "k")
    if key_mask is not None:
        _check_mask(name, key_mask, k)
    if scale is not None:
        _check.number(name, "scale", scale)
    _check.one_of(name, "correlation", correlation, reference.MAPS)
    scale = width**-0.5 if scale is None else float(scale)
    chosen = reference.MAPS.index(correlation)
    if _check.differentiated(q, k, v):
        v = v.view_as(v) if v is k else v  # torch.compile takes no node with one tensor in two places
        out, heat = _Correlate.apply(q, k, v, key_mask, scale, chosen)
    else:
        out, _, heat = _forward(q, k, v, key_mask, scale, chosen)
    return out if correlation is None else (out, heat)


def _check_mask(name: str, key_mask: object, k: Tensor) -> None:
    if not isinstance(key_mask, Tensor):
        _check.fail(name, "key_mask", "a tensor", type(key_mask).__name__, TypeError)
    if key_mask.dtype != torch.bool:
        _check.fail(name, "key_mask", "a bool tensor", key_mask.dtype, TypeError)
    _check.strided(name, "key_mask", key_mask)
    if key_mask.shape != k.shape[:3]:
        _check.fail(name, "key_mask", f"shape {tuple(k.shape[:3])}", tuple(key_mask.shape))
    if key_mask.device != k.device:
        _check.fail(name, "key_mask", f"a tensor on {k.device}", key_mask.device)


class _Correlate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, scale: float, chosen: int):
        out, lse, heat = _forward(q, k, v, key_mask, scale, chosen)
        ctx.save_for_backward(q, k, v, key_mask, lse)
        ctx.options = scale, chosen
        return out, heat

    @staticmethod
    def backward(ctx, grad_out: Tensor, grad_heat: Tensor):
        q, k, v, key_mask, lse = ctx.saved_tensors
        # create_graph=True: the differentiable expression. (The compiler traces with gradients on, but never wants it.)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            leaves = own_nodes(q, k, v)
            out, _, heat = reference.correlate_forward(*leaves, key_mask, *ctx.options)
            results, grads = ((out, heat), (grad_out, grad_heat)) if ctx.options[1] else (out, grad_out)
            return (*wanted_gradients(results, leaves, grads, ctx.needs_input_grad), None, None, None)
        return (*_backward(grad_out, grad_heat, q, k, v, key_mask, lse, *ctx.options), None, None, None)


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, scale: float, map: int):
    (batch, positions, heads, width), (exemplars, keys) = q.shape, k.shape[1:3]
    wide = _layout.accumulation_dtype(q)
    rows = {reference.NO_MAP: (0,), reference.MEAN_PROB: (batch, exemplars, positions, keys)}
    return (
        q.new_empty(batch, exemplars, positions, heads * width),
        q.new_empty(batch, exemplars, heads, positions, dtype=wide),
        q.new_empty(rows.get(map, (batch, exemplars, positions)), dtype=wide),
    )


def _fake_backward(grad_out: Tensor, grad_map: Tensor, q: Tensor, k: Tensor, v: Tensor, *_):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _contiguous(function):
    return lambda *args: tuple(x.contiguous() for x in function(*args))


_forward = _registry.define(
    "correlate_fwd(Tensor q, Tensor k, Tensor v, Tensor? key_mask, float scale, int map)"
    " -> (Tensor out, Tensor lse, Tensor correlation)",
    op="correlate",
    reference=_contiguous(reference.correlate_forward),
    fake=_fake_forward,
    triton="avfast.kernels.correlation.correlate_triton:correlate_fwd_triton",
)
_backward = _registry.define(
    "correlate_bwd(Tensor grad_out, Tensor grad_map, Tensor q, Tensor k, Tensor v, Tensor? key_mask, Tensor lse,"
    " float scale, int map) -> (Tensor dq, Tensor dk, Tensor dv)",
    op="correlate",
    reference=_contiguous(reference.correlate_backward),
    fake=_fake_backward,
    triton="avfast.kernels.correlation.correlate_triton:correlate_bwd_triton",
)
