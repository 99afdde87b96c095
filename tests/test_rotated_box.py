"""Losses of maps against rotated boxes: against plain upsampling and cross-entropy; boxes against drawn polygons."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import why_not

import avfast
from avfast import rotated_box_bce, rotated_box_mask, sample_exemplars, testing
from avfast.testing import relative_error

SIDE = 224.0


def boxes_of(count, generator=0):
    return sample_exemplars(count, count=1, angle=(-90, 90), generator=generator).boxes[:, 0]


def published(logits, target, size, align_corners):
    """As CIM writes it, for each map: upsample, two-class cross-entropy (one logit: binary)."""
    up = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
    if up.shape[1] == 2:
        return F.cross_entropy(up, target.long(), reduction="none").mean((1, 2))
    return F.binary_cross_entropy_with_logits(up[:, 0], target.to(up.dtype), reduction="none").mean((1, 2))


SHAPES = [
    (align, channels, *sizes)
    for (align, channels), sizes in zip(
        itertools.cycle(itertools.product((True, False), (1, 2))),
        [
            ((10, 10), (160, 160)),
            ((1, 1), (7, 5)),
            ((3, 5), (1, 1)),
            ((7, 9), (23, 61)),
            ((40, 37), (11, 13)),
            ((12, 1), (5, 40)),
            ((33, 20), (33, 20)),
            ((2, 130), (70, 51)),
            ((5, 17), (300, 3)),
        ],
        strict=False,
    )
]


@pytest.mark.parametrize("align, channels, small, size", SHAPES)
def test_values_and_gradients_of_plain_torch(align, channels, small, size, way):
    boxes = boxes_of(6)
    target = rotated_box_mask(boxes, size=size, source_size=SIDE)
    logits = torch.randn(6, channels, *small).mul(3)
    upstream = torch.linspace(0.5, 2, 6)
    exact_leaf = logits.double().requires_grad_()
    exact = published(exact_leaf, target, size, align)
    (exact_grad,) = torch.autograd.grad(exact, exact_leaf, upstream.double())
    for dtype in (torch.float32, torch.float64):
        leaf = logits.to(dtype).requires_grad_()
        loss = rotated_box_bce(leaf, boxes, size=size, source_size=SIDE, align_corners=align, reduction="none")
        (grad,) = torch.autograd.grad(loss, leaf, upstream.to(dtype))
        limit = 2e-6 if dtype == torch.float32 else 1e-12
        assert loss.dtype == grad.dtype == dtype
        assert relative_error(loss, exact) < limit and relative_error(grad, exact_grad) < 2 * limit


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_every_type_sums_wide(dtype, way):
    boxes, logits = boxes_of(4), torch.randn(4, 2, 10, 10).to(dtype)
    target = rotated_box_mask(boxes, size=80, source_size=SIDE)
    exact = published(logits.double(), target, (80, 80), True).mean()
    loss = rotated_box_bce(logits.requires_grad_(), boxes, size=80, source_size=SIDE)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert logits.grad.dtype == dtype and relative_error(loss, exact) < 1e-6


def test_boxes_equal_their_masks_and_two_channels_their_difference(way):
    boxes, logits = boxes_of(9), torch.randn(9, 2, 10, 10)
    options = {"size": (90, 70), "source_size": SIDE, "shrink": 0.75}
    mask = rotated_box_mask(boxes, **options)
    by_box = rotated_box_bce(logits, boxes, **options, reduction="none")
    for given in (mask, mask.bool(), boxes.double()):
        assert torch.equal(by_box, rotated_box_bce(logits, given, **options, reduction="none"))
    difference = logits[:, 1:] - logits[:, :1]
    assert torch.equal(by_box, rotated_box_bce(difference, boxes, **options, reduction="none"))


def test_reductions_agree():
    boxes, logits = boxes_of(5), torch.randn(5, 1, 6, 6)
    each, mean, total = (
        rotated_box_bce(logits, boxes, size=(20, 30), source_size=SIDE, reduction=r) for r in ("none", "mean", "sum")
    )
    assert torch.allclose(each.mean(), mean) and torch.allclose(total, mean * 5 * 600)


def test_confident_maps_lose_nothing_to_rounding(way):
    """A loss of 1e-9 is still that, and one of 1e4 does not overflow."""
    whole = torch.tensor([[0.0, -112, -112, 112, 112]])
    for z in (20.0, -20.0, 80.0, -1e4):
        loss = rotated_box_bce(torch.full((1, 1, 2, 2), z), whole, size=40, source_size=SIDE)
        assert relative_error(loss, F.softplus(torch.tensor(-z, dtype=torch.float64))) < 1e-5


def test_strided_maps(way):
    boxes, logits = boxes_of(4), torch.randn(4, 2, 10, 12)
    expected = rotated_box_bce(logits, boxes, size=33, source_size=SIDE)
    for other in (
        logits.to(memory_format=torch.channels_last),
        logits.transpose(2, 3).contiguous().transpose(2, 3),
        logits.repeat(1, 1, 1, 2)[..., :12],
    ):
        leaf = other.detach().requires_grad_()
        loss = rotated_box_bce(leaf, boxes, size=33, source_size=SIDE)
        loss.backward()
        assert torch.equal(loss, expected) and leaf.grad.shape == logits.shape


# -------------------------------------------------------------------------------------------------- boxes


def drawn(boxes, size, samples=8):
    """Coverage of each pixel of the source by the corners of the box turned back, by half-planes at many points."""
    theta = boxes[:, 0].double() * math.pi / 180
    t, l, b, r = boxes[:, 1:].double().unbind(1)  # noqa: E741
    corners = torch.stack([torch.stack(p, -1) for p in ((l, t), (r, t), (r, b), (l, b))], 1)  # clockwise, y down
    turn = torch.stack([theta.cos(), -theta.sin(), theta.sin(), theta.cos()], -1).view(-1, 2, 2)
    corners = corners @ turn.mT * (size / SIDE) + size / 2
    at = (torch.arange(size * samples) + 0.5).double() / samples
    inside = torch.ones(len(boxes), size * samples, size * samples, dtype=torch.bool)
    for i in range(4):
        (x0, y0), (x1, y1) = corners[:, i].unbind(1), corners[:, (i + 1) % 4].unbind(1)
        edge = (x1 - x0)[:, None, None] * (at[None, :, None] - y0[:, None, None])
        inside &= edge - (y1 - y0)[:, None, None] * (at[None, None, :] - x0[:, None, None]) >= 0
    return F.avg_pool2d(inside.float()[:, None], samples)[:, 0]


def test_masks_are_the_polygons():
    """2,000 boxes of all angles, at least 40 of 224 pixels along each side: IoU with polygons drawn from corners."""
    draw = torch.rand(5, 2000, generator=torch.Generator().manual_seed(1))
    height, width = 40 + 80 * draw[1:3]
    y, x = 60 * draw[3:] - 30
    boxes = torch.stack([360 * draw[0] - 180, y - height / 2, x - width / 2, y + height / 2, x + width / 2], 1)
    worst, total = 1.0, 0.0
    for part in boxes.split(100):
        mask = rotated_box_mask(part, size=160, source_size=SIDE).bool()
        polygon = drawn(part, 160, samples=3) > 0.5
        iou = (mask & polygon).sum((1, 2)) / (mask | polygon).sum((1, 2))
        worst, total = min(worst, iou.min().item()), total + iou.sum().item()
    assert worst >= 0.99 and total / 2000 > 0.997


def test_upright_boxes_are_exact():
    boxes = torch.tensor([[0.0, -30, -50, 21, 7], [0.0, -112, -112, 112, 112], [0.0, 3, 3, 3, 3]])
    mask = rotated_box_mask(boxes, size=224, source_size=224)
    expected = torch.zeros(3, 224, 224, dtype=torch.uint8)
    expected[0, 82:133, 62:119] = 1
    expected[1] = 1
    assert torch.equal(mask, expected)


def test_a_quarter_turn_and_its_direction():
    """Counter-clockwise: what is right of the centre in the image is above it once the image is turned."""
    above = torch.tensor([[90.0, -50, -10, -20, 10]])
    mask = rotated_box_mask(above, size=224, source_size=224)[0]
    expected = torch.zeros(224, 224, dtype=torch.uint8)
    expected[102:122, 132:162] = 1
    assert torch.equal(mask, expected)


def test_shrink_moves_every_edge_inwards():
    box = torch.tensor([[30.0, -40, -50, 40, 60]])
    shrunk = torch.tensor([[30.0, -38, -48, 38, 58]])
    mask = rotated_box_mask(box, size=160, source_size=SIDE, shrink=2.0)
    assert torch.equal(mask, rotated_box_mask(shrunk, size=160, source_size=SIDE))
    assert mask.sum() < rotated_box_mask(box, size=160, source_size=SIDE).sum()


def test_kernels_draw_the_boxes_that_are_shown(way):
    """With a logit of z everywhere the loss counts the pixels inside; also at angles where edges meet pixel centres."""
    size, z = (56, 37), 3.0
    theta = torch.cat([torch.arange(-180.0, 181, 15), torch.rand(40) * 360 - 180])
    edges = torch.randint(-60, 60, (len(theta), 4)).float()
    edges[::3] += 0.5
    edges[:, 2:] += edges[:, :2].clamp_min(0)
    boxes = torch.cat([theta[:, None], edges], 1)
    boxes[5, 1], boxes[6, 4], boxes[7, 0], boxes[8, 2] = math.nan, math.inf, math.nan, -math.inf
    counted = rotated_box_mask(boxes, size=size, source_size=112.0).sum((1, 2)).double()
    loss = rotated_box_bce(
        torch.full((len(theta), 1, 2, 2), z, dtype=torch.float64), boxes, size=size, source_size=112.0, reduction="none"
    )
    inside, outside = F.softplus(torch.tensor([-z, z], dtype=torch.float64))
    assert ((loss * 56 * 37 - outside * 56 * 37) / (inside - outside) - counted).abs().max() < 1e-6


# ------------------------------------------------------------------------------------- autograd, mistakes


def test_gradcheck_first_and_second_order(way):
    boxes = boxes_of(2)
    for channels, align in ((1, True), (2, False)):
        leaf = torch.randn(2, channels, 3, 4, dtype=torch.float64, requires_grad=True)

        def loss(z, align=align):
            return rotated_box_bce(z, boxes, size=(9, 7), source_size=SIDE, align_corners=align, reduction="none")

        assert torch.autograd.gradcheck(loss, leaf)
        assert torch.autograd.gradgradcheck(loss, leaf)


def test_backward_twice_gives_the_same(way):
    leaf = torch.randn(3, 2, 5, 5, requires_grad=True)
    loss = rotated_box_bce(leaf, boxes_of(3), size=40, source_size=SIDE)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(first, second) and first.any()


def test_compiles_without_a_graph_break():
    compiled = torch.compile(rotated_box_bce, fullgraph=True, backend="aot_eager", dynamic=True)
    for m in (6, 4):
        boxes, z = boxes_of(m), torch.randn(m, 2, 5, 5)
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        expected, result = (f(x, boxes, size=40, source_size=SIDE) for f, x in ((rotated_box_bce, a), (compiled, b)))
        expected.backward()
        result.backward()
        assert torch.equal(expected, result) and torch.equal(a.grad, b.grad)


def test_under_autocast():
    head, boxes = torch.nn.Conv2d(8, 2, 1), boxes_of(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = rotated_box_bce(head(torch.randn(3, 8, 5, 5)), boxes, size=40, source_size=SIDE)
    loss.backward()
    assert loss.dtype == torch.float32 and head.weight.grad.any()


def test_no_maps(way):
    empty, boxes = torch.empty(0, 1, 5, 5, requires_grad=True), torch.empty(0, 5)
    loss = rotated_box_bce(empty, boxes, size=40, source_size=SIDE, reduction="sum")
    loss.backward()
    assert loss.item() == 0 and empty.grad.shape == empty.shape
    assert math.isnan(rotated_box_bce(empty, boxes, size=40, source_size=SIDE).item())
    assert rotated_box_mask(boxes, size=4, source_size=SIDE).shape == (0, 4, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": torch.ones(3, 3, 5, 5)},
        {"logits": torch.ones(3, 1, 5)},
        {"logits": torch.ones(3, 1, 0, 5)},
        {"logits": torch.ones(3, 1, 5, 5, dtype=torch.int64)},
        {"boxes": torch.ones(2, 5)},
        {"boxes": torch.ones(3, 5).half()},
        {"boxes": torch.ones(3, 5, dtype=torch.int64)},
        {"boxes": torch.ones(3, 40, 41, dtype=torch.uint8)},
        {"boxes": torch.ones(3, 5, device="meta")},
        {"boxes": None},
        {"size": 0},
        {"size": (1, 2, 3)},
        {"size": 40.0},
        {"size": True},
        {"source_size": 0},
        {"source_size": math.nan},
        {"shrink": -1.0},
        {"shrink": "1"},
        {"reduction": "max"},
    ],
    ids=str,
)
def test_mistakes_are_named(change):
    given = {"logits": torch.ones(3, 1, 5, 5), "boxes": torch.ones(3, 5), "size": 40, "source_size": SIDE} | change
    with pytest.raises((TypeError, ValueError), match=rf"^avfast.rotated_box_bce: {next(iter(change))}: expected .*, "):
        rotated_box_bce(given.pop("logits"), given.pop("boxes"), **given)


def test_exemplars_are_not_yet_boxes():
    exemplars = avfast.sample_exemplars(2, count=3, generator=0)
    words = r"boxes: expected a tensor \[M, 5\], as exemplars.boxes.flatten\(0, 1\) is, got Exemplars"
    with pytest.raises(TypeError, match=words):
        rotated_box_mask(exemplars, size=4, source_size=SIDE)
    with pytest.raises(TypeError, match=words):
        rotated_box_bce(torch.ones(6, 1, 5, 5), exemplars, size=40, source_size=SIDE)
    boxes = exemplars.boxes.flatten(0, 1)
    assert rotated_box_mask(boxes, size=4, source_size=224).shape == (6, 4, 4)


def test_a_mask_has_no_mask():
    with pytest.raises(TypeError, match="^avfast.rotated_box_mask: boxes: expected a floating-point tensor, got"):
        rotated_box_mask(torch.ones(2, 4, 4, dtype=torch.uint8), size=4, source_size=4)


def test_little_memory(way):
    """1,000 maps of 160 x 160 are 100 MB for plain PyTorch, several times over."""
    if way == "torch" or why_not("cpp"):
        pytest.skip("the compiled kernels")
    leaf = torch.randn(300, 2, 10, 10, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        avfast.rotated_box_bce(leaf, boxes_of(300), size=160, source_size=SIDE).backward()
    assert max(e.cpu_memory_usage for e in profile.events()) < 2 * leaf.nbytes
