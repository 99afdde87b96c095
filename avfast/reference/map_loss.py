"""Cross-entropy of maps that are first made larger, in plain PyTorch: upsampling, targets, loss and gradient.

Bilinear upsampling is separable: ``up(z) = rows z columns^T`` with one small matrix for each axis, and its gradient is
``rows^T g columns``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def interpolation(n: int, out: int, align_corners: bool, like: Tensor) -> Tensor:
    """Weights [out, n] of linear interpolation along one axis, as ``F.interpolate`` has them, like ``like``."""
    i = torch.arange(out, dtype=torch.float64, device=like.device)
    if align_corners:
        source = i * ((n - 1) / (out - 1) if out > 1 else 0.0)
    else:
        source = ((i + 0.5) * (n / out) - 0.5).clamp_min(0.0)
    first = source.floor().clamp_max(n - 1)
    second = (first + 1).clamp_max(n - 1)
    share = (source - first)[:, None]
    columns = torch.arange(n, dtype=torch.float64, device=like.device)
    weights = (columns == first[:, None]) * (1 - share) + (columns == second[:, None]) * share
    return weights.to(like.dtype)


def box_mask(boxes: Tensor, height: int, width: int, source_size: float, shrink: float = 0.0) -> Tensor:
    """Bool [M, height, width]: pixels whose centres lie in the boxes [M, 5] of a square image of ``source_size``.

    Computed in float64 whatever the boxes' dtype; a NaN puts every pixel outside.
    """
    theta, top, left, bottom, right = boxes.double()[:, :, None, None].unbind(1)  # [M, 1, 1] each
    turn = theta * (math.pi / 180)
    cos, sin = turn.cos(), turn.sin()
    y, x = (
        (torch.arange(n, dtype=torch.float64, device=boxes.device) + 0.5) * (source_size / n) - source_size / 2
        for n in (height, width)
    )
    x, y = x[None, None, :], y[None, :, None]
    across, down = cos * x + sin * y, cos * y - sin * x
    inside = (across >= left + shrink) & (across < right - shrink)
    return inside & (down >= top + shrink) & (down < bottom - shrink)


# --------------------------------------------------------------------------------------------- binary maps


def _difference(logits: Tensor) -> Tensor:
    """[M, h, w]: one channel as it is; of two, by how much the second is larger."""
    z = logits.to(wide_dtype(logits))
    return z[:, 0] if z.shape[1] == 1 else z[:, 1] - z[:, 0]


def _targets(boxes, mask, height, width, source_size, shrink) -> Tensor:
    return mask != 0 if mask is not None else box_mask(boxes, height, width, source_size, shrink)


def box_bce(
    logits: Tensor, boxes: Tensor | None, mask: Tensor | None, height: int, width: int, source_size: float,
    align_corners: bool, shrink: float,
) -> Tensor:  # fmt: skip
    """Sum over the pixels of each map [M], differentiable: softplus(z) - target z of the upsampled logit z."""
    z = _difference(logits)
    rows, columns = (
        interpolation(n, out, align_corners, z) for n, out in zip(z.shape[1:], (height, width), strict=True)
    )
    z = rows @ z @ columns.T
    target = _targets(boxes, mask, height, width, source_size, shrink)
    # softplus(z) - target z without the difference: softplus of the logit against the target.
    return -F.logsigmoid(torch.where(target, z, -z)).sum((1, 2))


def box_bce_forward(
    logits: Tensor, boxes: Tensor | None, mask: Tensor | None, height: int, width: int, source_size: float,
    align_corners: bool, shrink: float, need_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """That sum [M], and its gradient with respect to the difference of the logits [M, 1, h, w] (else [0])."""
    loss = box_bce(logits, boxes, mask, height, width, source_size, align_corners, shrink)
    if not need_grad:
        return loss, loss.new_empty(0)
    z = _difference(logits)
    rows, columns = (
        interpolation(n, out, align_corners, z) for n, out in zip(z.shape[1:], (height, width), strict=True)
    )
    target = _targets(boxes, mask, height, width, source_size, shrink)
    z = rows @ z @ columns.T
    slope = torch.where(target, -torch.sigmoid(-z), torch.sigmoid(z))
    return loss, (rows.T @ slope @ columns)[:, None].contiguous()


# ------------------------------------------------------------------------------------------- class per pixel


def _upsampled(logits: Tensor, target: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    z = logits.to(wide_dtype(logits))
    rows, columns = (
        interpolation(n, out, align_corners, z) for n, out in zip(z.shape[2:], target.shape[1:], strict=True)
    )
    return rows @ z @ columns.T, rows, columns


def _classes(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Classes [B, H, W] as int64, 0 where ignored, and where they count.

    Raises:
        ValueError: a class out of range, on the CPU (elsewhere the look-up itself fails).
    """
    target = target.long()
    counts = target != ignore_index
    if target.device.type == "cpu" and bool((counts & ((target < 0) | (target >= classes))).any()):
        raise ValueError(
            f"avfast.upsample_cross_entropy: target: expected classes 0 to {classes - 1} or {ignore_index}, got others"
        )
    return target.masked_fill(~counts, 0), counts


