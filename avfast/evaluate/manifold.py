"""Precision, recall, density and coverage: whether generated features lie where the real ones do, and the reverse."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from avfast.evaluate.scores import Score, bootstrap_interval
from avfast.ops import _check

EXACT = "donot_use_mm_for_euclid_dist"
"""Distances as roots of summed squared differences: 0 between equal rows, which the matrix product does not give."""


class ManifoldScores(NamedTuple):
    """One number per picture, float64; the scores are their means.

    Attributes:
        precision: ``[M]``, 1 where the generated picture lies in the ball of a real one.
        recall: ``[N]``, 1 where the real picture lies in the ball of a generated one.
        density: ``[M]``, balls of real pictures around the generated one, over k; may exceed 1.
        coverage: ``[N]``, 1 where the ball of the real picture holds a generated one.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


@torch.no_grad()
def prdc(real: Tensor, generated: Tensor, k: int = 5, *, chunk: int = 256) -> ManifoldScores:
    """Membership of each picture in the balls of the other kind; a ball reaches to its centre's k-th nearest neighbour.

    Precision and recall are those of Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing
    generative models", section 2; density and coverage those of Naeem et al. 2020, "Reliable fidelity and diversity
    metrics for generative models", section 3. Balls are closed, and open for the density, so that a set of distinct
    rows has 1 of all four with itself.

    Args:
        real, generated: features float ``[N, D]`` and ``[M, D]``; N and M above k.
        k: which neighbour.
        chunk: rows at a time. Memory is ``chunk * max(N, M)`` float64 distances, time ``(N + M)^2 D``.

    Raises:
        TypeError, ValueError: not floating ``[N, D]`` of one D, values that are not finite, or too few rows for k.

    >>> real = torch.tensor([[0.0], [1.0], [2.0]])
    >>> [score.mean().item() for score in prdc(real, real, k=1)]
    [1.0, 1.0, 1.0, 1.0]
    >>> [score.mean().item() for score in prdc(real, real + 9, k=1)]
    [0.0, 0.0, 0.0, 0.0]
    """
    name = "evaluate.prdc"
    for argument, x in (("real", real), ("generated", generated)):
        _check.floating(name, argument, x)
        if x.dim() != 2 or x.shape[1] != real.shape[-1]:
            _check.fail(name, argument, f"rows [N, {real.shape[-1]}]", list(x.shape))
        if not 1 <= k < len(x):
            _check.fail(name, "k", f"1 or more, and below the {len(x)} rows of {argument}", k)
        if not bool(x.isfinite().all()):
            _check.fail(name, argument, "finite values", "NaN or infinity")
    if chunk < 1:
        _check.fail(name, "chunk", "a positive number", chunk)
    real, generated = real.detach().double(), generated.detach().double().to(real.device)
    reach, made_reach = _reach(real, k, chunk), _reach(generated, k, chunk)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool, device=real.device)
    precise, dense = [], []
    for rows, radius in zip(generated.split(chunk), made_reach.split(chunk), strict=True):
        distance = torch.cdist(rows, real, compute_mode=EXACT)  # [chunk, N]
        inside = distance <= reach
        precise.append(inside.any(dim=1))
        dense.append((distance < reach).sum(dim=1).double() / k)
        covered |= inside.any(dim=0)
        recalled |= (distance <= radius[:, None]).any(dim=0)
    return ManifoldScores(*(x.double().cpu() for x in (torch.cat(precise), recalled, torch.cat(dense), covered)))


def manifold_scores(real: Tensor, generated: Tensor, *, k: int = 5, context: str = "") -> dict[str, Score]:
    """Means of :func:`prdc` with bootstrap intervals over pictures: ``precision``, ``recall``, ``density``,
    ``coverage``. Not available where a set has no more than k pictures. There is no level of chance; two sets of one
    distribution have a density of 1 on average, and the others below 1.

    >>> real = torch.arange(8.0)[:, None]
    >>> manifold_scores(real, real)["coverage"].text()
    '1.000 [1.000, 1.000]'
    """
    protocol = f"prdc/1 k={k} float64 features={real.shape[-1]} n_real={len(real)} n={len(generated)} {context}".strip()
    if min(len(real), len(generated)) <= k:
        return {name: Score.unavailable(f"no more than {k} pictures", protocol) for name in ManifoldScores._fields}
    return {
        name: Score(float(values.mean()), interval=bootstrap_interval(values.numpy()), n=len(values), protocol=protocol)
        for name, values in prdc(real, generated, k)._asdict().items()
    }


def _reach(rows: Tensor, k: int, chunk: int) -> Tensor:
    """Distance of each row ``[N, D]`` to its k-th nearest other one, ``[N]``."""
    found = []
    for start in range(0, len(rows), chunk):
        distance = torch.cdist(rows[start : start + chunk], rows, compute_mode=EXACT)
        # A row is not its own neighbour; an equal row is.
        distance[torch.arange(len(distance)), torch.arange(start, start + len(distance))] = torch.inf
        found.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(found)
