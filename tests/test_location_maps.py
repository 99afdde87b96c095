"""Agreement of maps, the best fixed map, and the scores a report prints of both."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from avfast.evaluate import location_scores
from avfast.nn.location_maps import fixed_prior, map_agreement


def boxes(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Maps of upright boxes around the middle."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, side // 2, (count, 2), generator=generator)
    high = low + torch.randint(side // 4, side // 2 + 1, (count, 2), generator=generator)
    pixels = torch.arange(side)
    rows, columns = ((pixels >= low[:, i, None]) & (pixels < high[:, i, None]) for i in range(2))
    return (rows[:, :, None] & columns[:, None, :]).to(torch.uint8)


def test_agreement_counts_pixels():
    predicted, truth = boxes(20, 12, 1), boxes(20, 12, 2)
    found = map_agreement(predicted, truth)
    for m in range(20):
        a, b = predicted[m] > 0, truth[m] > 0
        assert found.iou[m].item() == pytest.approx(((a & b).sum() / (a | b).sum()).item())
        assert found.accuracy[m].item() == pytest.approx((a == b).float().mean().item())
    same = map_agreement(truth[0], truth)
    assert same.iou[0] == 1 and torch.equal(same.iou[1:], map_agreement(truth[:1].expand(19, -1, -1), truth[1:]).iou)
    nothing = torch.zeros(1, 3, 3, dtype=torch.uint8)
    assert map_agreement(nothing, nothing).iou == 1 and map_agreement(nothing, 1 - nothing).iou == 0


def test_no_level_set_of_the_rate_is_a_better_fixed_map():
    masks = boxes(300, 16)
    prior = fixed_prior(masks)
    torch.testing.assert_close(prior.rate, masks.float().mean(dim=0))
    mine = map_agreement(prior.mask, masks).iou.mean().item()
    others = [map_agreement(prior.rate > t, masks).iou.mean().item() for t in prior.rate.unique()[:-1].tolist()]
    assert mine > max(others) - 0.005 and mine > min(others) + 0.05
    assert torch.equal(prior.mask, prior.rate > prior.level)
    everything = map_agreement(torch.ones(16, 16), masks).iou.mean().item()
    assert mine > everything


def test_scores_stand_beside_the_answers_that_need_no_picture():
    truth = boxes(60, 16).view(10, 6, 16, 16)
    prior = fixed_prior(truth.flatten(0, 1)).mask
    logits = truth.float() * 4 - 2 + torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    parts = [
        SimpleNamespace(logits=logits[i : i + 4], truth=truth[i : i + 4], prior=prior, level=0.3)
        for i in range(0, 10, 4)
    ]
    scores = location_scores(parts, context="split=test")
    iou, accuracy = scores["map IoU"], scores["map accuracy"]
    assert iou.value == pytest.approx(map_agreement(logits.sigmoid() > 0.3, truth).iou.mean().item(), abs=1e-6)
    assert iou.chance == pytest.approx(map_agreement(prior, truth).iou.mean().item(), abs=1e-6)
    assert iou.n == accuracy.n == 10 and iou.interval[0] < iou.value < iou.interval[1]
    background = 1 - truth.float().mean().item()
    fixed = map_agreement(prior, truth).accuracy.mean().item()
    assert accuracy.chance == pytest.approx(max(background, fixed), abs=1e-6)
    assert f"({background:.3f})" in accuracy.protocol and iou.protocol.endswith("16 x 16 pixels; split=test")
