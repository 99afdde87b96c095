"""Two modalities become one in Triton, backward: gradients of values and weights in one read.

Idea: a program has a few whole rows and walks over their channels. What a weight's gradient is summed over follows from
its shape: nothing, the channels of a row (in registers, to the end of the row), the rows (a partial sum per program and
channel), or both (one number per program). Partial sums are added afterwards in a fixed order, in float64.

Numerics: products in float32 (float64 for float64); row and scalar sums carried in float64.

Cost model: as forward, with one more stream in and one more out. Not yet measured on a GPU.

Reference: avfast.reference.fusion.masked_fusion_backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import counting
from ..contrastive.triton_tiles import TYPES, pointer, wide_type
from .masked_fusion_triton import (
    COLUMNS,
    CONCAT,
    FILM,
    GATED,
    ROWS,
    STRIDES,
    SUM,
    WARPS,
    Spread,
    factor,
    presence,
    shares,
    sigmoid,
)

NONE, FULL, BY_ROW, BY_COLUMN, SCALAR = range(5)
"""What a weight's gradient is summed over: (no weight), nothing, channels, rows, both."""


@triton.jit
def keep(to, x, r, d, within, depth, KIND: tl.constexpr):
    """What leaves a tile: elements, or sums over its rows."""
    if KIND == 1:
        tl.store(to + r * depth + d, x, mask=within)
    if KIND == 3:
        column = tl.program_id(0).to(tl.int64) * depth + d
        tl.store(to + column, tl.sum(x, 0)[None, :], mask=d < depth)


@triton.jit
def finish(to, sums, r, rows, KIND: tl.constexpr):
    if KIND == 2:
        tl.store(to + r, sums[:, None].to(to.dtype.element_ty), mask=r < rows)
    if KIND == 4:
        tl.store(to + tl.program_id(0), tl.sum(sums, 0))


