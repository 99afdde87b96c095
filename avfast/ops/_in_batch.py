"""What the losses inside a batch share: argument checks, temperature as a tensor, reductions, and their autograd."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ..reference import contrastive as reference
from . import _check, _layout, _registry
from ._distributed import all_gather, merge_logsumexp, world
from ._double import own_nodes, wanted_gradients

# The most that logits may take which a backward pass is to find: a matrix of 2048 x 2048 floats.
KEPT_BYTES = 16 << 20

REDUCTIONS = ("mean", "sum", "none")
DISTANCES = ("cosine", "l2")


def check_features(name: str, argument: str, z: object, least: int = 1) -> None:
    _check.floating(name, argument, z)
    if z.dim() != 2 or z.shape[0] < least:
        _check.fail(name, argument, f"shape [N, D] with N > {least - 1}", tuple(z.shape))


def scalar(name: str, argument: str, value: float | Tensor, z: Tensor, *, positive: bool = True) -> Tensor:
    """A number or one-element tensor as [1] in the accumulation type of ``z``, on its device, with its gradient."""
    wide = _layout.accumulation_dtype(z)
    if not isinstance(value, Tensor):
        _check.number(name, argument, value, **({"above": 0.0} if positive else {}))
        return torch.full((1,), value, dtype=wide, device=z.device)
    _check.floating(name, argument, value)
    if value.numel() != 1:
        _check.fail(name, argument, "a number or a 0-d tensor", f"shape {tuple(value.shape)}")
    if value.device != z.device:
        _check.fail(name, argument, f"a tensor on {z.device}", value.device)
    return value.reshape(1).to(wide)


def reduced(rows: Tensor, reduction: str) -> Tensor:
    return rows if reduction == "none" else rows.mean() if reduction == "mean" else rows.sum()


def pair_rows(
    a: Tensor, b: Tensor, temperature: Tensor, labels_a: Tensor | None = None, labels_b: Tensor | None = None, *,
    positive: int = 0, exclude: int = -1, l2: bool = False, normalize: bool = True, symmetric: bool = False,
    group: dist.ProcessGroup | None = None, gathered: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss of each row [N] and its number of positives. ``gathered``: columns come from every process, row blocks of
    the others are in ``group``."""
    options = (positive, exclude, int(l2), normalize, symmetric)
    if not _check.differentiated(a, b, temperature):  # and so works under vmap, which knows no autograd function
        return _pair_loss(a, b, temperature, labels_a, labels_b, *options, False, group, gathered)[:2]
    return _PairNce.apply(a, b, temperature, labels_a, labels_b, *options, _keeps(a, b, l2), group, gathered)


def _pair_loss(
    a, b, temperature, labels_a, labels_b, positive, exclude, distance, normalize, symmetric, keep, group, gathered
):  # fmt: skip
    """Loss of each row, its number of positives, and what the backward pass reads."""
    row_lse, col_lse, target, count, *kept = _pair_forward(
        a, b, temperature, labels_a, labels_b, positive, exclude, distance, normalize, symmetric, keep
    )
    if symmetric and gathered:
        col_lse = merge_logsumexp(col_lse, group)
    loss = row_lse - target
    if symmetric:
        loss = (loss + (col_lse[positive : positive + len(a)] - target)) / 2
    if labels_a is not None:  # else every row has its one positive
        loss = torch.where(count > 0, loss, 0.0)
    return loss, count, row_lse, col_lse, *(kept if keep else (None, None))


def _keeps(a: Tensor, b: Tensor, l2: bool) -> bool:
    """Whether the backward pass is to find the logits rather than make them again, which costs a product in four. A GPU
    makes them faster than it reads them, and so does a CPU that multiplies bfloat16 (which distances are not)."""
    if a.device.type != "cpu" or (a.dtype == torch.bfloat16 and not l2):
        return False
    return math.prod(reference.kept_shape(len(a), len(b))) * _layout.accumulation_dtype(a).itemsize <= KEPT_BYTES


class _PairNce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, temperature, labels_a, labels_b, *options):
        loss, count, row_lse, col_lse, *kept = _pair_loss(a, b, temperature, labels_a, labels_b, *options)
        ctx.save_for_backward(a, b, temperature, labels_a, labels_b, row_lse, col_lse, count, *kept)
        ctx.options = options
        ctx.mark_non_differentiable(count)
        return loss, count

    @staticmethod
    def backward(ctx, grad: Tensor, _count):
        a, b, temperature, labels_a, labels_b, row_lse, col_lse, count, *kept = ctx.saved_tensors
        positive, exclude, distance, normalize, symmetric, _, group, gathered = ctx.options
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            if symmetric and gathered:
                raise RuntimeError("avfast: a second derivative through gather=True is not defined; use gather=False")
            found = _differentiable(ctx, grad, own_nodes(a, b, temperature), labels_a, labels_b)
            return (*found, *(None for _ in range(10)))
        grad = grad.contiguous() if labels_a is None else torch.where(count > 0, grad, 0.0)
        grad_col = grad.new_empty(0)
        if symmetric:
            grad = grad / 2
            # Every column's loss belongs to the process that owns its row.
            grad_col = all_gather(grad, group) if gathered else grad
        need_a, need_b = ctx.needs_input_grad[:2]
        da, db, dt = _pair_backward(
            grad, grad_col, a, b, temperature, row_lse, col_lse, labels_a, labels_b, count, positive, exclude, distance,
            normalize, symmetric, *kept, need_a, need_b,
        )  # fmt: skip
        return (da if need_a else None, db if need_b else None, dt, *(None for _ in range(10)))


