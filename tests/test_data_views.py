"""Two views of a picture: crops are what they say, the odds are the recipe's, nothing depends on the batch."""

from __future__ import annotations

import pytest
import torch

from avfast.data.images import IMAGENET_MEAN, IMAGENET_STD
from avfast.data.views import TwoViews, cut

pytest.importorskip("kornia", reason="the package 'kornia' is not installed")

PLAIN = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0}


def pictures(batch: int, height: int = 40, width: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def ramp(height: int, width: int) -> torch.Tensor:
    """Red holds the row and green the column of each pixel centre, as fractions."""
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    return torch.stack([y, x, torch.zeros(height, width)])


@pytest.mark.parametrize("shape", [(64, 64), (48, 96)])
def test_crop_boxes_say_where_every_pixel_came_from(shape):
    views = TwoViews(32, **PLAIN)
    seeds = torch.arange(50)
    found = views(pictures(50, *shape), seeds)
    for crop in (found.crop_q, found.crop_k):
        view = cut(ramp(*shape).expand(50, -1, -1, -1), crop, 32)
        centre = (torch.arange(32) + 0.5) / 32
        y = crop[:, 0, None] + crop[:, 2, None] * centre
        x = crop[:, 1, None] + crop[:, 3, None] * torch.where(crop[:, 4, None] > 0, 1 - centre, centre)
        inside = 1 / min(shape)  # the outermost half pixel of a picture has nothing beyond it to interpolate
        for got, wanted in (
            (view[:, 0], y[:, :, None].expand(-1, -1, 32)),
            (view[:, 1], x[:, None].expand(-1, 32, -1)),
        ):
            trusted = (wanted > inside) & (wanted < 1 - inside)
            assert (got - wanted)[trusted].abs().max() < 1e-5


def test_views_are_the_crops_they_report():
    images = pictures(8)
    found = TwoViews(24, **PLAIN)(images, torch.arange(8))
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (cut(images.float() / 255, found.crop_q, 24) - mean) / std
    assert torch.allclose(found.view_q, expected, atol=1e-5)


def test_boxes_have_the_area_and_aspect_of_the_recipe():
    n = 4000
    found = TwoViews(4, **PLAIN)(pictures(n, 8, 8), torch.arange(n))
    for crop in (found.crop_q, found.crop_k):
        top, left, height, width, flip = crop.unbind(1)
        assert (top >= 0).all() and (left >= 0).all()
        assert (top + height <= 1 + 1e-6).all() and (left + width <= 1 + 1e-6).all()
        area, aspect = height * width, width / height
        assert area.min() >= 0.2 - 1e-6 and area.max() <= 1 + 1e-6
        assert aspect.min() >= 3 / 4 - 1e-5 and aspect.max() <= 4 / 3 + 1e-5
        assert abs(flip.mean() - 0.5) < 0.03
    assert (found.crop_q - found.crop_k).abs().max(dim=1).values.min() > 0, "both views drew the same crop"


def test_odds_of_colour_gray_and_blur():
    n = 1500
    images = pictures(1, 12, 12).expand(n, -1, -1, -1)
    whole = {"scale": (1.0, 1.0), "flip_p": 0.0}
    plain = cut(images.float() / 255, torch.tensor([[0.0, 0, 1, 1, 0]]).expand(n, -1), 12)

    def share(**options):
        views = TwoViews(12, **whole, **(PLAIN | options))
        found = views(images, torch.arange(n))
        boxes = cut(images.float() / 255, found.crop_q, 12)
        return (found.view_q - views._normalised(boxes)).abs().amax((1, 2, 3)) > 1e-3, found.view_q

    assert plain.shape[0] == n
    assert abs(share(jitter_p=0.8)[0].float().mean() - 0.8) < 0.04
    assert abs(share(gray_p=0.2)[0].float().mean() - 0.2) < 0.04
    changed = share(blur_p=0.5)[0].float().mean()
    assert 0.38 < changed < 0.54  # a sigma near 0.1 changes nothing that can be seen


def test_a_view_depends_on_its_seed_alone():
    images, seeds = pictures(6), torch.tensor([3, 1, 4, 1, 5, 9])
    images[3] = images[1]
    views = TwoViews(24)
    whole = views(images, seeds)
    assert torch.equal(whole.view_q[1], whole.view_q[3]), "same picture, same seed"
    for i in range(6):
        alone = views(images[i : i + 1], seeds[i : i + 1])
        for a, b in zip(alone, whole, strict=True):
            assert torch.allclose(a[0], b[i], atol=1e-5)
    assert not torch.equal(views(images, seeds + 1).crop_q, whole.crop_q)
    assert not torch.equal(whole.view_q, whole.view_k)


def test_global_random_state_is_left_alone():
    images, state = pictures(2), torch.get_rng_state()
    TwoViews(16)(images, torch.arange(2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tiny_views_work(size):
    assert TwoViews(size, blur_p=1.0)(pictures(3), torch.arange(3)).view_q.isfinite().all()


@pytest.mark.parametrize(
    "images, seeds, kind",
    [
        (torch.zeros(2, 3, 8, 8), torch.arange(2), TypeError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2.0), TypeError),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2), ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(3), ValueError),
    ],
)
def test_wrong_batches_are_refused(images, seeds, kind):
    with pytest.raises(kind, match="^avfast.data.TwoViews: expected"):
        TwoViews(8)(images, seeds)


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"scale": (0.0, 1.0)}, {"scale": (0.9, 0.2)}, {"blur_sigma": (0.0, 1.0)}, {"flip_p": 1.5}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match="^avfast.data.TwoViews: "):
        TwoViews(**({"size": 8} | options))
