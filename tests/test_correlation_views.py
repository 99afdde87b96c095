"""Contexts and exemplars of CIM: where they come from, what depends on what, colours by themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import avfast
from avfast.data import Colours, CorrelationViews
from avfast.data.correlation_views import AT_A_TIME
from avfast.data.images import NormalizeFrames
from avfast.data.views import Uniforms
from avfast.reference import colours as functions

SMALL = {"count": 3, "search": 48, "context": 32, "exemplar": 16}


def pictures(batch=4, height=60, width=80):
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    planes = torch.stack([x, y, (7 * x * y).sin() / 2 + 0.5])
    return torch.stack([planes.roll(11 * i, 2) for i in range(batch)]).mul(255).byte()


def as_bytes(views):
    """Undoes the normalisation."""
    to = NormalizeFrames()
    return (views - to.shift) / to.scale


# -------------------------------------------------------------------------------------------------- views


def test_shapes_and_values_of_the_recipe():
    batch = CorrelationViews()(pictures(2, 300, 260), torch.tensor([1, 2]))
    assert batch.context.shape == (2, 3, 160, 160)
    assert batch.exemplars.shape == (2, 6, 3, 64, 64)
    assert batch.boxes.shape == (2, 6, 5)
    for views in (batch.context, batch.exemplars):
        assert views.dtype == torch.float32
        assert as_bytes(views).min() > -0.01 and as_bytes(views).max() < 255.01


def test_a_sample_depends_on_its_picture_and_seed_alone():
    count = AT_A_TIME + 4
    views = CorrelationViews(**SMALL, context_colours=Colours())
    images, seeds = pictures(count), torch.arange(count) * 2**40
    whole = views(images, seeds)
    for some in ([3], [count - 1, 0], [1, 2, AT_A_TIME]):
        part = views(images[some], seeds[some])
        assert torch.equal(part.boxes, whole.boxes[some])
        torch.testing.assert_close(part.context, whole.context[some], rtol=0, atol=1e-5)
        torch.testing.assert_close(part.exemplars, whole.exemplars[some], rtol=0, atol=1e-5)
    again = views(images, seeds)
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    other = views(images, seeds + 1)
    assert not any(torch.equal(a, b) for a, b in zip(other, whole, strict=True))


def test_the_context_is_the_searched_part_resized():
    images = pictures(3, 64, 64)
    views = CorrelationViews(**SMALL, scale=(1.0, 1.0), flip_p=0.0, colours=None)
    found = as_bytes(views(images, torch.arange(3)).context)
    searched = F.interpolate(images.float(), (48, 48), mode="bicubic", antialias=True).clamp(0, 255).round()
    expected = F.interpolate(searched, (32, 32), mode="bicubic", antialias=True).clamp(0, 255)
    # The only box of all the area that fits is the picture itself, where it is square.
    assert (found - expected).abs().max() < 1.6
    flipped = CorrelationViews(**SMALL, scale=(1.0, 1.0), flip_p=1.0, colours=None)(images, torch.arange(3)).context
    assert (as_bytes(flipped).flip(-1) - found).abs().max() < 1.6


def test_the_searched_part_has_the_area_and_aspect_of_the_recipe():
    views = CorrelationViews()
    boxes = views._searched(Uniforms(torch.arange(20_000), 1), 240, 320)[:, 0]
    theta, top, left, bottom, right = boxes.unbind(1)
    flipped = right < left
    left, right = torch.minimum(left, right), torch.maximum(left, right)
    share, aspect = (bottom - top) * (right - left) / (240 * 320), (right - left) / (bottom - top)
    assert (theta == 0).all() and abs(flipped.float().mean() - 0.5) < 0.02
    assert share.min() > 0.49 and share.max() <= 1 and share.max() > 0.98
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    assert top.min() == -120 and bottom.max() == 120 and left.min() == -160 and right.max() == 160
    whole = torch.stack([top + 120, left + 160, bottom, right])
    assert torch.equal(whole, whole.round())


@pytest.mark.parametrize("shape", [(10, 400), (400, 10), (1, 1), (33, 7)])
def test_pictures_of_any_aspect(shape):
    batch = CorrelationViews(**SMALL)(pictures(5, *shape), torch.arange(5))
    assert batch.context.isfinite().all() and batch.exemplars.isfinite().all()


def test_exemplars_are_the_boxes_of_the_searched_part():
    images = pictures(3, 48, 48)
    views = CorrelationViews(**SMALL, scale=(1.0, 1.0), flip_p=0.0, mirror_p=0.0, colours=None)
    batch = views(images, torch.arange(3))
    expected = avfast.crop_exemplars(images, batch.boxes, 16)
    assert (as_bytes(batch.exemplars) - expected).abs().max() < 1e-3
    mirrored = CorrelationViews(**SMALL, scale=(1.0, 1.0), flip_p=0.0, mirror_p=1.0, colours=None)(
        images, torch.arange(3)
    )
    assert torch.equal(mirrored.boxes, batch.boxes)
    assert (as_bytes(mirrored.exemplars).flip(-1) - expected).abs().max() < 1.001


def test_half_of_the_exemplars_are_mirrored_each_by_itself():
    images = pictures(1, 48, 48).expand(300, -1, -1, -1)
    plain = CorrelationViews(**SMALL, mirror_p=0.0, colours=None)(images, torch.arange(300)).exemplars
    some = CorrelationViews(**SMALL, colours=None)(images, torch.arange(300)).exemplars
    mirrored = ((some - plain).abs().amax((2, 3, 4)) > 0.05).float()
    assert abs(mirrored.mean() - 0.5) < 0.06
    assert abs(torch.corrcoef(mirrored.T) - torch.eye(3)).max() < 0.2


def test_a_context_changes_its_colours_by_itself():
    """Its picture alone says how, and exemplars stay what they are."""
    images = pictures(1, 48, 48).expand(200, -1, -1, -1)
    seeds = torch.arange(200)
    plain = CorrelationViews(**SMALL, flip_p=0.0, scale=(1.0, 1.0))(images, seeds)
    views = CorrelationViews(**SMALL, flip_p=0.0, scale=(1.0, 1.0), context_colours=Colours())
    found = views(images, seeds)
    assert torch.equal(found.exemplars, plain.exemplars) and torch.equal(found.boxes, plain.boxes)
    changed = (found.context - plain.context).abs().amax((1, 2, 3)) > 0.02
    assert abs(changed.float().mean() - (1 - 0.2 * 0.8 * 0.5 * 0.8)) < 0.07, "jitter, grey, blur or solarising"
    part = views(images[:3], seeds[5:8])
    torch.testing.assert_close(part.context, found.context[5:8], rtol=0, atol=1e-5)


def test_views_are_the_same_under_autocast():
    views, images, seeds = CorrelationViews(**SMALL, context_colours=Colours()), pictures(8), torch.arange(8)
    with torch.autocast("cpu", torch.bfloat16):
        found = views(images, seeds)
    assert all(torch.equal(a, b) for a, b in zip(found, views(images, seeds), strict=True))


def test_no_picture_at_all():
    batch = CorrelationViews(**SMALL)(torch.zeros(0, 3, 9, 9, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    assert [tuple(x.shape) for x in batch] == [(0, 3, 32, 32), (0, 3, 3, 16, 16), (0, 3, 5)]


BAD = {
    "search": ({"search": 0}, "CorrelationViews: search: expected a positive number of pixels, got 0"),
    "scale": ({"scale": (0, 1)}, "CorrelationViews: scale: expected 0 < low <= high <= 1, got (0, 1)"),
    "flip": ({"flip_p": 1.5}, "CorrelationViews: flip_p: expected a probability, got 1.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_at_once(case):
    options, message = BAD[case]
    with pytest.raises(ValueError) as caught:
        CorrelationViews(**options)
    assert str(caught.value) == f"avfast.data.{message}"
    with pytest.raises(ValueError, match="^avfast.sample_exemplars: area: "):
        CorrelationViews(area=(0.9, 1.1))


def test_other_batches_are_refused():
    views = CorrelationViews(**SMALL)
    with pytest.raises(TypeError, match="expected uint8 images and int64 seeds, got torch.float32"):
        views(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected images \[B, 3, H, W\] and seeds \[B\]"):
        views(pictures(2), torch.zeros(1, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------ colours


def column(values):
    return torch.as_tensor(values)[:, None, None, None]


def test_changes_are_those_of_kornia():
    kornia = pytest.importorskip("kornia")
    x, factor = torch.rand(5, 3, 9, 12), torch.linspace(0.5, 1.5, 5)
    pairs = (
        (functions.brightened, kornia.enhance.adjust_brightness_accumulative, factor),
        (functions.contrasted, kornia.enhance.adjust_contrast_with_mean_subtraction, factor),
        (functions.saturated, kornia.enhance.adjust_saturation_with_gray_subtraction, factor),
    )
    for ours, theirs, strength in pairs:
        expected = theirs(x, strength).clamp(0, 1)
        torch.testing.assert_close(ours(x.clone(), column(strength)), expected, rtol=0, atol=1e-5)


def test_hue_turns_as_in_colorsys():
    import colorsys

    levels = torch.cartesian_prod(*[torch.tensor([0.0, 0.3, 0.5, 1.0])] * 3)  # greys and ties among them
    for turn in (-0.5, -0.1, 0.0, 0.07, 1 / 3, 0.5):
        found = functions.hue_turned(levels[:, :, None, None].clone(), column([turn] * len(levels)))[:, :, 0, 0]
        for rgb, result in zip(levels.tolist(), found.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            assert result == pytest.approx(colorsys.hsv_to_rgb((h + turn) % 1, s, v), abs=2e-6)


def test_blur_is_a_gaussian():
    sigma, n = 1.4, 41
    x = torch.zeros(1, 3, n, n)
    x[:, :, 20, 18] = 1
    y, z = torch.meshgrid(*[torch.arange(n, dtype=torch.float32)] * 2, indexing="ij")
    exact = torch.exp(-((y - 20) ** 2 + (z - 18) ** 2) / (2 * sigma**2))
    found = functions.blurred(x, column([sigma]))
    torch.testing.assert_close(found, (exact / exact.sum()).expand(1, 3, n, n), rtol=0, atol=1e-7)
    flat = torch.full((1, 3, 6, 9), 0.25)
    torch.testing.assert_close(functions.blurred(flat.clone(), column([2.0])), flat)


def test_gray_and_solarise():
    x = torch.rand(2, 3, 4, 4)
    gray = functions.grayed(x, column([0.0, 0.0]))
    torch.testing.assert_close(gray[:, 1], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])
    assert torch.equal(gray[:, 0], gray[:, 2])
    values = torch.tensor([0.0, 0.4, 0.6, 1.0]).expand(1, 3, 1, 4)
    expected = torch.tensor([0.0, 0.4, 0.4, 0.0]).expand(1, 3, 1, 4)
    torch.testing.assert_close(functions.solarized(values, column([0.0])), expected)


def test_odds_of_each_change():
    x = torch.tensor([0.9, 0.3, 0.6])[:, None, None].expand(2000, 3, 4, 4)
    off = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0, "solarize_p": 0.0}
    rows = torch.arange(2000)
    assert torch.equal(Colours(**off)(x.clone(), Uniforms(rows, 0)), x)
    for name, p in (("jitter_p", 0.8), ("gray_p", 0.2), ("solarize_p", 0.2)):
        changed = (Colours(**off | {name: p})(x.clone(), Uniforms(rows, 0)) - x).abs().amax((1, 2, 3)) > 1e-4
        assert abs(changed.float().mean() - p) < 0.04
    noise = torch.rand(1, 3, 12, 12).expand(2000, -1, -1, -1)
    blurred = Colours(**off | {"blur_p": 0.5}, blur_sigma=(1.0, 2.0))(noise.clone(), Uniforms(rows, 0))
    assert abs((blurred != noise).any(-1).any(-1).any(-1).float().mean() - 0.5) < 0.04


def test_strengths_and_order_vary():
    x = torch.tensor([0.5, 0.3, 0.4])[:, None, None].expand(500, 3, 2, 2)
    found = Colours(jitter_p=1.0, gray_p=0.0, blur_p=0.0, solarize_p=0.0)(x.clone(), Uniforms(torch.arange(500), 0))
    assert len(found[:, :, 0, 0].unique(dim=0)) == 500
    bright = Colours(jitter=(0.4, 0, 0, 0), jitter_p=1.0, gray_p=0.0, blur_p=0.0, solarize_p=0.0)
    factor = bright(x.clone(), Uniforms(torch.arange(500), 0))[:, 0, 0, 0] / 0.5
    assert factor.min() > 0.599 and factor.max() < 1.401 and factor.max() - factor.min() > 0.75


def test_bad_colours_are_refused():
    for options, argument in (({"jitter": (0.4, 0.4, 0.2, 0.6)}, "jitter"), ({"blur_sigma": (0, 2)}, "blur_sigma"),
                              ({"gray_p": -0.1}, "gray_p"), ({"jitter": (-1, 0, 0, 0)}, "jitter")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^avfast.data.Colours: {argument}: expected "):
            Colours(**options)
