"""Upsampled logits against a class per pixel in Triton: loss and gradient in one pass, no large tensor stored.

Idea: as in box_bce_triton.py, a program owns a tile of a small map, walks over all pixels that interpolate from it
and gathers their slopes in registers; here a tile has a third side, its classes. Up to 256 classes (64 in float64) are
one tile, so the softmax of a pixel is made once. More are cut into chunks with a program each, which walks over all
chunks for the sum of exponentials and keeps the slopes of its own.

Numerics: positions in float64; logits, softmax and slopes in float32 (float64 for float64), losses of tiles added up
in float64. A class out of range makes its pixel NaN.

Cost model: one exponential and about 15 instructions per pixel and class; targets are read once, and once more where
tiles meet. At 16 x 150 classes, 128 x 128 as 512 x 512: 629 M exponentials. Not yet measured on a GPU.

Reference: avfast.reference.map_loss.upsample_ce_forward, upsample_ce_backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import load_wide, product
from ..contrastive.triton_tiles import TYPES, pointer, wide_type
from .triton_axis import axis_steps, begin_of, block_rows, column_weights, cut, first_of, source_of

# Classes that a tile takes whole, classes of a chunk of more, and logits of a step.
LIMITS = {torch.float32: (256, 128, 2048), torch.float64: (64, 32, 512)}


@triton.jit
def line_of_classes(line, c, C, z_c, from_left, from_right, share, within, WIDE: tl.constexpr):
    """One input row of classes c, interpolated along the columns: [classes, U]."""
    mask = (c < C)[:, None] & within[None, :]
    rows = line + c.to(tl.int64)[:, None] * z_c
    left = load_wide(rows + from_left[None, :], mask, WIDE)
    return left + share[None, :] * (load_wide(rows + from_right[None, :], mask, WIDE) - left)


@triton.jit
def weights_of(weight, c, C, WEIGHTED: tl.constexpr, WIDE: tl.constexpr):
    if WEIGHTED:
        return tl.load(weight + c, mask=c < C, other=0.0)
    else:
        return tl.where(c < C, 1.0, 0.0).to(WIDE)


@triton.jit
def upsample_ce_kernel(
    logits, target, weight, grad_pixels, losses, totals, loss_pixels, grad,
    C, h, w, H, W, z_b, z_c, z_h, z_w, t_b, t_h, t_w, g_b, g_h, g_w, ignore_index,
    rows_per_tile, tiles_y, tiles_x, chunks,
    row_step: tl.float64, row_pace: tl.float64, column_step: tl.float64, column_pace: tl.float64,
    smoothing: tl.float64,
    WIDE: tl.constexpr, ALIGN: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, WEIGHED: tl.constexpr,
    PER_PIXEL: tl.constexpr, GRADIENT: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0) % chunks
    tile = tl.program_id(0) // chunks
    b = (tile // (tiles_y * tiles_x)).to(tl.int64)
    tile = tile % (tiles_y * tiles_x)
    y_own = (tile // tiles_x) * rows_per_tile
    x_own = (tile % tiles_x) * BLOCK_X
    y_end = tl.minimum(y_own + rows_per_tile, h)
    x = x_own + tl.arange(0, BLOCK_X)
    halo = 1 if GRADIENT else 0
    y_begin = tl.maximum(y_own - halo, 0)
    u_begin = begin_of(x_own - halo, column_step, column_pace, w, W, ALIGN)
    u_end = begin_of(x_own + BLOCK_X, column_step, column_pace, w, W, ALIGN)
    v_begin = begin_of(y_begin, row_step, row_pace, h, H, ALIGN)

    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    own = tl.full([], 1.0 - smoothing, WIDE)
    spread = tl.full([], smoothing / C, WIDE)  # of a class, times its weight
    together = tl.zeros([], WIDE)  # what all classes share of the smoothing
    if SMOOTH:
        for k in range(chunks):
            every = k * BLOCK_C + tl.arange(0, BLOCK_C)
            together += spread * tl.sum(weights_of(weight, every, C, WEIGHTED, WIDE), 0)
        spreads = spread * weights_of(weight, c, C, WEIGHTED, WIDE)

    loss = tl.zeros([], tl.float64)
    total_weight = tl.zeros([], tl.float64)
    below = tl.zeros([BLOCK_C, BLOCK_X], WIDE)  # what the next input row has so far
    for row in range(y_end - y_begin):
        y = y_begin + row
        v_end = begin_of(y + 1, row_step, row_pace, h, H, ALIGN)
        here, below = below, tl.zeros([BLOCK_C, BLOCK_X], WIDE)
        upper_line = logits + b * z_b + y.to(tl.int64) * z_h
        lower_line = logits + b * z_b + tl.minimum(y + 1, h - 1).to(tl.int64) * z_h
        for u_first in range(u_begin, u_end, BLOCK_U):
            u = u_first + tl.arange(0, BLOCK_U)
            within = u < u_end
            at = source_of(u, column_step, ALIGN)
            first = first_of(at, w)
            share_u = (at - first.to(tl.float64)).to(WIDE)
            from_left = first.to(tl.int64) * z_w
            from_right = tl.minimum(first + 1, w - 1).to(tl.int64) * z_w
            upper = line_of_classes(upper_line, c, C, z_c, from_left, from_right, share_u, within, WIDE)
            slope = line_of_classes(lower_line, c, C, z_c, from_left, from_right, share_u, within, WIDE) - upper
            counted = within & (first >= x_own) & (y >= y_own) & (chunk == 0)

            all_slopes = tl.zeros([BLOCK_C, BLOCK_U], WIDE)
            low_slopes = tl.zeros([BLOCK_C, BLOCK_U], WIDE)
            for v_first in range(v_begin, v_end, BLOCK_V):
                v = v_first + tl.arange(0, BLOCK_V)
                share = (source_of(v, row_step, ALIGN) - y.to(tl.float64)).to(WIDE)
                exists = (v < v_end)[:, None] & within[None, :]
                v_at, u_at = v.to(tl.int64)[:, None], u.to(tl.int64)[None, :]
                of_pixel = tl.load(target + b * t_b + v_at * t_h + u_at * t_w, mask=exists, other=0).to(tl.int64)
                counts = exists & (of_pixel != ignore_index)
                valid = (of_pixel >= 0) & (of_pixel < C)
                code = tl.where(valid, of_pixel, 0).to(tl.int32)
                mine = tl.where(counts, 1.0, 0.0).to(WIDE)
                if WEIGHTED:
                    mine = tl.load(weight + code, mask=counts, other=0.0)

                z = upper[:, None, :] + share[None, :, None] * slope[:, None, :]
                z = tl.where((c < C)[:, None, None], z, float("-inf"))
                smooth = tl.zeros([BLOCK_V, BLOCK_U], WIDE)
                if WHOLE:
                    top = tl.max(z, 0)
                    e = tl.exp(z - top[None, :, :])
                    total = tl.sum(e, 0)
                    chosen = tl.sum(tl.where(c[:, None, None] == code[None, :, :], z, 0.0), 0)
                    if SMOOTH:
                        low = spreads[:, None, None] * (z - top[None, :, :])
                        smooth = tl.sum(tl.where((c < C)[:, None, None], low, 0.0), 0)
                else:
                    top = tl.full([BLOCK_V, BLOCK_U], float("-inf"), WIDE)
                    total = tl.zeros([BLOCK_V, BLOCK_U], WIDE)
                    chosen = tl.zeros([BLOCK_V, BLOCK_U], WIDE)
                    so_far = tl.zeros([], WIDE)  # of the smoothing
                    for k in range(chunks):
                        each = k * BLOCK_C + tl.arange(0, BLOCK_C)
                        part = line_of_classes(upper_line, each, C, z_c, from_left, from_right, share_u, within, WIDE)
                        step = line_of_classes(lower_line, each, C, z_c, from_left, from_right, share_u, within, WIDE)
                        part = part[:, None, :] + share[None, :, None] * (step - part)[:, None, :]
                        part = tl.where((each < C)[:, None, None], part, float("-inf"))
                        higher = tl.maximum(top, tl.max(part, 0))
                        total = total * tl.exp(top - higher) + tl.sum(tl.exp(part - higher[None, :, :]), 0)
                        chosen += tl.sum(tl.where(each[:, None, None] == code[None, :, :], part, 0.0), 0)
                        if SMOOTH:
                            shares = spread * weights_of(weight, each, C, WEIGHTED, WIDE)
                            low = shares[:, None, None] * (part - higher[None, :, :])
                            smooth += tl.where(so_far > 0, so_far * (top - higher), 0.0)
                            smooth += tl.sum(tl.where((each < C)[:, None, None], low, 0.0), 0)
                            so_far += tl.sum(shares, 0)
                        top = higher
                    e = tl.exp(z - top[None, :, :])

                log_total = tl.log(total)
                cost = own * mine * (top - chosen + log_total)
                if SMOOTH:
                    cost += together * log_total - smooth
                cost = tl.where(valid, cost, float("nan"))
                cost = tl.where(counts, cost, 0.0)
                inside = exists & counted[None, :]
                loss += tl.sum(tl.sum(tl.where(inside, cost, 0.0), 0), 0).to(tl.float64)
                total_weight += tl.sum(tl.sum(tl.where(inside, mine, 0.0), 0), 0).to(tl.float64)
                if PER_PIXEL:
                    tl.store(loss_pixels + (b * H + v_at) * W + u_at, cost, mask=inside)
                if GRADIENT:
                    live = tl.where(counts, 1.0, 0.0).to(WIDE)
                    if WEIGHED:
                        pixels = grad_pixels + b * g_b + v_at * g_h + u_at * g_w
                        live = tl.load(pixels, mask=counts, other=0.0).to(WIDE)
                    live = tl.where(valid, live, float("nan"))
                    live = tl.where(counts, live, 0.0)
                    chosen_share = live * own * mine
                    g = e * ((chosen_share + live * together) / total)[None, :, :]
                    g -= tl.where(c[:, None, None] == code[None, :, :], chosen_share[None, :, :], 0.0)
                    if SMOOTH:
                        g -= spreads[:, None, None] * live[None, :, :]
                    g = tl.where(counts[None, :, :], g, 0.0)
                    all_slopes += tl.sum(g, 1)
                    low_slopes += tl.sum(share[None, :, None] * g, 1)
            if GRADIENT:
                weights = column_weights(first, share_u, x, w, WIDE)
                if BLOCK_C >= 16:
                    low = product(low_slopes, weights, tl.zeros([BLOCK_C, BLOCK_X], WIDE), "ieee")
                    here = product(all_slopes, weights, here, "ieee")
                else:
                    low = tl.sum(low_slopes[:, :, None] * weights[None, :, :], 1)
                    here += tl.sum(all_slopes[:, :, None] * weights[None, :, :], 1)
                here -= tl.where(y + 1 < h, low, 0.0)
                below += low
        if GRADIENT:
            at_grad = (b * C + c.to(tl.int64)) * h + y
            there = (c < C)[:, None] & ((x < w) & (y >= y_own))[None, :]
            tl.store(grad + at_grad[:, None] * w + x[None, :], here, mask=there)
        v_begin = v_end
    if chunk == 0:
        tl.store(losses + tl.program_id(0) // chunks, loss)
        tl.store(totals + tl.program_id(0) // chunks, total_weight)


class Blocks(NamedTuple):
    classes: int
    rows: int
    columns: int
    whole: bool
    warps: int


def blocks(classes: int, h: int, height: int, align_corners: bool, wide: torch.dtype) -> Blocks:
    most, chunk, size = LIMITS[wide]
    whole = classes <= most
    block = max(triton.next_power_of_2(classes), 2) if whole else chunk
    columns = 32 if block <= 16 and wide is torch.float32 else 16
    rows = block_rows(h, height, align_corners, max(min(size // (block * columns), 8), 1))
    return Blocks(block, rows, columns, whole, 8 if block >= 128 else 4)


def options(warps: int) -> dict:
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": 255}


def _launch(
    logits: Tensor, target: Tensor, weight: Tensor | None, grad_pixels: Tensor | None, align_corners: bool,
    ignore_index: int, label_smoothing: float, per_pixel: bool, need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    b, classes, h, w = logits.shape
    height, width = target.shape[1:]
    wide, device = wide_type(logits), logits.device
    grad = torch.empty(logits.shape if need_grad else (0,), dtype=wide, device=device)
    pixels = torch.empty(target.shape if per_pixel else (0,), dtype=wide, device=device)
    if b == 0:
        empty = torch.empty(0, dtype=wide, device=device)
        return (pixels if per_pixel else empty), empty.clone(), grad
    block = blocks(classes, h, height, align_corners, wide)
    chunks = triton.cdiv(classes, block.classes)
    how = cut(b * chunks, h, w, width, block.warps)
    losses, totals = torch.empty(2, b, how.tiles_y * how.tiles_x, dtype=torch.float64, device=device)
    with torch.cuda.device_of(logits):
        upsample_ce_kernel[(losses.numel() * chunks,)](
            logits, target, logits if weight is None else weight.to(wide).contiguous(),
            logits if grad_pixels is None else grad_pixels, losses, totals, pixels, grad,
            classes, h, w, height, width, *logits.stride(), *target.stride(),
            *((0, 0, 0) if grad_pixels is None else grad_pixels.stride()), ignore_index,
            how.rows, how.tiles_y, how.tiles_x, chunks,
            *axis_steps(h, height, align_corners), *axis_steps(w, width, align_corners), label_smoothing,
            WIDE=TYPES[wide], ALIGN=align_corners, WEIGHTED=weight is not None, SMOOTH=label_smoothing > 0,
            WEIGHED=grad_pixels is not None, PER_PIXEL=per_pixel, GRADIENT=need_grad, WHOLE=block.whole,
            BLOCK_C=block.classes, BLOCK_V=block.rows, BLOCK_U=block.columns, BLOCK_X=how.columns,
            **options(block.warps),
        )  # fmt: skip
    return pixels if per_pixel else losses.sum(1).to(wide), totals.sum(1).to(wide), grad


def upsample_ce_fwd_triton(
    logits: Tensor, target: Tensor, weight: Tensor | None, align_corners: bool, ignore_index: int,
    label_smoothing: float, per_pixel: bool, need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss [B, H, W] or summed over pixels [B], sum of weights [B], gradient of the summed loss [B, C, h, w] or [0]."""
    return _launch(logits, target, weight, None, align_corners, ignore_index, label_smoothing, per_pixel, need_grad)


