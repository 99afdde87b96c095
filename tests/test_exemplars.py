"""Boxes of exemplars: inside the rotated image, never larger, reproducible, and distributed as asked."""

from __future__ import annotations

import math
import multiprocessing

import numpy as np
import pytest
import torch

import avfast
from avfast.ops._counter import Uniforms, combine
from avfast.ops.sample_exemplars import _draw
from avfast.reference import exemplars as reference

RECIPE = {"area": (0.05, 0.48), "aspect": (1 / 3, 3), "angle": (-45, 45)}


def drawn(n, size=224, seed=0, **options):
    """Angles and boxes of ``n`` exemplars as drawn, before the image is rotated."""
    return _draw(Uniforms(combine(seed, np.arange(n))), size, **RECIPE | options)


# ----------------------------------------------------------------------------------------------- geometry

RANGES = {
    "recipe": {},
    "large": {"area": (0.5, 1.0)},
    "whole": {"area": (1.0, 1.0), "aspect": (1.0, 1.0)},
    "thin": {"area": (0.01, 0.1), "aspect": (8.0, 9.0)},
    "any angle": {"angle": (-90, 90)},
}


@pytest.mark.parametrize("options", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("size", [224, 31])
def test_revised_boxes_lie_on_the_rotated_image_and_never_grow(options, size):
    theta, edges = drawn(20_000, size, **options)
    around = reference.bounding_box(theta, edges)
    top, left, bottom, right = reference.revise(theta, around, size / 2)
    assert (top >= around[0]).all() and (left >= around[1]).all()
    assert (bottom <= around[2]).all() and (right <= around[3]).all()
    assert (top < bottom).all() and (left < right).all()
    # Rotated back with complex numbers, corners lie in the source image.
    turn = torch.polar(torch.ones_like(theta), theta.deg2rad())
    for x in (left, right):
        for y in (top, bottom):
            point = torch.complex(x, y) * turn
            assert (torch.maximum(point.real.abs(), point.imag.abs()) <= size / 2 + 1e-6).all()


def test_the_bounding_box_holds_the_rotated_corners_and_touches_them():
    theta, (top, left, bottom, right) = drawn(5_000, angle=(-90, 90))
    turn = torch.polar(torch.ones_like(theta), -theta.deg2rad())
    corners = torch.stack([torch.complex(x, y) * turn for x in (left, right) for y in (top, bottom)])
    box = reference.bounding_box(theta, (top, left, bottom, right))
    exact = (corners.imag.amin(0), corners.real.amin(0), corners.imag.amax(0), corners.real.amax(0))
    for edge, expected in zip(box, exact, strict=True):
        torch.testing.assert_close(edge, expected, rtol=0, atol=1e-9)


def test_a_box_that_needs_no_revision_is_not_moved():
    theta, edges = drawn(20_000)
    around = reference.bounding_box(theta, edges)
    revised = reference.revise(theta, around, 112)
    inside = torch.stack(
        [reference.inside_support(theta, x, y, 112) for x in (around[1], around[3]) for y in (around[0], around[2])]
    ).all(0)
    assert 0.05 < inside.float().mean() < 0.95
    for before, after in zip(around, revised, strict=True):
        assert torch.equal(before[inside], after[inside])


def by_search(theta, box, half, step=0.05):
    """The same revision the slow way: edges walk in small steps until the corner is inside."""

    def inside(x, y):
        turn = complex(x, y) * complex(math.cos(math.radians(theta)), math.sin(math.radians(theta)))
        return max(abs(turn.real), abs(turn.imag)) <= half + 1e-9

    def walk(corner, start, stop, towards):
        while not inside(*corner(start)) and start * towards < stop * towards:
            start += step * towards
        return start

    t0, l0, b0, r0 = box
    if theta > 0:
        t = walk(lambda y: (l0, y), t0, b0, 1)
        r = walk(lambda x: (x, t), r0, l0, -1) if not inside(r0, t0) else r0
        left = walk(lambda x: (x, b0), l0, r0, 1)
        b = walk(lambda y: (r, y), b0, t0, -1)
        return t, left, b, r
    left = walk(lambda x: (x, t0), l0, r0, 1)
    t = walk(lambda y: (r0, y), t0, b0, 1)
    b = walk(lambda y: (left, y), b0, t0, -1) if not inside(l0, b0) else b0
    r = walk(lambda x: (x, b), r0, l0, -1)
    return t, left, b, r


def test_the_closed_form_is_what_a_search_finds():
    theta, edges = drawn(300)
    around = reference.bounding_box(theta, edges)
    found = torch.stack(reference.revise(theta, around, 112), dim=1)
    for angle, box, revised in zip(theta.tolist(), torch.stack(around, 1).tolist(), found, strict=True):
        searched = torch.tensor(by_search(angle, box, 112), dtype=torch.float64)
        # Two steps: an edge may depend on another one that stopped up to a step late, at a slope of up to one.
        assert (revised - searched).abs().max() <= 0.11, (angle, box)


# ------------------------------------------------------------------------------------------- distribution


def test_area_aspect_angle_and_place_follow_their_ranges():
    theta, (top, left, bottom, right) = drawn(200_000, area=(0.05, 0.25), aspect=(0.5, 2.0))  # every shape fits
    h, w = bottom - top, right - left
    share, stretch = h * w / 224**2, (w / h).log() / math.log(2)
    assert torch.equal(theta, theta.round()) and theta.unique().tolist() == list(range(-45, 45))
    assert (theta.long() + 45).bincount().float().div(200_000 / 90).sub(1).abs().max() < 0.1
    for values, low, high in ((share, 0.05, 0.25), (stretch, -1, 1)):
        at = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
        torch.testing.assert_close(values.quantile(at), low + at * (high - low), rtol=0, atol=0.01 * (high - low))
    for start, side in ((top, h), (left, w)):
        place = (start + 112) / (224 - side)
        assert place.min() == 0 and place.max() == 1
        assert abs(place.mean() - 0.5) < 0.005
    assert (
        abs(torch.corrcoef(torch.stack([theta, share, stretch, top + h / 2, left + w / 2])) - torch.eye(5)).max() < 0.02
    )


def test_shapes_of_the_recipe():
    theta, (top, left, bottom, right) = drawn(50_000)
    h, w = bottom - top, right - left
    for values in (top, left, bottom, right):
        assert torch.equal(values, values.round()) and values.abs().max() <= 112
    # Sides are whole pixels: the area moves by half a pixel along both.
    assert (h * w + (h + w) / 2 + 1 > 0.05 * 224**2).all() and (h * w - (h + w) / 2 - 1 < 0.48 * 224**2).all()
    assert (w / h).min() > 0.32 and (w / h).max() < 3.1
    assert (h * w / 224**2).max() > 0.4 and (w / h).max() > 2.8 and (h / w).max() > 2.8


def test_theta_zero_leaves_boxes_as_drawn():
    theta, edges = drawn(5_000, angle=(0, 0))
    assert (theta == 0).all()
    revised = reference.revise(theta, reference.bounding_box(theta, edges), 112)
    assert all(torch.equal(a, b) for a, b in zip(edges, revised, strict=True))
    boxes = avfast.sample_exemplars(50, angle=(0, 0), generator=0).boxes
    assert torch.equal(boxes, boxes.round())


def test_where_hardly_a_shape_fits_one_is_found():
    boxes = avfast.sample_exemplars(500, area=(0.2, 1.0), aspect=(4.9, 5.0), angle=(0, 0), generator=0).boxes
    _, top, left, bottom, right = boxes.unbind(-1)
    assert (right - left <= 224).all() and ((right - left) / (bottom - top) - 4.95).abs().max() < 0.15


# ---------------------------------------------------------------------------------------- reproducibility


def test_any_split_of_a_batch_gives_the_same_boxes():
    ids = torch.randperm(1000)[:40] - 500
    whole = avfast.sample_exemplars(40, generator=3, sample_ids=ids, step=5).boxes
    order = torch.randperm(40)
    pieces = [
        avfast.sample_exemplars(len(i), generator=3, sample_ids=ids[i], step=5).boxes for i in order.split([1, 7, 32])
    ]
    assert torch.equal(torch.cat(pieces), whole[order])
    fewer = avfast.sample_exemplars(40, count=2, generator=3, sample_ids=ids, step=5).boxes
    assert torch.equal(fewer, whole[:, :2])


def _in_another_process(queue):
    queue.put(avfast.sample_exemplars(3, generator=11).boxes.tolist())


def test_another_process_draws_the_same():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_in_another_process, args=(queue,))
    process.start()
    theirs = queue.get(timeout=120)
    process.join()
    assert avfast.sample_exemplars(3, generator=11).boxes.tolist() == theirs


