"""Activation statistics per channel in one read."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import batch_norm as reference
from . import _check, _registry


class ChannelStats(NamedTuple):
    """Statistics of one or more activations, per channel; ``a + b`` is the statistics of both together.

    Attributes:
        mean, var: float64 ``[C]``; the variance is biased (divided by the count). NaN where the count is 0.
        zeros: int64 ``[C]``, elements with ``|x| <= dead_threshold``.
        dead: int64 ``[C]``, samples of which every element is zero in that sense.
        count: elements per channel (N times the positions).
        samples: samples (N).

    >>> (channel_stats(torch.zeros(2, 1)) + channel_stats(torch.ones(2, 1))).mean.tolist()
    [0.5]
    """

    mean: Tensor
    var: Tensor
    zeros: Tensor
    dead: Tensor
    count: int
    samples: int

    @property
    def zero_fraction(self) -> Tensor:
        """Float64 ``[C]``, share of elements that are zero; 0 where there are none."""
        return self.zeros.double() / max(self.count, 1)

    @property
    def dead_fraction(self) -> Tensor:
        """Float64 ``[C]``, share of samples that are dead; 0 where there are none."""
        return self.dead.double() / max(self.samples, 1)

    def __add__(self, other: ChannelStats) -> ChannelStats:  # type: ignore[override]
        if not isinstance(other, ChannelStats):
            return NotImplemented
        if other.mean.shape != self.mean.shape:
            _check.fail("ChannelStats.__add__", "other", f"{len(self.mean)} channels", len(other.mean))
        if not other.count or not self.count:
            return self if self.count else other
        # Chan's formula, with the weights as shares so that large counts lose nothing.
        count = self.count + other.count
        share, gap = other.count / count, other.mean - self.mean
        var = self.var + (other.var - self.var) * share + gap.square() * (share * (1 - share))
        return ChannelStats(
            self.mean + gap * share,
            var,
            self.zeros + other.zeros,
            self.dead + other.dead,
            count,
            self.samples + other.samples,
        )


def channel_stats(x: Tensor, *, dead_threshold: float = 0.0) -> ChannelStats:
    r"""Mean, variance, zero and dead-sample fractions of every channel of an activation.

    .. math:: \mu_c = \frac1{NS} \sum_{n,s} x_{ncs}, \quad \sigma^2_c = \frac1{NS} \sum_{n,s} (x_{ncs} - \mu_c)^2,
              \quad \mathrm{dead}_c = \frac1N \sum_n \prod_s [\,|x_{ncs}| \le \theta\,]

    One read of ``x``; float32 lanes combined in float64; the same bits whatever the number of threads. No gradient
    flows through, and nothing waits for a GPU. Statistics of a whole data set are the sum of those of its batches.
    Source of the dead criterion: Wang et al. 2023, "Revisiting Pre-training in Audio-Visual Learning", section 3.

    Args:
        x: activation ``[N, C, *]``, contiguous or channels-last without a copy; float32, float64, float16, bfloat16.
        dead_threshold: number >= 0; an element at most this large counts as zero. After a ReLU, 0 is the right one.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: fewer than two dimensions, or a threshold that is negative or not finite.

    >>> x = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[5.0, 7.0], [0.0, 2.0]]])  # [N=2, C=2, W=2]
    >>> s = channel_stats(x)
    >>> s.mean.tolist(), s.zero_fraction.tolist(), s.dead_fraction.tolist()
    ([4.0, 0.5], [0.0, 0.75], [0.0, 0.5])
    """
    if not isinstance(x, Tensor) or x.dtype not in _check.FLOATS or x.dim() < 2 or x.layout is not torch.strided:
        _check.floating("channel_stats", "x", x)
        _check.fail("channel_stats", "x", "shape [N, C, *]", tuple(x.shape))
    if not 0 <= dead_threshold < math.inf:
        _check.number("channel_stats", "dead_threshold", dead_threshold, at_least=0.0)
    samples, channels = x.shape[0], x.shape[1]
    count = x.numel() // channels if channels else 0
    return ChannelStats(*_forward(x.detach() if x.requires_grad else x, dead_threshold), count, samples)


def _fake(x: Tensor, dead_threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c = x.shape[1]
    real, integer = {"dtype": torch.float64}, {"dtype": torch.int64}
    return x.new_empty(c, **real), x.new_empty(c, **real), x.new_empty(c, **integer), x.new_empty(c, **integer)


_forward = _registry.define(
    "channel_stats_fwd(Tensor x, float dead_threshold) -> (Tensor mean, Tensor var, Tensor zeros, Tensor dead)",
    op="channel_stats",
    reference=reference.channel_stats,
    fake=_fake,
    triton="avfast.kernels.batch_norm.channel_stats_triton:channel_stats_triton",
)
