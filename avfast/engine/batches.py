"""The batch of an optimiser step: as many samples on every process, in parts that memory holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALLEST = 2
"""Samples without which a loss that compares samples, or a batch norm, has nothing to work on."""


def agree_on_size(accelerator: Any, batch: dict[str, Any]) -> int:
    """How many samples every process can bring to this step: the fewest that any of them read.

    Broken files leave some processes with less. Losses that compare samples between processes need as many from each,
    and the mean over processes is the mean over samples only then.
    """
    size = len(batch["index"])
    if accelerator.num_processes == 1:
        return size
    sizes = torch.tensor([-size], device=accelerator.device)
    torch.distributed.all_reduce(sizes, torch.distributed.ReduceOp.MAX)
    return -int(sizes)


def parts(batch: dict[str, Any], size: int, largest: int) -> list[tuple[dict[str, Any], float]]:
    """The first ``size`` samples of a batch in equal parts of about ``largest``, each with its share of the step; none
    where they are too few.

    >>> batch = {"index": torch.arange(5), "id": list("abcde"), "errors": []}
    >>> [(part["index"].tolist(), part["id"], share) for part, share in parts(batch, 4, 2)]
    [([0, 1], ['a', 'b'], 0.5), ([2, 3], ['c', 'd'], 0.5)]
    >>> parts(batch, 1, 2)
    []
    """
    if size < SMALLEST:
        return []
    count = max(1, min(-(-size // largest), size // SMALLEST))
    edges = [round(i * size / count) for i in range(count + 1)]
    return [
        (_rows(batch, first, last), (last - first) / size) for first, last in zip(edges, edges[1:], strict=False)
    ]  # fmt: skip


def _rows(batch: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    rows = {name: value[first:last] for name, value in batch.items() if isinstance(value, (Tensor, list))}
    return {**batch, **rows, "errors": batch["errors"]}
