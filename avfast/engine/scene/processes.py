"""Several processes and one run folder: who writes first, and who alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def main_first(device: str) -> Iterator[None]:
    """The main process goes through the block first, the others after it, finding what it made."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=device == "cpu").main_process_first():
        yield
