"""The library that checks itself (.ci/sanitize), for longer than CI takes: another seed and many more calls."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .rows import Row

UNIT, SMALL, LONG, MINUTES = "calls", 40, 20_000, 20
SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "sanitize"


def check(size: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    """Build it where that was not done, and run ``size`` fuzzed calls of ops on each of its two instruction sets."""
    done = "no read or write outside of memory, no overflow, no odd address in any op"
    if not SCRIPT.is_file():
        return [Row("sanitizers", done, missing="the sources are not here, only the package")]
    began = time.monotonic()
    say("building and running, without a word until it is done")
    command = [str(SCRIPT), "--calls", str(size), "--seed", str(seed)]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PY": sys.executable})
    failures = () if found.returncode == 0 else ((found.stdout + found.stderr)[-2000:],)
    return [Row("sanitizers", done, 2 * size, failures, time.monotonic() - began)]
