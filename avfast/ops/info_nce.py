"""InfoNCE between two batches of paired features."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from . import _check, _in_batch
from ._distributed import gather_with_gradient, require_even, warn_if_not_gathering


def info_nce(
    z_a: Tensor,
    z_b: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    distance: str = "cosine",
    normalize: bool = True,
    symmetric: bool = True,
    gather: bool = False,
    process_group: dist.ProcessGroup | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Contrastive loss in which row ``i`` of ``z_a`` and row ``i`` of ``z_b`` are the positive pair.

    .. math:: \ell_i = -\log \frac{\exp(s(a_i, b_i) / \tau)}{\sum_j \exp(s(a_i, b_j) / \tau)}

    with ``s`` the cosine similarity, or minus the Euclidean distance (``distance="l2"``, clamped at 1e-6). With
    ``symmetric`` the loss is the mean of both directions, whose sums come from one pass over the logits. On a CPU up to
    16 MiB of logits (2048 x 2048 floats) are kept for the backward pass; larger ones, and those on a GPU, are made
    again and never stored. A side that needs no gradient costs none. Sources: van den Oord et al. 2018, section 2.3
    (InfoNCE); Radford et al. 2021, CLIP, figure 3 (symmetric); Sung-Bin et al. 2023, Sound2Scene (``distance="l2",
    temperature=1.0`` is its loss).

    Args:
        z_a, z_b: features ``[N, D]``, any float dtype, same shape, dtype and device; computed in at least float32.
        temperature: positive number, or a 0-d tensor (which may be learned; its value is not checked, since reading it
            would wait for a GPU).
        distance: ``"cosine"`` or ``"l2"``.
        normalize: scale rows to unit length first.
        gather: use the features of all processes as negatives, with the gradient flowing to each of them. After DDP
            averaging the gradient equals that of one process on the global batch. Every process needs the same N and
            computes one block of logits, its own rows against all columns.
        process_group: the group to gather over; the default group if left out.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (loss per row, ``[N]``).

    Returns:
        A scalar, or ``[N]`` for ``reduction="none"``; float32, or float64 for float64 features.

    Raises:
        TypeError, ValueError: wrong dtype, shape, option, empty batch, processes with different N, or a number as
            temperature that is not positive.
        RuntimeError: a second derivative with ``gather``.

    >>> import torch
    >>> round(info_nce(torch.eye(4), torch.eye(4), temperature=1.0).item(), 4)
    0.7437
    """
    name = "info_nce"
    _in_batch.check_features(name, "z_a", z_a)
    _check.like(name, "z_b", z_b, z_a, "z_a")
    _check.one_of(name, "distance", distance, _in_batch.DISTANCES)
    _check.one_of(name, "reduction", reduction, _in_batch.REDUCTIONS)
    t = _in_batch.scalar(name, "temperature", temperature, z_a)
    offset, columns = 0, z_b
    if gather:
        require_even(name, "z_a", z_a, process_group)
        offset, columns = gather_with_gradient(z_b, process_group)
    else:
        warn_if_not_gathering(name)
    rows, _ = _in_batch.pair_rows(
        z_a, columns, t, positive=offset, l2=distance == "l2", normalize=normalize, symmetric=symmetric,
        group=process_group, gathered=gather and len(columns) > len(z_a),
    )  # fmt: skip
    return _in_batch.reduced(rows, reduction)
