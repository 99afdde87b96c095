"""Two modalities become one in Triton: what is absent is not loaded, and what is there is read once.

Idea: a program has a tile of rows and channels. Presence is a mask of the loads themselves: a lane whose modality is
absent issues no request, and a row that lacks it moves no bytes. Masks and weights come with a stride of 0 along what
they repeat, so one kernel serves rows, channels and elements.

Numerics: in float32, float64 for float64, as the reference computes; values are selected, never multiplied by 0.

Cost model: bytes of what is present, and of the output. At 32 x 196 x 768 float32 with 30 % absent on either side about
46 MB, 14 us on an H100. Not yet measured on a GPU.

Reference: avfast.reference.fusion.masked_fusion_forward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import counting
from ..contrastive.triton_tiles import TYPES, pointer, wide_type

ROWS, COLUMNS, WARPS = 8, 128, 4
SUM, GATED, FILM, CONCAT = range(4)  # avfast.reference.fusion


@triton.jit
def tile_of(rows, depth, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tiles = tl.cdiv(rows, ROWS)  # a grid of one dimension: the other two end at 65535
    r = counting(tl.program_id(0) % tiles, rows) * ROWS + tl.arange(0, ROWS)
    d = counting(tl.program_id(0) // tiles, depth) * COLUMNS + tl.arange(0, COLUMNS)
    return r.to(tl.int64)[:, None], d.to(tl.int64)[None, :]


@triton.jit
def presence(mask, at, within, GIVEN: tl.constexpr):
    if GIVEN:
        return (tl.load(mask + at, mask=within, other=0) != 0) & within
    return within


@triton.jit
def factor(weight, at, within, GIVEN: tl.constexpr, WIDE: tl.constexpr):
    if GIVEN:
        return tl.load(weight + at, mask=within, other=0.0).to(WIDE)
    return tl.where(within, 1.0, 0.0).to(WIDE)


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@triton.jit
def shares(own_a, own_v, on_a, on_v, GATED: tl.constexpr, RENORMALIZE: tl.constexpr):
    """What each modality is multiplied by where it is: its weight, or those of both where it is alone."""
    if RENORMALIZE:
        total = own_a + own_v
        if GATED:
            total = own_a * 0.0 + 1.0
        return tl.where(on_v, own_a, total), tl.where(on_a, own_v, total)
    return own_a, own_v


@triton.jit
def fusion_fwd_kernel(
    a, v, mask_a, mask_v, weight_a, weight_v, out,
    rows, depth, ma_r, ma_d, mv_r, mv_d, wa_r, wa_d, wv_r, wv_d,
    WIDE: tl.constexpr, MODE: tl.constexpr, MASK_A: tl.constexpr, MASK_V: tl.constexpr, WEIGHT_A: tl.constexpr,
    WEIGHT_V: tl.constexpr, RENORMALIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    r, d = tile_of(rows, depth, ROWS, COLUMNS)
    within = (r < rows) & (d < depth)
    on_a = presence(mask_a, r * ma_r + d * ma_d, within, MASK_A)
    on_v = presence(mask_v, r * mv_r + d * mv_d, within, MASK_V)
    x = tl.load(a + r * depth + d, mask=on_a, other=0.0).to(WIDE)
    if MODE == 2:  # film
        absent = 1.0 if RENORMALIZE else 0.0
        at = (r + r) * depth + d
        gamma = tl.where(on_v, tl.load(v + at, mask=on_v, other=0.0).to(WIDE), absent)
        result = gamma * x + tl.load(v + at + depth, mask=on_v, other=0.0).to(WIDE)
    else:
        y = tl.load(v + r * depth + d, mask=on_v, other=0.0).to(WIDE)
        own_a = factor(weight_a, r * wa_r + d * wa_d, within, WEIGHT_A, WIDE)
        if MODE == 1:  # gated
            own_a = sigmoid(own_a)
            own_v = 1.0 - own_a
        else:
            own_v = factor(weight_v, r * wv_r + d * wv_d, within, WEIGHT_V, WIDE)
        by_a, by_v = shares(own_a, own_v, on_a, on_v, MODE == 1, RENORMALIZE)
        result = by_a * x + by_v * y
    tl.store(out + r * depth + d, result.to(out.dtype.element_ty), mask=within)


@triton.jit
def half_fwd_kernel(
    x, mask, weight, out, rows, depth, out_depth, first, m_r, m_d, w_r, w_d,
    WIDE: tl.constexpr, MASK: tl.constexpr, WEIGHT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One half of a concatenation, into columns [first, first + depth) of the output."""
    r, d = tile_of(rows, depth, ROWS, COLUMNS)
    within = (r < rows) & (d < depth)
    on = presence(mask, r * m_r + d * m_d, within, MASK)
    value = tl.load(x + r * depth + d, mask=on, other=0.0).to(WIDE)
    if WEIGHT:
        value *= factor(weight, r * w_r + d * w_d, within, WEIGHT, WIDE)
    tl.store(out + r * out_depth + first + d, value.to(out.dtype.element_ty), mask=within)


