"""Batch norm whose gain and bias are read from a condition."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops._distributed import world
from ..ops._synchronised import synchronised_statistics
from ..reference.batch_norm import per_channel
from .spectral_norm import SNLinear


class ConditionalBatchNorm2d(nn.Module):
    r"""Batch norm with :math:`\gamma = 1 + W_\gamma c` and :math:`\beta = W_\beta c` of each sample's condition c.

    Both linear layers have spectral norm one and no bias. In eval, stored statistics and gain become one scale and one
    shift, a single pass over the map. Source: Brock et al. 2019, BigGAN, appendix B.

    Args:
        channels: C of the map.
        condition: width of c.

    Attributes:
        sync: whether training uses the statistics of all processes of ``process_group``;
            :func:`avfast.nn.synchronise_batch_norms` sets it.

    >>> norm = ConditionalBatchNorm2d(8, condition=5)
    >>> norm(torch.randn(2, 8, 4, 4), torch.randn(2, 5)).shape
    torch.Size([2, 8, 4, 4])
    """

    momentum, eps = 0.1, 1e-5

    def __init__(self, channels: int, *, condition: int) -> None:
        super().__init__()
        self.sync = False
        self.process_group: dist.ProcessGroup | None = None
        self.gain = SNLinear(condition, channels, bias=False)
        self.bias = SNLinear(condition, channels, bias=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``[B, C, H, W]`` and ``[B, D]`` to ``[B, C, H, W]``."""
        gain, bias = 1 + self.gain(condition), self.bias(condition)
        if self.training and self.sync and world(self.process_group)[1] > 1:
            x = self._synchronised(x)
        elif self.training:
            x = F.batch_norm(x, self.running_mean, self.running_var, None, None, True, self.momentum, self.eps)
        else:
            gain = gain * torch.rsqrt(self.running_var + self.eps)
            bias = bias - gain * self.running_mean
        return torch.addcmul(bias[:, :, None, None], x, gain[:, :, None, None])

    def _synchronised(self, x: Tensor) -> Tensor:
        centred, mean, var, count = synchronised_statistics(x, self.process_group)
        with torch.no_grad():
            unbiased = var * (count / max(1, count - 1))
            for running, found in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(found.to(running.dtype), self.momentum)
        return (centred * per_channel((var + self.eps).rsqrt(), x)).to(x.dtype)
