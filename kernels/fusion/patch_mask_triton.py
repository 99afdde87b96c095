"""Random patches of pictures set to a value in Triton, with the normalisation before it.

Idea: a patch is masked if fewer than `count` patches of its picture have a smaller number, so the draw needs no order:
the first kernel hashes and counts, n^2 comparisons of a few hundred numbers, and leaves one byte per patch. The second
does what costs: a program has a run of pixels of one channel, looks up the patch of each, loads what stays, and stores.
In place, what stays is neither loaded nor stored.

Numerics: multiplication, rounding, addition in float32 (float64 for float64), as the reference.

Cost model: bytes of what stays, and of the picture written. 96 x 3 x 224 x 224 float32 with half masked: 87 MB, 26 us
on an H100; in place 29 MB. Not yet measured on a GPU.

Reference: avfast.reference.patch_mask.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import counting
from ..contrastive.triton_tiles import TYPES, pointer, wide_type

BLOCK, WARPS = 1024, 4
PATCHES, CHUNK = 128, 32
# The splitmix64 constants as signed integers.
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)
FIRST = tl.constexpr(0xBF58476D1CE4E5B9 - 2**64)
SECOND = tl.constexpr(0x94D049BB133111EB - 2**64)


@triton.jit
def mix64(z):
    z += GOLDEN
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * FIRST
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * SECOND
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


@triton.jit
def draw_kernel(keys, counts, hidden, patches, PATCHES: tl.constexpr, CHUNK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    key, count = tl.load(keys + n), tl.load(counts + n)
    p = tl.program_id(1) * PATCHES + tl.arange(0, PATCHES)
    mine = mix64(key + p.to(tl.int64) * GOLDEN)
    rank = tl.zeros([PATCHES], tl.int32)
    for first in range(0, patches, CHUNK):
        q = first + tl.arange(0, CHUNK)
        other = mix64(key + q.to(tl.int64) * GOLDEN)
        smaller = (other[None, :] < mine[:, None]) & (q < patches)[None, :]
        rank += tl.sum(smaller.to(tl.int32), 1)
    tl.store(hidden + n * patches + p, (rank < count).to(tl.uint8), mask=p < patches)


@triton.jit
def patch_mask_kernel(
    x, hidden, scale, shift, out, value: tl.float64, channels, height, width, pixels, patch_h, patch_w,
    WIDE: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(pixels, BLOCK)  # a grid of one dimension: the other two end at 65535
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    channel = plane % channels
    at = counting(tl.program_id(0) % blocks, pixels) * BLOCK + tl.arange(0, BLOCK)
    within = at < pixels
    rows, columns = height // patch_h, width // patch_w
    row, column = at // width // patch_h, at % width // patch_w
    inside = within & (row < rows) & (column < columns)
    hidden += (plane // channels) * (rows * columns)
    masked = tl.load(hidden + row * columns + column, mask=inside, other=0) != 0
    x, out = x + plane * pixels, out + plane * pixels
    kind = out.dtype.element_ty
    if IN_PLACE:
        tl.store(out + at, tl.full([BLOCK], value, WIDE).to(kind), mask=masked & inside)
    else:
        stays = within & ((masked & inside) == 0)
        y = tl.load(x + at, mask=stays, other=0.0).to(WIDE)
        if SCALE:
            y *= tl.load(scale + channel).to(WIDE)
        if SHIFT:
            y += tl.load(shift + channel).to(WIDE)
        tl.store(out + at, tl.where(stays, y, tl.full([BLOCK], value, WIDE)).to(kind), mask=within)


def _run(x, out, keys, counts, patch_h, patch_w, value, scale, shift, in_place) -> None:
    n, channels, height, width = x.shape
    if x.numel() == 0:
        return
    patches = (height // patch_h) * (width // patch_w)
    hidden = torch.empty(max(n * patches, 1), dtype=torch.uint8, device=x.device)
    with torch.cuda.device_of(x):
        if patches:
            draw_kernel[(n, triton.cdiv(patches, PATCHES))](
                keys.contiguous(), counts.contiguous(), hidden, patches, PATCHES=PATCHES, CHUNK=CHUNK, num_warps=WARPS
            )
        patch_mask_kernel[(n * channels * triton.cdiv(height * width, BLOCK),)](
            x, hidden, x if scale is None else scale,
            x if shift is None else shift, out, value, channels, height, width, height * width,
            patch_h, patch_w,
            WIDE=TYPES[wide_type(x)], SCALE=scale is not None, SHIFT=shift is not None, IN_PLACE=in_place, BLOCK=BLOCK,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def patch_mask_fwd_triton(
    x: Tensor, keys: Tensor, counts: Tensor, patch_h: int, patch_w: int, value: float, scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:  # fmt: skip
    """``[N, C, H, W]``: ``x * scale + shift`` by channel, and ``value`` where a patch is masked."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _run(x, out, keys, counts, patch_h, patch_w, value, scale, shift, False)
    return out


def patch_mask_in_place_triton(
    x: Tensor, keys: Tensor, counts: Tensor, patch_h: int, patch_w: int, value: float
) -> None:
    _run(x, x, keys, counts, patch_h, patch_w, value, None, None, True)


def aot_cases() -> list[dict]:
    """What tests compile ahead of time: 96 pictures of 3 x 224 x 224, patches of 10 x 10."""
    half, brain, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    draw = {
        "name": "draw_kernel", "kernel": draw_kernel,
        "pointers": {"keys": "*i64", "counts": "*i64", "hidden": "*u8"}, "integers": {"patches": 484},
        "constants": {"PATCHES": PATCHES, "CHUNK": CHUNK}, "options": {"num_warps": WARPS}, "wide_loads": False,
    }  # fmt: skip
    return [draw, *(_case(dtype, False) for dtype in (half, brain, single, double)), _case(single, True)]


def _case(dtype: torch.dtype, in_place: bool) -> dict:
    wide = wide_type(torch.empty(0, dtype=dtype))
    affine = {"scale": pointer(wide), "shift": pointer(wide)}
    return {
        "name": f"patch_mask_kernel[{TYPES[dtype]}{', in place' if in_place else ''}]",
        "kernel": patch_mask_kernel,
        "pointers": {"x": pointer(dtype), "hidden": "*u8", "out": pointer(dtype)} | affine,
        "integers": {"channels": 3, "height": 224, "width": 224, "pixels": 50176, "patch_h": 10, "patch_w": 10},
        "doubles": ("value",),
        "constants": {
            "WIDE": TYPES[wide], "SCALE": not in_place, "SHIFT": not in_place, "IN_PLACE": in_place, "BLOCK": BLOCK,
        },
        "options": {"num_warps": WARPS, "enable_fp_fusion": False},
        "wide_loads": False,
    }  # fmt: skip
