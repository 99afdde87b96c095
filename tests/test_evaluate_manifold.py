"""Precision, recall, density and coverage against loops over pairs, and at their ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avfast.evaluate import manifold_scores, prdc


def by_loops(real, made, k):
    """The definitions, one pair at a time."""

    def reach(rows):
        return [sorted(np.linalg.norm(x - y) for j, y in enumerate(rows) if j != i)[k - 1] for i, x in enumerate(rows)]

    around_real, around_made = reach(real), reach(made)
    n, m = len(real), len(made)
    far = np.array([[np.linalg.norm(x - y) for y in made] for x in real])
    return {
        "precision": sum(any(far[i, j] <= around_real[i] for i in range(n)) for j in range(m)) / m,
        "recall": sum(any(far[i, j] <= around_made[j] for j in range(m)) for i in range(n)) / n,
        "density": sum(far[i, j] < around_real[i] for i in range(n) for j in range(m)) / (k * m),
        "coverage": sum(any(far[i, j] <= around_real[i] for j in range(m)) for i in range(n)) / n,
    }


@pytest.mark.parametrize("n, m, d, k", [(40, 30, 3, 5), (9, 25, 8, 3), (30, 30, 1, 1), (12, 6, 2, 5)])
@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_scores_are_their_definitions(n, m, d, k, chunk):
    real, made = torch.randn(n, d), 0.7 * torch.randn(m, d) + 0.4
    found = prdc(real, made, k, chunk=chunk)
    expected = by_loops(real.double().numpy(), made.double().numpy(), k)
    assert [len(x) for x in found] == [m, n, m, n]
    for name, value in expected.items():
        assert getattr(found, name).mean().item() == pytest.approx(value, abs=1e-12), name


def test_a_set_has_all_of_itself():
    x = torch.randn(50, 16)
    for score in prdc(x, x[torch.randperm(50)]):
        assert score.mean().item() == pytest.approx(1.0, abs=1e-12)


def test_sets_far_apart_share_nothing():
    x = torch.randn(50, 16)
    assert [score.sum().item() for score in prdc(x, x + 100)] == [0.0, 0.0, 0.0, 0.0]


def test_small_distances_between_large_features_are_seen():
    """Squares of these cancel in float32, and in float64 by the matrix product."""
    grid = torch.arange(8, dtype=torch.float64)[:, None] * 1e-6 + 1e4
    assert prdc(grid, grid + 2e-7, k=1).precision.tolist() == [1.0] * 8
    assert prdc(grid, grid + 2e-4, k=1).precision.tolist() == [0.0] * 8


def test_one_good_picture_again_and_again_is_precise_and_covers_little():
    real = torch.randn(60, 4)
    scores = manifold_scores(real, real[:1].expand(20, 4), context="split=test")
    assert scores["precision"].value == 1.0
    assert scores["recall"].value <= 1 / 60 and scores["coverage"].value < 0.5
    assert scores["coverage"].n == 60 and scores["density"].n == 20
    for score in scores.values():
        assert score.interval[0] <= score.value <= score.interval[1]
        assert score.protocol == "prdc/1 k=5 float64 features=4 n_real=60 n=20 split=test"


def test_an_outlier_raises_precision_but_not_density_by_much():
    """What density is for (Naeem et al. 2020, section 3.1): one far real picture has a ball that holds everything."""
    real = torch.cat([torch.randn(100, 2), torch.tensor([[40.0, 40.0]])])
    made = torch.randn(50, 2) + 12
    found = prdc(real, made)
    assert found.precision.mean() == 1.0 and found.density.mean() == pytest.approx(0.2)


def test_too_few_pictures_are_not_available():
    scores = manifold_scores(torch.randn(5, 2), torch.randn(50, 2))
    assert all(score.value is None and score.reason == "no more than 5 pictures" for score in scores.values())


@pytest.mark.parametrize(
    "real, made, options, message",
    [
        (torch.zeros(9, 2), torch.zeros(9, 3), {}, r"generated: expected rows \[N, 2\], got \[9, 3\]"),
        (torch.zeros(9), torch.zeros(9), {}, "real: expected rows"),
        (torch.zeros(0, 2), torch.zeros(9, 2), {}, "k: expected 1 or more, and below the 0 rows of real, got 5"),
        (torch.zeros(9, 2), torch.zeros(1, 2), {}, "below the 1 rows of generated"),
        (torch.zeros(9, 2), torch.zeros(9, 2), {"k": 0}, "k: expected 1 or more"),
        (torch.zeros(9, 2), torch.full((9, 2), torch.nan), {}, "generated: expected finite values"),
        (torch.zeros(9, 2), torch.zeros(9, 2), {"chunk": 0}, "chunk: expected a positive number"),
    ],
)
def test_what_cannot_be_compared_is_an_error_that_says_so(real, made, options, message):
    with pytest.raises(ValueError, match=message):
        prdc(real, made, **options)


def test_whole_numbers_are_no_features():
    with pytest.raises(TypeError, match="real: expected a floating-point tensor"):
        prdc(torch.zeros(9, 2, dtype=torch.int64), torch.zeros(9, 2))
