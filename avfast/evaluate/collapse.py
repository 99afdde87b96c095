"""Collapse indicators: can the embedding still tell clips apart?"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

MOST_COSINE, LEAST_STD, LEAST_RANK = 0.95, 0.05, 2.0
"""Beyond these a batch of embeddings is called collapsed. The least std catches embeddings of zeros, whose cosines are
zero as well."""


@torch.no_grad()
def collapse_indicators(z: Tensor) -> dict[str, float]:
    """Three views of one batch of embeddings ``[B, D]``, B >= 2.

    * ``std``: standard deviation of the unit embeddings per dimension, averaged and multiplied by
        ``sqrt(D)``;
      1 for directions spread evenly over the sphere, 0 at complete collapse (SimSiam, section 4.1).
    * ``effective_rank``: ``exp(entropy)`` of the normalised singular values of the centred embeddings
      (Roy and Vetterli 2007); at most ``min(B - 1, D)``.
    * ``mean_cosine``: mean cosine between different clips; 1 at complete collapse.

    All three are NaN where an embedding is not finite. Embeddings of zeros have std 0, rank 1 and cosine 0.

    >>> collapse_indicators(torch.ones(4, 8))
    {'std': 0.0, 'effective_rank': 1.0, 'mean_cosine': 1.0}
    """
    if z.ndim != 2 or z.shape[0] < 2:
        raise ValueError(f"avfast.evaluate.collapse_indicators: z: expected [B >= 2, D], got {list(z.shape)}")
    z = z.detach().double().cpu()
    if not z.isfinite().all():  # no spectrum to speak of
        return dict.fromkeys(("std", "effective_rank", "mean_cosine"), math.nan)
    unit = normalize(z, dim=1)
    count, dim = unit.shape
    std = unit.std(dim=0, unbiased=False).mean().item() * math.sqrt(dim)
    values = torch.linalg.svdvals(unit - unit.mean(dim=0))
    share = values / values.sum().clamp(min=1e-12)
    # Centring identical rows leaves rounding noise only, whose spectrum means nothing.
    rank = math.exp(-torch.xlogy(share, share).sum().item()) if values.sum() > 1e-6 else 1.0
    cosine = unit @ unit.T
    mean_cosine = ((cosine.sum() - cosine.trace()) / (count * (count - 1))).item()
    return {"std": round(std, 6), "effective_rank": round(rank, 4), "mean_cosine": round(mean_cosine, 6)}


def collapse_warning(indicators: dict[str, float]) -> str | None:
    """A sentence when the numbers look like collapse, else None.

    >>> collapse_warning(collapse_indicators(torch.ones(4, 8)))
    'embeddings nearly identical (mean cosine 1.000, std 0.00)'
    """
    std, rank, cosine = (indicators[name] for name in ("std", "effective_rank", "mean_cosine"))
    if not all(map(math.isfinite, (std, rank, cosine))):
        return "embeddings not finite"
    if cosine > MOST_COSINE or std < LEAST_STD:
        return f"embeddings nearly identical (mean cosine {cosine:.3f}, std {std:.2f})"
    if rank < LEAST_RANK:
        return f"embeddings nearly one-dimensional (effective rank {rank:.2f})"
    return None
