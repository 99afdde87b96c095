"""Probes, collapse indicators, bootstrap and the shuffled-pair control."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avfast.evaluate import (
    ShuffledPairs,
    bootstrap_interval,
    collapse_indicators,
    collapse_warning,
    knn_accuracy,
    linear_probe,
    shuffled_order,
)


def blobs(n: int, *, spread: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    return torch.eye(8)[labels] + spread * torch.randn(n, 8, generator=generator), labels


def test_knn_is_the_weighted_vote():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    bank, labels = blobs(60, spread=0.6, seed=0)
    query, truth = blobs(40, spread=0.6, seed=1)
    score = knn_accuracy(bank, labels, query, truth, k=7, temperature=0.2)
    cosine = torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
    near = cosine.topk(7, dim=1)
    votes = torch.zeros(40, 4).scatter_add_(1, labels[near.indices], (near.values / 0.2).exp())
    assert score.value == pytest.approx((votes.argmax(1) == truth).float().mean().item())
    assert score.chance == 0.25 and score.n == 40 and 0.25 < score.value < 1.0


def test_linear_probe_separates_what_is_separable_and_guesses_noise():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    parts = [blobs(n, spread=0.1, seed=s) for s, n in enumerate((80, 40, 40))]
    assert linear_probe(*parts).value == 1.0
    generator = torch.Generator().manual_seed(5)
    noise = [(torch.randn(len(y), 8, generator=generator), y) for _, y in parts]
    assert linear_probe(*noise).value < 0.5


def test_without_labels_probes_are_not_available():
    x = torch.randn(6, 3)
    unknown = torch.full((6,), -1)
    known = torch.arange(6)
    for score in (knn_accuracy(x, known, x, unknown), linear_probe((x, unknown), (x, known), (x, known))):
        assert score.value is None and "without labels" in score.reason and score.text() == "not available"


def test_bootstrap_covers_the_mean_and_widens_with_clusters():
    values = (np.arange(200) % 4 == 0).astype(float)
    low, high = bootstrap_interval(values)
    assert low < 0.25 < high and high - low < 0.15
    clusters = np.arange(200) % 4  # all clips of a class agree: four facts, not two hundred
    low4, high4 = bootstrap_interval(values, clusters)
    assert high4 - low4 > 3 * (high - low)
    assert bootstrap_interval(values) == (low, high)  # seeded


def test_collapse_indicators_at_both_ends():
    spread = collapse_indicators(torch.eye(16) - 1 / 16)
    assert spread["std"] == pytest.approx(1.0) and spread["effective_rank"] == pytest.approx(15.0, abs=1e-3)
    assert collapse_warning(spread) is None
    torch.manual_seed(0)
    same = collapse_indicators(torch.ones(16, 8) + 1e-9 * torch.randn(16, 8))
    assert same["std"] == pytest.approx(0, abs=1e-6) and "identical" in collapse_warning(same)
    line = collapse_indicators(torch.linspace(-1, 1, 16)[:, None] * torch.ones(1, 8))
    assert line["effective_rank"] == pytest.approx(1.0, abs=1e-3) and "one-dimensional" in collapse_warning(line)


@pytest.mark.parametrize("n", [2, 3, 17])
def test_shuffled_order_moves_everything_and_is_a_function_of_the_seed(n):
    order = shuffled_order(n, seed=3)
    assert sorted(order) == list(range(n)) and all(i != j for i, j in enumerate(order))
    assert order == shuffled_order(n, seed=3)
    assert n < 10 or order != shuffled_order(n, seed=4)


class Clips:
    """Three clips, of which the last cannot be read."""

    def __len__(self):
        return 3

    def __getitem__(self, key):
        epoch, index = key
        if index == 2:
            return {"errors": [{"path": "c", "cause": "unreadable"}]}
        return {"index": index, "frames": (epoch, index), "waveform": (epoch, index), "label": index, "errors": []}


def test_shuffled_pairs_join_frames_and_sound_of_different_clips():
    pairs = ShuffledPairs(Clips(), [1, 0, 0])
    item = pairs[5, 0]
    assert item["frames"] == (5, 0) and item["waveform"] == (5, 1) and item["label"] == 0
    assert "frames" not in pairs[5, 2] and len(pairs[5, 2]["errors"]) == 1
    assert "frames" not in ShuffledPairs(Clips(), [2, 0, 1])[0, 0]
    with pytest.raises(ValueError, match="expected 3 entries"):
        ShuffledPairs(Clips(), [0, 1])
