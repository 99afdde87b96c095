"""The shuffled-pair control: the same training when sound and picture have nothing to do with each other.

Whatever a model scores above chance after training on shuffled pairs is leakage or luck, not audio-visual
learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset


def shuffled_order(n: int, *, seed: int) -> list[int]:
    """A permutation of ``range(n)`` that leaves no item in place, a function of `seed` alone.

    Every sound keeps its own wrong picture for the whole run: the control may memorise pairs, as a real
        model may, but
    nothing it memorises transfers. Labels are not consulted; by chance some pairs keep the class, as chance
    level does.

    >>> order = shuffled_order(8, seed=0)
    >>> sorted(order) == list(range(8)) and all(i != j for i, j in enumerate(order))
    True
    """
    if n < 2:
        raise ValueError(f"avfast.evaluate.shuffled_order: n: expected at least 2, got {n}")
    generator = torch.Generator().manual_seed(seed)
    cycle = torch.randperm(n, generator=generator).tolist()
    order = [0] * n
    for here, there in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        order[here] = there  # one cycle through all items, so none maps to itself
    return order


class ShuffledPairs(Dataset):
    """A data set whose item ``(epoch, i)`` pairs one half of sample i with the other half of sample ``order[i]``.

    Clips keep their frames and get the other's waveform. Pictures get the other's picture as ``other``, from which
    the second view is cut. A sample without ``index`` could not be read, and neither can the pair then.
    """

    def __init__(self, dataset: Any, order: list[int]) -> None:
        if len(order) != len(dataset):
            raise ValueError(f"avfast.evaluate.ShuffledPairs: order: expected {len(dataset)} entries, got {len(order)}")
        self.dataset = dataset
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        seen, heard = self.dataset[epoch, index], self.dataset[epoch, self.order[index]]
        errors = [*seen["errors"], *heard["errors"]]
        if "index" not in seen or "index" not in heard:
            return {"errors": errors}
        half = {"other": heard["image"]} if "image" in heard else {"waveform": heard["waveform"]}
        return {**seen, **half, "errors": errors}


class ShuffledLabels(Dataset):
    """A data set whose item ``(epoch, i)`` is sample i with the label of sample ``order[i]``, the control of supervised
    training. A sample without ``index`` could not be read and stays so.

    Args:
        labels: class of every sample.
    """

    def __init__(self, dataset: Any, order: list[int], labels: Sequence[int]) -> None:
        if not len(order) == len(labels) == len(dataset):
            raise ValueError(
                f"avfast.evaluate.ShuffledLabels: order, labels: expected {len(dataset)} entries, "
                f"got {len(order)} and {len(labels)}"
            )
        self.dataset, self.order, self.labels = dataset, order, labels

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        sample = self.dataset[key]
        return sample if "index" not in sample else {**sample, "label": int(self.labels[self.order[key[1]]])}
