"""Two batch norms over one input, mixed by alpha, as the one batch norm they are."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..reference import batch_norm as reference
from . import _check, _layout, _registry, channel_affine
from ._distributed import world
from ._synchronised import synchronised_statistics


def blended_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    new_weight: Tensor,
    new_bias: Tensor,
    alpha: Tensor,
    *,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    new_running_mean: Tensor | None = None,
    new_running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    sync: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Mix of a pre-trained and a fresh batch norm over the same input (ABRi).

    .. math:: y = \mathrm{act}\bigl(\alpha\,\mathrm{BN}(x; \gamma_1, \beta_1)
              + (1-\alpha)\,\mathrm{BN}(x; \gamma_2, \beta_2)\bigr)

    With batch statistics both normalise alike, so this is one batch norm with
    :math:`\Gamma = \alpha\gamma_1 + (1-\alpha)\gamma_2` and :math:`B = \alpha\beta_1 + (1-\alpha)\beta_2`: one pass of
    statistics, one of output, activation included. Only ``x`` and two vectors are kept for backward. Source: Wang et
    al. 2023, "Revisiting Pre-training in Audio-Visual Learning", section 4 (ABRi).

    Args:
        x: ``[N, C, *]``, any float dtype, contiguous or channels-last without a copy.
        weight, bias: ``[C]``, gamma and beta of the pre-trained layer.
        new_weight, new_bias: ``[C]``, those of the fresh layer.
        alpha: share of the pre-trained layer, unconstrained: ``[C]``, ``[1]`` or 0-d.
        running_mean, running_var, new_running_mean, new_running_var: ``[C]`` each. Updated in place from the batch when
            ``training`` (unbiased variance); when not, used instead of batch statistics, with gradients to all else.
        training: use batch statistics.
        momentum: share of the batch in the running statistics, in [0, 1].
        eps: number > 0 added to the variance; shared by both layers.
        activation: ``None`` or ``"relu"``.
        sync: statistics over all processes of ``process_group`` (plain PyTorch; the kernels are per process).

    Returns:
        Like ``x``; parameters are used in float32 (float64 for float64 ``x``).

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, option; running statistics missing in evaluation; a single
            value per channel in training.

    >>> one, zero = torch.ones(1), torch.zeros(1)
    >>> x = torch.tensor([[[1.0, 3.0]]])  # [N=1, C=1, W=2]
    >>> blended_batch_norm(x, 3 * one, zero, one, zero, torch.tensor(0.5)).round(decimals=2).tolist()
    [[[-2.0, 2.0]]]
    """
    name = "blended_batch_norm"
    _check.floating(name, "x", x)
    if x.dim() < 2:
        _check.fail(name, "x", "shape [N, C, *]", tuple(x.shape))
    _check.one_of(name, "activation", activation, channel_affine.ACTIVATIONS)
    _check.number(name, "eps", eps, above=0.0)
    running = (running_mean, running_var, new_running_mean, new_running_var)
    affine = _checked_affine(x, weight, bias, new_weight, new_bias, alpha)
    tracked = not (running_mean is running_var is new_running_mean is new_running_var is None)
    if tracked or not training:
        _check_running(x, running, training)

    relu = activation == "relu"
    channels = x.shape[1]
    if not training:
        scale, shift = reference.evaluation_affine(*affine, *(r.to(affine[0].dtype) for r in running), eps)
        return channel_affine.apply(x, scale, shift, relu)

    count = x.numel() // max(channels, 1)
    if count == 1 and not (sync and world(process_group)[1] > 1):
        _check.fail(name, "x", "more than 1 value per channel when training", tuple(x.shape))
    if sync and world(process_group)[1] > 1:
        y, mean, var, count = _synchronised(x, affine, eps, relu, process_group)
    elif _check.differentiated(x, *affine):
        y, mean, var = _BlendedBatchNorm.apply(x, *affine, eps, relu)
    else:
        y, mean, var = _forward(x, *affine, eps, relu)
    if tracked and count > 1:
        _update(running, mean.detach(), var.detach() * (count / (count - 1)), momentum)
    return y


