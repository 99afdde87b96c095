"""Boxes of rotated images, resized, in Triton: nothing between the image and the crop is stored.

Idea: as on the CPU a box is sampled upright, one point per source pixel, then resized along columns and rows. A resize
is a product with a matrix that is made on the spot: a program owns a tile of one channel of one crop, walks over tiles
of samples, reads the four neighbours of each, and multiplies from both sides. Samples beyond the reach of the tile's
filters are left out.

Numerics: points in float64; samples, weights and sums in float32 (all float64 for float64); every output is divided by
the sum of its weights and rounded once. Products are float32 proper.

Cost model: out x rows x columns + out^2 x rows multiply-adds, most with weights of zero: 1 million for a crop of 64
from 100 x 100 pixels, 5 billion for three channels of 256 images of 6 exemplars; four reads of cached pixels per
sample. Not yet measured on a GPU.

Reference: avfast.reference.exemplar_crop.exemplar_crop.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import product
from ..contrastive.triton_tiles import TYPES, pointer, wide_type

SAMPLES = 32  # along each side of a tile
OPTIONS = {"num_warps": 8, "num_stages": 1, "maxnreg": 255}
# What a crop is told, in float64: cosine and sine; first point, step and number of points along rows and columns.
PLAN = 8


@triton.jit
def filter_of(x, CUBIC: tl.constexpr):
    x = tl.abs(x)
    if CUBIC:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        y = tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    else:
        y = tl.maximum(1.0 - x, 0.0)
    return y


@triton.jit
def reach_of(i, samples, out, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Of outputs i: first sample, end, distance of the first from the centre, all divided by `wider`; and `wider`."""
    scale = samples / out
    wider = scale * 0.0 + 1.0
    if ANTIALIAS:
        wider = tl.maximum(scale, 1.0)
    support = wider * (2.0 if CUBIC else 1.0)
    centre = scale * (i.to(tl.float64) + 0.5)
    first = tl.maximum(centre - support + 0.5, 0.0).to(tl.int32)
    end = tl.minimum(centre + support + 0.5, samples).to(tl.int32)
    return first, end, (first.to(tl.float64) - centre + 0.5) / wider, 1.0 / wider


@triton.jit
def weights_of(j, first, end, begin, pace, CUBIC: tl.constexpr, WIDE: tl.constexpr):
    """What outputs take from samples j: [outputs, samples], not yet divided by their sum."""
    behind = (j[None, :] - first[:, None]).to(WIDE)
    taken = (j[None, :] >= first[:, None]) & (j[None, :] < end[:, None])
    return tl.where(taken, filter_of(begin.to(WIDE)[:, None] + behind * pace.to(WIDE), CUBIC), 0.0)


@triton.jit
def within(x, last):
    """The nearest place inside the image; NaN is its first pixel."""
    return tl.minimum(tl.maximum(tl.where(x == x, x, 0.0), 0.0), last)


