"""Self-attention over the cells of a feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spectral_norm import SNConv2d


class MapAttention(nn.Module):
    r"""Every cell of a map reads from all others: :math:`y = x + \gamma\, W_o\, V \operatorname{softmax}(K^\top Q)`.

    Queries and keys have C / 8 channels, values C / 2; keys and values are max-pooled 2 x 2. No scale in the softmax;
    :math:`\gamma` starts at 0. Source: Zhang et al. 2019, SAGAN, section 3, with the pooling of Brock et al. 2019,
    BigGAN.

    Args:
        channels: C.

    >>> attention = MapAttention(16)
    >>> x = torch.randn(2, 16, 8, 8)
    >>> torch.equal(attention(x), x)
    True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, half = max(channels // 8, 1), max(channels // 2, 1)
        self.query = SNConv2d(channels, narrow, 1, bias=False)
        self.key = SNConv2d(channels, narrow, 1, bias=False)
        self.value = SNConv2d(channels, half, 1, bias=False)
        self.out = SNConv2d(half, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same; H and W are at least 2."""
        query = self.query(x).flatten(2).mT  # [B, H * W, C / 8]
        key = F.max_pool2d(self.key(x), 2).flatten(2).mT  # [B, H * W / 4, C / 8]
        value = F.max_pool2d(self.value(x), 2).flatten(2).mT
        read = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.addcmul(x, self.gamma, self.out(read.mT.unflatten(2, x.shape[2:])))
