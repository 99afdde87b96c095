"""Retrieval between two modalities: R@1, R@5, R@10 and the median rank, with exact treatment of ties.

A collapsed network gives every pair the same similarity; counting ``rank = 1 + number of strictly greater``
would call that perfect. Here equal scores are broken at random and the expectation is reported in closed
form. For one query let ``g`` items score above its best relevant item and ``t`` items, ``r`` of them
relevant, tie with it. Then

    P(hit at k) = 1 - C(t - r, m) / C(t, m),  m = min(k - g, t)      (0 when k <= g)
    E[rank]     = g + (t + 1) / (r + 1)

Chance is the same formula with every score equal, so it is exact for unbalanced classes too. How far chance
reaches is the 2.5 to 97.5 percentile of the score when the identity of what is retrieved is permuted while
the similarities stay: classes as a whole at class level, single clips at instance level. Sixteen classes are
sixteen independent guesses, however many clips each has, and this range is as wide as that.

*Instance level*: the one relevant item is the clip's own other half. *Class level*: every clip of the same
label is relevant. The two are different numbers and are always named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from avfast.evaluate.scores import Score, bootstrap_interval

CUTOFFS = (1, 5, 10)
PERMUTATIONS = 200


@dataclass(frozen=True)
class RetrievalResult:
    """Scores of one direction at one level: ``recall[k]`` and ``median_rank``."""

    direction: str
    level: str
    recall: dict[int, Score]
    median_rank: Score

    def to_dict(self) -> dict[str, Any]:
        return {
            "direction": self.direction,
            "level": self.level,
            "recall": {f"R@{k}": score.to_dict() for k, score in self.recall.items()},
            "median_rank": self.median_rank.to_dict(),
        }


def retrieval(
    similarity: Tensor,
    relevant: Tensor,
    *,
    direction: str = "a->b",
    level: str = "instance",
    clusters: np.ndarray | None = None,
    guesses: Iterable[Tensor] = (),
    context: str = "",
) -> RetrievalResult:
    """Score a similarity matrix.

    Args:
        similarity: ``[N, M]`` any float dtype; larger is more similar.
        relevant: ``[N, M]`` bool; every row needs at least one True.
        clusters: class of each query for the bootstrap (see :func:`bootstrap_interval`).
        guesses: relevance matrices ``[N, M]`` under permuted identities, for the range of chance.
        context: appended to the protocol string, for instance split and fingerprint.

    Raises:
        ValueError: shapes differ, similarities are NaN, or a query has no relevant item.

    >>> result = retrieval(torch.eye(4), torch.eye(4, dtype=torch.bool))
    >>> result.recall[1].value, result.recall[1].chance, result.median_rank.value
    (1.0, 0.25, 1.0)
    >>> retrieval(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool)).recall[1].value   # collapse is chance
    0.25
    """
    if similarity.shape != relevant.shape or similarity.ndim != 2:
        raise ValueError(
            "avfast.evaluate.retrieval: relevant: expected the shape of similarity "
            f"{list(similarity.shape)}, got {list(relevant.shape)}"
        )
    if similarity.isnan().any():
        raise ValueError("avfast.evaluate.retrieval: similarity: expected numbers, got NaN")
    if not relevant.any(dim=1).all():
        raise ValueError("avfast.evaluate.retrieval: relevant: expected a relevant item for every query, got none")
    n, m = similarity.shape
    hits, rank = _expected_hits(similarity.double(), relevant)
    chance_hits, chance_rank = _expected_hits(torch.zeros_like(similarity, dtype=torch.float64), relevant)
    protocol = f"retrieval/1 {direction} {level} n={n} gallery={m} cosine, ties in expectation {context}".strip()
    drawn = [_expected_hits(similarity.double(), guess) for guess in guesses]
    recall = {
        k: Score(
            value=float(hits[k].mean()),
            chance=float(chance_hits[k].mean()),
            chance_range=_range([float(h[k].mean()) for h, _ in drawn]),
            interval=bootstrap_interval(hits[k].numpy(), clusters),
            n=n,
            protocol=protocol,
        )
        for k in CUTOFFS
    }
    median = Score(
        value=float(rank.median()),
        chance=float(chance_rank.median()),
        chance_range=_range([float(r.median()) for _, r in drawn]),
        n=n,
        protocol=protocol,
    )
    return RetrievalResult(direction, level, recall, median)


def cross_modal_retrieval(
    audio: Tensor,
    video: Tensor,
    labels: Tensor | None = None,
    *,
    chance_range: bool = False,
    context: str = "",
) -> list[RetrievalResult]:
    """Both directions at instance level and, where labels ``[N]`` are given, at class level.

    Args:
        audio, video: embeddings ``[N, D]`` of the same N clips in the same order; compared by cosine
            similarity.
        chance_range: also find how far chance reaches, by :data:`PERMUTATIONS` permutations (fewer for large
            N).
    """
    similarity = normalize(audio.double(), dim=1) @ normalize(video.double(), dim=1).T  # [N, N]
    # Rows that agree to the last float32 digit are ties; summation order must not decide them.
    similarity = similarity.float()
    instance = torch.eye(len(similarity), dtype=torch.bool)
    clusters = None if labels is None else labels.numpy()
    names = torch.arange(len(audio))
    levels = [("instance-level", instance, names)]
    if labels is not None:
        same = labels[:, None] == labels[None, :]
        levels.insert(0, ("class-level", same, labels))
    return [
        retrieval(
            matrix,
            relevant,
            direction=direction,
            level=level,
            clusters=clusters,
            guesses=_guesses(identity) if chance_range else (),
            context=context,
        )  # fmt: skip
        for level, relevant, identity in levels
        for direction, matrix in (("audio->video", similarity), ("video->audio", similarity.T))
    ]


def _guesses(labels: Tensor) -> Iterator[Tensor]:
    """Relevance ``[N, N]`` when the retrieved side's classes trade names at random."""
    generator = torch.Generator().manual_seed(0)
    values, inverse = labels.unique(return_inverse=True)
    for _ in range(max(40, min(PERMUTATIONS, 10**8 // len(labels) ** 2))):
        renamed = torch.randperm(len(values), generator=generator)[inverse]
        yield inverse[:, None] == renamed[None, :]


def _range(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _expected_hits(similarity: Tensor, relevant: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    best = similarity.masked_fill(~relevant, -torch.inf).max(dim=1, keepdim=True).values  # [N, 1]
    above = (similarity > best).sum(dim=1).double()
    tied = (similarity == best).sum(dim=1).double()
    good = ((similarity == best) & relevant).sum(dim=1).double()
    hits = {}
    for k in CUTOFFS:
        slots = (k - above).clamp(min=0).minimum(tied)
        miss = torch.exp(_log_choose(tied - good, slots) - _log_choose(tied, slots))
        # lgamma is good to the last digit or two, which would turn 1/4 into 0.25000000000000022.
        hits[k] = torch.where(tied - good < slots, 1.0, (1.0 - miss).round(decimals=12))
        hits[k] = torch.where(slots == 0, 0.0, hits[k])
    return hits, above + (tied + 1) / (good + 1)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    k = k.minimum(n)  # callers overwrite the impossible case k > n
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
