"""Upsampled maps against rotated boxes in Triton: loss and gradient in one pass, nothing of the large size stored.

Idea: a program owns a tile of a small map and walks over all pixels that interpolate from it. Output rows between the
same two input rows are a run: along it a pixel of a column is upper + share (lower - upper), and its slope g is
gathered as two sums, of g and of share g, in registers. At the end of the run they return along the columns by a
product with the interpolation's weights. What lies between two tiles is computed by both and counted by the first
owner of its upper left input, so there are no atomics and no second pass.

Numerics: positions and boxes in float64, as the reference computes them, without fused multiply-add, so that a pixel
is inside exactly where it is inside in rotated_box_mask. Logits, losses of a run and slopes in float32 (float64 for
float64); runs and tiles are added up in float64.

Cost model: about 50 instructions per pixel, one exponential and two divisions among them; no bytes but those of the
small maps. At 1536 maps of 160 x 160 about 70 us on an H100. Not yet measured on a GPU.

Reference: avfast.reference.map_loss.box_bce_forward.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import log1p_of_fraction
from ..contrastive.triton_tiles import TYPES, pointer, wide_type
from .triton_axis import axis_steps, begin_of, block_rows, column_weights, cut, first_of, source_of

BLOCK_U = 32
WARPS = 1


@triton.jit
def load_logit(base, at, channel, mask, CHANNELS: tl.constexpr, WIDE: tl.constexpr):
    z = tl.load(base + at, mask=mask, other=0.0).to(WIDE)
    if CHANNELS == 2:
        z = tl.load(base + at + channel, mask=mask, other=0.0).to(WIDE) - z
    return z


@triton.jit
def box_bce_kernel(
    logits, boxes, cos, sin, mask, losses, grad,
    h, w, H, W, z_m, z_c, z_h, z_w, rows_per_tile, tiles_y, tiles_x,
    row_step: tl.float64, row_pace: tl.float64, column_step: tl.float64, column_pace: tl.float64,
    pixel_h: tl.float64, pixel_w: tl.float64, half: tl.float64, shrink: tl.float64,
    WIDE: tl.constexpr, CHANNELS: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr, GRADIENT: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    tiles = tiles_y * tiles_x
    m = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    y_own = (tile // tiles_x) * rows_per_tile
    x_own = (tile % tiles_x) * BLOCK_X
    y_end = tl.minimum(y_own + rows_per_tile, h)
    x = x_own + tl.arange(0, BLOCK_X)
    halo = 1 if GRADIENT else 0
    y_begin = tl.maximum(y_own - halo, 0)
    u_begin = begin_of(x_own - halo, column_step, column_pace, w, W, ALIGN)
    u_end = begin_of(x_own + BLOCK_X, column_step, column_pace, w, W, ALIGN)
    v_begin = begin_of(y_begin, row_step, row_pace, h, H, ALIGN)
    map_at = logits + m * z_m
    if not MASKED:
        c, s = tl.load(cos + m), tl.load(sin + m)
        top = tl.load(boxes + m * 5 + 1).to(tl.float64) + shrink
        left = tl.load(boxes + m * 5 + 2).to(tl.float64) + shrink
        bottom = tl.load(boxes + m * 5 + 3).to(tl.float64) - shrink
        right = tl.load(boxes + m * 5 + 4).to(tl.float64) - shrink

    loss = tl.zeros([], tl.float64)
    below = tl.zeros([BLOCK_X], WIDE)  # what the next input row has so far
    for row in range(y_end - y_begin):
        y = y_begin + row
        v_end = begin_of(y + 1, row_step, row_pace, h, H, ALIGN)
        here, below = below, tl.zeros([BLOCK_X], WIDE)
        upper_at = map_at + y.to(tl.int64) * z_h
        lower_at = map_at + tl.minimum(y + 1, h - 1).to(tl.int64) * z_h
        for u_first in range(u_begin, u_end, BLOCK_U):
            u = u_first + tl.arange(0, BLOCK_U)
            within = u < u_end
            at = source_of(u, column_step, ALIGN)
            first = first_of(at, w)
            share_u = (at - first.to(tl.float64)).to(WIDE)
            from_left = first.to(tl.int64) * z_w
            from_right = tl.minimum(first + 1, w - 1).to(tl.int64) * z_w
            upper = load_logit(upper_at, from_left, z_c, within, CHANNELS, WIDE)
            lower = load_logit(lower_at, from_left, z_c, within, CHANNELS, WIDE)
            upper += share_u * (load_logit(upper_at, from_right, z_c, within, CHANNELS, WIDE) - upper)
            lower += share_u * (load_logit(lower_at, from_right, z_c, within, CHANNELS, WIDE) - lower)
            slope = lower - upper
            counted = within & (first >= x_own) & (y >= y_own)
            if not MASKED:
                centre_x = (u.to(tl.float64) + 0.5) * pixel_w - half
                across_x, down_x = c * centre_x, s * centre_x

            costs = tl.zeros([BLOCK_V, BLOCK_U], WIDE)
            all_slopes = tl.zeros([BLOCK_V, BLOCK_U], WIDE)
            low_slopes = tl.zeros([BLOCK_V, BLOCK_U], WIDE)
            for v_first in range(v_begin, v_end, BLOCK_V):
                v = v_first + tl.arange(0, BLOCK_V)
                share = (source_of(v, row_step, ALIGN) - y.to(tl.float64)).to(WIDE)[:, None]
                exists = (v < v_end)[:, None] & within[None, :]
                if MASKED:
                    pixels = mask + (m * H + v)[:, None] * W + u[None, :]
                    inside = tl.load(pixels, mask=exists, other=0) != 0
                else:
                    centre_y = (v.to(tl.float64) + 0.5) * pixel_h - half
                    across = across_x[None, :] + (s * centre_y)[:, None]
                    down = (c * centre_y)[:, None] - down_x[None, :]
                    inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
                z = tl.fma(share + tl.zeros([BLOCK_V, BLOCK_U], WIDE), slope[None, :], upper[None, :])
                turned = tl.where(inside, -z, z)  # the target is 0
                e = tl.exp(-tl.abs(turned))
                cost = tl.maximum(turned, 0.0) + log1p_of_fraction(e, WIDE)
                costs += tl.where(exists & counted[None, :], cost, 0.0)
                if GRADIENT:
                    inverse = 1.0 / (1.0 + e)
                    wrong = tl.where(turned < 0, e * inverse, inverse)
                    g = tl.where(exists, tl.where(inside, -wrong, wrong), 0.0)
                    all_slopes += g
                    low_slopes += share * g
            loss += tl.sum(tl.sum(costs, 0), 0).to(tl.float64)
            if GRADIENT:
                weights = column_weights(first, share_u, x, w, WIDE)
                to_all = tl.sum(tl.sum(all_slopes, 0)[:, None] * weights, 0)
                to_low = tl.sum(tl.sum(low_slopes, 0)[:, None] * weights, 0)
                here += tl.where(y + 1 < h, to_all - to_low, to_all)
                below += to_low
        if GRADIENT:
            tl.store(grad + (m * h + y) * w + x, here, mask=(x < w) & (y >= y_own))
        v_begin = v_end
    tl.store(losses + tl.program_id(0), loss)


def options(wide: torch.dtype, masked: bool) -> dict:
    # Told less, ptxas spills what it carries past the loop over pixels.
    registers = 255 if wide is torch.float64 else 128 if masked else 176
    return {"num_warps": WARPS, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": registers}


def box_bce_fwd_triton(
    logits: Tensor, boxes: Tensor | None, mask: Tensor | None, height: int, width: int, source_size: float,
    align_corners: bool, shrink: float, need_grad: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sum of the losses of each map [M], and its gradient for the (difference of the) logits [M, 1, h, w], or [0]."""
    maps, channels, h, w = logits.shape
    wide = wide_type(logits)
    grad = torch.empty((maps, 1, h, w) if need_grad else (0,), dtype=wide, device=logits.device)
    if maps == 0:
        return torch.empty(0, dtype=wide, device=logits.device), grad
    cos = sin = target = logits
    if mask is None:
        boxes = boxes.contiguous()
        turn = boxes[:, 0].double() * (math.pi / 180)
        cos, sin = turn.cos(), turn.sin()
    else:
        boxes, target = logits, mask.contiguous()
    how = cut(maps, h, w, width, WARPS)
    losses = torch.empty(maps, how.tiles_y * how.tiles_x, dtype=torch.float64, device=logits.device)
    with torch.cuda.device_of(logits):
        box_bce_kernel[(losses.numel(),)](
            logits, boxes, cos, sin, target, losses, grad,
            h, w, height, width, *logits.stride(), how.rows, how.tiles_y, how.tiles_x,
            *axis_steps(h, height, align_corners), *axis_steps(w, width, align_corners),
            source_size / height, source_size / width, source_size / 2, shrink,
            WIDE=TYPES[wide], CHANNELS=channels, ALIGN=align_corners, MASKED=mask is not None, GRADIENT=need_grad,
            BLOCK_V=block_rows(h, height, align_corners, 8), BLOCK_U=BLOCK_U, BLOCK_X=how.columns,
            **options(wide, mask is not None),
        )  # fmt: skip
    return losses.sum(1).to(wide), grad


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: 1536 maps of 10 x 10 as 160 x 160."""
    half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    cases = ((brain, 2, False), (half, 1, False), (single, 1, False), (double, 2, False), (single, 2, True))
    return [_case(*case) for case in cases]


def _case(dtype: torch.dtype, channels: int, masked: bool) -> dict:
    wide = wide_type(torch.empty(0, dtype=dtype))
    how = cut(1536, 10, 10, 160, WARPS)
    pointers = {"logits": pointer(dtype), "boxes": "*fp32", "cos": "*fp64", "sin": "*fp64", "mask": "*u8"}
    sizes = {"h": 10, "w": 10, "H": 160, "W": 160, "z_m": 100 * channels, "z_c": 100, "z_h": 10, "z_w": 1}
    return {
        "name": f"box_bce_kernel[{TYPES[dtype]}{', mask' if masked else ''}]",
        "kernel": box_bce_kernel,
        "pointers": pointers | {"losses": "*fp64", "grad": pointer(wide)},
        "integers": sizes | {"rows_per_tile": how.rows, "tiles_y": how.tiles_y, "tiles_x": how.tiles_x},
        "doubles": ("row_step", "row_pace", "column_step", "column_pace", "pixel_h", "pixel_w", "half", "shrink"),
        "constants": {
            "WIDE": TYPES[wide], "CHANNELS": channels, "ALIGN": True, "MASKED": masked, "GRADIENT": True,
            "BLOCK_V": block_rows(10, 160, True, 8), "BLOCK_U": BLOCK_U, "BLOCK_X": how.columns,
        },
        "options": options(wide, masked),
        "wide_loads": False,
    }  # fmt: skip