def test_seed_sample_step_and_exemplar_each_matter():
    def boxes(**keys):
        keys = {"generator": 0, "sample_ids": torch.arange(50), "step": 0} | keys
        return avfast.sample_exemplars(50, count=4, **keys).boxes

    base = boxes()
    others = (boxes(generator=1), boxes(sample_ids=torch.arange(50, 100)), boxes(step=1), base.roll(1, 1))
    for other in others:
        assert (base != other).any(-1).all()
    assert len(torch.cat([base, *others[:3]]).flatten(0, 1).unique(dim=0)) == 4 * 200


def test_a_generator_gives_one_seed_at_a_time():
    first, second = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    one = avfast.sample_exemplars(3, generator=first).boxes
    assert torch.equal(one, avfast.sample_exemplars(3, generator=second).boxes)
    assert not torch.equal(one, avfast.sample_exemplars(3, generator=first).boxes)


# -------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize(("batch", "count"), [(0, 6), (3, 0), (0, 0)])
def test_nothing_to_draw(batch, count):
    boxes = avfast.sample_exemplars(batch, count=count, generator=0).boxes
    assert boxes.shape == (batch, count, 5) and boxes.dtype == torch.float32


def test_an_image_of_one_pixel():
    boxes = avfast.sample_exemplars(4, size=1, angle=(0, 0), generator=0).boxes
    assert (boxes == torch.tensor([0, -0.5, -0.5, 0.5, 0.5])).all()


