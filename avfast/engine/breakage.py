"""How much of the data can still be read: a run whose data are gone must stop, not skip its way to a useless model."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

from avfast.errors import AvfastError, DataError, RunFault

LOST = 3
"""Batches in a row without one readable sample after which the data are called gone."""
WINDOW, MOST = 256, 0.5
"""Of so many samples in a row, the share that may be unreadable."""


class Breakage:
    """Counts what cannot be read, batch by batch.

    Args:
        root: the data folder, or None where there is none.
        noun: what samples are called.
    """

    def __init__(self, root: Path | None, noun: str) -> None:
        self.root, self.noun = root, noun
        self._lost = 0
        self._recent: deque[tuple[int, int]] = deque()  # failed, all; per batch

    def note(self, good: int, errors: list[dict[str, Any]]) -> None:
        """Add a batch of `good` samples.

        Raises:
            RunFault: the folder is gone, nothing in it can be read any more, or less than half of it.
        """
        self._lost = 0 if good or not errors else self._lost + 1
        self._recent.append((len(errors), good + len(errors)))
        while sum(count for _, count in self._recent) - self._recent[0][1] >= WINDOW:
            self._recent.popleft()
        if not errors:
            return
        last = f"the last is {errors[-1]['path']}, which {errors[-1]['detail']}"
        where = "" if self.root is None else f" of '{self.root}'"
        if self.root is not None and (state := _gone(self.root)):
            raise RunFault(f"the data folder '{self.root}' {state}: {last}")
        if self._lost >= LOST:
            raise RunFault(f"no {self.noun}{where} can be read any more: {LOST} batches in a row without one; {last}")
        failed, seen = (sum(column) for column in zip(*self._recent, strict=True))
        if seen >= WINDOW and failed > MOST * seen:
            raise RunFault(f"{failed} of the last {seen} {self.noun}{where} could not be read; {last}")

    def explain(self, error: DataError) -> AvfastError:
        """An error of reading a split: that of the folder, where this is what is wrong."""
        state = "" if self.root is None else _gone(self.root)
        return RunFault(f"the data folder '{self.root}' {state}: {error}") if state else error


def _gone(root: Path) -> str:
    """What is wrong with the folder itself; nothing if it is there and holds something."""
    try:
        with os.scandir(root) as entries:
            return "" if any(not entry.name.startswith(".") for entry in entries) else "is empty (unmounted?)"
    except FileNotFoundError:
        return "does not exist any more"
    except OSError as error:
        return f"cannot be listed ({error.strerror})"
