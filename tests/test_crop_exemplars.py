"""Crops of rotated boxes: against plain crop and resize, against Pillow's rotation, in bytes and in numbers."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import device_of

import avfast
from avfast import _library, testing
from avfast.reference.exemplar_crop import exemplar_crop

DTYPES = (torch.uint8, *testing.DTYPES)
HERE = [isa for isa in testing.ISAS if _library.native and _library.native.has_isa(isa)]


def noise(*shape, dtype=torch.uint8):
    images = torch.randint(0, 256, shape)
    return images.to(dtype) if dtype == torch.uint8 else images.sub(128).div(64).to(dtype)


def scene(side=96, batch=2):
    """Smooth colours with an edge or two, as photographs have them."""
    y, x = torch.meshgrid(*[torch.arange(side) / side] * 2, indexing="ij")
    planes = [x * 0.8, (6 * x * y).sin() / 2 + 0.5, ((x - 0.6) ** 2 + (y - 0.3) ** 2 < 0.05).float() * 0.7 + 0.1]
    picture = torch.stack(planes)
    return torch.stack([picture.roll(7 * i, 2) for i in range(batch)]).mul(255).byte()


def centred(top, left, bottom, right, h, w, theta=0.0):
    return [theta, top - h / 2, left - w / 2, bottom - h / 2, right - w / 2]


# ------------------------------------------------------------------------------- upright: crop and resize


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(96, 96), (31, 58), (1, 9)])
def test_upright_boxes_are_plain_crop_and_resize(filter, shape, compiled):
    h, w = shape
    chance = random.Random(0)
    images = noise(2, 3, h, w)
    for out in (1, 7, 32, 64):
        for _ in range(6):
            top, left = chance.randrange(h), chance.randrange(w)
            bottom, right = chance.randint(top + 1, h), chance.randint(left + 1, w)
            boxes = torch.tensor([[centred(top, left, bottom, right, h, w)]]).expand(2, 1, 5)
            crop = images[:, :, top:bottom, left:right].float()
            expected = F.interpolate(crop, (out, out), mode=filter, antialias=True).clamp(0, 255)
            result = avfast.crop_exemplars(images, boxes, out, filter)[:, 0]
            assert result.dtype == torch.uint8 and (result - expected).abs().max() <= 0.51
            plain = F.interpolate(crop, (out, out), mode="bilinear")
            result = avfast.crop_exemplars(images, boxes, out, "bilinear", antialias=False)[:, 0]
            assert (result - plain).abs().max() <= 0.51


def test_bytes_resized_by_torch_differ_by_one_grey_level(compiled):
    """torch rounds bytes between its two passes; so does Pillow."""
    images = scene()
    for top, left, bottom, right in ((0, 0, 96, 96), (3, 10, 90, 60), (40, 5, 60, 95)):
        boxes = torch.tensor([[centred(top, left, bottom, right, 96, 96)]]).expand(2, 1, 5)
        crop = images[:, :, top:bottom, left:right]
        expected = F.interpolate(crop, (64, 64), mode="bicubic", antialias=True)
        assert (avfast.crop_exemplars(images, boxes)[:, 0].int() - expected.int()).abs().max() <= 1


def test_a_box_of_the_output_size_is_cut_bit_for_bit(way):
    if way == "cuda":
        pytest.skip(f"{way}: no kernel of its own")
    images = noise(2, 5, 40, 33).to(device_of(way))
    boxes = torch.tensor([[centred(3, 4, 27, 28, 40, 33), centred(16, 9, 40, 33, 40, 33)]]).expand(2, 2, 5)
    boxes = boxes.to(images.device)
    for filter in ("bicubic", "bilinear"):
        crops = avfast.crop_exemplars(images, boxes, 24, filter)
        assert torch.equal(crops[:, 0], images[:, :, 3:27, 4:28])
        assert torch.equal(crops[:, 1], images[:, :, 16:40, 9:33])


def test_a_reversed_box_is_mirrored(compiled):
    images = noise(2, 3, 40, 40)
    boxes = avfast.sample_exemplars(2, size=40, generator=0).boxes
    theta, top, left, bottom, right = boxes.unbind(-1)
    mirrored = avfast.crop_exemplars(images, torch.stack([theta, top, right, bottom, left], -1), 16)
    assert (mirrored.int() - avfast.crop_exemplars(images, boxes, 16).flip(-1).int()).abs().max() <= 1


# ---------------------------------------------------------------------------------------- turned: content


def test_quarter_turns_are_exact(compiled):
    """Counter-clockwise, as torch.rot90 turns rows and columns."""
    images = noise(1, 3, 32, 32)
    for degrees, turns in ((90, 1), (-90, -1), (180, 2)):
        boxes = torch.tensor([[[degrees, -16.0, -16.0, 16.0, 16.0]]], dtype=torch.float64)
        expected = torch.rot90(images, turns, (2, 3))
        assert torch.equal(avfast.crop_exemplars(images, boxes, 32)[:, 0], expected)


def test_turned_boxes_show_what_pillow_rotates(compiled):
    Image = pytest.importorskip("PIL.Image")
    images = scene(side=224)
    exemplars = avfast.sample_exemplars(2, generator=5)
    crops = avfast.crop_exemplars(images, exemplars)
    for image, boxes, found in zip(images, exemplars.boxes.tolist(), crops, strict=True):
        for (theta, top, left, bottom, right), crop in zip(boxes, found, strict=True):
            turned = Image.fromarray(image.movedim(0, -1).numpy()).rotate(theta, Image.Resampling.BICUBIC, expand=True)
            x, y = turned.width / 2, turned.height / 2
            cut = turned.resize((64, 64), Image.Resampling.BICUBIC, box=(x + left, y + top, x + right, y + bottom))
            expected = torch.from_numpy(np.array(cut)).movedim(-1, 0)
            difference = (crop.int() - expected.int()).abs().float()
            assert difference.mean() < 2.0


def test_a_point_is_found_where_the_closed_form_says():
    """A picture of its own coordinates: the crop's centre shows the point that is rotated there."""
    side = 64
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64) + 0.5 - side / 2] * 2, indexing="ij")
    exemplars = avfast.sample_exemplars(40, size=side, generator=1).boxes.double()
    crops = avfast.crop_exemplars(torch.stack([x, y]).expand(40, 2, side, side), exemplars, out=1, filter="bilinear")
    theta, top, left, bottom, right = exemplars.unbind(-1)
    cos, sin = theta.deg2rad().cos(), theta.deg2rad().sin()
    xr, yr = (left + right) / 2, (top + bottom) / 2
    for found, expected in zip(crops[..., 0, 0].unbind(2), (cos * xr - sin * yr, sin * xr + cos * yr), strict=True):
        # Half a pixel at the border of the image is flat.
        assert (found - expected).abs().max() < 0.2