def _pixel_terms(logits, target, weight, ignore_index, label_smoothing):
    """Classes, the share of the target class and of every class in the loss of a pixel; 0 where ignored."""
    wide, classes = wide_dtype(logits), logits.shape[1]
    at, counts = _classes(target, classes, ignore_index)
    each = torch.ones(classes, dtype=wide, device=logits.device) if weight is None else weight.to(wide)
    of_target = torch.where(counts, each[at], 0.0)
    spread = counts.to(wide)[:, None] * (each * (label_smoothing / classes))[:, None, None]  # [B, C, H, W]
    return at, of_target, spread


def upsample_ce(
    logits: Tensor, target: Tensor, weight: Tensor | None, align_corners: bool, ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss and weight of each pixel [B, H, W], differentiable; both 0 where ignored."""
    z, _, _ = _upsampled(logits, target, align_corners)
    at, of_target, spread = _pixel_terms(logits, target, weight, ignore_index, label_smoothing)
    log_p = z.log_softmax(1)
    chosen = log_p.gather(1, at[:, None])[:, 0]
    loss = -(1 - label_smoothing) * of_target * chosen
    if label_smoothing:
        loss = loss - (spread * log_p).sum(1)
    return loss, of_target


def upsample_ce_backward(
    grad_pixels: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, align_corners: bool, ignore_index: int,
    label_smoothing: float,
) -> Tensor:  # fmt: skip
    """Gradient [B, C, h, w], wide, of the pixels' losses weighed by ``grad_pixels`` [B, H, W]."""
    z, rows, columns = _upsampled(logits, target, align_corners)
    at, of_target, spread = _pixel_terms(logits, target, weight, ignore_index, label_smoothing)
    share = spread.scatter_add(1, at[:, None], ((1 - label_smoothing) * of_target)[:, None])
    slope = (share.sum(1, keepdim=True) * z.softmax(1) - share) * grad_pixels[:, None]
    return (rows.T @ slope @ columns).contiguous()


def upsample_ce_forward(
    logits: Tensor, target: Tensor, weight: Tensor | None, align_corners: bool, ignore_index: int,
    label_smoothing: float, per_pixel: bool, need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss [B, H, W] or summed over pixels [B], sum of weights [B], gradient of the summed loss [B, C, h, w] or [0]."""
    loss, weights = upsample_ce(logits, target, weight, align_corners, ignore_index, label_smoothing)
    total = weights.sum((1, 2))
    loss = loss if per_pixel else loss.sum((1, 2))
    if not need_grad:
        return loss, total, total.new_empty(0)
    ones = torch.ones(target.shape, dtype=total.dtype, device=total.device)
    return loss, total, upsample_ce_backward(
        ones, logits, target, weight, align_corners, ignore_index, label_smoothing
    )  # fmt: skip
