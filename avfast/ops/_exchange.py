"""Rows that change process: a permutation over the batches of all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from . import _check
from ._distributed import world


def exchange_rows(op: str, x: Tensor, order: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This process's rows of the permuted global batch: row ``i`` is global row ``order[rank * B + i]``.

    Args:
        op: named in errors.
        x: own rows ``[B, ...]``, B the same on every process.
        order: permutation of all ``B * world`` rows, int64 on the CPU, the same on every process: who sends what to
            whom is then known without asking.

    Each row travels once, from its owner to its reader. No gradient: the other way would cost as much again, and keys
    have none.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        _check.fail(op, "x", "a call under torch.no_grad() where rows change process", "a tensor that requires grad")
    rank, size = world(group)
    batch = len(x)
    owner, row = order // batch, order % batch
    wanted_from = owner[rank * batch : (rank + 1) * batch]
    asked = [slice(reader * batch, (reader + 1) * batch) for reader in range(size)]
    outgoing = [row[part][owner[part] == rank] for part in asked]
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(
        received,
        x[torch.cat(outgoing).to(x.device)].contiguous(),
        output_split_sizes=wanted_from.bincount(minlength=size).tolist(),
        input_split_sizes=[len(part) for part in outgoing],
        group=group,
    )
    # Rows arrive by sender, and from one sender in the order of their places here.
    place = wanted_from.argsort(stable=True).to(x.device)
    return torch.empty_like(received).index_copy_(0, place, received)