ANGLES = "angle: expected whole degrees, -90 <= low <= high <= 90, got "
SEED = "generator: expected a torch.Generator or an integer seed, got NoneType"
INT32 = torch.zeros(2, dtype=torch.int32)
BAD = {
    "negative batch": ({"batch": -1}, ValueError, "batch: expected an integer >= 0, got -1"),
    "batch": ({"batch": 2.0}, TypeError, "batch: expected an integer, got float"),
    "size": ({"size": 0}, ValueError, "size: expected an integer >= 1, got 0"),
    "empty area": ({"area": (0, 0.5)}, ValueError, "area: expected 0 < low <= high <= 1, got (0, 0.5)"),
    "area beyond": ({"area": (0.5, 1.1)}, ValueError, "area: expected 0 < low <= high <= 1, got (0.5, 1.1)"),
    "NaN": ({"area": (float("nan"), 1)}, ValueError, "area: expected a finite number, got nan"),
    "one number": ({"area": 0.5}, TypeError, "area: expected two numbers, got 0.5"),
    "aspect": ({"aspect": (3, 1)}, ValueError, "aspect: expected 0 < low <= high, got (3, 1)"),
    "cannot fit": (
        {"area": (0.9, 1.0), "aspect": (2, 3)},
        ValueError,
        "area: expected a share of the image that fits into it at an aspect in (2, 3), got (0.9, 1.0)",
    ),
    "fraction": ({"angle": (-0.5, 1)}, ValueError, ANGLES + "(-0.5, 1)"),
    "angle": ({"angle": (-91, 0)}, ValueError, ANGLES + "(-91, 0)"),
    "generator": ({"generator": None}, TypeError, SEED),
    "ids": ({"sample_ids": [1, 2]}, TypeError, "sample_ids: expected an int64 tensor, got list"),
    "int32 ids": ({"sample_ids": INT32}, TypeError, "sample_ids: expected an int64 tensor, got torch.int32"),
    "few ids": ({"sample_ids": torch.arange(3)}, ValueError, "sample_ids: expected shape (2,), got (3,)"),
    "step": ({"step": 0.5}, TypeError, "step: expected an integer, got float"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_in_words(case):
    options, kind, message = BAD[case]
    with pytest.raises(kind) as caught:
        avfast.sample_exemplars(**{"batch": 2, "generator": 0} | options)
    assert str(caught.value) == f"avfast.sample_exemplars: {message}"
