"""Collapse indicators: can the embedding still tell clips apart?"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize


@torch.no_grad()
def collapse_indicators(z: Tensor) -> dict[str, float]:
    """Three views of one batch of embeddings ``[B, D]``, B >= 2.

    * ``std``: standard deviation of the unit embeddings per dimension, averaged and multiplied by
        ``sqrt(D)``;
      1 for directions spread evenly over the sphere, 0 at complete collapse (SimSiam, section 4.1).
    * ``effective_rank``: ``exp(entropy)`` of the normalised singular values of the centred embeddings
      (Roy and Vetterli 2007); at most ``min(B - 1, D)``.
    * ``mean_cosine``: mean cosine between different clips; 1 at complete collapse.

    >>> collapse_indicators(torch.ones(4, 8))
    {'std': 0.0, 'effective_rank': 1.0, 'mean_cosine': 1.0}
    """
    if z.ndim != 2 or z.shape[0] < 2:
        raise ValueError(f"avfast.evaluate.collapse_indicators: z: expected [B >= 2, D], got {list(z.shape)}")
    unit = normalize(z.detach().double().cpu(), dim=1)
    count, dim = unit.shape
    std = unit.std(dim=0, unbiased=False).mean().item() * math.sqrt(dim)
    values = torch.linalg.svdvals(unit - unit.mean(dim=0))
    share = values / values.sum().clamp(min=1e-12)
    # Centring identical rows leaves rounding noise only, whose spectrum means nothing.
    rank = math.exp(-torch.xlogy(share, share).sum().item()) if values.sum() > 1e-6 else 1.0
    cosine = unit @ unit.T
    mean_cosine = ((cosine.sum() - count) / (count * (count - 1))).item()
    return {"std": round(std, 6), "effective_rank": round(rank, 4), "mean_cosine": round(mean_cosine, 6)}


def collapse_warning(indicators: dict[str, float]) -> str | None:
    """A sentence when the numbers look like collapse, else None."""
    if indicators["mean_cosine"] > 0.95:
        return f"embeddings nearly identical (mean cosine {indicators['mean_cosine']:.3f})"
    if indicators["effective_rank"] < 2.0:
        return f"embeddings nearly one-dimensional (effective rank {indicators['effective_rank']:.2f})"
    return None
