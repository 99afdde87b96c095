"""What a person sees while it runs: a rich bar on a terminal, one plain line per interval elsewhere (a pipe, a file,
CI, ``TERM=dumb``, ``NO_COLOR``)."""

from __future__ import annotations

import sys
import time
from typing import Any

from avfast.printable import printable
from avfast.terminal import is_live


class Progress:
    """Progress of one training run.

    Args:
        total: steps.
        title: shown in front, for instance "train" or "control".
        start: steps already done by an earlier run.
        quiet: print nothing (ranks other than 0).
        noun: what samples are called.
    """

    def __init__(self, total: int, title: str, *, start: int = 0, quiet: bool = False, noun: str = "clips") -> None:
        self.total, self.title, self.quiet, self.noun = total, title, quiet, noun
        self._begin, self._start = time.monotonic(), start
        self._bar = None if quiet or not is_live(sys.stdout) else _rich_bar(title, total, start)
        self._task = self._bar.task_ids[0] if self._bar else None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step)

    def line(self, step: int, row: dict[str, Any]) -> None:
        """One interval: loss, samples per second, time left, data and compute time."""
        if self.quiet:
            return
        left = (time.monotonic() - self._begin) / max(1, step - self._start) * (self.total - step)
        text = (
            f"{self.title} {step}/{self.total}  loss {_short(row['loss'])}  {row['samples_per_s']:.0f} {self.noun}/s  "
            f"data {row['data_s'] * 1e3:.0f} ms + compute {row['compute_s'] * 1e3:.0f} ms per step  "
            f"eta {clock(left)}"
        )
        if self._bar:
            self._bar.update(self._task, description=f"{self.title}  loss {_short(row['loss'])}")
        else:
            self.say(text)

    def validation(self, step: int, row: dict[str, Any]) -> None:
        """One look at the validation split; a score stands beside its chance."""
        shown = []
        for name, value in row.items():
            chance = row.get(f"{name} chance")
            if not name.endswith(" chance"):
                shown.append(f"{name} {_short(value)}" + ("" if chance is None else f" (chance {_short(chance)})"))
        self.say(f"{self.title} {step}/{self.total}  validation: {'  '.join(shown)}")

    def say(self, text: str) -> None:
        if self.quiet:
            return
        text = printable(text, keep="\n")  # it may name a file
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)


def _short(value: Any) -> str:
    """Numbers with three places; the log has words for what is not finite."""
    return f"{value:.3f}" if isinstance(value, (int, float)) else str(value)


def clock(seconds: float) -> str:
    """``75`` -> ``1:15``.

    >>> clock(75), clock(3671)
    ('1:15', '1:01:11')
    """
    minutes, rest = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _rich_bar(title: str, total: int, start: int) -> Any | None:
    try:
        from rich import progress
    except (ImportError, RuntimeError, OSError):
        return None  # plain lines say the same
    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn(),
    )  # fmt: skip
    bar = progress.Progress(*columns)
    bar.add_task(title, total=total, completed=start)
    return bar
