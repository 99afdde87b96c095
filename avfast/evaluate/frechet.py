"""Frechet distance of two sets of features, from moments that are found as the rows arrive."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avfast.ops import _check


class FeatureMoments:
    """Mean and covariance of feature rows that arrive in parts, in float64 on the CPU.

    Parts are joined by the pairwise update of Chan, Golub and LeVeque 1979, which does not subtract large squares from
    each other as summed products would. Memory is ``[D, D]``, however many rows there are.

    Attributes:
        count: rows so far.
        mean: ``[D]``.

    >>> moments = FeatureMoments().add(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    >>> moments.mean.tolist(), moments.covariance.tolist()
    ([1.0, 2.0], [[2.0, 4.0], [4.0, 8.0]])
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, features: Tensor) -> FeatureMoments:
        """Take in rows ``[B, D]``; returns itself.

        Raises:
            TypeError, ValueError: not a floating ``[B >= 1, D]``, another D than before, or values that are not finite.
        """
        rows = finite_rows("evaluate.FeatureMoments.add", "features", features)
        mean = rows.mean(dim=0)
        centred = rows - mean
        if not self.count:
            self.count, self.mean, self._scatter = len(rows), mean, centred.mT @ centred
            return self
        centred = torch.cat([centred, self._gap(mean, len(rows))[None]])
        self._scatter.addmm_(centred.mT, centred)  # in place: [D, D] is large beside a batch
        self._move(mean, len(rows))
        return self

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """Take in the rows of another, such as another process's; returns itself."""
        if not self.count:
            self.count, self.mean, self._scatter = other.count, other.mean, other._scatter.clone()
        elif other.count:
            gap = self._gap(other.mean, other.count)
            self._scatter.add_(other._scatter).addr_(gap, gap)
            self._move(other.mean, other.count)
        return self

    @property
    def covariance(self) -> Tensor:
        """``[D, D]``, divided by ``count - 1``; needs two rows."""
        if self.count < 2:
            _check.fail("evaluate.FeatureMoments.covariance", "features", "at least 2 rows", self.count)
        return self._scatter / (self.count - 1)

    def _gap(self, mean: Tensor, count: int) -> Tensor:
        """The row whose outer product is what the distance of two means adds to the scatter."""
        if mean.shape != self.mean.shape:
            _check.fail("evaluate.FeatureMoments", "features", f"D = {len(self.mean)} as before", len(mean))
        return (mean - self.mean) * math.sqrt(self.count * count / (self.count + count))

    def _move(self, mean: Tensor, count: int) -> None:
        self.mean = self.mean.lerp(mean, count / (self.count + count))
        self.count += count


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    r"""Frechet distance of two Gaussians with these moments (Heusel et al. 2017, section 3).

    .. math:: |m_a - m_b|^2 + \mathrm{tr}(C_a) + \mathrm{tr}(C_b) - 2\,\mathrm{tr}\,(C_a C_b)^{1/2}

    With symmetric factors :math:`C = R R^T` from an eigendecomposition the last trace is the sum of the singular values
    of :math:`R_a^T R_b`. No root is taken of an eigenvalue that is rounding noise, so covariances of fewer rows than
    dimensions are as exact as others. The value is biased upwards by few rows: compare sets of equal size.

    >>> rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 3.0]])
    >>> round(frechet_distance(FeatureMoments().add(rows), FeatureMoments().add(rows + 2.0)), 6)
    8.0
    """
    if a.mean.shape != b.mean.shape:
        _check.fail("evaluate.frechet_distance", "b", f"D = {len(a.mean)} like a", len(b.mean))
    left, right = _factor(a.covariance), _factor(b.covariance)
    common = torch.linalg.svdvals(left.mT @ right).sum()
    distance = (a.mean - b.mean).square().sum() + left.square().sum() + right.square().sum() - 2 * common
    return max(distance.item(), 0.0)


def finite_rows(name: str, argument: str, x: Tensor) -> Tensor:
    """Finite rows ``[N >= 1, D >= 1]`` as float64 on the CPU."""
    _check.floating(name, argument, x)
    if x.dim() != 2 or not x.numel():
        _check.fail(name, argument, "rows [N >= 1, D >= 1]", list(x.shape))
    rows = x.detach().to("cpu", torch.float64)
    if not bool(rows.isfinite().all()):
        _check.fail(name, argument, "finite values", "NaN or infinity")
    return rows


def _factor(covariance: Tensor) -> Tensor:
    """R ``[D, r]`` with R R^T the covariance, of rank r."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    kept = values > noise
    return vectors[:, kept] * values[kept].sqrt()