class Spread:
    """A mask or weight ``[1 or R, 1 or D]`` as a pointer with strides that are 0 along what repeats."""

    def __init__(self, x: Tensor | None, stand_in: Tensor) -> None:
        self.given = x is not None
        dense = stand_in if x is None else x.contiguous()
        self.data = dense.view(torch.uint8) if self.given and x.dtype == torch.bool else dense
        self.rows = self.given and x.shape[0] != 1
        self.columns = self.given and x.shape[1] != 1
        self.strides = (x.shape[1] if self.rows else 0, int(self.columns)) if self.given else (0, 0)


def tiles(rows: int, depth: int) -> tuple[int]:
    return (triton.cdiv(rows, ROWS) * triton.cdiv(depth, COLUMNS),)


def masked_fusion_fwd_triton(
    a: Tensor, v: Tensor, mask_a: Tensor | None, mask_v: Tensor | None, weight_a: Tensor | None,
    weight_v: Tensor | None, mode: int, renormalize: bool,
) -> Tensor:  # fmt: skip
    """Rows a ``[R, D]`` and v ``[R, D]`` (``[R, 2 D]`` for film, ``[R, Dv]`` for concat) to ``[R, D]`` (concat:
    ``[R, D + Dv]``)."""
    a, v, wide = a.contiguous(), v.contiguous(), wide_type(a)
    rows, depth = a.shape
    m_a, m_v, w_a, w_v = (Spread(x, a) for x in (mask_a, mask_v, weight_a, weight_v))
    shared = {"WIDE": TYPES[wide], "ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": WARPS}
    total = depth + v.shape[1] if mode == CONCAT else depth
    out = torch.empty(rows, total, dtype=a.dtype, device=a.device)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(a):
        if mode == CONCAT:
            for x, m, w, first in ((a, m_a, w_a, 0), (v, m_v, w_v, depth)):
                if x.numel():
                    half_fwd_kernel[tiles(*x.shape)](
                        x, m.data, w.data, out, rows, x.shape[1], total, first, *m.strides, *w.strides,
                        MASK=m.given, WEIGHT=w.given, **shared,
                    )  # fmt: skip
        else:
            fusion_fwd_kernel[tiles(rows, depth)](
                a, v, m_a.data, m_v.data, w_a.data, w_v.data, out,
                rows, depth, *m_a.strides, *m_v.strides, *w_a.strides, *w_v.strides,
                MODE=mode, MASK_A=m_a.given, MASK_V=m_v.given, WEIGHT_A=w_a.given, WEIGHT_V=w_v.given,
                RENORMALIZE=renormalize, **shared,
            )  # fmt: skip
    return out


STRIDES = ("ma_r", "ma_d", "mv_r", "mv_d", "wa_r", "wa_d", "wv_r", "wv_d")


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: 6272 rows of 768, masks of rows, weights of channels."""
    half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    return [
        *(_case(dtype, SUM) for dtype in (half, brain, single, double)),
        _case(single, GATED),
        _case(single, FILM),
        _half(brain),
        _half(double),
    ]


def _case(dtype: torch.dtype, mode: int) -> dict:
    wide = wide_type(torch.empty(0, dtype=dtype))
    tensors = {name: pointer(dtype) for name in ("a", "v", "out")}
    return {
        "name": f"fusion_fwd_kernel[{TYPES[dtype]}, {('sum', 'gated', 'film')[mode]}]",
        "kernel": fusion_fwd_kernel,
        "pointers": tensors | {"mask_a": "*u8", "mask_v": "*u8", "weight_a": pointer(wide), "weight_v": pointer(wide)},
        "integers": {"rows": 6272, "depth": 768} | dict(zip(STRIDES, (1, 0, 1, 0, 0, 1, 0, 1), strict=True)),
        "constants": {
            "WIDE": TYPES[wide], "MODE": mode, "MASK_A": True, "MASK_V": True, "WEIGHT_A": mode != FILM,
            "WEIGHT_V": mode == SUM, "RENORMALIZE": True, "ROWS": ROWS, "COLUMNS": COLUMNS,
        },
        "options": {"num_warps": WARPS},
        "wide_loads": False,
    }  # fmt: skip


def _half(dtype: torch.dtype) -> dict:
    wide = wide_type(torch.empty(0, dtype=dtype))
    strides = {"m_r": 1, "m_d": 0, "w_r": 0, "w_d": 1}
    return {
        "name": f"half_fwd_kernel[{TYPES[dtype]}]",
        "kernel": half_fwd_kernel,
        "pointers": {"x": pointer(dtype), "mask": "*u8", "weight": pointer(wide), "out": pointer(dtype)},
        "integers": {"rows": 6272, "depth": 768, "out_depth": 1536, "first": 768} | strides,
        "constants": {"WIDE": TYPES[wide], "MASK": True, "WEIGHT": True, "ROWS": ROWS, "COLUMNS": COLUMNS},
        "options": {"num_warps": WARPS},
        "wide_loads": False,
    }  # fmt: skip
