"""The two scales that pictures have between networks: ImageNet statistics for encoders, [-1, 1] for generators."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_signed(pictures: Tensor) -> Tensor:
    """Pictures ``[*, 3, H, W]`` normalised with the ImageNet statistics, to [-1, 1].

    >>> to_signed(from_signed(torch.full((3, 1, 1), 0.5))).mean().round(decimals=5).item()
    0.5
    """
    mean, std = _statistics(pictures)
    return torch.addcmul(2 * mean - 1, pictures, 2 * std).clamp(-1, 1)


def from_signed(pictures: Tensor) -> Tensor:
    """Pictures ``[*, 3, H, W]`` in [-1, 1], to what an encoder reads: the inverse of :func:`to_signed`."""
    mean, std = _statistics(pictures)
    return ((pictures + 1) / 2 - mean) / std


def _statistics(like: Tensor) -> tuple[Tensor, Tensor]:
    made = (torch.tensor(values, dtype=like.dtype, device=like.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    mean, std = (values.view(3, 1, 1) for values in made)
    return mean, std
