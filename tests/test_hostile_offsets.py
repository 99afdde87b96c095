"""Offsets beyond 2^31 and 2^32 elements, without the memory: rows far apart in a file with holes, and memory never
written."""

from __future__ import annotations

import pytest
import torch
from conftest import SETS, computing, why_not
from sparse_memory import sparse, unwritten  # noqa: F401
from torch import Tensor

import avfast

# Beyond what 31 and what 32 bits count, and no multiple of anything.
FAR = (2**31 + 7, 2**32 + 11)
WAYS = [way for way in ("torch", *SETS) if why_not(way) is None]


def draw(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def gradients(function, *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    found = torch.autograd.grad(out.double().sum(), leaves, allow_unused=True)
    return [out.detach(), *(g for g in found if g is not None)]


def boxes(count: int) -> Tensor:
    return torch.tensor([30.0, -3, -2, 4, 5]).expand(1, count, 5).contiguous()


# What reads rows where they lie: (op of tensors, their shapes, the dimension that is far).
CASES = {
    "queue_info_nce of q": (avfast.queue_info_nce, ((3, 5), (3, 5), (4, 5)), (0, 0)),
    "queue_info_nce of the queue": (avfast.queue_info_nce, ((4, 5), (4, 5), (3, 5)), (2, 0)),
    "queue_info_nce, depth": (avfast.queue_info_nce, ((4, 3), (4, 3), (2, 3)), (2, 1)),
    "info_nce": (avfast.info_nce, ((3, 9), (3, 9)), (1, 0)),
    "info_nce, l2": (lambda a, b: avfast.info_nce(a, b, distance="l2"), ((3, 9), (3, 9)), (0, 0)),
    "info_nce, depth": (avfast.info_nce, ((9, 3), (9, 3)), (0, 1)),
    "nt_xent": (avfast.nt_xent, ((3, 9), (3, 9)), (0, 0)),
    "sigmoid": (lambda a, b: avfast.sigmoid_contrastive(a, b, scale=2.0, bias=0.0), ((3, 9), (3, 9)), (0, 0)),
    "sup_con": (lambda z: avfast.sup_con(z, torch.tensor([0, 1, 0])), ((3, 9),), (0, 0)),
    "dense_contrastive": (
        lambda q, k, n: avfast.dense_contrastive(q, k, n, torch.tensor([[0, 1]] * 3)),
        ((3, 5, 2), (3, 5, 2), (4, 5)),
        (1, 0),
    ),
    "dense_match": (lambda q, k: avfast.dense_match(q, k).similarity, ((2, 5, 7), (2, 5, 3)), (1, 2)),
    "correlate of q": (avfast.correlate, ((3, 4, 2, 8), (3, 2, 5, 2, 8), (3, 2, 5, 2, 8)), (0, 0)),
    "correlate of v": (avfast.correlate, ((1, 4, 2, 8), (1, 2, 3, 2, 8), (1, 2, 3, 2, 8)), (2, 2)),
    "rotated_box_bce": (
        lambda x: avfast.rotated_box_bce(x, boxes(3)[0], size=6, source_size=16.0),
        ((3, 1, 4, 4),),
        (0, 0),
    ),
    "upsample_cross_entropy": (
        lambda x: avfast.upsample_cross_entropy(x, torch.zeros(2, 8, 8, dtype=torch.uint8), align_corners=False),
        ((2, 3, 4, 4),),
        (0, 1),
    ),
    "crop_exemplars": (lambda x: avfast.crop_exemplars(x, boxes(2), out=4), ((1, 3, 8, 8),), (0, 1)),
    "crop_exemplars, rows": (lambda x: avfast.crop_exemplars(x, boxes(2), out=4), ((1, 1, 3, 8),), (0, 2)),
    # These copy what does not lie densely: the copy must find it.
    "channel_stats": (lambda x: avfast.channel_stats(x).mean, ((3, 4, 5),), (0, 0)),
    "channel_affine": (lambda x: avfast.channel_affine(x, torch.ones(4), torch.zeros(4)), ((3, 4, 5),), (0, 0)),
    "masked_fusion": (avfast.masked_fusion, ((3, 5), (3, 5)), (1, 0)),
    "masked_concat_linear": (lambda a, w: avfast.masked_concat_linear(a, a, w), ((2, 5), (3, 10)), (1, 0)),
    "recolour": (avfast.recolour, ((3, 3, 4, 5),), (0, 0)),
    "mask_patches": (lambda x: avfast.mask_patches(x, 0.5, 2, seed=1)[0], ((3, 1, 4, 4),), (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rows_that_lie_billions_of_elements_apart(name, sparse):  # noqa: F811
    """Value and gradients equal those of the same numbers side by side, bit for bit."""
    function, shapes, (which, dim) = CASES[name]
    inputs = [draw(*shape) for shape in shapes]
    for stride in FAR:
        moved = [sparse.far(x, stride, dim) if i == which else x for i, x in enumerate(inputs)]
        for way in WAYS:
            with computing(way):
                near, far = gradients_or_value(function, inputs), gradients_or_value(function, moved)
            for a, b in zip(near, far, strict=True):
                assert torch.equal(a, b) or torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-3), (way, stride)


def gradients_or_value(function, inputs: list[Tensor]) -> list[Tensor]:
    out = function(*[x.detach().requires_grad_() for x in inputs])
    return gradients(function, *inputs) if out.requires_grad else [out]


def test_targets_that_lie_billions_of_elements_apart(sparse):  # noqa: F811
    logits, target = draw(3, 4, 5, 5), torch.arange(3 * 36).view(3, 6, 6).remainder(4).to(torch.uint8)
    far = sparse.far(target, FAR[1])
    for way in WAYS:
        with computing(way):
            a, b = (avfast.upsample_cross_entropy(logits, t, align_corners=True) for t in (target, far))
        assert torch.equal(a, b), way


@pytest.mark.skipif("cpp[base]" not in WAYS, reason="the compiled kernels are looked at here")
@pytest.mark.parametrize("order", ["rows", "lanes"])
def test_more_than_2_31_elements_side_by_side(order):
    """One last sample that is not zero, more than 2^31 elements on."""
    samples, channels, positions = 2**11 + 1, 2**10, 2**10
    shape = (samples, channels, positions) if order == "rows" else (samples, positions, channels)
    x = unwritten(*shape) if order == "rows" else unwritten(*shape).movedim(-1, 1)
    assert x.numel() > 2**31
    x[-1, -1, -3:] = 8.0
    stats = avfast.channel_stats(x)
    count = samples * positions
    assert stats.zeros[-2:].tolist() == [count, count - 3] and stats.dead[-2:].tolist() == [samples, samples - 1]
    assert stats.mean[-2] == 0 and stats.mean[-1].item() == pytest.approx(24 / count, rel=1e-6)


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_last_of_more_than_2_31_pixels_is_masked(way):
    """In place, so that only one picture is ever written."""
    pictures = 2**19 + 1
    x = unwritten(pictures, 1, 64, 64)
    x[-1] = 1.0
    ratio = torch.zeros(pictures)
    ratio[-1] = 0.5
    with computing(way):
        _, mask = avfast.mask_patches(x, ratio, 32, seed=3, inplace=True)
    assert int(mask.counts.sum()) == 2 and x[-1].sum() == 64 * 64 / 2 and x[-2].sum() == 0
