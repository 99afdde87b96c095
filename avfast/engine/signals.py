"""Stopping cleanly: a signal or a spent budget ends the loop after the step under way."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from avfast.errors import AvfastError, ConfigError

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Interrupted(AvfastError):
    """A signal ended the run; the message says where the state is. ``code`` is the exit status a shell expects."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def exit_code(name: str) -> int:
    """Of a process that a signal ended.

    >>> exit_code("SIGTERM")
    143
    """
    return 128 + getattr(signal, name, 0)


class StopRequest:
    """Context manager that turns SIGTERM and Ctrl-C into a flag; the second Ctrl-C interrupts at once.

    Once training is over there is nothing to finish first: after :meth:`at_once`, every signal interrupts.

    Attributes:
        signal_name: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}
        self._at_once = False

    def __enter__(self) -> StopRequest:
        self._previous = _handled_by(self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def at_once(self) -> None:
        """From now on signals raise KeyboardInterrupt, as one that came before does now."""
        self._at_once = True
        if self.signal_name is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.signal_name = self.signal_name is not None, signal.Signals(number).name
        if self._at_once or (again and number == signal.SIGINT):
            raise KeyboardInterrupt


@contextmanager
def interruptible(words: str) -> Iterator[None]:
    """A block outside of training, where SIGTERM interrupts as Ctrl-C does.

    Raises:
        Interrupted: one of them came; the message is its name and `words`.
    """
    came = ["SIGINT"]

    def handle(number: int, frame: FrameType | None) -> None:
        came[0] = signal.Signals(number).name
        raise KeyboardInterrupt

    previous = _handled_by(handle)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"{came[0]} {words}", exit_code(came[0])) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _handled_by(handle: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set the handler of both signals; the handlers before. Only the main thread may: elsewhere signals keep their
    meaning."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handle) for number in STOPPING}


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
