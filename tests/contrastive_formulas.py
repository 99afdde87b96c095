"""The contrastive losses as their papers write them, in a few lines of plain PyTorch each: what the tests compare with.

Every function takes its tensors in one type and computes in it; in float64 it is the truth, in another type what people
run. Sums only, no avfast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(x: Tensor, normalize: bool = True, dim: int = -1) -> Tensor:
    return F.normalize(x, dim=dim) if normalize else x


def queue_info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature=0.2, normalize: bool = True) -> Tensor:
    q, k = unit(q, normalize), unit(k, normalize)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.to(q.dtype).T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


def dense_contrastive(q: Tensor, k: Tensor, queue: Tensor, match: Tensor, temperature=0.2) -> Tensor:
    """Maps ``[B, D, S]``; a negative match takes a position out."""
    q, k = unit(q, dim=1), unit(k, dim=1)
    keys = k.gather(2, match.clamp(min=0)[:, None].expand(-1, k.shape[1], -1))
    rows, keys = (x.transpose(1, 2).flatten(0, 1)[match.flatten() >= 0] for x in (q, keys))
    logits = torch.cat([(rows * keys).sum(1, keepdim=True), rows @ queue.to(q.dtype).T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.int64))


def info_nce(a: Tensor, b: Tensor, temperature=0.1, distance: str = "cosine", symmetric: bool = True) -> Tensor:
    a, b = unit(a), unit(b)
    if distance == "cosine":
        scores = a @ b.T
    else:
        squares = (a[:, None] - b[None]).square().sum(2)
        scores = -squares.clamp(min=1e-12).sqrt()
    own = torch.arange(len(a))
    one_way = F.cross_entropy(scores / temperature, own)
    return (one_way + F.cross_entropy(scores.T / temperature, own)) / 2 if symmetric else one_way


def without_itself(z: Tensor, temperature) -> Tensor:
    return (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)


def nt_xent(a: Tensor, b: Tensor, temperature=0.1, normalize: bool = True) -> Tensor:
    z = unit(torch.cat([a, b]), normalize)
    return F.cross_entropy(without_itself(z, temperature), torch.arange(len(z)).roll(len(a)))


def sup_con(z: Tensor, labels: Tensor, temperature=0.1, normalize: bool = True) -> Tensor:
    logits = without_itself(unit(z, normalize), temperature)
    positive = (labels[:, None] == labels) & ~torch.eye(len(z), dtype=torch.bool)
    count = positive.sum(1)
    # A hole times a zero would be NaN, so positives are picked, not weighed.
    terms = logits.logsumexp(1) - logits.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return terms[count > 0].mean()


def sigmoid_contrastive(a: Tensor, b: Tensor, scale=10.0, bias=-10.0, normalize: bool = True) -> Tensor:
    a, b = unit(a, normalize), unit(b, normalize)
    signs = 2 * torch.eye(len(a), dtype=a.dtype) - 1
    return -F.logsigmoid(signs * (a @ b.T * scale + bias)).sum(1).mean()
