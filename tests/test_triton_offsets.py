"""Triton kernels beyond 2^31 elements, interpreted: integers of 32 bits wrap round there as they do on a GPU.

Strides first: rows so far apart that the second or third lies beyond. Then sizes, of which only the programs at both
ends of the grid run. What no interpreter reaches is read from the kernels' code, in test_aot_addresses.py.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from interpreted import INTERPRETING, interpreted
from sparse_memory import LARGEST_STRIDE, sparse, unwritten  # noqa: F401
from torch import Tensor

from avfast.ops import _registry

# A number of 32 bits of which twice is none, and one that is none itself; the second fits where elements are large.
STRIDES = ((2**30 + 16,) * 2, (LARGEST_STRIDE, 2**31 + 48))
LAUNCHERS = {b.name: b.triton for b in _registry.BOUNDARIES.values() if b.triton}
# What these read lies densely, copied where it does not: below, by size.
DENSE = {"channel_stats_fwd", "masked_fusion_fwd", "masked_fusion_bwd", "patch_mask_fwd", "patch_mask_"}


def launcher(name: str):
    module, function = LAUNCHERS[name].split(":")
    return getattr(importlib.import_module(module), function)


@dataclass(frozen=True)
class Of:
    """A tensor with these axes, by letters; of `f` it has 16."""

    axes: str
    dtype: torch.dtype = torch.float16

    def make(self, sizes: dict[str, int]) -> Tensor:
        shape = [{"f": 16}.get(axis) or sizes[axis] for axis in self.axes]
        generator = torch.Generator().manual_seed(len(self.axes))
        if not self.dtype.is_floating_point:
            return torch.randint(0, 2, shape, generator=generator).to(self.dtype)
        return torch.rand(shape, generator=generator, dtype=torch.float64).add(0.1).to(self.dtype)


def wide(axes: str) -> Of:
    return Of(axes, torch.float32)


ONE = torch.ones(1)
BOX = torch.tensor([30.0, -3, -2, 4, 5])
ROWS, PAIR = (Of("nf"), Of("mf")), (None, None, 0, -1, 0, True)
CLASSES = (Of("bchw"), Of("byx", torch.uint8), None, False, 255, 0.0)
HEADS = (Of("bqhd"), Of("bekhd"), Of("bekhd"), None)
# Of each launcher, its arguments. Where a tensor is given by its axes, each of them is moved apart in turn.
CASES = {
    "queue_nce_fwd": (Of("bds"), Of("bds"), Of("kd"), None, 0.5, True, True),
    "queue_nce_bwd_queue": (wide("bs"), Of("bds"), Of("kd"), wide("bs"), None, 0.5, True),
    "dense_match_fwd": (Of("bds"), Of("bdl")),
    "correlate_fwd": (*HEADS, 0.3, 3),
    "correlate_bwd": (Of("beqd"), wide("beqk"), *HEADS, wide("behq"), 0.3, 3),
    "exemplar_crop": (Of("bchw"), lambda s: BOX.expand(s["b"], 1, 5), 3, False, False),
    "box_bce_fwd": (Of("mchw"), lambda s: BOX.expand(s["m"], 5), None, 5, 4, 8.0, False, 0.0, True),
    "upsample_ce_fwd": (*CLASSES, True, True),
    "upsample_ce_bwd": (wide("byx"), *CLASSES),
    "pair_nce_fwd": (*ROWS, ONE, *PAIR, True),
    "pair_nce_bwd": (wide("n"), wide("m"), *ROWS, ONE, wide("n"), wide("m"), *PAIR[:2], None, *PAIR[2:], True),
    "self_nce_fwd": (Of("nf"), ONE, torch.tensor([1, 0, 1]), True),
    "self_nce_bwd": (
        wide("n"), Of("nf"), ONE, wide("n"), torch.tensor([1, 0, 1]), torch.tensor([1, 0, 1], dtype=torch.int32), True,
    ),
    "sigmoid_nce_fwd": (*ROWS, ONE, ONE, 0, True),
    "sigmoid_nce_bwd": (wide("n"), *ROWS, ONE, ONE, 0, True),
}  # fmt: skip


def axes_of(name: str) -> str:
    return "".join(sorted({axis for x in CASES[name] if isinstance(x, Of) for axis in x.axes} - {"f"}))


def sizes_of(name: str, axis: str) -> dict[str, int]:
    """Three along the axis that is moved, two along others, but for batches."""
    sizes = {other: 3 if other == axis else 1 if other in "bm" else 2 for other in axes_of(name)}
    if name in ("self_nce_fwd", "self_nce_bwd") or {"n", "m"} <= sizes.keys():
        sizes |= {"n": 3, "m": 3}
    if name == "box_bce_fwd":
        sizes["c"] = 2
    if name == "correlate_bwd":
        sizes["h"] = 1  # its first argument holds all heads in one dimension
    return sizes


@pytest.mark.skipif(INTERPRETING, reason="once is enough")
def test_every_launcher_has_its_case():
    assert set(CASES) | DENSE == set(LAUNCHERS) and not set(CASES) & DENSE


def results(name: str, arguments: list) -> list[Tensor]:
    with np.errstate(all="ignore"):
        out = launcher(name)(*arguments)
    return list(out) if isinstance(out, tuple) else [out]


@interpreted
@pytest.mark.parametrize(("name", "axis"), [(name, axis) for name in CASES for axis in axes_of(name)])
def test_rows_that_lie_billions_of_elements_apart(name, axis, sparse):  # noqa: F811
    """Bit for bit what the same numbers give side by side."""
    sizes = sizes_of(name, axis)
    near = [x.make(sizes) if isinstance(x, Of) else x(sizes) if callable(x) else x for x in CASES[name]]
    expected = results(name, near)
    for strides in STRIDES:
        moved = list(near)
        for i, x in enumerate(CASES[name]):
            if isinstance(x, Of) and axis in x.axes:
                moved[i] = sparse.far(near[i], strides[x.dtype.itemsize > 2], x.axes.index(axis))
        for a, b in zip(expected, results(name, moved), strict=True):
            assert torch.equal(a, b), strides


@contextlib.contextmanager
def at_both_ends() -> Iterator[None]:
    """Of a large grid the first program and the last two run; what others would write is 0."""
    from triton.runtime import interpreter

    def ends(*bounds: int):
        every = range(*bounds)
        return every if len(every) <= 4096 else (0, len(every) - 2, len(every) - 1)

    def zeros(*shape, dtype: torch.dtype, device=None) -> Tensor:
        """Of which no page exists until it is written, unlike those of torch."""
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        return torch.from_numpy(np.zeros(shape, str(dtype).removeprefix("torch.")))

    with mock.patch.object(interpreter, "range", ends, create=True), mock.patch.object(torch, "empty", zeros):
        yield


@interpreted
@pytest.mark.parametrize("shape", [(2**31 + 9, 1), (1, 1, 2**31 + 9), (2**19 + 1, 1, 64, 64)], ids=str)
def test_statistics_of_more_than_2_31_elements(shape):
    x = unwritten(*shape)
    x.view(-1)[-3:] = 8.0
    with at_both_ends():
        mean, var, zeros, dead = results("channel_stats_fwd", [x, 0.0])
    n = x.numel()
    assert mean.item() == pytest.approx(24 / n) and var.item() == pytest.approx(192 / n - (24 / n) ** 2)
    assert 0 < zeros.item() < n and zeros.item() % 64 == (-3 if x.dim() == 4 else zeros.item()) % 64
    assert dead.item() == 0 if x.dim() == 3 else dead.item() > 0


@interpreted
@pytest.mark.parametrize("mode", range(4))
def test_fusion_of_more_than_2_31_rows(mode):
    rows = 2**31 + 9
    a, v, grad = unwritten(rows, 1), unwritten(rows, 2 if mode == 2 else 1), unwritten(rows, 2 if mode == 3 else 1)
    for x in (a, v, grad):
        x[-9:] = torch.rand(9, x.shape[1], generator=torch.Generator().manual_seed(x.shape[1]))
    weight = torch.ones(1, 1) if mode == 1 else None
    with at_both_ends():
        out, *_ = results("masked_fusion_fwd", [a, v, None, None, weight, None, mode, True])
        near, *_ = results("masked_fusion_fwd", [a[-9:], v[-9:], None, None, weight, None, mode, True])
        assert torch.equal(out[-9:], near) and near.all()
        del out
        plain = [None, None, None, None, 0 if mode == 1 else mode, True]
        da, dv, *_ = results("masked_fusion_bwd", [grad, a, v, *plain])
        near = results("masked_fusion_bwd", [grad[-9:], a[-9:], v[-9:], *plain])
    assert torch.equal(da[-9:], near[0]) and torch.equal(dv[-9:], near[1]) and near[0].all()


@interpreted
def test_modulation_of_2_30_channels():
    """Twice the number of channels is none of 32 bits."""
    a, v = unwritten(2, 2**30), unwritten(2, 2**31)
    a[-1, -1], v[-1, 2**30 - 1], v[-1, -1] = 2.0, 3.0, 5.0
    with at_both_ends():
        out, *_ = results("masked_fusion_fwd", [a, v, None, None, None, None, 2, False])
    assert out[-1, -2:].tolist() == [0.0, 11.0]


@interpreted
@pytest.mark.parametrize(("shape", "patch"), [((1, 1, 50_000, 50_000), 10_000), ((2**19 + 1, 1, 64, 64), 32)], ids=str)
def test_masks_of_more_than_2_31_pixels(shape, patch):
    """The last picture has all of its patches masked; one pixel more than patches have rows is none of theirs."""
    x = unwritten(*shape)
    patches = (shape[2] // patch) * (shape[3] // patch)
    keys, counts = torch.zeros(shape[0], dtype=torch.int64), torch.zeros(shape[0], dtype=torch.int64)
    counts[-1] = patches
    with at_both_ends():
        results("patch_mask_", [x, keys, counts, patch, patch, 7.0])
        assert x.view(-1)[-1200:].eq(7.0).all()
        out, *_ = results("patch_mask_fwd", [x, keys, counts, patch, patch, 3.0, None, torch.ones(1)])
    assert out.view(-1)[-1200:].eq(3.0).all()
    assert out.view(-1)[0] == (3.0 if shape[0] == 1 else 1.0)


@interpreted
def test_targets_and_losses_of_more_than_2_31_pixels():
    maps, side = 2**21 + 1, 32
    logits = unwritten(maps, 2, 2, 2)
    logits[-1] = torch.arange(8.0).view(2, 2, 2).sin()
    target = unwritten(maps, side, side // 2).view(torch.uint8)
    target[-1] = torch.arange(side * side).view(side, side) % 2
    boxes = [None, target, side, side, 1.0, False, 0.0, True]
    classes = [target, None, False, 255, 0.0]
    with at_both_ends():
        loss, grad = results("box_bce_fwd", [logits, *boxes])
        near = results("box_bce_fwd", [logits[-1:], None, target[-1:], *boxes[2:]])
        assert torch.equal(loss[-1:], near[0]) and torch.equal(grad[-1:], near[1]) and near[1].any()
        pixels, total, _ = results("upsample_ce_fwd", [logits, *classes, True, False])
        near = results("upsample_ce_fwd", [logits[-1:], target[-1:], *classes[1:], True, False])
    assert torch.equal(pixels[-1:], near[0]) and torch.equal(total[-1:], near[1]) and near[0].all()


@interpreted
def test_crops_of_more_than_2_31_pixels():
    """The last corner of the last crop: far inside of a picture whose last pixel is 1, and so 1."""
    images, out = torch.ones(1, 3, 8, 8, dtype=torch.float16), 2**15
    box = torch.tensor([[[0.0, -4.0, -4.0, 4.0, 4.0]]])
    with at_both_ends():
        (crops,) = results("exemplar_crop", [images, box, out, False, False])
    assert crops.numel() > 2**31 and crops[0, 0, -1, -64:, -64:].eq(1.0).all() and crops[0, 0, 1, 0, 0] == 0
