"""Pictures from bytes to network input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avfast.nn.pictures import IMAGENET_MEAN, IMAGENET_STD


class NormalizeFrames(nn.Module):
    """uint8 pictures in [0, 255] to ``(x / 255 - mean) / std``, in one multiply and one add.

    Runs where its buffers are, so that bytes and not floats travel to the device.

    Args:
        mean, std: per channel, for pictures in [0, 1]; the defaults are those of ImageNet models.
        dtype: of the output.

    >>> NormalizeFrames()(torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 4, 3, 8, 8])
    """

    def __init__(
        self,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        mean_, std_ = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std_)).to(dtype)[:, None, None], persistent=False)
        self.register_buffer("shift", (-mean_ / std_).to(dtype)[:, None, None], persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """``[..., C, H, W]`` uint8 to floating point of the same shape.

        Raises:
            TypeError: the pictures are not uint8.
            ValueError: they have another number of channels.
        """
        if frames.dtype != torch.uint8:
            raise TypeError(f"avfast.data.NormalizeFrames: frames: expected torch.uint8, got {frames.dtype}")
        if frames.dim() < 3 or frames.shape[-3] != len(self.scale):
            raise ValueError(
                f"avfast.data.NormalizeFrames: frames: expected [..., {len(self.scale)}, H, W], "
                f"got {tuple(frames.shape)}"
            )
        return torch.addcmul(self.shift, frames.to(self.scale.dtype), self.scale)
