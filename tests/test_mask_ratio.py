"""The rules of adaptive masking, by enumeration of confidences and against their formulas one sample at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from avfast import mask_ratio

GRID = torch.linspace(0, 1, 101, dtype=torch.float64)
A, V = (x.flatten() for x in torch.meshgrid(GRID, GRID, indexing="ij"))


def published(c_a, c_v, t, eta, rho):
    """The released loader's branches, as the specification writes them down."""
    if c_v >= t:
        return max(0.0, rho[0] * math.tanh(eta[0] * (c_a - c_v))), 0.0
    if c_a >= t:
        return 0.0, max(0.0, rho[1] * math.tanh(eta[1] * (c_v - c_a)))
    return 0.0, 0.0


def symmetric(c_a, c_v, t, eta, rho):
    a = rho[0] * math.tanh(eta[0] * (c_a - c_v)) if c_v >= t and c_a > c_v else 0.0
    v = rho[1] * math.tanh(eta[1] * (c_v - c_a)) if c_a >= t and c_v > c_a else 0.0
    return a, v


@pytest.mark.parametrize(("rule", "one"), [("released", published), ("symmetric", symmetric)])
@pytest.mark.parametrize("options", [(0.5, (1.0, 1.0), (0.5, 0.5)), (0.3, (4.0, 0.5), (0.9, 0.2))], ids=str)
def test_every_pair_of_confidences(rule, one, options):
    t, eta, rho = options
    found = mask_ratio(A, V, threshold=t, eta=eta, rho=rho, rule=rule)
    expected = torch.tensor([one(a, v, *options) for a, v in zip(A.tolist(), V.tolist(), strict=True)])
    torch.testing.assert_close(torch.stack(found, 1), expected.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9])
def test_the_released_rule_never_masks_video_and_the_default_masks_the_surer_stream(t):
    assert not mask_ratio(A, V, threshold=t, rule="released")[1].any()
    a, v = mask_ratio(A, V, threshold=t)
    assert a.any() and v.any() and not ((a > 0) & (v > 0)).any()
    assert (A[a > 0] > V[a > 0]).all() and (V[v > 0] > A[v > 0]).all()
    torch.testing.assert_close(a.view(101, 101), v.view(101, 101).T)


def test_the_figure_asks_nothing_of_the_stream_that_stays():
    a, v = mask_ratio(A, V, threshold=0.9, rule="figure")
    assert torch.equal(a > 0, A > V) and torch.equal(v > 0, V > A)


def test_mean_is_the_mean_of_the_symmetric_ratios():
    for found, each in zip(mask_ratio(A, V, rule="mean"), mask_ratio(A, V), strict=True):
        torch.testing.assert_close(found, each.mean().expand_as(each))
        assert found.unique().numel() == 1
    assert mask_ratio(A[:0], V[:0], rule="mean")[0].shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_shapes_and_range(dtype):
    c = torch.rand(3, 4).to(dtype)
    for ratio, rho in itertools.product(mask_ratio(c, c.flip(0), eta=50.0, rho=0.25), (0.25,)):
        assert ratio.dtype == dtype and ratio.shape == c.shape and 0 <= ratio.min() <= ratio.max() <= rho


C = torch.full((3,), 0.5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((C, C[:2]), {}, "conf_v: expected"),
        ((C, C.double()), {}, "conf_v: expected"),
        ((C.long(), C), {}, "conf_a: expected a floating-point tensor, got torch.int64"),
        ((C * float("nan"), C), {}, r"conf_a: expected confidences in \[0, 1\], got nan"),
        ((C, C + 1), {}, r"conf_v: expected confidences in \[0, 1\], got 1.5 to 1.5"),
        ((C, C), {"threshold": 1.5}, r"threshold: expected a number in \[0, 1\], got 1.5"),
        ((C, C), {"eta": -1.0}, "eta: expected a finite number >= 0, got -1.0"),
        ((C, C), {"eta": (1.0,)}, "eta: expected a number, or one for audio and one for video"),
        ((C, C), {"rho": 2.0}, r"rho: expected numbers in \[0, 1\], got 2.0"),
        ((C, C), {"rho": (0.5, "x")}, "rho: expected a number, got str"),
        ((C, C), {"rule": "paper"}, "rule: expected one of 'symmetric', 'released', 'figure', 'mean', got 'paper'"),
    ],
)
def test_errors_name_the_argument(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=f"avfast.mask_ratio: {message}"):
        mask_ratio(*arguments, **options)
