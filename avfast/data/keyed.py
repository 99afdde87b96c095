"""Samples asked for by (epoch, index), and what happens with one that cannot be read."""

from __future__ import annotations

from typing import Any, ClassVar

from torch.utils.data import Dataset

from avfast.data.randomness import Draws
from avfast.data.sources import ClipSource
from avfast.errors import DataError, UnreadableFile

POLICIES = ("raise", "skip", "resample")
# So many different samples are tried in place of a broken one before the data are called broken.
RESAMPLE_TRIES = 8


class UnusableClip(DataError):
    """A clip or picture that cannot be used, raised in the main process or in a worker.

    A worker's exception arrives as its whole traceback in one string; only the last part is meant for the
    user.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class KeyedDataset(Dataset):
    """Base of the datasets here: subclasses make a sample in ``_sample(epoch, index)`` or raise UnreadableFile."""

    noun: ClassVar[str]  # what the samples are called, in the plural

    def __init__(self, source: ClipSource, *, seed: int, train: bool, on_error: str, cache: str | None) -> None:
        where = f"avfast.data.{type(self).__name__}"
        if on_error not in POLICIES:
            raise ValueError(f"{where}: on_error: expected one of {POLICIES}, got {on_error!r}")
        if cache not in (None, "memory"):
            raise ValueError(f"{where}: cache: expected None or 'memory', got {cache!r}")
        self.source, self.seed, self.train, self.on_error, self.cache = source, seed, train, on_error, cache
        self._labels = source.labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        if not isinstance(key, tuple):
            raise TypeError(
                f"avfast.data.{type(self).__name__}: expected a key (epoch, index) as EpochSampler yields, got {key!r}"
            )
        epoch, index = key
        errors: list[dict[str, Any]] = []
        for attempt in range(RESAMPLE_TRIES + 1):
            try:
                return self._sample(epoch, index) | {"errors": errors}
            except UnreadableFile as error:
                if self.on_error == "raise":
                    raise UnusableClip(f"{error} (on_error='skip' or 'resample' goes on without it)") from None
                errors.append(
                    {"index": index, "path": error.path, "cause": error.cause, "detail": error.detail,
                     "policy": self.on_error}
                )  # fmt: skip
            if self.on_error == "skip":
                return {"errors": errors}
            index = Draws(self.seed, epoch, self.source.records[key[1]].id, "resample", attempt).integer(len(self))
        raise UnusableClip(
            f"{self.source.root}: {len(errors)} {self.noun} in a row could not be used, the last because "
            f"{errors[-1]['path']} {errors[-1]['detail']}"
        )

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        raise NotImplementedError
