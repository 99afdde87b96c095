"""The correlation family in Triton, interpreted, against its references in float64."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from interpreted import WIDE, assert_close, interpreted, run_twice, wide

import avfast
from avfast.reference import map_loss

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FAMILY = "avfast.kernels.correlation"


def launcher(module, name):
    return getattr(importlib.import_module(f"{FAMILY}.{module}"), name)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ------------------------------------------------------------------------------------------- binary maps

MAPS = {  # M, channels, h, w, H, W
    "odd": (2, 2, 3, 4, 13, 17),
    "in tiles": (1, 1, 5, 20, 13, 45),
    "made smaller": (1, 2, 9, 5, 4, 3),
    "mixed": (1, 1, 4, 40, 9, 6),
    "one": (2, 1, 1, 1, 3, 2),
    "to one": (1, 2, 3, 2, 1, 1),
}


def boxes(count):
    return torch.tensor([[0.0, -60, -50, 40, 70], [33.0, -80, -30, 20, 55]])[:count]


def check_boxes(z, target, mask, size, align_corners=True):
    launch = launcher("box_bce_triton", "box_bce_fwd_triton")
    options = *size, 224.0, align_corners, 3.0
    exact = map_loss.box_bce_forward(*wide(z, target, mask), *options, True)
    limit = WIDE[z.dtype]
    assert_close(run_twice(launch, z, target, mask, *options, True), exact, [limit, 2 * limit])
    assert_close(run_twice(launch, z, target, mask, *options, False), (exact[0], torch.empty(0)), [limit, limit])


@interpreted
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shape", MAPS.values(), ids=MAPS)
def test_boxes(shape, align_corners):
    m, channels, h, w, *size = shape
    check_boxes(4 * normal(m, channels, h, w), boxes(m), None, size, align_corners)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_boxes_and_masks_of_every_dtype(dtype):
    z = 4 * normal(2, 2, 3, 4, dtype=dtype)
    check_boxes(z, boxes(2).double(), None, (13, 17))
    check_boxes(z, None, (normal(2, 13, 17) > 0.5).to(torch.uint8), (13, 17), align_corners=False)


@interpreted
def test_maps_of_any_strides_and_none():
    z, target = 4 * normal(2, 2, 3, 4), boxes(2)
    launch, options = launcher("box_bce_triton", "box_bce_fwd_triton"), (13, 17, 224.0, True, 0.0, True)
    plain = run_twice(launch, z, target, None, *options)
    strided = z.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    columns = target.T.contiguous().T
    assert all(
        torch.equal(a, b) for a, b in zip(run_twice(launch, strided, columns, None, *options), plain, strict=True)
    )
    loss, grad = launch(z[:0], target[:0], None, *options)
    assert loss.shape == (0,) and grad.shape == (0, 1, 3, 4)


@interpreted
def test_logits_of_any_size_lose_nothing():
    """A loss of 1e-20 is not 0, and one of 1e4 not infinite."""
    mask = torch.zeros(1, 6, 6, dtype=torch.uint8)
    for level in (-45.0, -1e4, 1e4):
        z = normal(1, 1, 3, 3) + level
        check_boxes(z, None, mask, (6, 6))


@interpreted
def test_a_nan_stays_in_its_map_and_its_rows():
    launch = launcher("box_bce_triton", "box_bce_fwd_triton")
    z = normal(2, 1, 6, 6)
    z[1, 0, 2, 3] = float("nan")
    loss, grad = run_twice(launch, z, boxes(2), None, 24, 24, 224.0, False, 0.0, True)
    assert loss.isnan().tolist() == [False, True]
    hit = torch.zeros(6, 6, dtype=torch.bool)
    hit[1:4] = True
    assert not grad[0].isnan().any() and torch.equal(grad[1, 0].isnan(), hit)


@interpreted
def test_boxes_of_the_public_op():
    found = []
    for backend in ("triton", "torch"):
        z = (2 * normal(2, 2, 3, 4)).requires_grad_()
        with avfast.use_backend(backend), np.errstate(all="ignore"):
            loss = avfast.rotated_box_bce(z, boxes(2), size=(13, 17), source_size=224, shrink=2.0)
            loss.backward()
        found.append([loss.detach(), z.grad])
    assert_close(found[0], tuple(found[1]), [2e-6] * 2)