@triton.jit
def exemplar_crop_kernel(
    images, plans, crops,
    E, C, H, W, out, tiles, i_b, i_c, i_h, i_w,
    WIDE: tl.constexpr, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, BYTES: tl.constexpr,
    PLAN: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % (tiles * tiles)
    rest = tl.program_id(0) // (tiles * tiles)
    c = (rest % C).to(tl.int64)
    crop = (rest // C).to(tl.int64)
    image = images + (crop // E) * i_b + c * i_c
    plan = plans + crop * PLAN
    cos, sin = tl.load(plan), tl.load(plan + 1)
    y_start, y_step, rows = tl.load(plan + 2), tl.load(plan + 3), tl.load(plan + 4)
    x_start, x_step, columns = tl.load(plan + 5), tl.load(plan + 6), tl.load(plan + 7)

    y_out = (tile // tiles) * BLOCK + tl.arange(0, BLOCK)
    x_out = (tile % tiles) * BLOCK + tl.arange(0, BLOCK)
    y_first, y_end, y_begin, y_pace = reach_of(y_out, rows, out, CUBIC, ANTIALIAS)
    x_first, x_end, x_begin, x_pace = reach_of(x_out, columns, out, CUBIC, ANTIALIAS)
    row_begin, row_end = tl.min(y_first, 0), tl.max(tl.where(y_out < out, y_end, 0), 0)
    column_begin, column_end = tl.min(x_first, 0), tl.max(tl.where(x_out < out, x_end, 0), 0)

    total = tl.zeros([BLOCK, BLOCK], WIDE)
    of_rows = tl.zeros([BLOCK], WIDE)
    of_columns = tl.zeros([BLOCK], WIDE)
    for column in range(column_begin, column_end, SAMPLES):
        j = column + tl.arange(0, SAMPLES)
        of_columns += tl.sum(weights_of(j, x_first, x_end, x_begin, x_pace, CUBIC, WIDE), 1)
    for row in range(row_begin, row_end, SAMPLES):
        r = row + tl.arange(0, SAMPLES)
        y = y_start + r.to(tl.float64) * y_step
        line = tl.zeros([SAMPLES, BLOCK], WIDE)
        for column in range(column_begin, column_end, SAMPLES):
            j = column + tl.arange(0, SAMPLES)
            x = x_start + j.to(tl.float64) * x_step
            exists = (r < row_end)[:, None] & (j < column_end)[None, :]
            at_y = within((sin * x)[None, :] + (cos * y)[:, None] + (H - 1) * 0.5, H - 1.0)
            at_x = within((cos * x)[None, :] - (sin * y)[:, None] + (W - 1) * 0.5, W - 1.0)
            y0, x0 = at_y.to(tl.int32), at_x.to(tl.int32)
            down, right = (at_y - y0.to(tl.float64)).to(WIDE), (at_x - x0.to(tl.float64)).to(WIDE)
            upper = image + y0.to(tl.int64) * i_h
            lower = image + tl.minimum(y0 + 1, H - 1).to(tl.int64) * i_h
            left, next = x0.to(tl.int64) * i_w, tl.minimum(x0 + 1, W - 1).to(tl.int64) * i_w
            above = tl.load(upper + left, mask=exists, other=0).to(WIDE)
            below = tl.load(lower + left, mask=exists, other=0).to(WIDE)
            above += right * (tl.load(upper + next, mask=exists, other=0).to(WIDE) - above)
            below += right * (tl.load(lower + next, mask=exists, other=0).to(WIDE) - below)
            along = weights_of(j, x_first, x_end, x_begin, x_pace, CUBIC, WIDE)
            line = product(above + down * (below - above), tl.trans(along), line, "ieee")
        across = weights_of(r, y_first, y_end, y_begin, y_pace, CUBIC, WIDE)
        of_rows += tl.sum(across, 1)
        total = product(across, line, total, "ieee")
    value = total / of_rows[:, None] / of_columns[None, :]
    if BYTES:
        value = tl.minimum(tl.maximum(value, 0.0), 255.0) + 0.5
    at = ((crop * C + c) * out + y_out)[:, None] * out + x_out[None, :]
    tl.store(crops + at, value.to(crops.dtype.element_ty), mask=(y_out < out)[:, None] & (x_out < out)[None, :])


def plans_of(boxes: Tensor, longest: int) -> Tensor:
    """Where the points of boxes [N, 5] lie, [N, PLAN]: as the reference has it, without a look from the host."""
    theta, top, left, bottom, right = boxes.double().unbind(1)
    turn = theta * (math.pi / 180)
    columns = [turn.cos(), turn.sin()]
    for start, end in ((top, bottom), (left, right)):
        count = (end - start).abs().round().nan_to_num(1.0, longest, 1.0).clamp(1, longest)
        step = (end - start) / count
        columns += [start + 0.5 * step, step, count]
    return torch.stack(columns, 1)


def block_of(out: int, wide: torch.dtype) -> int:
    return min(max(triton.next_power_of_2(out), 16), 32 if wide is torch.float64 else 64)


def exemplar_crop_triton(images: Tensor, boxes: Tensor, out: int, cubic: bool, antialias: bool) -> Tensor:
    """Boxes [B, E, 5] of images [B, C, H, W] as [B, E, C, out, out], of the images' dtype."""
    batch, channels, height, width = images.shape
    count = boxes.shape[1]
    crops = torch.empty(batch, count, channels, out, out, dtype=images.dtype, device=images.device)
    if crops.numel() == 0:
        return crops
    wide = wide_type(images)
    block = block_of(out, wide)
    tiles = triton.cdiv(out, block)
    plans = plans_of(boxes.reshape(-1, 5), 2 * max(height, width))
    with torch.cuda.device_of(images):
        exemplar_crop_kernel[(batch * count * channels * tiles * tiles,)](
            images, plans, crops, count, channels, height, width, out, tiles, *images.stride(),
            WIDE=TYPES[wide], CUBIC=cubic, ANTIALIAS=antialias, BYTES=images.dtype is torch.uint8,
            PLAN=PLAN, BLOCK=block, SAMPLES=SAMPLES // (wide.itemsize // 4), **OPTIONS,
        )  # fmt: skip
    return crops


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: crops of 64 from 256 images of 224 x 224."""
    cases = ((torch.uint8, True, True), (torch.uint8, False, False), (torch.bfloat16, True, True))
    return [_case(*case) for case in (*cases, (torch.float32, True, True), (torch.float64, True, True))]


def _case(dtype: torch.dtype, cubic: bool, antialias: bool) -> dict:
    wide = wide_type(torch.empty(0, dtype=dtype))
    kind = "*u8" if dtype is torch.uint8 else pointer(dtype)
    block = block_of(64, wide)
    return {
        "name": f"exemplar_crop_kernel[{kind[1:]}, {'bicubic' if cubic else 'bilinear'}]",
        "kernel": exemplar_crop_kernel,
        "pointers": {"images": kind, "plans": "*fp64", "crops": kind},
        "integers": {
            "E": 6, "C": 3, "H": 224, "W": 224, "out": 64, "tiles": 64 // block,
            "i_b": 150528, "i_c": 50176, "i_h": 224, "i_w": 1,
        },
        "constants": {
            "WIDE": TYPES[wide], "CUBIC": cubic, "ANTIALIAS": antialias, "BYTES": dtype is torch.uint8,
            "PLAN": PLAN, "BLOCK": block, "SAMPLES": SAMPLES // (wide.itemsize // 4),
        },
        "options": OPTIONS,
        "wide_loads": False,
    }  # fmt: skip
