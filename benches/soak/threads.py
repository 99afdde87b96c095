"""Every CPU kernel on four threads under ThreadSanitizer (.ci/threads), with shapes drawn anew each round."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .rows import Row

UNIT, SMALL, LONG, MINUTES = "rounds", 1, 5, 10
SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "threads"
SUMMARY = re.compile(r"^threads: \w+: (\d+) kernels, (\d+) calls, (\d+) loops, (\d+) tasks on (\d+) threads$", re.M)


def command_of(size: int, seed: int) -> list[str]:
    return [str(SCRIPT), "--rounds", str(size), "--seed", str(seed)]


def check(size: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    """Build it where that was not done, see that it reports planted races, and run ``size`` rounds of all kernels."""
    done = (
        "every CPU kernel, forward and backward, its tasks dealt to threads in ranges and one by one: no data race, and"
        " the bytes of one thread; planted races were reported first"
    )
    if not SCRIPT.is_file():
        return [Row("data races", done, missing="the sources are not here, only the package")]
    began = time.monotonic()
    say("building and running, without a word until it is done")
    found = subprocess.run(command_of(size, seed), capture_output=True, text=True)
    kernels, calls, loops, tasks, threads = ([int(n) for n in column] for column in _columns(found.stdout))
    failures = () if found.returncode == 0 and calls else ((found.stderr + found.stdout)[-2000:] or "it said nothing",)
    numbers = {
        "kernels": min(kernels, default=0),
        "instruction_sets": len(kernels),
        "loops": sum(loops),
        "tasks": sum(tasks),
        "threads": min(threads, default=0),
    }
    return [Row("data races", done, sum(calls), failures, time.monotonic() - began, numbers)]


def _columns(text: str) -> list[tuple[str, ...]]:
    return list(zip(*SUMMARY.findall(text), strict=True)) or [()] * 5
