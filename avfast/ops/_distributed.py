"""Collectives with a gradient, in the convention of this package.

Convention: each process returns the loss of its own rows; DDP then averages gradients over processes. With gathered
negatives the gradient of the global mean loss with respect to one process's features is the *sum*, over processes, of
what each process's loss sends back to them, divided by the world size: reduce-scatter (sum) here, average in DDP.
"""

from __future__ import annotations

import functools
import warnings

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _check


def world(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """(rank, size); (0, 1) when ``torch.distributed`` is not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        rank, size = world(ctx.group)
        grad = grad.clone(memory_format=torch.contiguous_format)  # the incoming one is not ours to change
        # gloo has no reduce-scatter, so sum everything and keep this process's rows.
        dist.all_reduce(grad, group=ctx.group)
        return grad.chunk(size)[rank], None


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _AllReduceSum.apply(grad, ctx.group), None


def all_reduce_sum(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum over processes; backward sums the gradients over processes too."""
    return _AllReduceSum.apply(x, group)


def all_gather(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Rows of every process by rank, without a gradient."""
    _, size = world(group)
    if size == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts)


def merge_logsumexp(lse: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """log-sum-exp over processes of one log-sum-exp per column, as two reductions of that length."""
    _, size = world(group)
    if size == 1:
        return lse
    top = lse.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
    # Where every process has -inf, the difference would be NaN.
    total = torch.where(lse == -torch.inf, 0.0, (lse - top).exp())
    dist.all_reduce(total, group=group)
    return top + total.log()


def require_even(
    op: str, argument: str, x: Tensor, group: dist.ProcessGroup | None = None, *, option: str = "gather=True"
) -> None:
    """Every process must bring as many rows: a gather of uneven ones aborts under gloo and hangs under NCCL.

    Costs one integer per process, and on a GPU one wait of the host. The answer cannot be kept from call to call: a
    process that trusts its memory while another asks would wait for ever.
    """
    _, size = world(group)
    if size > 1:
        counts = torch.empty(size, dtype=torch.int64, device=x.device)
        dist.all_gather(list(counts.split(1)), counts.new_tensor([len(x)]), group=group)
        rows = counts.tolist()
        if len(set(rows)) > 1:
            _check.fail(op, argument, f"the same number of rows on every process when {option}", rows)


def gather_with_gradient(x: Tensor, group: dist.ProcessGroup | None = None) -> tuple[int, Tensor]:
    """Rows of every process, concatenated by rank, and the offset of this process's rows in them."""
    rank, size = world(group)
    if size == 1:
        return 0, x
    return rank * len(x), _Gather.apply(x, group)


@functools.cache
def _warn_once(name: str, size: int) -> None:
    warnings.warn(
        f"avfast.{name}: {size} processes are running but gather=False: negatives come from this process only",
        stacklevel=4,
    )


def warn_if_not_gathering(name: str) -> None:
    if not torch.compiler.is_compiling():
        _, size = world()
        if size > 1:
            _warn_once(name, size)