def _checked_affine(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """The five parameters as vectors in the accumulation type."""
    wide = _layout.accumulation_dtype(x)
    if _check.are_vectors(parameters, x, wide):
        return list(parameters)
    name, channels, alpha = "blended_batch_norm", x.shape[1], parameters[-1]
    for label, vector in zip(("weight", "bias", "new_weight", "new_bias"), parameters, strict=False):
        _check.vector(name, label, vector, channels, x)
    _check.floating(name, "alpha", alpha)
    if alpha.dim() > 1 or (alpha.numel() != 1 and alpha.numel() != channels):
        _check.fail(name, "alpha", f"shape ({channels},), (1,) or ()", tuple(alpha.shape))
    if alpha.device != x.device:
        _check.fail(name, "alpha", f"a tensor on {x.device}", alpha.device)
    return [p.to(wide) for p in (*parameters[:-1], alpha.reshape(-1))]


def _check_running(x: Tensor, running: tuple[Tensor | None, ...], training: bool) -> None:
    for label, vector in zip(
        ("running_mean", "running_var", "new_running_mean", "new_running_var"), running, strict=True
    ):
        if vector is not None:
            _check.vector("blended_batch_norm", label, vector, x.shape[1], x)
        elif not training:
            _check.fail("blended_batch_norm", label, "a tensor when training=False", None)


@torch.no_grad()
def _update(running: tuple[Tensor | None, ...], mean: Tensor, var: Tensor, momentum: float) -> None:
    for target, source in zip(running, (mean, var, mean, var), strict=True):
        if target is not None:
            target.lerp_(source if source.dtype == target.dtype else source.to(target.dtype), momentum)


def _synchronised(
    x: Tensor, affine: list[Tensor], eps: float, relu: bool, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Batch statistics over every process, each with its own N; differentiable through the collectives."""
    centred, mean, var, count = synchronised_statistics(x, group)
    scale, shift = reference.blended_affine(*affine)
    y = centred * reference.per_channel(scale * (var + eps).rsqrt(), x) + reference.per_channel(shift, x)
    return (y.relu() if relu else y).to(x.dtype), mean, var, count


class _BlendedBatchNorm(torch.autograd.Function):
    # forward(ctx, ...) rather than setup_context: that form costs 20 microseconds more per call.
    @staticmethod
    def forward(ctx, x, weight, bias, new_weight, new_bias, alpha, eps, relu):
        y, mean, var = _forward(x, weight, bias, new_weight, new_bias, alpha, eps, relu)
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, mean, var, weight, bias, new_weight, new_bias, alpha)
        ctx.eps, ctx.relu = eps, relu
        return y, mean, var

    @staticmethod
    def backward(ctx, grad: Tensor, _mean, _var):
        x, mean, var, *affine = ctx.saved_tensors
        alpha = affine[-1]
        if torch.is_grad_enabled():  # create_graph=True: statistics must depend on x again
            wide = x.to(mean.dtype)
            var, mean = torch.var_mean(wide, reference.other_dims(x), correction=0)
            grads = reference.blended_bn_backward(grad, x, mean, var, *affine, ctx.eps, ctx.relu)
        else:
            grads = _backward(grad, x, mean, var, *affine, ctx.eps, ctx.relu)
        dalpha = grads[-1]
        return (*grads[:-1], dalpha if dalpha.shape == alpha.shape else dalpha.sum(0, keepdim=True), None, None)


def _fake_forward(x, weight, bias, new_weight, new_bias, alpha, eps, relu):
    return _layout.empty_like(x), weight.new_empty(x.shape[1]), weight.new_empty(x.shape[1])


def _fake_backward(grad, x, mean, var, weight, bias, new_weight, new_bias, alpha, eps, relu):
    return (_layout.empty_like(x), *(weight.new_empty(x.shape[1]) for _ in range(5)))


_AFFINE = "Tensor weight, Tensor bias, Tensor new_weight, Tensor new_bias, Tensor alpha, float eps, bool relu"
_forward = _registry.define(
    f"blended_bn_fwd(Tensor x, {_AFFINE}) -> (Tensor y, Tensor mean, Tensor var)",
    op="blended_batch_norm",
    reference=_layout.conforming(reference.blended_bn_forward, 0),
    fake=_fake_forward,
)
_backward = _registry.define(
    f"blended_bn_bwd(Tensor grad, Tensor x, Tensor mean, Tensor var, {_AFFINE}) -> (Tensor dx, Tensor dweight,"
    " Tensor dbias, Tensor dnew_weight, Tensor dnew_bias, Tensor dalpha)",
    op="blended_batch_norm",
    reference=_layout.conforming(reference.blended_bn_backward, 1),
    fake=_fake_backward,
)
