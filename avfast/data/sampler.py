"""The order of samples: a function of seed and epoch, with two integers of state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from avfast.data.randomness import permutation
from avfast.errors import DataError


class EpochSampler:
    """Batches of ``(epoch, index)`` keys, for ``DataLoader(batch_sampler=...)``.

    The order of an epoch is a pure function of ``(seed, epoch)``, so the whole state is a position ``(epoch,
    step)``. Iterating yields what is left of the current epoch and then moves to the next one::

        for epoch in range(start_epoch, epochs):
            for step, batch in enumerate(loader, start=sampler.step): ...

    A ``DataLoader`` with workers draws keys ahead of the batches it hands out. A checkpoint must therefore
    hold the position the *training loop* has reached: call ``set_position(epoch, steps_done)`` before
    ``state_dict()``.

    Args:
        n: number of samples.
        seed: any integer.
        batch_size: samples per batch **on one rank**.
        shuffle: if false, every epoch runs ``0 .. n-1``.
        drop_last: drop the samples that do not fill a batch on every rank. If false they are dealt out in
            turn: the last batch is shorter and, when fewer than ``world_size`` samples remain, some ranks
            have no last batch.
        least: with ``drop_last=False``: there is a last batch where it has so many samples on every rank, and then
            equally many; up to ``world_size - 1`` samples are left out. 0 for the uneven deal above.
        rank, world_size: this process's share. Over all ranks every sample of the epoch appears exactly once
            (with ``drop_last``: at most once).

    Raises:
        DataError: no batch can be formed.
        ValueError: an argument is out of range.

    >>> sampler = EpochSampler(5, seed=0, batch_size=2, shuffle=False)
    >>> list(sampler), sampler.state_dict()
    ([[(0, 0), (0, 1)], [(0, 2), (0, 3)]], {'epoch': 1, 'step': 0})
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = True,
        least: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"avfast.data.EpochSampler: {name}: expected at least 1, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"avfast.data.EpochSampler: rank: expected 0 <= rank < {world_size}, got {rank}")
        if n < 1:
            raise DataError("avfast.data.EpochSampler: there are no samples to draw from")
        if n < (batch_size if drop_last else least) * world_size:
            raise DataError(
                f"avfast.data.EpochSampler: {n} samples do not fill one batch of {batch_size} on "
                f"{world_size} process(es); use a smaller batch_size or drop_last=False"
            )
        self.n, self.seed, self.batch_size = n, seed, batch_size
        self.shuffle, self.drop_last, self.least = shuffle, drop_last, least
        self.rank, self.world_size = rank, world_size
        self.epoch, self.step = 0, 0

    def __len__(self) -> int:
        """Batches per epoch on this rank (of a whole epoch, also after a resume)."""
        full, rest = divmod(self.n, self.batch_size * self.world_size)
        more = rest // self.world_size >= self.least if self.least else rest > self.rank
        return full + (not self.drop_last and more)

    def order(self, epoch: int) -> np.ndarray:
        """The global order of one epoch, before it is dealt out to ranks; int64 ``[n]``."""
        return permutation(self.n, "order", self.seed, epoch) if self.shuffle else np.arange(self.n)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = self.epoch, self.step
        order = self.order(epoch)
        stride = self.batch_size * self.world_size
        for step in range(first, len(self)):
            group = order[step * stride : (step + 1) * stride]
            if self.least:
                group = group[: len(group) // self.world_size * self.world_size]
            yield [(epoch, index) for index in group[self.rank :: self.world_size].tolist()]
        self.epoch, self.step = epoch + 1, 0

    def set_position(self, epoch: int, step: int) -> None:
        """Go on as if ``step`` batches of ``epoch`` had been used; a full epoch is the start of the next."""
        if epoch < 0 or not 0 <= step <= len(self):
            raise ValueError(
                f"avfast.data.EpochSampler.set_position: expected epoch >= 0 and 0 <= step <= {len(self)}, "
                f"got ({epoch}, {step})"
            )
        self.epoch, self.step = (epoch + 1, 0) if step and step == len(self) else (epoch, step)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.set_position(state["epoch"], state["step"])
