"""Batch-norm statistics of small groups, as on many devices, with the groups of the keys shuffled."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree

from ..ops import _check
from ..ops._distributed import world
from ..ops._exchange import exchange_rows
from .bn_layers import batchnorm_layers


class GroupShuffleBN(nn.Module):
    """Run ``module`` group by group, optionally on a shuffled batch: ShuffleBN, also on a single device.

    Batch norm leaks: a query and its key, normalised by the statistics of the same samples, can be matched by those
    statistics, and the loss falls without anything being learned. MoCo shuffles the key batch over its GPUs, so that
    keys meet other samples there than their queries do (He et al. 2020, section 3.3, "Shuffling BN"). One process has
    nothing to shuffle over; here it gets groups in place of GPUs.

    In training mode the batch is cut into ``ceil(B / group_size)`` groups whose sizes differ by one at most, and each
    goes through the module alone. With ``shuffle`` the batch is permuted before and put back in order after, over all
    processes of ``process_group`` when there are several (all-to-all: each row travels once). Wrap the encoder of the
    keys with ``shuffle=True`` and that of the queries with ``shuffle=False``.

    The running statistics move once per call, towards the mean of the groups' statistics: the pace of one batch norm
    over the whole batch. In evaluation mode, and for a module without batch norm, the module is simply called.

    Args:
        module: any module whose outputs are tensors (or nests of them) with the batch first.
        group_size: samples that share statistics, at least 2; 32 per GPU in MoCo and DenseCL.
        shuffle: permute first.
        process_group: the processes to shuffle over, which must bring equal batches; no gradient crosses them.
        seed: of the permutations; processes must agree. The generator's state is part of the state dict.

    Attributes:
        average: whether every call also takes the mean of the running statistics of all processes, so that none of them
            has its own; all must call the layer then. Left off, as one of them may evaluate alone.

    Raises:
        ValueError: bad ``group_size``; a gradient is asked for through a shuffle over several processes.

    >>> net = GroupShuffleBN(nn.BatchNorm1d(1, affine=False), group_size=2, shuffle=False)
    >>> net(torch.tensor([[1.0], [3.0], [10.0], [30.0]])).round().flatten().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(
        self,
        module: nn.Module,
        group_size: int = 32,
        *,
        shuffle: bool = True,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 2:
            _check.fail("GroupShuffleBN", "group_size", "an integer of at least 2", repr(group_size))
        self.module = module
        self.group_size, self.shuffle, self.process_group = group_size, shuffle, process_group
        self.average = False
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Any:
        """``module(x)`` for x ``[B, ...]``, row i of every output belonging to row i of x."""
        norms = [layer for _, layer in batchnorm_layers(self.module) if layer.training]
        if not norms:
            return self.module(x)
        out = self._shuffled(x, norms) if self.shuffle else self._by_group(x, norms)
        if self.average:
            self._average(norms)
        return out

    def _shuffled(self, x: Tensor, norms: list[nn.Module]) -> Any:
        _, size = world(self.process_group)
        order = self._permutation(len(x) * size)
        if size == 1:
            if len(x) <= self.group_size:
                _warn_of_one_group(len(x), self.group_size)
            there, back = order.to(x.device), order.argsort().to(x.device)
            return _pytree.tree_map(lambda y: y[back], self._by_group(x[there], norms))
        out = self._by_group(exchange_rows("GroupShuffleBN", x, order, self.process_group), norms)
        back = order.argsort()
        return _pytree.tree_map(lambda y: exchange_rows("GroupShuffleBN", y, back, self.process_group), out)

    def _by_group(self, x: Tensor, norms: list[nn.Module]) -> Any:
        groups = x.tensor_split(max(1, math.ceil(len(x) / self.group_size)))
        if len(groups) == 1:
            return self.module(x)
        # Through .data: autograd keeps running statistics for the backward pass of batch norm, which in training mode
        # does not read them, and must not see that they were put back.
        buffers = [buffer.data for norm in norms for buffer in norm.buffers(recurse=False)]
        moving = [buffer for buffer in buffers if buffer.is_floating_point()]
        start = [buffer.clone() for buffer in buffers]
        total = [torch.zeros_like(buffer) for buffer in moving]
        outputs = []
        for i, group in enumerate(groups):
            if i:
                for buffer, value in zip(buffers, start, strict=True):
                    buffer.copy_(value)
            outputs.append(self.module(group))
            if moving:
                torch._foreach_add_(total, moving)
        for buffer, value in zip(moving, total, strict=True):
            buffer.copy_(value / len(groups))
        return _pytree.tree_map(lambda *parts: torch.cat(parts), *outputs)

    @torch.no_grad()
    def _average(self, norms: list[nn.Module]) -> None:
        """Running statistics over all processes: a checkpoint must not be that of one of them."""
        _, size = world(self.process_group)
        moving = [b.data for norm in norms for b in norm.buffers(recurse=False) if b.is_floating_point()]
        if size == 1 or not moving:
            return
        total = torch.cat([buffer.flatten() for buffer in moving])
        dist.all_reduce(total, group=self.process_group)
        for buffer, mean in zip(moving, (total / size).split([b.numel() for b in moving]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def _permutation(self, rows: int) -> Tensor:
        return torch.randperm(rows, generator=self._generator)

    def get_extra_state(self) -> Tensor:
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self._generator.set_state(state.cpu())

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, shuffle={self.shuffle}"


def _warn_of_one_group(batch: int, group_size: int) -> None:
    warnings.warn(
        f"avfast.GroupShuffleBN: a batch of {batch} is one group of up to {group_size}: shuffling it changes nothing, "
        "and batch norm leaks between query and key; use a smaller group_size or a larger batch",
        stacklevel=3,
    )
