"""InfoNCE at every position of a map, against the matching position of another view: the dense loss of DenseCL."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _check, queue_info_nce
from .dense_match import DenseMatch, dense_match
from .queue_info_nce import QueueLoss, check_queue


class Correspondence(NamedTuple):
    """Which position of the key view each position of the query view sees.

    Attributes:
        index: int64 ``[B, S]``, positions of the key map.
        valid: bool ``[B, S]``; where false the position has no counterpart and takes no part in the loss.

    >>> Correspondence(torch.tensor([[0, 2]]), torch.tensor([[True, False]])).index.shape
    torch.Size([1, 2])
    """

    index: Tensor
    valid: Tensor


def dense_contrastive(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    match: Tensor | Correspondence | DenseMatch | str,
    *,
    feat_q: Tensor | None = None,
    feat_k: Tensor | None = None,
    temperature: float = 0.2,
    normalize: bool = True,
    reduction: str = "mean",
    return_parts: bool = False,
) -> Tensor | QueueLoss:
    r"""Pixel-level contrastive loss: every query position against its matching key position and K negatives.

    .. math:: \ell_{bs} = -\log \frac{\exp(q_{bs} \cdot k_{b,m(s)} / \tau)}
              {\exp(q_{bs} \cdot k_{b,m(s)} / \tau) + \sum_j \exp(q_{bs} \cdot n_j / \tau)}

    Positives are fetched by index inside the kernel; neither they nor the logits are gathered in memory. Source:
    Wang et al. 2021, DenseCL, sections 3.3 (loss) and 3.4 (correspondence).

    Args:
        q: queries ``[B, D, *S]`` as the head gives them, any float dtype and layout.
        k: keys ``[B, D, *S']``, of the same dtype.
        queue: negatives ``[K, D]``, rows of unit length; see :func:`queue_info_nce`.
        match: int64 ``[B, S]`` (or ``[B, *S]``) positions in the flattened key map, negative where a query has no
            counterpart; or a :class:`Correspondence` (:func:`avfast.geometric_match` of the crops,
            :func:`avfast.random_match`) or what :func:`dense_match` gave; or ``"feature"``: the most similar position
            of the backbone's maps ``feat_q`` and ``feat_k`` (:func:`dense_match`).
        feat_q, feat_k: ``[B, C, *S]``, ``[B, C, *S']``; only for ``match="feature"``.
        temperature: positive number.
        normalize: scale ``q`` and ``k`` to unit length over D first.
        reduction: ``"mean"`` over the positions that have a counterpart (NaN when there is none), ``"sum"``, or
            ``"none"``: ``[B, *S]``, 0 where there is none.
        return_parts: give a :class:`QueueLoss` instead of the loss alone.

    The gradient flows to ``q``, and to ``k`` and ``queue`` where they require it; never through the match. Sums have
    one order, with one exception: on a GPU, keys that several queries share collect their gradient in one order only
    under ``torch.use_deterministic_algorithms``.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, option, temperature, or an index outside the key map (looked
            for on the CPU only).

    >>> q = torch.eye(2).expand(1, 2, 2)  # [B=1, D=2, S=2]
    >>> round(dense_contrastive(q, q, -torch.eye(2), torch.tensor([[0, 1]]), temperature=1.0).item(), 4)
    0.4076
    """
    name = "dense_contrastive"
    _check.floating(name, "q", q)
    if q.dim() < 3:
        _check.fail(name, "q", "shape [B, D, *S]", tuple(q.shape))
    _check.floating(name, "k", k)
    if k.dim() < 3 or k.shape[:2] != q.shape[:2] or k.dtype != q.dtype or k.device != q.device:
        expected = f"shape [{q.shape[0]}, {q.shape[1]}, *S] {q.dtype} on {q.device}"
        _check.fail(name, "k", expected, f"{tuple(k.shape)} {k.dtype} on {k.device}")
    check_queue(name, queue, q, q.shape[1])
    _check.number(name, "temperature", temperature, above=0.0)
    _check.one_of(name, "reduction", reduction, ("mean", "sum", "none"))
    flat_q, flat_k = q.flatten(2), k.flatten(2)
    index = _index(name, match, flat_q, flat_k, feat_q, feat_k)
    loss, positive, lse = queue_info_nce.apply(flat_q, flat_k, queue, index, float(temperature), normalize)
    shape = (q.shape[0], *q.shape[2:])
    if reduction == "none":
        reduced = loss.view(shape)
    else:
        reduced = loss.sum()
        if reduction == "mean":
            reduced = reduced / (index >= 0).sum()
    return queue_info_nce.parts(reduced, positive.view(shape), lse.view(shape)) if return_parts else reduced


def _index(name: str, match, q: Tensor, k: Tensor, feat_q: Tensor | None, feat_k: Tensor | None) -> Tensor:
    """Positions [B, S], negative where a query has no counterpart."""
    if isinstance(match, str):
        if match != "feature":
            expected = "'feature', or the correspondence that geometric_match or random_match gives"
            _check.fail(name, "match", expected, repr(match))
        maps = []
        for argument, x, like in (("feat_q", feat_q, q), ("feat_k", feat_k, k)):
            _check.floating(name, argument, x)
            if x.dim() < 3 or x.shape[0] != like.shape[0] or x[0, 0].numel() != like.shape[2]:
                expected = f"shape [{like.shape[0]}, C, *S] with {like.shape[2]} positions"
                _check.fail(name, argument, expected, tuple(x.shape))
            maps.append(x.detach())
        return dense_match(*maps).index.flatten(1)
    if feat_q is not None or feat_k is not None:
        _check.fail(name, "feat_q, feat_k", "maps only for match='feature'", f"match of type {type(match).__name__}")
    valid = None
    if isinstance(match, Correspondence):
        match, valid = match
    elif isinstance(match, DenseMatch):
        match = match.index
    if not isinstance(match, Tensor):
        expected = "int64 indices, a Correspondence, a DenseMatch, or 'feature'"
        _check.fail(name, "match", expected, type(match).__name__, TypeError)
    for argument, x, dtype in (("match", match, torch.int64), ("match.valid", valid, torch.bool)):
        if x is None:
            continue
        if x.dtype != dtype:
            _check.fail(name, argument, f"a tensor of {dtype}", x.dtype, TypeError)
        _check.strided(name, argument, x)
        if x.dim() < 2 or x.flatten(1).shape != (q.shape[0], q.shape[2]):
            _check.fail(name, argument, f"shape [{q.shape[0]}, {q.shape[2]}]", tuple(x.shape))
        if x.device != q.device:
            _check.fail(name, argument, f"a tensor on {q.device}", x.device)
    index = match.flatten(1)
    if valid is not None:
        index = torch.where(valid.flatten(1), index, -1)
    if index.numel() and _check.readable(index) and int(index.max()) >= k.shape[2]:
        _check.fail(name, "match", f"positions below {k.shape[2]}, those of k", int(index.max()))
    return index
