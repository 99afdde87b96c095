"""Retrieval against enumeration of every tie-break, against torchmetrics, and at chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from avfast.evaluate import cross_modal_retrieval, retrieval
from avfast.evaluate.retrieval import CUTOFFS


def by_enumeration(scores, relevant):
    """Mean hit at each cutoff and expected rank of the first hit over all orders that respect the scores."""
    hits, ranks = {k: [] for k in CUTOFFS}, []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            first = next(i for i, item in enumerate(order) if relevant[item])
            ranks.append(first + 1)
            for k in CUTOFFS:
                hits[k].append(first < k)
    return {k: np.mean(v) for k, v in hits.items()}, np.mean(ranks)


@pytest.mark.parametrize("seed", range(12))
def test_ties_are_expectations_over_all_orders(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (1, 6), generator=generator).float()
    relevant = torch.rand(1, 6, generator=generator) < 0.4
    relevant[0, seed % 6] = True
    result = retrieval(scores, relevant)
    hits, rank = by_enumeration(scores[0].tolist(), relevant[0].tolist())
    for k in CUTOFFS:
        assert result.recall[k].value == pytest.approx(hits[k], abs=1e-9)
    assert result.median_rank.value == pytest.approx(rank, abs=1e-9)


@pytest.mark.parametrize("level", ["instance-level", "class-level"])
def test_without_ties_the_hit_rate_of_torchmetrics(level):
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    torch.manual_seed(0)
    audio, video, labels = torch.randn(40, 8), torch.randn(40, 8), torch.arange(40) % 7
    video += 0.7 * audio
    result = next(
        r for r in cross_modal_retrieval(audio, video, labels) if (r.direction, r.level) == ("audio->video", level)
    )
    unit = [torch.nn.functional.normalize(z, dim=1) for z in (audio, video)]
    similarity = unit[0] @ unit[1].T
    same = labels[:, None] == labels[None] if level == "class-level" else torch.eye(40, dtype=torch.bool)
    queries = torch.arange(40)[:, None].expand(40, 40)
    for k in CUTOFFS:
        metric = torchmetrics.retrieval.RetrievalHitRate(top_k=k)
        expected = metric(similarity.flatten(), same.flatten(), indexes=queries.flatten())
        assert result.recall[k].value == pytest.approx(expected.item(), abs=1e-6)


def test_a_collapsed_model_is_at_chance_whatever_the_class_sizes():
    labels = torch.tensor([0] * 7 + [1] * 2 + [2])
    flat = torch.ones(10, 4)
    for result in cross_modal_retrieval(flat, flat, labels):
        for score in result.recall.values():
            assert score.value == pytest.approx(score.chance, abs=1e-12)
        assert result.median_rank.value == result.median_rank.chance
    first = cross_modal_retrieval(flat, flat, labels)[0]
    assert first.level == "class-level"
    assert first.recall[1].chance == pytest.approx((7 * 0.7 + 2 * 0.2 + 0.1) / 10)


def test_balanced_chance_is_one_over_classes_and_its_range_is_as_wide_as_the_classes_are_few():
    torch.manual_seed(1)
    centres = torch.randn(16, 32)
    labels = torch.arange(64) % 16
    audio = centres[labels] + 0.01 * torch.randn(64, 32)
    wrong = centres[(labels + 1) % 16]  # every class retrieves another class, all its clips together
    score = cross_modal_retrieval(audio, wrong, labels, chance_range=True)[0].recall[1]
    assert score.chance == pytest.approx(1 / 16)
    assert score.value == 0.0 and score.chance_range[0] == 0.0
    assert 2 / 16 <= score.chance_range[1] <= 4 / 16  # 16 guesses, not 64
    right = cross_modal_retrieval(audio, centres[labels], labels, chance_range=True)[0].recall[1]
    assert right.value == 1.0 > right.chance_range[1]


def test_directions_are_transposes():
    torch.manual_seed(2)
    audio, video = torch.randn(9, 4), torch.randn(9, 4)
    forth = {r.direction: r.recall[5].value for r in cross_modal_retrieval(audio, video)}
    back = {r.direction: r.recall[5].value for r in cross_modal_retrieval(video, audio)}
    assert forth["audio->video"] == back["video->audio"] and forth["video->audio"] == back["audio->video"]


def test_protocols_say_what_was_done():
    result = cross_modal_retrieval(torch.eye(3), torch.eye(3), context="split=test fingerprint=abc")[0]
    for words in ("audio->video", "instance-level", "n=3", "gallery=3", "split=test fingerprint=abc"):
        assert words in result.recall[1].protocol


def test_bad_input_is_refused():
    eye = torch.eye(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="shape of similarity"):
        retrieval(torch.zeros(3, 4), eye)
    with pytest.raises(ValueError, match="NaN"):
        retrieval(torch.full((3, 3), float("nan")), eye)
    with pytest.raises(ValueError, match="relevant item for every query"):
        retrieval(torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.bool))
