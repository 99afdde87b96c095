"""NT-Xent: every feature of two views against all others of both."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from . import _check, _in_batch
from ._distributed import gather_with_gradient, require_even, warn_if_not_gathering


def nt_xent(
    z_a: Tensor,
    z_b: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    gather: bool = False,
    process_group: dist.ProcessGroup | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Contrastive loss of SimCLR: the positive of a row is its other view, its negatives all other rows of both views.

    .. math:: \ell_i = -\log \frac{\exp(z_i \cdot z_{p(i)} / \tau)}{\sum_{j \ne i} \exp(z_i \cdot z_j / \tau)}

    over the stack ``[z_a; z_b]``. A row is never compared with itself: the pair is left out, not masked by a large
    number. Products are symmetric, so half of them are computed. Source: Chen et al. 2020, SimCLR, section 2.1.

    Args:
        z_a, z_b: features ``[N, D]`` of two views, any float dtype, same shape, dtype and device.
        temperature: positive number, or a 0-d tensor (which may be learned).
        normalize: scale rows to unit length first.
        gather: use the features of all processes as negatives, see :func:`info_nce`.
        process_group: the group to gather over; the default group if left out.
        reduction: ``"mean"`` and ``"sum"`` over the 2 N rows, or ``"none"``: ``[2 N]``, rows of ``z_a`` first.

    Raises:
        TypeError, ValueError: as :func:`info_nce`.

    >>> round(nt_xent(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)  # log(1 + 2 / e)
    0.5514
    """
    name = "nt_xent"
    _in_batch.check_features(name, "z_a", z_a)
    _check.like(name, "z_b", z_b, z_a, "z_a")
    _check.one_of(name, "reduction", reduction, _in_batch.REDUCTIONS)
    t = _in_batch.scalar(name, "temperature", temperature, z_a)
    if gather:
        require_even(name, "z_a", z_a, process_group)
        offset, all_a = gather_with_gradient(z_a, process_group)
        _, all_b = gather_with_gradient(z_b, process_group)
        columns, total = torch.cat([all_a, all_b]), len(all_a)
        a, _ = _in_batch.pair_rows(z_a, columns, t, positive=total + offset, exclude=offset, normalize=normalize)
        b, _ = _in_batch.pair_rows(z_b, columns, t, positive=offset, exclude=total + offset, normalize=normalize)
        rows = torch.cat([a, b])
    else:
        warn_if_not_gathering(name)
        rows, _ = _in_batch.self_rows(torch.cat([z_a, z_b]), t, None, normalize=normalize)
    return _in_batch.reduced(rows, reduction)
