"""A hidden band and a hidden stretch: one of each, widths and places uniform, the same in every batch."""

from __future__ import annotations

import pytest
import torch

from avfast.nn.spec_augment import spec_augment

N = 4000
X = torch.ones(N, 1, 12, 9)
IDS = torch.arange(N)


def runs(hidden: torch.Tensor) -> torch.Tensor:
    """How many stretches of True every row of bool [N, L] has."""
    edges = torch.nn.functional.pad(hidden.int(), (1, 1)).diff(dim=1)
    return (edges == 1).sum(1)


@pytest.mark.parametrize(("bands", "frames"), [(5, 0), (0, 7), (5, 7)])
def test_one_band_and_one_stretch(bands, frames):
    hidden = spec_augment(X, bands, frames, seed=3, sample_ids=IDS)[:, 0] == 0
    across, along = hidden.all(1), hidden.all(2)  # whole bands [N, F], whole frames [N, T]
    assert torch.equal(hidden, across[:, None, :] | along[:, :, None])
    for found, widest in ((across, bands), (along, frames)):
        assert (runs(found) <= 1).all()
        counts = torch.bincount(found.sum(1), minlength=max(widest, 1)).double() / N
        assert len(counts) == max(widest, 1), "widths from 0 to one less than the largest"
        assert (counts - 1 / max(widest, 1)).abs().max() < 0.035


def test_places_reach_both_ends_evenly():
    hidden = spec_augment(X, 5, 0, seed=1, sample_ids=IDS)[:, 0, 0] == 0
    of_two = hidden[hidden.sum(1) == 2]
    first = torch.bincount(of_two.int().argmax(1), minlength=8).double() / len(of_two)
    assert len(first) == 8 and (first - 1 / 8).abs().max() < 0.06


def test_the_draw_belongs_to_sample_step_and_seed():
    x = torch.randn(6, 2, 20, 16)
    options = {"seed": 4, "step": 7, "value": -3.0}
    whole = spec_augment(x, 8, 10, sample_ids=IDS[:6], **options)
    order = torch.tensor([4, 0, 5])
    assert torch.equal(spec_augment(x[order], 8, 10, sample_ids=order, **options), whole[order])
    assert not torch.equal(spec_augment(x, 8, 10, sample_ids=IDS[:6], **{**options, "step": 8}), whole)
    assert not torch.equal(spec_augment(x, 8, 10, sample_ids=IDS[:6], **{**options, "seed": 5}), whole)
    assert ((whole == x) | (whole == -3.0)).all()
    assert torch.equal(spec_augment(x, 0, 0, sample_ids=IDS[:6], **options), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"x: expected shape \[B, C, T, F\]"),
        ({"x": X.int()}, "x: expected a floating-point tensor"),
        ({"bands": 10}, "bands: expected an integer from 0 to 9, got 10"),
        ({"frames": -1}, "frames: expected an integer from 0 to 12, got -1"),
        ({"frames": 1.5}, "frames: expected an integer"),
        ({"sample_ids": IDS[:3]}, "sample_ids: expected an int64 tensor of shape"),
    ],
)
def test_mistakes(change, message):
    given = {"x": X, "bands": 2, "frames": 2, "seed": 0, "sample_ids": IDS, **change}
    with pytest.raises((TypeError, ValueError), match=f"avfast.nn.spec_augment: {message}"):
        spec_augment(given.pop("x"), given.pop("bands"), given.pop("frames"), **given)
