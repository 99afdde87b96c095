"""Stopping cleanly: a signal or a spent budget ends the loop after the step under way."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from avfast.errors import ConfigError


class StopRequest:
    """Context manager that turns SIGTERM and Ctrl-C into a flag; the second Ctrl-C interrupts at once.

    Attributes:
        signal_name: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread may set handlers; elsewhere signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


class Budget:
    """Seconds of wall-clock for optimisation, counted from the first ask; None never ends."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._start: float | None = None

    def start(self) -> None:
        self._start = time.monotonic()

    def spent(self) -> bool:
        if self.seconds is None or self._start is None:
            return False
        return time.monotonic() - self._start >= self.seconds


def parse_budget(text: str | None) -> float | None:
    """``"60s"``, ``"10m"``, ``"1.5h"`` or a number of seconds.

    >>> parse_budget("10m"), parse_budget(None)
    (600.0, None)
    """
    if text is None:
        return None
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"--budget: expected a time such as 60s, 10m or 1.5h, got '{text}'")
    return seconds
