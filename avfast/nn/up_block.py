"""The block that BigGAN's generator is made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .conditional_batch_norm import ConditionalBatchNorm2d
from .spectral_norm import SNConv2d


class UpBlock(nn.Module):
    """Residual block that doubles the sides of a map: twice conditional batch norm, ReLU and 3 x 3 convolution.

    Source: Brock et al. 2019, BigGAN, appendix B, figure 15b.

    >>> UpBlock(8, 4, condition=5)(torch.randn(2, 8, 4, 4), torch.randn(2, 5)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, *, condition: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm2d(in_channels, condition=condition)
        self.norm2 = ConditionalBatchNorm2d(out_channels, condition=condition)
        self.conv1 = SNConv2d(in_channels, out_channels, 3)
        self.conv2 = SNConv2d(out_channels, out_channels, 3)
        self.shortcut = SNConv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(doubled(F.relu(self.norm1(x, condition))))
        h = self.conv2(F.relu(self.norm2(h, condition)))
        # A 1 x 1 convolution and the doubling commute: first the one, on a quarter of the cells.
        return h + doubled(self.shortcut(x))


def doubled(x: Tensor) -> Tensor:
    """Every cell four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
