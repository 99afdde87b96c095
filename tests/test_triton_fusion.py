"""The fusion family in Triton, interpreted, against its references in float64."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
import torch
from interpreted import ROUNDED, WIDE, assert_close, interpreted, launched, poisoned_memory, wide

from avfast.reference import fusion, patch_mask

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = {"one": (1, 1), "odd": (7, 37), "tiles": (19, 260)}  # rows and channels; a tile is 8 x 128


def launcher(module, name):
    return getattr(importlib.import_module(f"avfast.kernels.fusion.{module}"), name)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def present(kind, rows, depth, seed):
    shape = {"none": None, "row": (rows, 1), "element": (rows, depth), "absent": (1, 1)}[kind]
    if shape is None:
        return None
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    return drawn & (kind != "absent")


def arguments(mode, rows, depth, dtype=torch.float32, masks=("row", "element"), weights=("columns", "scalar")):
    other = 2 * depth if mode == fusion.FILM else depth + 3 if mode == fusion.CONCAT else depth
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    a, v = normal(rows, depth, dtype=dtype, seed=1), normal(rows, other, dtype=dtype, seed=2)
    shared = depth if mode == fusion.FILM else other
    mask_a, mask_v = present(masks[0], rows, depth, 3), present(masks[1], rows, shared, 4)
    # What is absent holds NaN.
    a = a if mask_a is None else torch.where(mask_a, a, torch.nan)
    if mask_v is not None:
        v = torch.where(torch.cat([mask_v, mask_v], 1) if mask_v.shape[1] * 2 == other else mask_v, v, torch.nan)

    def weight(name, size, seed):
        shape = {"scalar": (1, 1), "rows": (rows, 1), "columns": (1, size), "full": (rows, size), "none": None}[name]
        return None if shape is None else normal(*shape, dtype=kind, seed=seed)

    weight_a = None if mode == fusion.FILM else weight(weights[0], depth, 5)
    weight_v = weight(weights[1], other, 6) if mode in (fusion.SUM, fusion.CONCAT) else None
    return a, v, mask_a, mask_v, weight_a, weight_v, mode


def check(renormalize, args):
    a, mode = args[0], args[6]
    exact = fusion.masked_fusion_forward(*wide(*args[:6]), mode, renormalize)
    forward = launcher("masked_fusion_triton", "masked_fusion_fwd_triton")
    assert_close(launched(forward, *args, renormalize), (exact,), [ROUNDED[a.dtype]])
    grad = normal(*exact.shape, dtype=a.dtype, seed=7)
    exact = fusion.masked_fusion_backward(*wide(grad, *args[:6]), mode, renormalize)
    backward = launcher("masked_fusion_bwd_triton", "masked_fusion_bwd_triton")
    limit, sums = ROUNDED[a.dtype], 4 * WIDE[a.dtype]
    assert_close(launched(backward, grad, *args, renormalize), exact, [limit, limit, sums, sums])


@interpreted
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("mode", range(4), ids=fusion.MODES)
def test_modes_and_sizes(mode, size, renormalize):
    check(renormalize, arguments(mode, *size))


@interpreted
@pytest.mark.parametrize("masks", list(itertools.product(("none", "row", "element", "absent"), repeat=2)), ids="-".join)
def test_every_pair_of_masks(masks):
    for mode in range(4):
        check(True, arguments(mode, 9, 20, masks=masks))


@interpreted
@pytest.mark.parametrize("kind", ["scalar", "rows", "columns", "full"])
@pytest.mark.parametrize("mode", [fusion.SUM, fusion.GATED, fusion.CONCAT], ids=["sum", "gated", "concat"])
def test_every_kind_of_weight(mode, kind):
    check(True, arguments(mode, 19, 140, weights=(kind, "rows" if kind == "columns" else "columns")))


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype):
    for mode in range(4):
        check(False, arguments(mode, 9, 70, dtype))


@interpreted
def test_no_rows_and_no_channels():
    forward = launcher("masked_fusion_triton", "masked_fusion_fwd_triton")
    backward = launcher("masked_fusion_bwd_triton", "masked_fusion_bwd_triton")
    for rows, depth in ((0, 5), (3, 0)):
        a = torch.zeros(rows, depth)
        assert forward(a, a, None, None, None, None, fusion.SUM, True).shape == a.shape
        found = backward(a, a, a, None, None, torch.ones(1, 1), None, fusion.SUM, True)
        assert found[0].shape == a.shape and found[2].tolist() == [[0.0]] and found[3].shape == (0,)


PICTURES = {"odd": (3, 2, 11, 13, 3, 4), "large": (2, 3, 40, 33, 10, 8), "no patch": (2, 1, 3, 5, 4, 2)}


def drawn(n, patches):
    keys = patch_mask.patch_keys(7, torch.arange(n), 3, 1)
    return keys, torch.tensor([patches // 2, 0, patches][:n] + [1] * (n - 3))


@interpreted
@pytest.mark.parametrize("affine", [(True, True), (False, False), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("shape", PICTURES.values(), ids=PICTURES)
def test_patches(shape, affine):
    n, channels, height, width, *patch = shape
    x = normal(n, channels, height, width)
    scale, shift = (normal(channels, seed=s).abs() if given else None for s, given in zip((1, 2), affine, strict=True))
    args = (*drawn(n, (height // patch[0]) * (width // patch[1])), *patch, 0.25, scale, shift)
    exact = patch_mask.patch_mask_forward(*wide(x, *args[:2]), *args[2:5], *wide(scale, shift))
    found = launched(launcher("patch_mask_triton", "patch_mask_fwd_triton"), x, *args)
    assert torch.equal(found[0] == 0.25, exact == 0.25)
    assert_close(found, (exact,), [1e-6])


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patches_of_every_dtype_and_in_place(dtype):
    x = normal(3, 2, 11, 13, dtype=dtype)
    args = (*drawn(3, 9), 3, 4, 0.5)
    exact = patch_mask.patch_mask_forward(x, *args, None, None)
    found = launcher("patch_mask_triton", "patch_mask_fwd_triton")(x, *args, None, None)
    assert torch.equal(found, exact)
    own = x.clone()
    with np.errstate(all="ignore"), poisoned_memory():
        launcher("patch_mask_triton", "patch_mask_in_place_triton")(own, *args)
    assert torch.equal(own, exact)
    nothing = x[:0], args[0][:0], args[1][:0], *args[2:]
    assert launcher("patch_mask_triton", "patch_mask_fwd_triton")(*nothing, None, None).shape == (0, 2, 11, 13)
