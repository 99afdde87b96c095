"""Can a candidate run in so much memory? Tried in a process of its own, so that running out of it hurts nobody."""

from __future__ import annotations

import functools
import resource
import subprocess
import sys

from .registry import load

CODE = "import sys; from avfast.benches.limited import attempt; attempt(*sys.argv[1:4], int(sys.argv[4]))"


def attempt(bench: str, key: str, name: str, nbytes: int) -> None:
    """One call of a candidate of a case, with at most ``nbytes`` of private memory for this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))
    case = next(case for case in load(bench).cases() if case.key == key)
    candidate = next(candidate for candidate in case.candidates if candidate.name == name)
    candidate.prepare(case.inputs())()


@functools.cache
def out_of_memory(bench: str, key: str, name: str, nbytes: int, seconds: float = 120.0) -> str | None:
    """None if the candidate gets through, else why not, in words."""
    limit = f"{nbytes / 2**30:.3g} GiB"
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE, bench, key, name, str(nbytes)],
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no result within {seconds:.0f} s and {limit}"
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return f"cannot run in {limit}: {last[:200]}"
