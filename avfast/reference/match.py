"""Correspondence between two feature maps of an image, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

# Norms below this are taken for it, as in torch.nn.functional.normalize.
MIN_NORM = 1e-12


def dense_match(feat_q: Tensor, feat_k: Tensor) -> tuple[Tensor, Tensor]:
    """For each position of feat_q [B, C, S], the position of feat_k [B, C, L] of the largest cosine, and that cosine.

    The argmax does not depend on the length of a query, so it is taken before queries are normalised.
    """
    wide = torch.float64 if feat_q.dtype == torch.float64 else torch.float32
    q, k = feat_q.to(wide), feat_k.to(wide)
    scores = q.transpose(1, 2) @ k / k.norm(dim=1, keepdim=True).clamp_min(MIN_NORM)  # [B, S, L]
    index = scores.argmax(2)
    best = scores.gather(2, index[:, :, None]).squeeze(2)
    return index, best / q.norm(dim=1).clamp_min(MIN_NORM)
