"""InfoNCE between two batches of paired features."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import refuse_unless_reference
from ..reference import contrastive as reference
from . import _check, _registry
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
    ``symmetric`` the loss is the mean of both directions. Sources: van den Oord et al. 2018, section 2.3 (InfoNCE);
    Sung-Bin et al. 2023, Sound2Scene (``distance="l2", temperature=1.0`` is its loss).

    Args:
        z_a, z_b: features ``[N, D]``, any float dtype, same shape, dtype and device; computed in at least float32.
        temperature: positive number, or a 0-d tensor (which may be learned; its value is not checked, since reading it
            would wait for a GPU).
        distance: ``"cosine"`` or ``"l2"``.
        normalize: scale rows to unit length first.
        gather: use the features of all processes as negatives, with the gradient flowing to each of them. After DDP
            averaging the gradient equals that of one process on the global batch. Every process needs the same N.
        process_group: the group to gather over; the default group if left out.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (loss per row, ``[N]``).

    Returns:
        A scalar, or ``[N]`` for ``reduction="none"``; float32, or float64 for float64 features.

    Raises:
        TypeError, ValueError: wrong dtype, shape, option, empty batch, processes with different N, or a number as
            temperature that is not positive.

    >>> round(info_nce(torch.eye(4), torch.eye(4), temperature=1.0).item(), 4)
    0.7437
    """
    name = "info_nce"
    _check.floating(name, "z_a", z_a)
    _check.floating(name, "z_b", z_b)
    if z_a.dim() != 2 or z_a.shape[0] == 0:
        _check.fail(name, "z_a", "shape [N, D] with N > 0", tuple(z_a.shape))
    if z_b.shape != z_a.shape or z_b.dtype != z_a.dtype or z_b.device != z_a.device:
        expected = f"{tuple(z_a.shape)} {z_a.dtype} on {z_a.device}, like z_a"
        _check.fail(name, "z_b", expected, f"{tuple(z_b.shape)} {z_b.dtype} on {z_b.device}")
    if not isinstance(temperature, Tensor):
        _check.number(name, "temperature", temperature, above=0.0)
    elif temperature.numel() != 1:
        _check.fail(name, "temperature", "a number or a 0-d tensor", f"shape {tuple(temperature.shape)}")
    _check.one_of(name, "distance", distance, ("cosine", "l2"))
    _check.one_of(name, "reduction", reduction, ("mean", "sum", "none"))
    refuse_unless_reference(name)

    offset, all_a, all_b = 0, None, None
    if gather:
        require_even(name, "z_a", z_a, process_group)
        offset, all_a = gather_with_gradient(z_a, process_group)
        _, all_b = gather_with_gradient(z_b, process_group)
    else:
        warn_if_not_gathering(name)
    # Sums of exponentials need float32 whatever autocast says; the features keep their own rounding.
    with torch.autocast(z_a.device.type, enabled=False):
        wide = torch.promote_types(z_a.dtype, torch.float32)
        loss = reference.info_nce(
            z_a.to(wide),
            z_b.to(wide),
            temperature.reshape(()).to(wide) if isinstance(temperature, Tensor) else temperature,
            distance=distance,
            normalize=normalize,
            symmetric=symmetric,
            offset=offset,
            all_a=None if all_a is None else all_a.to(wide),
            all_b=None if all_b is None else all_b.to(wide),
        )
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


_registry.COMPOSITES.add("info_nce")