def _differentiable(ctx, grad, leaves, labels_a, labels_b):
    positive, exclude, distance, normalize, symmetric, *_ = ctx.options
    row_lse, col_lse, target, count, *_ = reference.pair_nce_forward(
        *leaves, labels_a, labels_b, positive, exclude, distance, normalize, symmetric
    )
    loss = row_lse - target
    if symmetric:
        loss = (loss + (col_lse[positive : positive + len(loss)] - target)) / 2
    return wanted_gradients(torch.where(count > 0, loss, 0.0), leaves, grad, ctx.needs_input_grad)


def self_rows(z: Tensor, temperature: Tensor, labels: Tensor | None, *, normalize: bool) -> tuple[Tensor, Tensor]:
    """Loss of each row [N] of a batch against itself, and its number of positives."""
    if not _check.differentiated(z, temperature):
        lse, target, count = _self_forward(z, temperature, labels, normalize)
        return torch.where(count > 0, lse - target, 0.0), count
    return _SelfNce.apply(z, temperature, labels, normalize)


class _SelfNce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, temperature, labels, normalize):
        lse, target, count = _self_forward(z, temperature, labels, normalize)
        ctx.save_for_backward(z, temperature, labels, lse, count)
        ctx.normalize = normalize
        ctx.mark_non_differentiable(count)
        return torch.where(count > 0, lse - target, 0.0), count

    @staticmethod
    def backward(ctx, grad: Tensor, _count):
        z, temperature, labels, lse, count = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            leaves = own_nodes(z, temperature)
            lse, target, count = reference.self_nce_forward(*leaves, labels, ctx.normalize)
            loss = torch.where(count > 0, lse - target, 0.0)
            return (*wanted_gradients(loss, leaves, grad, ctx.needs_input_grad), None, None)
        grad = torch.where(count > 0, grad, 0.0)
        return (*_self_backward(grad, z, temperature, lse, labels, count, ctx.normalize), None, None)


def gather_offset(z: Tensor, gathered: bool, group: dist.ProcessGroup | None) -> int:
    """Position of this process's rows among those of all."""
    return world(group)[0] * len(z) if gathered else 0


def _fake_pair_forward(a, b, t, labels_a, labels_b, positive, exclude, distance, normalize, columns, keep=False):
    wide, n, m = _layout.accumulation_dtype(a), a.shape[0], b.shape[0]
    row_lse, target = (a.new_empty(n, dtype=wide) for _ in range(2))
    col_lse = a.new_empty(m if columns else 0, dtype=wide)
    logits = a.new_empty(reference.kept_shape(n, m) if keep else 0, dtype=wide)
    lengths = a.new_empty(2 * n + m if keep else 0, dtype=torch.float64)
    return row_lse, col_lse, target, a.new_empty(n, dtype=torch.int32), logits, lengths


def _fake_pair_backward(
    grad_row, grad_col, a, b, t, row_lse, col_lse, labels_a, labels_b, count, positive, exclude, distance, normalize,
    columns, logits=None, lengths=None, need_a=True, need_b=True,
):  # fmt: skip
    da, db = a.new_empty(a.shape if need_a else 0), b.new_empty(b.shape if need_b else 0)
    return da, db, grad_row.new_empty(1)


def _fake_self_forward(z, temperature, labels, normalize):
    wide, n = _layout.accumulation_dtype(z), z.shape[0]
    return z.new_empty(n, dtype=wide), z.new_empty(n, dtype=wide), z.new_empty(n, dtype=torch.int32)


_KERNELS = "avfast.kernels.contrastive"
_pair_forward = _registry.define(
    "pair_nce_fwd(Tensor a, Tensor b, Tensor temperature, Tensor? labels_a, Tensor? labels_b, int positive,"
    " int exclude, int distance, bool normalize, bool columns, bool keep=False)"
    " -> (Tensor row_lse, Tensor col_lse, Tensor target, Tensor count, Tensor logits, Tensor lengths)",
    op="info_nce",
    reference=reference.pair_nce_forward,
    fake=_fake_pair_forward,
    triton=f"{_KERNELS}.pair_nce_triton:pair_nce_fwd_triton",
)
_pair_backward = _registry.define(
    "pair_nce_bwd(Tensor grad_row, Tensor grad_col, Tensor a, Tensor b, Tensor temperature, Tensor row_lse,"
    " Tensor col_lse, Tensor? labels_a, Tensor? labels_b, Tensor count, int positive, int exclude, int distance,"
    " bool normalize, bool columns, Tensor? logits=None, Tensor? lengths=None, bool need_a=True,"
    " bool need_b=True)"
    " -> (Tensor da, Tensor db, Tensor dtemperature)",
    op="info_nce",
    reference=reference.pair_nce_backward,
    fake=_fake_pair_backward,
    triton=f"{_KERNELS}.pair_nce_triton:pair_nce_bwd_triton",
)
_self_forward = _registry.define(
    "self_nce_fwd(Tensor z, Tensor temperature, Tensor? labels, bool normalize)"
    " -> (Tensor lse, Tensor target, Tensor count)",
    op="nt_xent",
    reference=reference.self_nce_forward,
    fake=_fake_self_forward,
    triton=f"{_KERNELS}.self_nce_triton:self_nce_fwd_triton",
)
_self_backward = _registry.define(
    "self_nce_bwd(Tensor grad, Tensor z, Tensor temperature, Tensor lse, Tensor? labels, Tensor count, bool normalize)"
    " -> (Tensor dz, Tensor dtemperature)",
    op="nt_xent",
    reference=reference.self_nce_backward,
    fake=lambda grad, z, *_: (z.new_empty(z.shape), grad.new_empty(1)),
    triton=f"{_KERNELS}.self_nce_triton:self_nce_bwd_triton",
)