def upsample_ce_bwd_triton(
    grad_pixels: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, align_corners: bool, ignore_index: int,
    label_smoothing: float,
) -> Tensor:  # fmt: skip
    """Gradient [B, C, h, w], wide, of the pixels' losses weighed by ``grad_pixels`` [B, H, W]."""
    return _launch(logits, target, weight, grad_pixels, align_corners, ignore_index, label_smoothing, False, True)[2]


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: 16 images of 128 x 128 as 512 x 512."""
    half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    cases = ((brain, 2), (brain, 21), (brain, 150), (half, 21), (single, 150), (single, 1000), (double, 150))
    plain = [_case(*case, weighted=False) for case in cases]
    return [*plain, _case(brain, 21, weighted=True), _case(double, 21, weighted=True)]


def _case(dtype: torch.dtype, classes: int, weighted: bool) -> dict:
    wide = wide_type(torch.empty(0, dtype=dtype))
    block = blocks(classes, 128, 512, False, wide)
    chunks = triton.cdiv(classes, block.classes)
    how = cut(16 * chunks, 128, 128, 512, block.warps)
    wides = {x: pointer(wide) for x in ("weight", "grad_pixels", "loss_pixels", "grad")}
    sizes = {"C": classes, "h": 128, "w": 128, "H": 512, "W": 512, "ignore_index": -100}
    strides = {"z_b": 16384 * classes, "z_c": 16384, "z_h": 128, "z_w": 1, "t_b": 262144, "t_h": 512, "t_w": 1}
    strides |= {"g_b": 262144, "g_h": 512, "g_w": 1}
    tiles = {"rows_per_tile": how.rows, "tiles_y": how.tiles_y, "tiles_x": how.tiles_x, "chunks": chunks}
    return {
        "name": f"upsample_ce_kernel[{TYPES[dtype]}, {classes} classes{', everything' if weighted else ''}]",
        "kernel": upsample_ce_kernel,
        "pointers": {"logits": pointer(dtype), "target": "*i64", "losses": "*fp64", "totals": "*fp64"} | wides,
        "integers": sizes | strides | tiles,
        "doubles": ("row_step", "row_pace", "column_step", "column_pace", "smoothing"),
        "constants": {
            "WIDE": TYPES[wide], "ALIGN": False, "WEIGHTED": weighted, "SMOOTH": weighted, "WEIGHED": weighted,
            "PER_PIXEL": weighted, "GRADIENT": True, "WHOLE": block.whole,
            "BLOCK_C": block.classes, "BLOCK_V": block.rows, "BLOCK_U": block.columns, "BLOCK_X": how.columns,
        },
        "options": options(block.warps),
        "wide_loads": False,
    }  # fmt: skip
