"""Cross-entropy per pixel of upsampled logits: the loss of a segmentation head, without its large tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import map_loss as reference
from . import _check, _layout, _registry
from ._double import own_nodes, wanted_gradients

TARGETS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    align_corners: bool,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    r"""``cross_entropy(interpolate(logits, target.shape[1:], mode="bilinear"), target)`` in one pass.

    .. math:: \ell_{p} = -(1 - \epsilon)\, w_{t_p} \log \pi_{t_p} - \frac{\epsilon}{C} \sum_c w_c \log \pi_c, \quad
              \pi = \mathrm{softmax}(\mathrm{bilinear}(\mathrm{logits})_p)

    Neither upsampled logits nor probabilities nor their gradients are stored. The gradient comes out of the forward
    pass, gathered in a fixed order (with ``reduction="none"`` out of a second pass over the small logits): it is the
    same to the bit every time and for any number of threads. Source of the loss: ``torch.nn.functional.cross_entropy``.

    Args:
        logits: ``[B, C, h, w]`` with C >= 1, float32, float64, float16 or bfloat16, any strides.
        target: classes ``[B, H, W]``, uint8, int16, int32 or int64; their size is the size of the upsampled map, which
            may also be the smaller one.
        align_corners: as in ``torch.nn.functional.interpolate``.
        ignore_index: class of pixels that are left out.
        weight: of each class ``[C]``, without gradient.
        label_smoothing: share in [0, 1] of the loss that is spread over all classes.
        reduction: ``"mean"`` divides by the weights of all targets together (NaN if all are ignored), ``"sum"``,
            or ``"none"``: ``[B, H, W]``, 0 where ignored.

    Returns:
        The loss in float32 (float64 for float64 logits), with a gradient for ``logits``; a second derivative is
        computed with plain PyTorch.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.
        RuntimeError, ValueError: on the CPU, a class out of range, from the compiled kernel or the reference; the
            Triton kernel makes the pixel NaN.

    >>> logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 4.0]]]])  # [B=1, C=2, h=1, w=2]
    >>> target = torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    >>> round(upsample_cross_entropy(logits, target, align_corners=False).item(), 2)
    0.07
    """
    name = "upsample_cross_entropy"
    _check.floating(name, "logits", logits)
    if logits.dim() != 4 or 0 in logits.shape[1:]:
        _check.fail(name, "logits", "shape [B, C, h, w] of at least one class and position", tuple(logits.shape))
    if not isinstance(target, Tensor) or target.dtype not in TARGETS:
        got = target.dtype if isinstance(target, Tensor) else type(target).__name__
        _check.fail(name, "target", "a uint8, int16, int32 or int64 tensor", got, TypeError)
    _check.strided(name, "target", target)
    if target.dim() != 3 or target.shape[0] != logits.shape[0] or 0 in target.shape[1:]:
        expected = f"shape ({logits.shape[0]}, H, W) of at least one pixel"
        _check.fail(name, "target", expected, tuple(target.shape))
    if target.device != logits.device:
        _check.fail(name, "target", f"a tensor on {logits.device}", target.device)
    if weight is not None:
        _check.vector(name, "weight", weight, logits.shape[1], logits)
        weight = weight.detach().to(_layout.accumulation_dtype(logits))
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        _check.fail(name, "ignore_index", "an integer", type(ignore_index).__name__, TypeError)
    _check.number(name, "label_smoothing", label_smoothing, at_least=0.0)
    if label_smoothing > 1:
        _check.fail(name, "label_smoothing", "a number in [0, 1]", label_smoothing)
    _check.one_of(name, "reduction", reduction, ("mean", "sum", "none"))
    options = bool(align_corners), ignore_index, float(label_smoothing)
    per_pixel = reduction == "none"
    if _check.differentiated(logits):
        loss, total = _UpsampleCrossEntropy.apply(logits, target, weight, per_pixel, *options)
    else:
        loss, total, _ = _forward(logits.detach(), target, weight, *options, per_pixel, False)
    if per_pixel:
        return loss
    return loss.sum() / total.sum() if reduction == "mean" else loss.sum()


class _UpsampleCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, weight, per_pixel, *options):
        loss, total, slope = _forward(logits, target, weight, *options, per_pixel, not per_pixel)
        ctx.save_for_backward(logits, target, weight, slope)
        ctx.per_pixel, ctx.options = per_pixel, options
        ctx.mark_non_differentiable(total)
        return loss, total

    @staticmethod
    def backward(ctx, grad: Tensor, _total):
        logits, target, weight, slope = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            leaves = own_nodes(logits)
            loss, _ = reference.upsample_ce(*leaves, target, weight, *ctx.options)
            loss = loss if ctx.per_pixel else loss.sum((1, 2))
            (found,) = wanted_gradients(loss, leaves, grad, ctx.needs_input_grad)
        elif ctx.per_pixel:
            found = _backward(grad, logits, target, weight, *ctx.options).to(logits.dtype)
        else:
            found = (slope * grad[:, None, None, None]).to(logits.dtype)
        return (found, *(None for _ in range(6)))


def _fake_forward(logits, target, weight, align_corners, ignore_index, label_smoothing, per_pixel, need_grad):
    wide, b = _layout.accumulation_dtype(logits), logits.shape[0]
    return (
        logits.new_empty(target.shape if per_pixel else (b,), dtype=wide),
        logits.new_empty(b, dtype=wide),
        logits.new_empty(logits.shape if need_grad else (0,), dtype=wide),
    )


_forward = _registry.define(
    "upsample_ce_fwd(Tensor logits, Tensor target, Tensor? weight, bool align_corners, int ignore_index,"
    " float label_smoothing, bool per_pixel, bool need_grad) -> (Tensor loss, Tensor total_weight, Tensor grad)",
    op="upsample_cross_entropy",
    reference=reference.upsample_ce_forward,
    fake=_fake_forward,
    triton="avfast.kernels.correlation.upsample_ce_triton:upsample_ce_fwd_triton",
)
_backward = _registry.define(
    "upsample_ce_bwd(Tensor grad_pixels, Tensor logits, Tensor target, Tensor? weight, bool align_corners,"
    " int ignore_index, float label_smoothing) -> Tensor",
    op="upsample_cross_entropy",
    reference=reference.upsample_ce_backward,
    fake=lambda grad_pixels, logits, *_: logits.new_empty(logits.shape, dtype=_layout.accumulation_dtype(logits)),
    triton="avfast.kernels.correlation.upsample_ce_triton:upsample_ce_bwd_triton",
)
