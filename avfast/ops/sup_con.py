"""Supervised contrastive loss: all rows of the same label are positives."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from . import _check, _in_batch
from ._distributed import all_gather, all_reduce_sum, gather_with_gradient, require_even, warn_if_not_gathering, world


def sup_con(
    z: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    gather: bool = False,
    process_group: dist.ProcessGroup | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Contrastive loss with every row of the same label as a positive.

    .. math:: \ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)}
              \log \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{j \ne i} \exp(z_i \cdot z_j / \tau)}

    with ``P(i)`` the other rows that carry row i's label. The mask of equal labels is made in registers, never in
    memory. Source: Khosla et al. 2020, equation 2 (the sum outside the logarithm).

    Args:
        z: features ``[N, D]``, any float dtype; give all views in one batch.
        labels: integers ``[N]``.
        temperature: positive number, or a 0-d tensor (which may be learned).
        normalize: scale rows to unit length first.
        gather: use the features and labels of all processes, see :func:`info_nce`.
        process_group: the group to gather over; the default group if left out.
        reduction: ``"mean"`` over the rows that have a positive (NaN if none has), ``"sum"``, or ``"none"``: ``[N]``, 0
            for a row without a positive.

    Raises:
        TypeError, ValueError: as :func:`info_nce`; or labels that are not integers of shape ``[N]``.

    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> round(sup_con(z, torch.tensor([3, 3, 5]), temperature=1.0).item(), 4)  # log(1 + 1 / e)
    0.3133
    """
    name = "sup_con"
    _in_batch.check_features(name, "z", z)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        _check.fail(name, "labels", "a tensor of integers", got, TypeError)
    _check.strided(name, "labels", labels)
    if labels.shape != z.shape[:1] or labels.device != z.device:
        _check.fail(name, "labels", f"shape [{len(z)}] on {z.device}", f"{tuple(labels.shape)} on {labels.device}")
    _check.one_of(name, "reduction", reduction, _in_batch.REDUCTIONS)
    t = _in_batch.scalar(name, "temperature", temperature, z)
    labels = labels.to(torch.int64)
    if gather:
        require_even(name, "z", z, process_group)
        offset, columns = gather_with_gradient(z, process_group)
        all_labels = all_gather(labels, process_group)
        rows, count = _in_batch.pair_rows(z, columns, t, labels, all_labels, exclude=offset, normalize=normalize)
    else:
        warn_if_not_gathering(name)
        rows, count = _in_batch.self_rows(z, t, labels, normalize=normalize)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    usable = (count > 0).sum().to(rows.dtype)
    if gather:  # the global mean, whose average over processes DDP takes
        usable = all_reduce_sum(usable, process_group) / world(process_group)[1]
    return rows.sum() / usable
