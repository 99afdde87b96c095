"""Clocks, thread counts and the round-robin. Nothing here knows what is being timed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MIN_SLICE_S = 1e-3  # a slice is repeated calls lasting at least this, so that the clock itself does not show


def synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with this many threads, code that torch.compile generates included; the old count comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Slice:
    """Seconds per call of one slice: on the wall, and of CPU time over all threads of the process."""

    wall: float
    cpu: float


def time_slice(calls: Sequence[Callable[[], Any]], repeat: int, device: str) -> Slice:
    """Time ``repeat`` calls, going round ``calls`` (one per input set, so that a GPU's L2 does not help)."""
    many = len(calls)
    if torch.device(device).type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        cpu = time.process_time()
        begin.record()
        for i in range(repeat):
            calls[i % many]()
        end.record()
        torch.cuda.synchronize()
        return Slice(begin.elapsed_time(end) / 1e3 / repeat, (time.process_time() - cpu) / repeat)
    cpu, wall = time.process_time(), time.perf_counter()
    for i in range(repeat):
        calls[i % many]()
    return Slice((time.perf_counter() - wall) / repeat, (time.process_time() - cpu) / repeat)


def repeats_for(calls: Sequence[Callable[[], Any]], device: str, min_slice: float = MIN_SLICE_S) -> int:
    """How many calls make a slice. The first calls also warm caches up."""
    if time_slice(calls, len(calls), device).wall > 50 * min_slice:
        return 1
    once = min(time_slice(calls, len(calls), device).wall for _ in range(3))  # a hiccup would make slices short
    return max(1, math.ceil(min_slice / max(once, 1e-9)))


def best_seconds(call: Callable[[], Any], device: str, rounds: int = 7) -> float:
    repeat = repeats_for([call], device)
    return min(time_slice([call], repeat, device).wall for _ in range(rounds))


def round_robin(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Everybody once per round, starting one further each time: nobody profits from always being first."""
    for index in range(rounds):
        start = index % len(names)
        for name in (*names[start:], *names[:start]):
            yield index, name


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and minimum of seconds per call."""

    median: float
    lower: float
    upper: float
    minimum: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        lower, median, upper = np.percentile(seconds, (25, 50, 75))
        return cls(float(median), float(lower), float(upper), float(min(seconds)), len(seconds))


def noise_floor(first: Sequence[float], again: Sequence[float]) -> float:
    """Relative difference below which two candidates count as equal, from one candidate run twice per round.

    The larger of how far apart the two medians are and half the interquartile range of their ratio per round.
    """
    ratios = np.asarray(again) / np.asarray(first)
    lower, middle, upper = np.percentile(ratios, (25, 50, 75))
    return float(max(abs(middle - 1), (upper - lower) / 2))
