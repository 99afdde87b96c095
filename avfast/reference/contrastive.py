"""Contrastive losses in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this distance the square root has no useful slope; its gradient is defined as zero there.
MIN_DISTANCE = 1e-6


def similarity_logits(z_a: Tensor, z_b: Tensor, distance: str, temperature: float | Tensor) -> Tensor:
    """Logits [N, L]: cosine similarity or minus the Euclidean distance, over the temperature.

    ``l2`` uses ``|u - v|^2 = |u|^2 + |v|^2 - 2 u.v`` rather than ``cdist``: one product, and no NaN slope at zero.
    """
    products = z_a @ z_b.T  # [N, L]
    if distance == "cosine":
        return products / temperature
    squares = z_a.square().sum(1)[:, None] + z_b.square().sum(1)[None, :] - 2 * products
    return -squares.clamp_min(MIN_DISTANCE**2).sqrt() / temperature


def info_nce(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float | Tensor,
    *,
    distance: str,
    normalize: bool,
    symmetric: bool,
    offset: int = 0,
    all_a: Tensor | None = None,
    all_b: Tensor | None = None,
) -> Tensor:
    """Loss per row [N]. Row i's positive in ``all_b`` (and column's in ``all_a``) is ``offset + i``.

    ``all_a`` and ``all_b`` are the gathered features of every process; left out, the batch is its own world.
    """
    if normalize:
        z_a, z_b = F.normalize(z_a, dim=1), F.normalize(z_b, dim=1)
        all_a = None if all_a is None else F.normalize(all_a, dim=1)
        all_b = None if all_b is None else F.normalize(all_b, dim=1)
    all_a, all_b = z_a if all_a is None else all_a, z_b if all_b is None else all_b
    target = torch.arange(offset, offset + len(z_a), device=z_a.device)
    a_to_b = F.cross_entropy(similarity_logits(z_a, all_b, distance, temperature), target, reduction="none")
    if not symmetric:
        return a_to_b
    b_to_a = F.cross_entropy(similarity_logits(z_b, all_a, distance, temperature), target, reduction="none")
    return (a_to_b + b_to_a) / 2
