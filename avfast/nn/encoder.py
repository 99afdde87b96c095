"""Any network behind one interface."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class Encoder(nn.Module):
    """A network from pictures to feature maps.

    Args:
        backbone: a module that returns a map ``[B, C, h, w]``, a vector ``[B, C]``, or an object with
            ``last_hidden_state`` (the convention of `transformers`).
        channels: C.
        pretrained: True when the weights were read from somewhere, so that plans can say so.

    >>> import torch
    >>> encoder = Encoder(nn.Conv2d(3, 8, 3), channels=8)
    >>> encoder.pooled(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 8])
    """

    class_tokens: ClassVar[int] = 0
    """Tokens before those of the map in :meth:`tokens`."""

    def __init__(self, backbone: nn.Module, channels: int, *, pretrained: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = channels
        self.pretrained = pretrained

    def forward(self, x: Tensor) -> Tensor:
        """Feature map ``[B, channels, h, w]`` (or ``[B, channels]`` if the backbone pools itself)."""
        out = self.backbone(x)
        out = getattr(out, "last_hidden_state", out)
        if out.ndim not in (2, 4) or out.shape[1] != self.channels:
            raise ValueError(
                f"avfast.encoders.Encoder: backbone: expected an output [B, {self.channels}, h, w] "
                f"or [B, {self.channels}], got {list(out.shape)}"
            )
        return out

    def tokens(self, x: Tensor) -> Tensor:
        """Cells of the map row by row, ``[B, class_tokens + h * w, channels]``."""
        return self(x).flatten(2).mT

    def pooled(self, x: Tensor) -> Tensor:
        """Feature map averaged over space: ``[B, channels]``."""
        out = self(x)
        return out.mean(dim=(2, 3)) if out.ndim == 4 else out
