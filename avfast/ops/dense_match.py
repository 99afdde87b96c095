"""The correspondence of dense contrastive learning: for each position of one map, the most similar of another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import match as reference
from . import _check, _layout, _registry


class DenseMatch(NamedTuple):
    """``index``: int64 positions of the key map, flattened. ``similarity``: cosine of each pair, in [-1, 1].

    >>> index, similarity = dense_match(torch.ones(1, 2, 3), torch.ones(1, 2, 4))
    >>> index.tolist(), similarity.round(decimals=4).tolist()
    ([[0, 0, 0]], [[1.0, 1.0, 1.0]])
    """

    index: Tensor
    similarity: Tensor


def dense_match(feat_q: Tensor, feat_k: Tensor) -> DenseMatch:
    r"""Match every position of ``feat_q`` with the position of ``feat_k`` of the same sample that is most similar.

    .. math:: c_i = \arg\max_j \frac{f_i \cdot f'_j}{\lVert f'_j \rVert}, \quad
              \mathrm{similarity}_i = \frac{f_i \cdot f'_{c_i}}{\lVert f_i \rVert \lVert f'_{c_i} \rVert}

    Neither map is normalised or copied, and the ``S x L`` scores never leave the cache. Equal scores give the lowest
    index; a NaN counts as the largest score and the first one wins, as in ``torch.argmax``. No gradient flows through.
    Source: Wang et al. 2021, "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", section 3.4.

    Args:
        feat_q: backbone map ``[B, C, *S]``, one or more position dimensions, float32, float64, float16 or bfloat16.
        feat_k: map ``[B, C, *L]`` with at least one position, of the same dtype and on the same device. Any strides.

    Returns:
        ``index`` int64 ``[B, *S]``, into the flattened positions of ``feat_k``; ``similarity`` ``[B, *S]`` float32
        (float64 for float64 maps).

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.

    >>> q = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # [B=1, C=2, S=2]
    >>> k = torch.tensor([[[0.0, 3.0, 1.0], [1.0, 0.0, 1.0]]])  # [B=1, C=2, L=3]
    >>> dense_match(q, k).index.tolist(), dense_match(q, k).similarity.tolist()
    ([[1, 0]], [[1.0, 1.0]])
    """
    name = "dense_match"
    for argument, x in (("feat_q", feat_q), ("feat_k", feat_k)):
        _check.floating(name, argument, x)
        if x.dim() < 3:
            _check.fail(name, argument, "shape [B, C, *S]", tuple(x.shape))
    if feat_k.dtype != feat_q.dtype:
        _check.fail(name, "feat_k", f"the dtype of feat_q, {feat_q.dtype}", feat_k.dtype, TypeError)
    if feat_k.device != feat_q.device:
        _check.fail(name, "feat_k", f"a tensor on {feat_q.device}", feat_k.device)
    if feat_k.shape[:2] != feat_q.shape[:2]:
        _check.fail(name, "feat_k", f"shape {(*feat_q.shape[:2], '*')}", tuple(feat_k.shape))
    if 0 in feat_k.shape[2:]:
        _check.fail(name, "feat_k", "at least one position", tuple(feat_k.shape))
    index, similarity = _forward(feat_q.detach().flatten(2), feat_k.detach().flatten(2))
    positions = (feat_q.shape[0], *feat_q.shape[2:])
    return DenseMatch(index.view(positions), similarity.view(positions))


def _fake(feat_q: Tensor, feat_k: Tensor) -> tuple[Tensor, Tensor]:
    rows = (feat_q.shape[0], feat_q.shape[2])
    return (
        feat_q.new_empty(rows, dtype=torch.int64),
        feat_q.new_empty(rows, dtype=_layout.accumulation_dtype(feat_q)),
    )


_forward = _registry.define(
    "dense_match_fwd(Tensor feat_q, Tensor feat_k) -> (Tensor index, Tensor similarity)",
    op="dense_match",
    reference=reference.dense_match,
    fake=_fake,
    triton="avfast.kernels.contrastive.dense_match_triton:dense_match_fwd_triton",
)
