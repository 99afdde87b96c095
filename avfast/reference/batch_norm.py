"""The batch-norm family in plain PyTorch. Symbols: gamma and beta are the scale and shift of a batch norm.

Sources: blended batch norm and the dead-channel criterion, Wang et al., "Revisiting Pre-training in Audio-Visual
Learning" (2023), section 3; the single-affine identities are derived in kernels/batch_norm/NOTES.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ABNORMAL, NON_FINITE, COLLAPSED = 1, 2, 4  # bits of the scan's flags


def accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """[C] or [1] -> a shape that broadcasts over x [N, C, *]."""
    return vector.reshape(1, -1, *[1] * (x.dim() - 2))


def other_dims(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


# ------------------------------------------------------------------------------------------------ bn_scan


def bn_scan(
    weight: list[Tensor],
    bias: list[Tensor],
    running_mean: list[Tensor],
    running_var: list[Tensor],
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flags uint8 [C], score [C], live probability [C], counts int32 [layers, 3]; C is the sum over layers.

    An empty tensor stands for one the layer does not have: gamma 1, beta 0, mean 0, variance 1.
    """
    sizes = [max(t.numel() for t in layer) for layer in zip(weight, bias, running_mean, running_var, strict=True)]
    if not sizes:
        return (
            torch.zeros(0, dtype=torch.uint8),
            torch.zeros(0),
            torch.zeros(0),
            torch.zeros(0, 3, dtype=torch.int32),
        )

    def packed(tensors: list[Tensor], default: float) -> Tensor:
        device = next((t.device for t in tensors if t.numel()), None)
        return torch.cat(
            [t.detach().float() if t.numel() else torch.full((n,), default, device=device)
             for t, n in zip(tensors, sizes, strict=True)]
        )  # fmt: skip

    gamma, beta = packed(weight, 1.0), packed(bias, 0.0)
    mean, var = packed(running_mean, 0.0), packed(running_var, 1.0)
    size = gamma.abs()
    score = torch.maximum(size, beta.abs())
    live = torch.special.ndtr(beta / size)
    live = torch.where(size == 0, (beta > 0).float(), live)
    abnormal = score <= threshold
    non_finite = ~(gamma.isfinite() & beta.isfinite() & mean.isfinite() & var.isfinite())
    collapsed = var <= threshold
    flags = abnormal * ABNORMAL + non_finite * NON_FINITE + collapsed * COLLAPSED
    # One row per layer: differences of the running total at the layers' ends.
    marks = torch.stack([abnormal, non_finite, collapsed], 1)
    total = torch.cat([marks.new_zeros(1, 3, dtype=torch.int64), marks.cumsum(0)])
    ends = torch.tensor([0, *sizes], device=total.device).cumsum(0)
    counts = total[ends].diff(dim=0).to(torch.int32)
    return flags.to(torch.uint8), score, live, counts


# ------------------------------------------------------------------------------------------ channel_stats


def channel_stats(x: Tensor, dead_threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and biased variance (float64 [C]), elements and samples that are zero (int64 [C])."""
    samples, channels, *positions = x.shape
    values = x.detach().transpose(0, 1).reshape(channels, samples, math.prod(positions))  # [C, N, S]
    wide = values.double()
    mean = wide.mean((1, 2))
    var = (wide - mean[:, None, None]).square().mean((1, 2))
    zero = values.to(accumulation_dtype(x)).abs() <= dead_threshold
    dead = zero.all(2) & (values.shape[2] > 0)  # a sample without positions is not dead
    return mean, var, zero.sum((1, 2)), dead.sum(1)


# --------------------------------------------------------------------------------- blended_bn, channel_affine


def blended_affine(
    weight: Tensor, bias: Tensor, new_weight: Tensor, new_bias: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor]:
    """The one affine that two batch norms over the same statistics amount to."""
    return alpha * weight + (1 - alpha) * new_weight, alpha * bias + (1 - alpha) * new_bias


def evaluation_affine(
    weight: Tensor,
    bias: Tensor,
    new_weight: Tensor,
    new_bias: Tensor,
    alpha: Tensor,
    mean: Tensor,
    var: Tensor,
    new_mean: Tensor,
    new_var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Scale and shift of both layers together, each from its own statistics; differentiable in the five parameters."""
    scale, new_scale = weight * (var + eps).rsqrt(), new_weight * (new_var + eps).rsqrt()
    shift, new_shift = bias - mean * scale, new_bias - new_mean * new_scale
    return blended_affine(scale, shift, new_scale, new_shift, alpha)


def blended_bn_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    new_weight: Tensor,
    new_bias: Tensor,
    alpha: Tensor,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y like x; batch mean and biased variance [C] in the accumulation type. Differentiable in every tensor."""
    wide = x.to(accumulation_dtype(x))
    var, mean = torch.var_mean(wide, other_dims(x), correction=0)
    scale, shift = blended_affine(weight, bias, new_weight, new_bias, alpha)
    scale = scale.to(wide.dtype) * (var + eps).rsqrt()
    y = (wide - per_channel(mean, x)) * per_channel(scale, x) + per_channel(shift.to(wide.dtype), x)
    return (y.relu() if relu else y).to(x.dtype), mean, var


def blended_bn_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    new_weight: Tensor,
    new_bias: Tensor,
    alpha: Tensor,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the five parameters; alpha's is per channel [C] even when alpha is one number."""
    wide, dy = x.to(accumulation_dtype(x)), grad.to(accumulation_dtype(x))
    rstd = (var + eps).rsqrt()
    scale, shift = blended_affine(weight, bias, new_weight, new_bias, alpha)
    xhat = (wide - per_channel(mean, x)) * per_channel(rstd, x)
    if relu:
        y = xhat * per_channel(scale.to(wide.dtype), x) + per_channel(shift.to(wide.dtype), x)
        dy = torch.where(y > 0, dy, 0)
    dims, n = other_dims(x), x.numel() // max(x.shape[1], 1)
    sum_dy, sum_dy_xhat = dy.sum(dims), (dy * xhat).sum(dims)
    dx = per_channel(scale * rstd, x) * (dy - per_channel(sum_dy / n, x) - xhat * per_channel(sum_dy_xhat / n, x))
    return (
        dx.to(x.dtype),
        alpha * sum_dy_xhat,
        alpha * sum_dy,
        (1 - alpha) * sum_dy_xhat,
        (1 - alpha) * sum_dy,
        (weight - new_weight) * sum_dy_xhat + (bias - new_bias) * sum_dy,
    )


def channel_affine_forward(x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    wide = x.to(accumulation_dtype(x))
    y = wide * per_channel(scale.to(wide.dtype), x) + per_channel(shift.to(wide.dtype), x)
    return (y.relu() if relu else y).to(x.dtype)


def channel_affine_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide, dy = x.to(accumulation_dtype(x)), grad.to(accumulation_dtype(x))
    if relu:
        y = wide * per_channel(scale.to(wide.dtype), x) + per_channel(shift.to(wide.dtype), x)
        dy = torch.where(y > 0, dy, 0)
    dims = other_dims(x)
    return (dy * per_channel(scale, x)).to(x.dtype), (dy * wide).sum(dims), dy.sum(dims)
