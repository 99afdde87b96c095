"""Statistics of a batch that several processes hold together."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..reference.batch_norm import other_dims, per_channel
from . import _layout
from ._distributed import all_reduce_sum


def synchronised_statistics(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor, int]:
    """``x - mean`` like ``x`` ``[N, C, *]`` in the accumulation type, mean and biased variance ``[C]``, and the number
    of values per channel, over every process, each with an N of its own.

    Differentiable through the collectives: gradients are those of the sum of the losses of all processes, whose
    average is what ``DistributedDataParallel`` makes of them.
    """
    wide = x.to(_layout.accumulation_dtype(x))
    dims, channels = other_dims(x), x.shape[1]
    # The mean first and then the spread around it: squares of large values would cancel.
    totals = all_reduce_sum(torch.cat([wide.sum(dims), wide.new_tensor([wide.numel() // channels])]), group)
    count = totals[-1].detach()
    mean = totals[:-1] / count
    centred = wide - per_channel(mean, x)
    var = all_reduce_sum(centred.square().sum(dims), group) / count
    return centred, mean, var, int(count)
