"""A word to somebody who waits: nothing for quick work, a line now and then for slow work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

PATIENCE = 3.0
EVERY = 10.0


def waiting(what: str, noun: str = "files") -> Callable[[int, int], None]:
    """A callback for ``(done, total)`` that prints to stderr after 3 seconds, and every 10 seconds from then on.

    >>> report = waiting("/data")
    >>> report(1, 100)
    """
    began = time.monotonic()
    due = began + PATIENCE

    def report(done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due or done >= total:
            return
        due = now + EVERY
        left = (now - began) / max(done, 1) * (total - done)
        print(f"indexing {what}: {done:,} of {total:,} {noun}, about {left:.0f} s left", file=sys.stderr, flush=True)

    return report