@triton.jit
def fusion_bwd_kernel(
    grad, a, v, mask_a, mask_v, weight_a, weight_v, da, dv, dwa, dwv,
    rows, depth, ma_r, ma_d, mv_r, mv_d, wa_r, wa_d, wv_r, wv_d,
    WIDE: tl.constexpr, MODE: tl.constexpr, MASK_A: tl.constexpr, MASK_V: tl.constexpr, WEIGHT_A: tl.constexpr,
    WEIGHT_V: tl.constexpr, RENORMALIZE: tl.constexpr, KIND_A: tl.constexpr, KIND_V: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    r = (counting(tl.program_id(0), rows) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    sums_a = tl.zeros([ROWS], tl.float64)
    sums_v = tl.zeros([ROWS], tl.float64)
    for first in range(0, depth, COLUMNS):
        d = (first + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
        within = (r < rows) & (d < depth)
        on_a = presence(mask_a, r * ma_r + d * ma_d, within, MASK_A)
        on_v = presence(mask_v, r * mv_r + d * mv_d, within, MASK_V)
        g = tl.load(grad + r * depth + d, mask=on_a | on_v, other=0.0).to(WIDE)
        x = tl.load(a + r * depth + d, mask=on_a, other=0.0).to(WIDE)
        if MODE == 2:  # film
            absent = 1.0 if RENORMALIZE else 0.0
            at = (r + r) * depth + d
            gamma = tl.where(on_v, tl.load(v + at, mask=on_v, other=0.0).to(WIDE), absent)
            tl.store(da + r * depth + d, tl.where(on_a, gamma * g, 0.0).to(da.dtype.element_ty), mask=within)
            tl.store(dv + at, tl.where(on_v, g * x, 0.0).to(dv.dtype.element_ty), mask=within)
            tl.store(dv + at + depth, tl.where(on_v, g, 0.0).to(dv.dtype.element_ty), mask=within)
        else:
            y = tl.load(v + r * depth + d, mask=on_v, other=0.0).to(WIDE)
            own_a = factor(weight_a, r * wa_r + d * wa_d, within, WEIGHT_A, WIDE)
            if MODE == 1:  # gated
                own_a = sigmoid(own_a)
                own_v = 1.0 - own_a
            else:
                own_v = factor(weight_v, r * wv_r + d * wv_d, within, WEIGHT_V, WIDE)
            by_a, by_v = shares(own_a, own_v, on_a, on_v, MODE == 1, RENORMALIZE)
            tl.store(da + r * depth + d, tl.where(on_a, by_a * g, 0.0).to(da.dtype.element_ty), mask=within)
            tl.store(dv + r * depth + d, tl.where(on_v, by_v * g, 0.0).to(dv.dtype.element_ty), mask=within)
            ga, gv = g * x, g * y  # 0 where absent
            if MODE == 1:
                both = ga - gv
                if RENORMALIZE:
                    both = tl.where(on_a & on_v, both, 0.0)
                of_a, of_v = own_a * own_v * both, gv
            elif RENORMALIZE:
                of_a, of_v = tl.where(on_a, ga, gv), tl.where(on_v, gv, ga)
            else:
                of_a, of_v = ga, gv
            keep(dwa, of_a, r, d, within, depth, KIND_A)
            keep(dwv, of_v, r, d, within, depth, KIND_V)
            sums_a += tl.sum(of_a, 1).to(tl.float64)
            sums_v += tl.sum(of_v, 1).to(tl.float64)
    finish(dwa, sums_a, r, rows, KIND_A)
    finish(dwv, sums_v, r, rows, KIND_V)


@triton.jit
def half_bwd_kernel(
    grad, x, mask, weight, dx, dw, rows, depth, out_depth, start, m_r, m_d, w_r, w_d,
    WIDE: tl.constexpr, MASK: tl.constexpr, WEIGHT: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """One half of a concatenation, from columns [start, start + depth) of the gradient."""
    r = (counting(tl.program_id(0), rows) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    sums = tl.zeros([ROWS], tl.float64)
    for first in range(0, depth, COLUMNS):
        d = (first + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
        within = (r < rows) & (d < depth)
        on = presence(mask, r * m_r + d * m_d, within, MASK)
        g = tl.load(grad + r * out_depth + start + d, mask=on, other=0.0).to(WIDE)
        by = factor(weight, r * w_r + d * w_d, within, WEIGHT, WIDE)
        tl.store(dx + r * depth + d, tl.where(on, by * g, 0.0).to(dx.dtype.element_ty), mask=within)
        if KIND != 0:
            of_weight = g * tl.load(x + r * depth + d, mask=on, other=0.0).to(WIDE)
            keep(dw, of_weight, r, d, within, depth, KIND)
            sums += tl.sum(of_weight, 1).to(tl.float64)
    finish(dw, sums, r, rows, KIND)


class WeightGradient:
    """Where a program leaves its part of a weight's gradient, and the whole of it afterwards."""

    def __init__(self, weight: Spread, rows: int, depth: int, wide: torch.dtype) -> None:
        self.kind = NONE
        self.shape, self.wide, device = (0,), wide, weight.data.device
        if weight.given:
            self.kind = {(True, True): FULL, (True, False): BY_ROW, (False, True): BY_COLUMN}.get(
                (weight.rows, weight.columns), SCALAR
            )
            self.shape = tuple(weight.data.shape)
        programs = triton.cdiv(rows, ROWS)
        kept = {FULL: (rows, depth), BY_ROW: (rows, 1), BY_COLUMN: (programs, depth), SCALAR: (programs,), NONE: (0,)}
        dtype = torch.float64 if self.kind == SCALAR else wide
        self.to = torch.empty(kept[self.kind], dtype=dtype, device=device)

    def whole(self) -> Tensor:
        if self.kind in (BY_COLUMN, SCALAR):
            return self.to.double().sum(0).to(self.wide).reshape(self.shape)
        return self.to.reshape(self.shape)


def masked_fusion_bwd_triton(
    grad: Tensor, a: Tensor, v: Tensor, mask_a: Tensor | None, mask_v: Tensor | None, weight_a: Tensor | None,
    weight_v: Tensor | None, mode: int, renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of a, v and the weights (empty without one), of their shapes."""
    grad, a, v, wide = grad.contiguous(), a.contiguous(), v.contiguous(), wide_type(a)
    rows, depth = a.shape
    m_a, m_v, w_a, w_v = (Spread(x, a) for x in (mask_a, mask_v, weight_a, weight_v))
    da, dv = torch.empty_like(a), torch.empty_like(v)
    of_a, of_v = WeightGradient(w_a, rows, depth, wide), WeightGradient(w_v, rows, v.shape[1], wide)
    shared = {"WIDE": TYPES[wide], "ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": WARPS}
    grid = (triton.cdiv(rows, ROWS),)
    if rows == 0:
        return da, dv, *(torch.zeros(x.shape, dtype=wide, device=a.device) for x in (of_a, of_v))
    with torch.cuda.device_of(a):
        if mode == CONCAT:
            halves = ((a, m_a, w_a, da, of_a, 0), (v, m_v, w_v, dv, of_v, depth))
            for x, m, w, dx, of_weight, start in halves:
                half_bwd_kernel[grid](
                    grad, x, m.data, w.data, dx, of_weight.to, rows, x.shape[1], grad.shape[1], start, *m.strides,
                    *w.strides, MASK=m.given, WEIGHT=w.given, KIND=of_weight.kind, **shared,
                )  # fmt: skip
        else:
            fusion_bwd_kernel[grid](
                grad, a, v, m_a.data, m_v.data, w_a.data, w_v.data, da, dv, of_a.to, of_v.to,
                rows, depth, *m_a.strides, *m_v.strides, *w_a.strides, *w_v.strides,
                MODE=mode, MASK_A=m_a.given, MASK_V=m_v.given, WEIGHT_A=w_a.given, WEIGHT_V=w_v.given,
                RENORMALIZE=renormalize, KIND_A=of_a.kind, KIND_V=of_v.kind, **shared,
            )  # fmt: skip
    return da, dv, of_a.whole(), of_v.whole()


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: 6272 rows of 768, masks of rows, weights of channels, rows or one number."""
    half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    cases = [_case(dtype, SUM, BY_COLUMN) for dtype in (half, brain, single, double)]
    return [*cases, _case(single, SUM, SCALAR), _case(single, GATED, BY_ROW), _case(single, FILM, NONE),
            _half(brain), _half(double)]  # fmt: skip


def _case(dtype: torch.dtype, mode: int, kind: int) -> dict:
    wide = wide_type(torch.empty(0, dtype=dtype))
    tensors = {name: pointer(dtype) for name in ("grad", "a", "v", "da", "dv")}
    sums = pointer(torch.float64 if kind == SCALAR else wide)
    weights = {"weight_a": pointer(wide), "weight_v": pointer(wide), "dwa": sums, "dwv": sums}
    return {
        "name": f"fusion_bwd_kernel[{TYPES[dtype]}, {('sum', 'gated', 'film')[mode]}, {kind}]",
        "kernel": fusion_bwd_kernel,
        "pointers": tensors | {"mask_a": "*u8", "mask_v": "*u8"} | weights,
        "integers": {"rows": 6272, "depth": 768} | dict(zip(STRIDES, (1, 0, 1, 0, 0, 1, 0, 1), strict=True)),
        "constants": {
            "WIDE": TYPES[wide], "MODE": mode, "MASK_A": True, "MASK_V": True, "WEIGHT_A": mode != FILM,
            "WEIGHT_V": mode == SUM, "RENORMALIZE": True, "KIND_A": kind, "KIND_V": kind if mode == SUM else NONE,
            "ROWS": ROWS, "COLUMNS": COLUMNS,
        },
        "options": {"num_warps": WARPS},
        "wide_loads": False,
    }  # fmt: skip


def _half(dtype: torch.dtype) -> dict:
    wide = wide_type(torch.empty(0, dtype=dtype))
    strides = {"m_r": 1, "m_d": 0, "w_r": 0, "w_d": 1}
    weights = {"mask": "*u8", "weight": pointer(wide), "dw": pointer(wide)}
    return {
        "name": f"half_bwd_kernel[{TYPES[dtype]}]",
        "kernel": half_bwd_kernel,
        "pointers": {name: pointer(dtype) for name in ("grad", "x", "dx")} | weights,
        "integers": {"rows": 6272, "depth": 768, "out_depth": 1536, "start": 768} | strides,
        "constants": {
            "WIDE": TYPES[wide], "MASK": True, "WEIGHT": True, "KIND": BY_COLUMN, "ROWS": ROWS, "COLUMNS": COLUMNS,
        },
        "options": {"num_warps": WARPS},
        "wide_loads": False,
    }  # fmt: skip
