"""Facts about the machine, how busy it is, and the bandwidth it really has."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

FOREIGN_LIMIT = 0.25  # cores that others may keep busy before a number is no longer fit to publish


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict:
    """Everything needed to read a number later; plain JSON types."""
    import avfast
    from avfast import env

    build = env.build_info()  # compiler and flags; empty for a pure-Python install
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "avfast": getattr(avfast, "__version__", "unknown"),
        "commit": _commit(build),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
        "build": build,
    }


def slug(machine: dict) -> str:
    """File name for a machine's results: the same for two runs on one kind of machine."""
    name = machine["gpu"] or f"{machine['cpu']}-{machine['cores']}c-{machine['cpu_capability']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cpu_model() -> str:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine()
    model = fields.get("model name", platform.machine())
    # Virtual machines often hide the model; family and model number still tell generations apart.
    return f"{model} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def _commit(build: dict) -> str:
    """The commit of the checkout these files are in, marked if it has changes; else the one built in."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) == here.parent:  # and not a repository around an install
            changed = git("status", "--porcelain", "--untracked-files=no")
            return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        pass
    return str(build.get("commit") or "unknown")


@dataclass(frozen=True)
class Busyness:
    """How much of the machine went to others while something ran."""

    load_before: float
    load_after: float
    foreign_cores: float | None  # busy cores, stolen time included, that were not this process

    def objections(self, cores_in_use: int) -> list[str]:
        """Reasons not to publish what was measured meanwhile; empty on a quiet machine."""
        found = []
        load = max(self.load_before, self.load_after)
        if load > cores_in_use + 0.5:  # half a process of slack: the average remembers the last minute
            found.append(f"load average {load:.2f} exceeds the {cores_in_use} cores in use")
        if self.foreign_cores is not None and self.foreign_cores > FOREIGN_LIMIT:
            found.append(f"other processes kept {self.foreign_cores:.2f} cores busy")
        return found


class Watch:
    """Measures `Busyness` from its creation until `stop`."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._wall, self._own, self._all = time.perf_counter(), _own_seconds(), _busy_seconds()

    def stop(self) -> Busyness:
        wall = time.perf_counter() - self._wall
        foreign = None
        if self._all is not None and wall > 0.05:  # the kernel counts in ticks of 10 ms
            foreign = max(0.0, (_busy_seconds() - self._all - (_own_seconds() - self._own)) / wall)
        return Busyness(self._load, os.getloadavg()[0], foreign)


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds() -> float | None:
    """CPU seconds spent on this machine by anyone, or None where that is not known."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


@functools.cache
def bandwidth(kind: str, nbytes: int, device: str, threads: int) -> float:
    """Bytes per second of the best of torch's own reads or of its copy, over a working set of this size.

    ``threads`` must be the count already set; here it only keys the cache. A copy counts both ways.
    """
    from .timing import best_seconds

    elements = max(nbytes // (8 if kind == "copy" else 4), 1024)
    source = torch.randn(elements, device=device)
    if kind == "copy":
        target = torch.empty_like(source)
        return 2 * 4 * elements / best_seconds(lambda: target.copy_(source), device)
    if kind != "read":
        raise ValueError(f"bandwidth: kind: expected 'read' or 'copy', got {kind!r}")
    readers = (source.sum, source.amax, lambda: torch.dot(source, source))
    return 4 * elements / min(best_seconds(reader, device) for reader in readers)


@functools.cache
def fma_rate(dtype: torch.dtype, device: str, threads: int) -> float | None:
    """Multiplications and additions per second that ``threads`` cores can do at once, from registers; None if unknown.

    For bfloat16 it is the rate of the dot-product instruction where the processor has one. Needs avfast's library.
    """
    from avfast import _library

    if _library.native is None or torch.device(device).type != "cpu" or dtype == torch.float64:
        return None
    kind = "bf16" if dtype == torch.bfloat16 else "fp32"
    with ThreadPoolExecutor(threads) as pool:
        return 1e9 * sum(pool.map(_library.native.peak_gflops, [kind] * threads))
