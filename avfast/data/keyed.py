"""Samples asked for by (epoch, index), and what happens with one that cannot be read."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset, get_worker_info

from avfast.data.deadline import TimeLimit
from avfast.data.identity import content_id
from avfast.data.randomness import Draws
from avfast.data.sources import ClipSource
from avfast.errors import DataError, RunFault, UnreadableFile

POLICIES = ("raise", "skip", "resample")
# So many different samples are tried in place of a broken one before the data are called broken.
RESAMPLE_TRIES = 8
# What the system says when it is this process that lacks something, not the file.
EXHAUSTED = {errno.EMFILE: "too many open files", errno.ENFILE: "too many open files", errno.ENOMEM: "out of memory"}


class UnusableClip(DataError):
    """A clip or picture that cannot be used, raised in the main process or in a worker.

    A worker's exception arrives as its whole traceback in one string; only the last part is meant for the
    user.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class KeyedDataset(Dataset):
    """Base of the datasets here: subclasses make a sample in ``_sample(epoch, index)`` or raise UnreadableFile.

    A sample that takes longer than ``timeout`` seconds to read (0: no limit) cannot be used, nor one whose file was
    replaced by another since the data set was made. Attributes:

    * ``beacon``: where set, int64 ``[workers]`` in shared memory: the index that each loader process is reading, or -1.
    """

    noun: ClassVar[str]  # what the samples are called, in the plural

    def __init__(
        self, source: ClipSource, *, seed: int, train: bool, on_error: str, cache: str | None, timeout: float = 0.0
    ) -> None:
        where = f"avfast.data.{type(self).__name__}"
        if on_error not in POLICIES:
            raise ValueError(f"{where}: on_error: expected one of {POLICIES}, got {on_error!r}")
        if cache not in (None, "memory"):
            raise ValueError(f"{where}: cache: expected None or 'memory', got {cache!r}")
        self.source, self.seed, self.train, self.on_error, self.cache = source, seed, train, on_error, cache
        self._labels = source.label_numbers
        self.limit = TimeLimit(timeout)
        self.beacon: torch.Tensor | None = None
        self._decoded: dict[int, Any] = {}
        self._made = time.time_ns() - 20_000_000  # the clocks of file systems tick every 10 ms
        self._verified: dict[int, int] = {}  # files that were touched since, and are the same

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
                return self._read(epoch, index) | {"errors": errors}
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

    def _read(self, epoch: int, index: int) -> dict[str, Any]:
        """A sample within the time limit; whatever is wrong with its file is an UnreadableFile."""
        if index in self._decoded:
            return self._sample(epoch, index)
        path = self.source.records[index].path
        worker = get_worker_info() if self.beacon is not None else None
        if worker is not None:
            self.beacon[worker.id] = index
        try:
            return self.limit.run(path, self._unchanged_sample, epoch, index)
        except (UnreadableFile, OSError) as error:
            system = error if isinstance(error, OSError) else error.__cause__
            # What a decoder asks for in vain is what the file's header says; memory that is short kills without a word.
            lack = None if isinstance(system, MemoryError) else EXHAUSTED.get(getattr(system, "errno", None))
            if lack is not None:
                raise RunFault(f"{path}: cannot be read, and that is not the file's fault: {lack}") from None
            if isinstance(error, UnreadableFile):
                raise
            raise UnreadableFile(path, "unreadable", f"cannot be read ({error.strerror or error})") from error
        finally:
            if worker is not None:
                self.beacon[worker.id] = -1

    def _unchanged_sample(self, epoch: int, index: int) -> dict[str, Any]:
        """A sample whose file is still the one that the data set was made of; its id, and with it its split and what is
        drawn for it, would otherwise be those of the clip that it was."""
        record = self.source.records[index]
        if isinstance(record.path, Path):
            # The time of the last change of its entry, which no copying tool can set back.
            changed = _changed_at(record.path)
            if changed > self._verified.get(index, self._made):
                try:
                    same = content_id(record.path) == record.id
                except DataError as error:
                    raise UnreadableFile(record.path, "unreadable", "cannot be read any more") from error.__cause__
                if not same:
                    raise UnreadableFile(record.path, "changed", "is not the file any more that the run began with")
                self._verified[index] = changed
        return self._sample(epoch, index)

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        raise NotImplementedError


def _changed_at(path: Path) -> int:
    """Nanoseconds since 1970; 0 for a file that is gone, which the reader will say."""
    try:
        return path.stat().st_ctime_ns
    except FileNotFoundError:
        return 0
