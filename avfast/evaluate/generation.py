"""How good generated pictures are: Frechet distance, inception score, and whether a classifier finds their class.

Every number depends on the network that looks at the pictures. The published ones use Inception-v3 trained on ImageNet;
any other network (one trained on the data's own frames, for instance) gives numbers that compare within itself only, so
the network, the reference pictures and the counts are named in every protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from avfast.evaluate.frechet import FeatureMoments, finite_rows, frechet_distance
from avfast.evaluate.manifold import manifold_scores
from avfast.evaluate.scores import Score, bootstrap_interval
from avfast.ops import _check

BATCH = 64
RENAMINGS = 200
Network = Callable[[Tensor], tuple[Tensor, Tensor]]


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    spread: float


def inception_score(probabilities: Tensor, splits: int = 10) -> InceptionScore:
    r"""Exponential of the mean :math:`\mathrm{KL}(p(y|x)\,\|\,p(y))` (Salimans et al. 2016, section 4).

    Args:
        probabilities: class probabilities ``[N, K]`` of N pictures; rows sum to 1.
        splits: the score is found in as many consecutive parts, each with its own p(y). Rows in order of class would
            leave each part a few classes: shuffle them first.

    Returns:
        mean and spread over the parts: between 1 and K.

    Raises:
        TypeError, ValueError: not ``[N, K]`` rows of probabilities, or fewer rows than splits.

    >>> round(inception_score(torch.eye(4), splits=1).mean, 6), inception_score(torch.ones(4, 1), splits=2)
    (4.0, InceptionScore(mean=1.0, spread=0.0))
    """
    name = "evaluate.inception_score"
    p = finite_rows(name, "probabilities", probabilities)
    off = float((p.sum(dim=1) - 1).abs().max())
    if p.min() < 0 or off > 1e-3:
        got = f"a least value of {float(p.min()):.3g} and sums up to {off:.3g} away from 1"
        _check.fail(name, "probabilities", "rows of probabilities", got)
    if not 1 <= splits <= len(p):
        _check.fail(name, "splits", f"1 to {len(p)}, the number of rows", splits)
    scores = []
    for part in p.tensor_split(splits):
        overall = part.mean(dim=0)
        # Where overall is 0 every row is 0, and 0 log 0 is 0.
        divergence = torch.xlogy(part, part).sum(dim=1) - torch.xlogy(part, overall).sum(dim=1)
        scores.append(divergence.mean().exp())
    table = torch.stack(scores)
    return InceptionScore(table.mean().item(), table.std(correction=0).item())


def class_recall(
    logits: Tensor, labels: Tensor, ks: Iterable[int] = (1, 5, 10), *, context: str = ""
) -> dict[str, Score]:
    """``R@k``: how often the class a picture was made for is among the k that a classifier finds likeliest.

    Equal logits count in expectation over their order, as in :mod:`avfast.evaluate.retrieval`. Chance is k of K
    classes; its range is the score when classes trade names at random. Intervals resample classes.

    Args:
        logits: float ``[N, K]``.
        labels: int64 ``[N]`` in ``range(K)``; negative means unknown and makes the scores unavailable.
        ks: cut-offs.

    >>> scores = class_recall(torch.eye(4), torch.arange(4), ks=(1, 2))
    >>> scores["R@1"].value, scores["R@2"].chance, class_recall(torch.zeros(4, 4), torch.arange(4))["R@1"].value
    (1.0, 0.5, 0.25)
    """
    name, ks = "evaluate.class_recall", tuple(ks)
    logits = finite_rows(name, "logits", logits)
    n, classes = logits.shape
    if tuple(labels.shape) != (n,) or labels.dtype != torch.int64:
        _check.fail(name, "labels", f"int64 [{n}]", f"{labels.dtype} {list(labels.shape)}")
    if int(labels.max()) >= classes:
        _check.fail(name, "labels", f"classes below {classes}", int(labels.max()))
    if not ks or min(ks) < 1:
        _check.fail(name, "ks", "positive numbers", ks)
    labels = labels.cpu()
    protocol = f"class-recall/1 n={n} classes={classes}, ties in expectation {context}".strip()
    if bool((labels < 0).any()):
        return {f"R@{k}": Score.unavailable("clips without labels", protocol) for k in ks}
    hits = _hits(logits, labels, ks)
    generator = torch.Generator().manual_seed(0)
    renamed = [torch.randperm(classes, generator=generator)[labels] for _ in range(RENAMINGS)]
    guesses = torch.stack([_hits(logits, guess, ks).mean(dim=1) for guess in renamed])  # [R, len(ks)]
    low, high = np.percentile(guesses.numpy(), [2.5, 97.5], axis=0)
    return {
        f"R@{k}": Score(
            value=float(hits[i].mean()), chance=min(k, classes) / classes, chance_range=(float(low[i]), float(high[i])),
            interval=bootstrap_interval(hits[i].numpy(), labels.numpy()), n=n, protocol=protocol,
        )
        for i, k in enumerate(ks)
    }  # fmt: skip


@torch.no_grad()
def generation_scores(
    network: Network,
    real: Tensor | Iterable[Tensor],
    generated: Tensor | Iterable[Tensor],
    *,
    network_name: str,
    labels: Tensor | None = None,
    k: int = 5,
    splits: int = 10,
    context: str = "",
) -> dict[str, Score]:
    """``FID``, ``IS``, ``precision``, ``recall``, ``density``, ``coverage``, with labels ``R@1``, ``R@5``, ``R@10``.

    Beside the FID the protocol holds that of two halves of the real pictures, which is what perfect pictures would
    about score at half the count; beside the inception score, that of the real pictures. The inception score has
    fewer splits where a split would hold fewer pictures than there are classes.

    Args:
        network: pictures ``[B, 3, S, S]`` to features ``[B, D]`` and logits ``[B, K]``, in evaluation mode, such as
            :class:`avfast.evaluate.FrameClassifier`.
        real, generated: all pictures ``[N, 3, S, S]``, or batches of them, in the range of values the network takes.
        network_name: what it is, for the protocol; numbers of different networks are not comparable.
        labels: int64 ``[N]``, the class each generated picture was made for.
        k: neighbours of :func:`avfast.evaluate.manifold_scores`.
        context: appended to the protocols, for instance split, fingerprint and seed of the noise.

    Raises:
        TypeError, ValueError: fewer than two pictures of a kind, or what the network gives is no pair of finite rows.

    >>> def network(x):  # a real one is trained
    ...     return x.flatten(1), x.mean(dim=(2, 3))
    >>> pictures = torch.rand(20, 3, 4, 4)
    >>> scores = generation_scores(network, pictures, pictures, network_name="pixels")
    >>> round(scores["FID"].value, 6), scores["precision"].value, scores["IS"].chance
    (0.0, 1.0, 1.0)
    """
    features, logits, fingerprint = _seen(network, "real", real)
    made, made_logits, _ = _seen(network, "generated", generated)
    base = f"network={network_name} real={fingerprint} n_real={len(features)} n={len(made)} {context}".strip()
    distance = frechet_distance(FeatureMoments().add(features), FeatureMoments().add(made))
    found, splits_found = _shuffled_inception(made_logits, splits)
    best, _ = _shuffled_inception(logits, splits)
    scores = {
        "FID": Score(distance, n=len(made), protocol=f"fid/1 two halves of the real {_halves(features)} {base}"),
        "IS": Score(
            found.mean, 1.0, n=len(made),
            protocol=f"is/1 splits={splits_found} spread {found.spread:.3f}, the real {best.mean:.3f}; "
            f"chance: pictures the network cannot tell apart {base}",
        ),
        **manifold_scores(features, made, k=k, context=base),
    }  # fmt: skip
    return scores if labels is None else scores | class_recall(made_logits, labels, context=base)


def _seen(network: Network, which: str, pictures: Tensor | Iterable[Tensor]) -> tuple[Tensor, Tensor, str]:
    """Features and logits, float64 on the CPU, and a fingerprint of the pictures."""
    name, features, logits, digest = "evaluate.generation_scores", [], [], hashlib.blake2b(digest_size=4)
    for batch in pictures.split(BATCH) if isinstance(pictures, Tensor) else pictures:
        if batch.dim() != 4 or not len(batch):
            _check.fail(name, which, "pictures [B >= 1, 3, S, S]", list(batch.shape))
        found = network(batch)
        if not isinstance(found, tuple) or len(found) != 2 or len({len(batch), *map(len, found)}) > 1:
            _check.fail(name, "network", "a pair (features [B, D], logits [B, K])", type(found).__name__)
        features.append(finite_rows(name, f"features of {which}", found[0]))
        logits.append(finite_rows(name, f"logits of {which}", found[1]))
        digest.update(batch.detach().cpu().contiguous().view(torch.uint8).numpy())
    if sum(map(len, features)) < 2:
        _check.fail(name, which, "at least 2 pictures", sum(map(len, features)))
    return torch.cat(features), torch.cat(logits), digest.hexdigest()


def _halves(features: Tensor) -> str:
    halves = [FeatureMoments().add(half) for half in features[_shuffle(len(features))].tensor_split(2)]
    return f"{frechet_distance(*halves):.4g}" if min(half.count for half in halves) > 1 else "too few"


def _shuffled_inception(logits: Tensor, splits: int) -> tuple[InceptionScore, int]:
    """Of rows in any order, in splits of no fewer pictures than there are classes; and how many splits."""
    splits = max(1, min(splits, len(logits) // logits.shape[1]))
    return inception_score(logits[_shuffle(len(logits))].softmax(dim=1), splits), splits


def _shuffle(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _hits(logits: Tensor, labels: Tensor, ks: tuple[int, ...]) -> Tensor:
    """``[len(ks), N]`` in [0, 1]."""
    own = logits.gather(1, labels[:, None])
    above, tied = (logits > own).sum(dim=1), (logits == own).sum(dim=1)
    return torch.stack([((k - above) / tied).clamp(0, 1) for k in ks]).double()