# ------------------------------------------------------------------------------ every instruction set


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_random_shapes_agree_with_the_reference(dtype, compiled):
    chance = random.Random(0)
    for _ in range(60):
        b, c, h, w = chance.randint(1, 3), chance.randint(1, 6), chance.randint(1, 50), chance.randint(1, 50)
        e, out = chance.randint(1, 3), chance.choice((1, 2, 5, 16, 33))
        images = noise(b, c, h, w, dtype=dtype)
        boxes = (torch.rand(b, e, 5) - 0.5) * torch.tensor([180, h, w, h, w]) * 1.5
        options = out, chance.random() < 0.5, chance.random() < 0.7
        found = torch.ops.avfast.exemplar_crop(images, boxes, *options)
        expected = exemplar_crop(images, boxes, *options)
        assert found.dtype == dtype
        if dtype == torch.uint8:
            difference = (found.int() - expected.int()).abs()
            assert difference.max() <= 1 and (difference > 0).double().mean() <= 2 / difference.numel() + 1e-3
        else:
            # In float64 both are rounded alike, as in avfast.testing.budget.
            places = 64 if dtype == torch.float64 else 4
            assert testing.relative_error(found, expected) < places * torch.finfo(dtype).eps


def test_instruction_sets_round_alike():
    if len(HERE) < 2:
        pytest.skip("this processor has the baseline only: nothing to compare")
    images, boxes = noise(4, 3, 65, 65), avfast.sample_exemplars(4, size=65, generator=0)
    crops = []
    for isa in HERE:
        with testing.forced_isa(isa):
            crops.append(avfast.crop_exemplars(images, boxes, 33).int())
    for a, b in itertools.combinations(crops, 2):
        assert (a - b).abs().max() <= 1 and (a != b).double().mean() < 1e-3


def test_any_number_of_threads_and_any_batch_give_the_same_bits(compiled):
    images, boxes = noise(5, 3, 61, 61), avfast.sample_exemplars(5, size=61, generator=0).boxes
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = avfast.crop_exemplars(images, boxes, 19)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(avfast.crop_exemplars(images, boxes, 19), first)
    finally:
        torch.set_num_threads(before)
    for b, e in itertools.product(range(5), range(6)):
        alone = avfast.crop_exemplars(images[b : b + 1], boxes[b : b + 1, e : e + 1], 19)
        assert torch.equal(alone[0, 0], first[b, e])


