"""A folder of a hundred thousand tiny clips, a list of them, and shards: indexed once, small in memory, the same order.

Real mp4 files with pictures and sound, each made different by a few bytes in a box that players pass over.
"""

from __future__ import annotations

import csv
import gc
import os
import pickle
import struct
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .rows import Row

UNIT, SMALL, LONG, MINUTES = "clips", 600, 100_000, 12
CLASSES = 10
PER_RECORD = 200
"""Bytes of a record that memory may hold."""


def check(size: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    """Make ``size`` clips in a temporary folder and hold the index, its memory and the loader to what they promise."""
    with tempfile.TemporaryDirectory(prefix="avfast-folder-") as base:
        folder = Path(base) / "clips"
        say(f"making {size} clips")
        tiny_clips(folder, size, seed)
        parts = (_first, _again, _beside, _memory, _facts, _list, _loader, _shards)
        rows = []
        for part in parts:
            say(part.__doc__)
            rows.append(part(folder, size))
        return rows


def tiny_clips(folder: Path, count: int, seed: int = 0) -> None:
    """``count`` mp4 files of half a second in ten class folders, no two alike."""
    from avfast.data.demo.encode import write_clip

    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    kinds = []
    for kind in range(3):
        frames = np.broadcast_to(rng.integers(0, 256, (6, 1, 1, 3), np.uint8), (6, 32, 32, 3))
        tone = 0.3 * np.sin(np.arange(4000) * 0.1 * (kind + 1)).astype(np.float32)
        path = folder / "kind.mp4"
        write_clip(path, frames, 12, tone, 8000)
        kinds.append(path.read_bytes())
        path.unlink()
    for number in range(CLASSES):
        (folder / f"class{number}").mkdir()
    for number in range(count):
        box = struct.pack(">I4sq", 16, b"free", number)
        (folder / f"class{number % CLASSES}" / f"{number:07d}.mp4").write_bytes(kinds[number % 3] + box)


@contextmanager
def counted(root: Path) -> Iterator[dict[str, int]]:
    """How often folders below ``root`` are listed, and files in it looked at and read, inside the block."""
    from avfast.data import identity

    found, lock = {"listed": 0, "looked": 0, "read": 0}, threading.Lock()  # files are read in several threads
    real = os.scandir, os.stat, identity.content_digest

    def below(path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and str(path).startswith(str(root))

    def count(name: str, one: bool) -> None:
        with lock:
            found[name] += one

    def scandir(path: object = "."):
        count("listed", below(path))
        return real[0](path)

    def look(path: object, **options):
        count("looked", below(path) and str(path).endswith(".mp4"))
        return real[1](path, **options)

    def digest(path: object) -> bytes:
        count("read", below(path))
        return real[2](path)

    os.scandir, os.stat, identity.content_digest = scandir, look, digest
    try:
        yield found
    finally:
        os.scandir, os.stat, identity.content_digest = real


def _open(folder: Path | str):
    from avfast.engine.sources import open_data

    return open_data(folder)


def _timed(folder: Path, size: int, name: str, done: str, expected: dict[str, int]) -> Row:
    began, cpu = time.perf_counter(), time.process_time()
    with counted(folder) as found:
        bundle = _open(folder)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    failures = [f"{key}: expected {n}, found {found[key]}" for key, n in expected.items() if found[key] != n]
    failures += [] if len(bundle.source) == size else [f"{len(bundle.source)} clips of {size}"]
    return Row(name, done, size, failures, seconds, {"s_of_cpu": cpu, "us_of_cpu_per_clip": 1e6 * cpu / size})


def _first(folder: Path, size: int) -> Row:
    """the first start"""
    whole = {"listed": CLASSES + 1, "read": size}
    return _timed(folder, size, "first start", "every folder is listed once, every file read once", whole)


def _again(folder: Path, size: int) -> Row:
    """the second start"""
    again = {"listed": CLASSES + 1, "read": 0}
    return _timed(folder, size, "second start", "every folder is listed once, no file is read", again)


def _beside(folder: Path, size: int) -> Row:
    """a process beside the main one"""
    before = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {"RANK": "1", "LOCAL_RANK": "1"}
    try:
        nothing = {"listed": 0, "looked": 0, "read": 0}
        return _timed(folder, size, "second process", "nothing is listed, looked at or read", nothing)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _memory(folder: Path, size: int) -> Row:
    """memory"""
    began = time.perf_counter()
    _open(folder)  # what importing and first calls take is not the records'
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        bundle = _open(folder)
        gc.collect()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    more = len(gc.get_objects()) - objects
    per = held / size
    failures = [f"{per:.0f} bytes per record, expected at most {PER_RECORD}"] if per > PER_RECORD + 3e5 / size else []
    failures += [f"{more} more objects"] if more > 100 + size // 10 else []
    return Row(
        "memory", "records of all splits in columns, no object per record", size, failures,
        time.perf_counter() - began,
        {"bytes_per_record": per, "peak_bytes_per_record": peak / size,
         "pickled_bytes_per_record": len(pickle.dumps(bundle.splits["train"])) / size},
    )  # fmt: skip


def _facts(folder: Path, size: int) -> Row:
    """splits, labels, fingerprint and order"""
    from avfast.data.randomness import permutation

    bundle = _open(folder)
    began = time.perf_counter()
    numbers: dict[str, float] = {}
    for name, work in (
        ("fingerprint_cpu_s", lambda: bundle.source.fingerprint),
        ("splits_cpu_s", lambda: bundle.source.with_splits()),
        ("labels_cpu_s", lambda: bundle.source.label_numbers),
        ("order_of_1e6_cpu_s", lambda: permutation(10**6, "order", 0, 0)),
        ("order_of_1e7_cpu_s", lambda: permutation(10**7 if size >= 10**4 else 10**5, "order", 0, 0)),
    ):
        start = time.process_time()  # of the CPU: others may be at work
        work()
        numbers[name] = time.process_time() - start
    dealt = bundle.source.splits
    fair = abs(dealt["test"] / size - 0.2) < 5 * (0.16 / size) ** 0.5
    return Row("facts", "fingerprint, splits, labels, orders", size, [] if fair else [f"splits {dealt}"],
               time.perf_counter() - began, numbers)  # fmt: skip


def _list(folder: Path, size: int) -> Row:
    """a CSV of all clips"""
    began = time.perf_counter()
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        rows = ((f"class{n % CLASSES}/{n:07d}.mp4", f"class{n % CLASSES}") for n in range(size))
        writer.writerows(rows)
    numbers = {}
    for name in ("first_cpu_s", "second_cpu_s"):
        start = time.process_time()
        with counted(folder) as found:
            listed = _open(path)
        numbers[name] = time.process_time() - start
    failures = [] if listed.fingerprint == _open(folder).fingerprint else ["another fingerprint than of the folder"]
    failures += [f"{found['read']} files read again"] if found["read"] else []
    return Row(
        "list", "a CSV gives the fingerprint of the folder", size, failures, time.perf_counter() - began, numbers
    )


def _loader(folder: Path, size: int) -> Row:
    """first batches, and the same ones after a resume"""
    began, numbers, failures = time.perf_counter(), {}, []
    for workers in (0, 2):
        start = time.perf_counter()
        first = next(_batches(folder, workers, 0))
        numbers[f"first_batch_{workers}_workers_s"] = time.perf_counter() - start
        failures += _differences(folder, folder, workers)
        failures += [] if len(first["id"]) == 8 else ["the first batch is not whole"]
    return Row("loader", "from opening to the first batch; resumed in mid-epoch, batches are the same", size, failures,
               time.perf_counter() - began, numbers)  # fmt: skip


def _shards(folder: Path, size: int) -> Row:
    """shards of all clips"""
    from avfast.data.shard_writer import write_shards

    began, numbers = time.perf_counter(), {}
    out = folder.parent / "shards"
    bundle = _open(folder)
    start = time.process_time()
    write_shards(bundle.source, out, size=max(10**5, size * 1000))
    numbers["written_cpu_s"] = time.process_time() - start
    for name in ("first_cpu_s", "second_cpu_s"):
        start = time.process_time()
        packed = _open(out)
        numbers[name] = time.process_time() - start
    failures = [] if packed.fingerprint == bundle.fingerprint else ["another fingerprint than of the folder"]
    failures += _differences(out, out, 2) + _differences(folder, out, 0)
    return Row("shards", "packed, indexed; the same batches as from the folder, resumed ones too", size, failures,
               time.perf_counter() - began, numbers)  # fmt: skip


def _batches(data: Path, workers: int, step: int) -> Iterator[dict]:
    from avfast.data import ClipDataset, EpochSampler
    from avfast.engine.config import DataConfig
    from avfast.engine.sources import training_loader

    source = _open(data).splits["train"]
    dataset = ClipDataset(source, frames=1, size=16, duration=0.4, sample_rate=8000, seed=0, train=True)
    sampler = EpochSampler(len(source), seed=0, batch_size=8)
    sampler.set_position(1, step)
    yield from training_loader(dataset, sampler, DataConfig(workers=workers), pin_memory=False)


def _differences(one: Path, other: Path, workers: int, step: int = 5) -> list[str]:
    """How the batches from ``step`` on of a run that starts there differ from those of one that came so far."""
    whole, resumed = _batches(one, 0, 0), _batches(other, workers, step)
    for _ in range(step):
        next(whole)
    for number in range(3):
        a, b = next(whole), next(resumed)
        equal = a["id"] == b["id"] and all(bool((a[key] == b[key]).all()) for key in ("frames", "waveform", "label"))
        if not equal:
            return [f"batch {step + number} differs with {workers} workers ({one.name}, resumed on {other.name})"]
    return []
