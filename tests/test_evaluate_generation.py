"""Frechet distance, inception score and class recall against independent formulas, and at chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from avfast.evaluate import FeatureMoments, class_recall, frechet_distance, generation_scores, inception_score


def moments(rows):
    return FeatureMoments().add(rows)


def by_sqrtm(x, y):
    """The formula as it is written, with the matrix root of scipy."""
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(a @ b).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * np.trace(root))


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_frechet_distance_is_the_formula_with_a_matrix_root(scale):
    x, y = scale * torch.randn(200, 12), scale * (torch.randn(150, 12) @ torch.randn(12, 12) + 0.5)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(by_sqrtm(x, y), rel=1e-9)


def test_fewer_rows_than_dimensions_are_as_exact_as_others():
    """Rank 9 and 6 in 40 dimensions. An orthogonal basis of both spans holds the same distance at full rank."""
    x, y = torch.randn(10, 40, dtype=torch.float64), torch.randn(7, 40, dtype=torch.float64) + 1
    found = frechet_distance(moments(x), moments(y))
    cross = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    # The nonzero eigenvalues of C_a C_b are those of the small product of the centred rows.
    small = (x - x.mean(0)) @ (y - y.mean(0)).mT / np.sqrt(9 * 6)
    roots = np.sqrt(np.sort(np.linalg.eigvalsh((small @ small.mT).numpy()))[-6:])
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + sum(map(np.trace, cross)) - 2 * roots.sum()
    assert found == pytest.approx(expected, rel=1e-9)
    assert found == pytest.approx(by_sqrtm(x, y), rel=1e-4)  # the matrix root itself is only as good as that here


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    """Rows +-s_d sqrt(n / 2) e_d have mean 0 and a diagonal covariance, exactly."""
    deviations = torch.tensor([[0.5, 2.0, 3.0], [1.5, 2.0, 0.0]], dtype=torch.float64)
    x, y = (torch.cat([torch.diag(s), -torch.diag(s)]) * np.sqrt(5 / 2) for s in deviations)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected = float(shift.square().sum() + (deviations[0] - deviations[1]).square().sum())
    assert frechet_distance(moments(x), moments(y + shift)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n, d, scale", [(300, 20, 1.0), (10, 64, 1.0), (10, 64, 100.0), (2, 5, 1.0), (5, 1, 1.0)])
def test_a_set_has_no_distance_from_itself(n, d, scale):
    x = scale * torch.rand(n, d)
    assert 0 <= frechet_distance(moments(x), moments(x)) <= 1e-6
    assert 0 <= frechet_distance(moments(x), moments(x.flip(0))) <= 1e-6  # the same rows in another order


def test_constant_features_have_the_distance_of_their_means():
    x = torch.ones(4, 3)
    assert frechet_distance(moments(x), moments(x + 2)) == pytest.approx(12.0)


def test_moments_of_parts_merged_are_those_of_the_whole():
    x = torch.randn(97, 6) * torch.tensor([1, 2, 3, 1e-3, 1e2, 1.0]) + 1e4
    parts = FeatureMoments()
    for part in x.split(10):
        parts.add(part)
    halves = FeatureMoments().merge(moments(x[:40])).merge(FeatureMoments()).merge(moments(x[40:]))
    for found in (parts, halves):
        assert found.count == 97
        np.testing.assert_allclose(found.mean, x.double().mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_merging_leaves_the_other_as_it_was():
    first, other = torch.randn(5, 3), moments(torch.randn(5, 3))
    before = other.covariance.clone()
    FeatureMoments().merge(other).add(first)
    assert torch.equal(other.covariance, before) and other.count == 5


def test_frechet_distance_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    a, b = moments(torch.randn(80, 10)), moments(torch.randn(80, 10) * 2 + 1)
    theirs = fid._compute_fid(a.mean, a.covariance, b.mean, b.covariance).item()
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("splits", [1, 4, 10])
def test_inception_score_is_its_formula(splits):
    p = torch.softmax(3 * torch.randn(45, 7), dim=1)
    p[0] = torch.eye(7)[2]  # exact zeros
    values = []
    for part in np.array_split(p.double().numpy(), splits):
        overall = part.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(part > 0, part * (np.log(part) - np.log(overall)), 0)
        values.append(np.exp(terms.sum(axis=1).mean()))
    found = inception_score(p, splits)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert found.spread == pytest.approx(np.std(values), abs=1e-12)


def test_inception_score_has_its_bounds():
    assert inception_score(torch.full((20, 5), 0.2)).mean == pytest.approx(1.0)  # the network cannot tell
    assert inception_score(torch.eye(5)[torch.arange(50) % 5]).mean == pytest.approx(5.0)
    assert inception_score(torch.eye(5)[[3] * 50]).mean == pytest.approx(1.0)  # one picture again and again


def test_class_recall_counts_the_classes_above_the_own_one():
    logits, labels = torch.randn(60, 12), torch.arange(60) % 12
    order = logits.argsort(dim=1, descending=True)
    for k in (1, 5, 10):
        expected = np.mean([int(y) in row[:k] for y, row in zip(labels, order.tolist(), strict=True)])
        score = class_recall(logits, labels)[f"R@{k}"]
        assert score.value == pytest.approx(expected)
        assert score.chance == pytest.approx(k / 12) and score.n == 60
        assert score.interval[0] <= score.value <= score.interval[1]


def test_class_recall_of_one_picture_for_every_class_is_chance():
    labels = torch.arange(48) % 16
    for logits in (torch.zeros(48, 16), torch.randn(1, 16).expand(48, 16)):
        score = class_recall(logits, labels)["R@1"]
        assert score.value == pytest.approx(score.chance) == pytest.approx(1 / 16)
        assert score.chance_range[0] <= score.value <= score.chance_range[1]
    right = class_recall(torch.eye(16)[labels], labels)["R@1"]
    assert right.value == 1.0 and right.chance_range[1] < 0.3


def test_unlabelled_clips_have_no_class_recall():
    score = class_recall(torch.randn(3, 4), torch.tensor([0, -1, 2]))["R@1"]
    assert score.value is None and score.reason == "clips without labels"


def network(pictures):
    """Features and logits that depend on each picture alone."""
    return pictures.flatten(1) @ torch.linspace(-1, 1, 48 * 6).view(48, 6).sin(), 9 * pictures.mean(dim=(2, 3))


def test_scores_of_generated_pictures():
    real, labels = torch.rand(90, 3, 4, 4), torch.arange(90) % 3
    made = real.flip(0) + 0.01 * torch.randn(90, 3, 4, 4)
    scores = generation_scores(network, real, made, network_name="toy", labels=labels, context="split=test abc123")
    expected = {"FID", "IS", "precision", "recall", "density", "coverage", "R@1", "R@5", "R@10"}
    assert scores.keys() == expected
    for score in scores.values():
        assert score.value is not None and score.n == 90
        assert "network=toy" in score.protocol and "n_real=90" in score.protocol
        assert score.protocol.endswith("split=test abc123")
    x, y = (network(pictures)[0] for pictures in (real, made))
    assert scores["FID"].value == pytest.approx(by_sqrtm(x, y), abs=1e-6)
    assert scores["coverage"].value > 0.9
    far = generation_scores(network, real, made + 5, network_name="toy")
    assert far["FID"].value > 10 * scores["FID"].value and far["precision"].value == 0.0


def test_scores_do_not_depend_on_the_batches_and_know_their_reference():
    real, made = torch.rand(40, 3, 4, 4), torch.rand(30, 3, 4, 4)
    whole = generation_scores(network, real, made, network_name="toy")
    parts = generation_scores(network, iter(real.split(7)), made.split(11), network_name="toy")
    other = generation_scores(network, real.flip(3), made, network_name="toy")
    for name, score in whole.items():
        assert score.value == pytest.approx(parts[name].value, abs=1e-5)
        known = {s.protocol.split(" real=")[1].split()[0] for s in (score, parts[name])}
        assert len(known) == 1 and known != {other[name].protocol.split(" real=")[1].split()[0]}


def test_pictures_in_order_of_class_are_no_less_varied():
    """Consecutive splits of them would hold one class each and score 1."""
    pictures = torch.eye(3)[torch.arange(120) // 40][:, :, None, None].expand(120, 3, 4, 4) + 0.01 * torch.rand(
        120, 3, 4, 4
    )
    scores = generation_scores(network, pictures, pictures, network_name="toy")
    assert 2.5 < scores["IS"].value <= 3.0
    assert "splits=10 " in scores["IS"].protocol
    halves = float(scores["FID"].protocol.split("two halves of the real ")[1].split()[0])
    first, last = (moments(network(part)[0]) for part in pictures.split(60))
    assert halves < 0.3 * frechet_distance(first, last)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: moments(torch.tensor([[1.0, float("nan")]])), "features: expected finite values"),
        (lambda: moments(torch.zeros(0, 3)), r"features: expected rows \[N >= 1, D >= 1\], got \[0, 3\]"),
        (lambda: moments(torch.zeros(3)), r"features: expected rows"),
        (lambda: moments(torch.zeros(2, 3)).add(torch.zeros(2, 4)), "expected D = 3 as before, got 4"),
        (lambda: moments(torch.zeros(1, 3)).covariance, "at least 2 rows, got 1"),
        (lambda: frechet_distance(FeatureMoments(), FeatureMoments()), "at least 2 rows, got 0"),
        (lambda: frechet_distance(moments(torch.rand(4, 3)), moments(torch.rand(4, 2))), "b: expected D = 3"),
        (lambda: inception_score(torch.randn(20, 3)), "rows of probabilities"),
        (lambda: inception_score(torch.full((4, 2), 0.5)), "splits: expected 1 to 4"),
        (lambda: class_recall(torch.zeros(3, 2), torch.tensor([0, 1, 2])), "classes below 2, got 2"),
        (lambda: class_recall(torch.zeros(3, 2), torch.tensor([0, 1])), r"labels: expected int64 \[3\]"),
        (lambda: class_recall(torch.zeros(3, 2), torch.tensor([0, 1, 1]), ks=(0,)), "ks: expected positive"),
        (lambda: class_recall(torch.full((3, 2), torch.nan), torch.tensor([0, 1, 1])), "logits: expected finite"),
    ],
)
def test_what_cannot_be_scored_is_an_error_that_says_so(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "network, real, message",
    [
        (network, torch.rand(1, 3, 4, 4), "real: expected at least 2 pictures, got 1"),
        (network, [], "real: expected at least 2 pictures, got 0"),
        (network, torch.rand(4, 4, 4), "real: expected pictures"),
        (lambda x: x.flatten(1), torch.rand(4, 3, 4, 4), "network: expected a pair"),
        (lambda x: (x.flatten(1) / 0, x.flatten(1)), torch.rand(4, 3, 4, 4), "features of real: expected finite"),
    ],
)
def test_networks_and_pictures_that_do_not_fit(network, real, message):
    with pytest.raises(ValueError, match=message):
        generation_scores(network, real, torch.rand(4, 3, 4, 4), network_name="toy")


def test_whole_numbers_are_no_features():
    with pytest.raises(TypeError, match="features: expected a floating-point tensor"):
        moments(torch.zeros(3, 3, dtype=torch.int64))