def test_any_strides_give_the_same_bits(compiled):
    images, boxes = noise(3, 3, 41, 52), avfast.sample_exemplars(3, size=41, generator=0).boxes
    expected = avfast.crop_exemplars(images, boxes, 9)
    for layout in ("channels_last", "strided"):
        laid = testing.in_layout(images, layout)
        assert torch.equal(avfast.crop_exemplars(laid, boxes, 9), expected)
    assert torch.equal(
        avfast.crop_exemplars(images.flip(2).flip(2), boxes.transpose(0, 2).contiguous().transpose(0, 2), 9), expected
    )
    with testing.poisoned():
        guarded = avfast.crop_exemplars(images, boxes, 9)
    assert testing.guards_intact(guarded) and torch.equal(guarded, expected)


# -------------------------------------------------------------------------------------------------- edges


def test_bytes_saturate(compiled):
    """The cubic overshoots at an edge between black and white."""
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[..., 4:] = 255
    crop = avfast.crop_exemplars(images, torch.tensor([[[0.0, -4, -4, 4, 4]]]), 32)
    smooth = avfast.crop_exemplars(images.double(), torch.tensor([[[0.0, -4, -4, 4, 4]]]), 32)
    assert smooth.min() < -5 and smooth.max() > 260
    assert crop.min() == 0 and crop.max() == 255
    assert (crop - smooth.clamp(0, 255)).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("edge", [math.nan, math.inf, -math.inf, 1e30, -1e9])
def test_absurd_boxes_read_the_image_and_nothing_else(edge, compiled):
    images = torch.full((1, 3, 6, 6), 77, dtype=torch.uint8)
    for position in range(5):
        boxes = torch.tensor([[[10.0, -2, -2, 2, 2]]])
        boxes[0, 0, position] = edge
        assert (avfast.crop_exemplars(images, boxes, 4) == 77).all()


@pytest.mark.parametrize(("b", "e", "c"), [(0, 6, 3), (2, 0, 3), (2, 6, 0)])
def test_nothing_to_cut(b, e, c, way):
    if way == "cuda":
        pytest.skip(f"{way}: no kernel of its own")
    images, boxes = torch.zeros(b, c, 9, 9, dtype=torch.uint8), torch.zeros(b, e, 5)
    crops = avfast.crop_exemplars(images.to(device_of(way)), boxes.to(device_of(way)), 4)
    assert crops.shape == (b, e, c, 4, 4)


def test_no_gradient_flows_and_the_op_compiles():
    images = noise(2, 3, 20, 20, dtype=torch.float32).requires_grad_()
    exemplars = avfast.sample_exemplars(2, size=20, generator=0)
    assert not avfast.crop_exemplars(images, exemplars, 5).requires_grad
    torch.library.opcheck(torch.ops.avfast.exemplar_crop.default, (noise(2, 3, 8, 8), exemplars.boxes, 5, True, True))


IMAGES, BOXES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 6, 5)
SHAPE = "images: expected shape [B, C, H, W] of at least one pixel, got "
HALF = "exemplars: expected float32 or float64 boxes, got torch.float16"
OPTIONS = "filter: expected one of 'bicubic', 'bilinear', got 'area'"
BAD = {
    "list": ((0, BOXES), {}, TypeError, "images: expected a tensor, got int"),
    "int images": ((IMAGES.int(), BOXES), {}, TypeError, "images: expected a floating-point tensor, got torch.int32"),
    "three": ((IMAGES[0], BOXES), {}, ValueError, SHAPE + "(3, 8, 8)"),
    "no pixel": ((IMAGES[..., :0], BOXES), {}, ValueError, SHAPE + "(2, 3, 8, 0)"),
    "int boxes": ((IMAGES, BOXES.int()), {}, TypeError, "exemplars: expected a floating-point tensor, got torch.int32"),
    "half boxes": ((IMAGES, BOXES.half()), {}, TypeError, HALF),
    "batch": ((IMAGES, BOXES[:1]), {}, ValueError, "exemplars: expected boxes of shape (2, E, 5), got (1, 6, 5)"),
    "device": ((IMAGES, BOXES.to("meta")), {}, ValueError, "exemplars: expected boxes on cpu, got meta"),
    "out": ((IMAGES, BOXES, 0), {}, ValueError, "out: expected an integer >= 1, got 0"),
    "out float": ((IMAGES, BOXES, 4.0), {}, TypeError, "out: expected an integer, got float"),
    "filter": ((IMAGES, BOXES), {"filter": "area"}, ValueError, OPTIONS),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_in_words(case):
    args, options, kind, message = BAD[case]
    with pytest.raises(kind) as caught:
        avfast.crop_exemplars(*args, **options)
    assert str(caught.value) == f"avfast.crop_exemplars: {message}"
