"""How well predicted maps show where something is, and how well one map for everything would."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

THRESHOLDS = 64


class MapAgreement(NamedTuple):
    """Of each map with its truth, ``[M]`` in [0, 1]: intersection over union of what is inside (1 where both are
    empty), and the share of pixels that agree."""

    iou: Tensor
    accuracy: Tensor


def map_agreement(predicted: Tensor, truth: Tensor) -> MapAgreement:
    """Agreement of masks (bool, or integers that are 0 outside), ``[M, H, W]`` each; one of them may be ``[H, W]``.

    >>> truth = torch.tensor([[[True, True], [False, False]]])
    >>> found = map_agreement(torch.tensor([[[True, False], [True, False]]]), truth)
    >>> round(found.iou.item(), 3), found.accuracy.item()
    (0.333, 0.5)
    """
    predicted, truth = torch.broadcast_tensors(predicted != 0, truth != 0)
    both = (predicted & truth).sum(dim=(-2, -1))
    either = (predicted | truth).sum(dim=(-2, -1))
    iou = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    return MapAgreement(iou, (predicted == truth).float().mean(dim=(-2, -1)))


class FixedPrior(NamedTuple):
    """What can be said of boxes without looking at a picture.

    Attributes:
        rate: float ``[S, S]``, how often each pixel lies inside.
        level: 0-d, the t at which rate > t has the largest mean IoU with the boxes; usually below one half.
        mask: bool ``[S, S]``, rate > level.
    """

    rate: Tensor
    level: Tensor
    mask: Tensor


def fixed_prior(masks: Tensor) -> FixedPrior:
    """The best answer that is the same for every box, from a sample of maps ``[N, S, S]``, 0 outside.

    >>> masks = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [0, 0]]])
    >>> prior = fixed_prior(masks)
    >>> prior.rate.tolist(), prior.level.item(), prior.mask.tolist()
    ([[1.0, 0.5], [0.0, 0.0]], 0.0, [[True, True], [False, False]])
    """
    flat = (masks != 0).flatten(1).float()
    rate = flat.mean(dim=0)
    thresholds = torch.linspace(0, 1, THRESHOLDS + 1, device=rate.device)[:-1] * rate.max()
    maps = (rate > thresholds[:, None]).float()
    both = flat @ maps.mT
    either = flat.sum(dim=1, keepdim=True) + maps.sum(dim=1) - both
    best = (both / either.clamp(min=1)).mean(dim=0).argmax()
    return FixedPrior(rate.view(masks.shape[1:]), thresholds[best], maps[best].view(masks.shape[1:]) > 0)
