"""Localisation scores: by hand, against loops over pixels, and at chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avfast.evaluate import box_masks, centre_prior, consensus_iou, hottest, localisation_scores


def by_pixels(sounding, boxes, agree):
    """cIoU of one clip as it is defined, pixel by pixel."""
    size = len(sounding)
    hit = whole = wrong = 0.0
    for y in range(size):
        for x in range(size):
            v, u = (y + 0.5) / size, (x + 0.5) / size
            votes = sum(left <= u < right and top <= v < bottom for left, top, right, bottom in boxes)
            g = min(votes / agree, 1.0)
            whole += g
            if sounding[y][x]:
                hit += g
                wrong += g == 0
    return hit / (whole + wrong)


def random_boxes(*shape):
    low, high = 0.6 * torch.rand(*shape, 2), 0.3 + 0.1 * torch.rand(*shape, 2)
    return torch.cat([low, low + high], dim=-1)


@pytest.mark.parametrize("annotators, agree", [(1, 1), (3, 1), (3, 2)])
def test_consensus_iou_is_its_definition(annotators, agree):
    boxes, sounding = random_boxes(6, annotators), torch.rand(6, 12, 12) < 0.4
    found = consensus_iou(sounding, boxes, agree=agree)
    for n in range(6):
        expected = by_pixels(sounding[n].tolist(), boxes[n].double().tolist(), agree)
        assert found[n].item() == pytest.approx(expected, abs=1e-9)


def test_consensus_iou_by_hand():
    """Left half called sounding, box the upper half: a quarter is both, three quarters either."""
    sounding = torch.zeros(1, 8, 8, dtype=torch.bool)
    sounding[:, :, :4] = True
    assert consensus_iou(sounding, torch.tensor([[0.0, 0.0, 1.0, 0.5]])).item() == pytest.approx(1 / 3)
    # Two annotators have to agree: the second has all of the picture, so its rest counts one half.
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 1.0]]])
    assert consensus_iou(sounding, boxes, agree=2).item() == pytest.approx((16 + 8) / (32 + 16))
    assert consensus_iou(~sounding & sounding, boxes).item() == 0.0


def test_boxes_hold_the_pixels_whose_centre_they_hold():
    assert box_masks(torch.tensor([0.0, 0.0, 0.5, 1.0]), 4).int().tolist() == [[1, 1, 0, 0]] * 4
    assert box_masks(torch.tensor([[[0.3, 0.3, 0.6, 0.6]]]), 3).sum().item() == 1
    assert box_masks(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 5).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_hottest_pixels_are_a_share_of_the_enlarged_map(share):
    heat = torch.randn(3, 7, 7)
    found = hottest(heat, 28, share)
    assert (found.sum(dim=(1, 2)) - share * 28**2).abs().max() <= 1
    large = F.interpolate(heat[:, None].double(), (28, 28), mode="bilinear", align_corners=False)[:, 0]
    for n in range(3):
        assert large[n][found[n]].min() > large[n][~found[n]].max()


def test_only_the_order_of_a_map_counts_and_a_flat_one_points_nowhere():
    heat = torch.rand(2, 5, 5)
    assert torch.equal(hottest(heat, 5), hottest(7 * heat - 3, 5))
    assert not hottest(torch.full((1, 5, 5), 0.3), 20).any()
    saturated = (torch.arange(25).view(1, 5, 5) >= 5).float()  # four fifths share the highest value
    assert torch.equal(hottest(saturated, 5, share=0.1), saturated > 0)


def test_scores_of_maps_that_know_and_of_maps_that_do_not():
    boxes = random_boxes(60)
    truth = box_masks(boxes, 28).double()
    right = localisation_scores(truth, boxes, size=28, share=0.01, context="split=test abc123")
    assert right["mean cIoU"].value == 1.0 and right["cIoU@0.5"].value == 1.0
    assert right["mean cIoU"].chance_range[1] < 0.4 < right["mean cIoU"].interval[0]
    wrong = localisation_scores(torch.rand(60, 7, 7), boxes, size=28, share=0.12)["mean cIoU"]
    assert wrong.chance_range[0] - 0.02 < wrong.value < wrong.chance_range[1] + 0.02
    for score in right.values():
        assert score.n == 60 and score.interval[0] <= score.value <= score.interval[1]
        assert score.protocol.startswith("localisation/1 hottest 0.01 of 28 x 28 pixels")
        assert score.protocol.endswith("split=test abc123")
    assert f"centre prior {right['centre AUC'].value:.3f}" in right["AUC"].protocol


def test_the_area_is_that_under_the_success_rate():
    boxes, heat = random_boxes(40), torch.rand(40, 4, 4)
    scores = localisation_scores(heat, boxes, size=32)
    values = consensus_iou(hottest(heat, 32), boxes).numpy()
    thresholds = [0.05 * i for i in range(21)]
    rates = [np.mean(values >= t) for t in thresholds]
    area = sum((a + b) / 2 * 0.05 for a, b in zip(rates, rates[1:], strict=False))
    assert scores["AUC"].value == pytest.approx(area, abs=1e-9)
    assert scores["cIoU@0.5"].value == pytest.approx(np.mean(values >= 0.5))
    assert scores["mean cIoU"].value == pytest.approx(values.mean())


def test_the_centre_prior_wins_where_things_are_in_the_middle():
    middle = torch.tensor([[0.2, 0.2, 0.8, 0.8]]).expand(10, 4)
    scores = localisation_scores(torch.rand(10, 7, 7), middle, size=56)
    assert scores["centre cIoU@0.5"].value == 1.0 and scores["centre mean cIoU"].value > scores["mean cIoU"].value
    prior = centre_prior(5)
    assert prior.argmax() == 12 and torch.equal(prior, prior.flip(0)) and torch.equal(prior, prior.mT)
    # Whoever always points at the middle has the same map for every clip: chance says so.
    fixed = localisation_scores(centre_prior(7).expand(10, 7, 7), middle, size=56)["AUC"]
    assert fixed.value == pytest.approx(fixed.chance)


def test_one_clip_has_a_score_and_no_chance():
    score = localisation_scores(torch.rand(1, 4, 4), random_boxes(1), size=16)["AUC"]
    assert score.chance is None and score.chance_range is None and score.n == 1


@pytest.mark.parametrize(
    "heat, boxes, options, message",
    [
        (torch.zeros(0, 4, 4), torch.zeros(0, 4), {}, r"heat: expected maps \[N >= 1, h, w\]"),
        (torch.rand(2, 4), random_boxes(2), {}, "heat: expected maps"),
        (torch.full((2, 4, 4), torch.nan), random_boxes(2), {}, "heat: expected finite values"),
        (torch.rand(2, 4, 4), random_boxes(3), {}, r"boxes: expected \[2, 4\] or \[2, A, 4\]"),
        (torch.rand(2, 4, 4), torch.rand(2, 5), {}, r"boxes: expected \[\*, 4\]"),
        (torch.rand(2, 4, 4), torch.tensor([[0.5, 0.0, 0.2, 1.0]] * 2), {}, "boxes: expected 0 <= left < right <= 1"),
        (torch.rand(2, 4, 4), torch.tensor([[0, 0, 224.0, 100]] * 2), {}, "fractions of the picture"),
        (torch.rand(2, 4, 4), torch.full((2, 4), torch.nan), {}, "boxes: expected 0 <= left"),
        (torch.rand(2, 4, 4), torch.tensor([[0.4, 0.4, 0.401, 0.401]] * 2), {}, "hold a pixel's centre at 16 x 16"),
        (torch.rand(2, 4, 4), random_boxes(2), {"agree": 2}, "agree: expected 1 to 1"),
        (torch.rand(2, 4, 4), random_boxes(2), {"share": 1.0}, r"share: expected a number in \(0, 1\)"),
        (torch.rand(2, 4, 4), random_boxes(2), {"size": 0}, "size: expected a positive number"),
        (torch.rand(2, 4, 4), random_boxes(2), {"threshold": 0.0}, "threshold: expected a finite number > 0"),
    ],
)
def test_what_cannot_be_scored_is_an_error_that_says_so(heat, boxes, options, message):
    with pytest.raises(ValueError, match=message):
        localisation_scores(heat, boxes, **{"size": 16} | options)
