"""Many small steps, as a day of training makes them: memory, file handles and threads must not grow.

A toy on real clips, with a loader process, the log, looks at validation clips and checkpoints. Every stretch of steps
is ended by a signal and continued by a new trainer in the same process, with a new loader process.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from avfast.data import ClipSource
from avfast.engine.signals import Budget

from .rows import Row
from .toy import StopAt, clip_set, in_step, make_clips, make_trainer, toy_recipe

UNIT, SMALL, LONG, MINUTES = "steps", 200, 20_000, 8
STRETCHES = 20
MOST_MIB = 8.0
"""Growth of a process from its second to its last quarter that is still the noise of its allocators."""
PAGE = os.sysconf("SC_PAGE_SIZE") / 2**20


def check(size: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    began, samples, loader_growth = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as scratch, toy_recipe():
        out, clips = Path(scratch, "run"), make_clips(Path(scratch, "clips"), 24)
        source = ClipSource.open(clips)
        stretch, done = max(50, size // STRETCHES), 0
        while done < size:
            done = min(done + stretch, size)
            growth = _stretch(out, source, done, size, samples)
            loader_growth += [] if growth is None else [growth]
            if len(samples) and done % (5 * stretch) == 0:
                say(f"{done} steps, {samples[-1][1]:.0f} MiB, {samples[-1][2]} handles, {samples[-1][3]} threads")
        state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
        finite = all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())
        files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    return _rows(size, samples, loader_growth, state, finite, files, time.monotonic() - began)


def _stretch(out: Path, source: ClipSource, end: int, size: int, samples: list) -> float | None:
    """Train until step `end`; MiB by which the loader process grew from its first half to its end."""
    every = max(5, size // 2000)
    trainer = make_trainer(
        out, clip_set(source), steps=size, resume=True, workers=1, looks=source, log_every=10,
        eval_every=max(50, size // 100), save_every=max(25, size // 200),
    )  # fmt: skip
    loader: list[float] = []

    def worker():
        return trainer.loader._iterator._workers[0]

    def each(step: int) -> None:
        if step % every == 0:
            samples.append((step, _rss("self"), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
            loader.append(_rss(worker().pid))

    in_step(trainer, each)
    trainer.fit(StopAt(trainer, end), Budget(None))
    trainer = None
    gc.collect()
    return loader[-1] - statistics.median(loader[len(loader) // 4 : len(loader) // 2 + 1]) if len(loader) > 8 else None


def _rss(process: int | str) -> float:
    """Resident memory in MiB, without pages shared with others."""
    total, resident, shared = map(int, Path(f"/proc/{process}/statm").read_text().split()[:3])
    return (resident - shared) * PAGE


def _rows(size, samples, loader_growth, state, finite, files, seconds) -> list[Row]:
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    (_, m0, h0, t0), (_, m1, h1, t1) = (
        [statistics.median(column) for column in zip(*part, strict=True)] for part in (early, late)
    )
    handles, threads = h1 - h0, t1 - t0
    failures = []
    if m1 - m0 > MOST_MIB:
        failures.append(f"memory grew by {m1 - m0:.1f} MiB, from {m0:.0f} to {m1:.0f}")
    for name, growth in (("handles", handles), ("threads", threads)):
        if growth > 0:
            failures.append(f"{name}: {growth:g} more in the last quarter than in the second")
    steps = state["counters"]["step"]
    if steps != size or not finite:
        failures.append(f"ended at step {steps} of {size}, finite: {finite}")
    odd = [name for name in files if ".tmp" in name]
    if odd or len(files) > 8:
        failures.append(f"{len(files)} files in the run folder: {', '.join(files[:12])}")
    if loader_growth and statistics.median(loader_growth) > MOST_MIB:
        failures.append(f"a loader process grew by {statistics.median(loader_growth):.1f} MiB in its life")
    numbers = {
        "MiB at the end": m1, "MiB more than in the second quarter": m1 - m0, "handles more": handles,
        "threads more": threads,
        "samples taken": len(samples), "files in the run folder": len(files),
    }  # fmt: skip
    if loader_growth:
        numbers["MiB of growth of a loader process"] = statistics.median(loader_growth)
    done = (
        "training with log, looks and checkpoints, stopped and continued with new loader processes again and again: "
        "memory, handles, threads and files do not grow"
    )
    return [Row("steps", done, size, failures, seconds, numbers)]
