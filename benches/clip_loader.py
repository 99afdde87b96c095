"""How fast clips come out of a DataLoader: ``python -m avfast.benches.clip_loader --record``.

mp4 files to batches of uint8 frames and waveforms, with 0 and 2 workers: avfast from a folder and from tar shards,
beside PyAV in the obvious way (every frame ``to_ndarray(format="rgb24")``, torch resizes) and torchcodec where it
imports. All read the middle of each clip, without augmentation. What is read is compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from . import loader_opponents, machine
from .run import RESULTS, save

SCHEMA = "clip_loader/1"
ASK = {"frames": 2, "size": 64, "duration": 2.0, "sample_rate": 16000}
"""What the recipe `av-align` asks for; the demo clips have 24 frames of 96 pixels and 2 s of sound."""


class Files(Dataset):
    """Clips by another reader, asked for by ``(epoch, index)`` as avfast's own data sets are."""

    def __init__(self, source: Any, read: Callable[..., tuple], ask: dict[str, Any]) -> None:
        self.source, self.read, self.ask = source, read, ask

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        frames, waveform = self.read(self.source.records[key[1]].path, **self.ask)
        return {"frames": frames, "waveform": waveform, "index": key[1], "errors": []}


def data_sets(folder: Path, shards: Path, ask: dict[str, Any]) -> tuple[dict[str, Dataset], dict[str, str]]:
    """What is measured, by name; and what is not, with the reason."""
    from avfast.data import ClipDataset, ClipSource

    fixed = {"seed": 0, "train": False, **ask}
    source = ClipSource.open(folder)
    found: dict[str, Dataset] = {
        "avfast, folder": ClipDataset(source, **fixed),
        "avfast, shards": ClipDataset(ClipSource.open(shards), **fixed),
        "PyAV per frame": Files(source, loader_opponents.plain_pyav, ask),
    }
    if missing := loader_opponents.torchcodec_missing():
        return found, {"torchcodec": missing}
    return {**found, "torchcodec": Files(source, loader_opponents.torchcodec, ask)}, {}


def differences(sets: dict[str, Dataset], count: int = 8) -> dict[str, float]:
    """Mean difference of frames, in levels, from avfast's; and the check that sound agrees.

    Raises:
        AssertionError: pictures or sound are not those of the same moment.
    """
    found = {}
    for name, data in sets.items():
        frames, sounds = [], []
        for index in range(min(count, len(data))):
            one, other = sets["avfast, folder"][0, index], data[0, index]
            assert one["frames"].shape == other["frames"].shape and one["waveform"].shape == other["waveform"].shape
            frames.append((one["frames"].float() - other["frames"].float()).abs().mean().item())
            pair = torch.stack([one["waveform"], other["waveform"]])
            sounds.append(torch.corrcoef(pair)[0, 1].item() if pair.std(1).min() > 0 else 1.0)
        found[name] = statistics.mean(frames)
        assert found[name] < 6.0 and statistics.mean(sounds) > 0.95, f"{name}: {found[name]:.1f} levels, {sounds}"
    return found


def epoch(loader: DataLoader) -> tuple[float, float]:
    """Clips per second of one pass, and CPU milliseconds per clip of this process."""
    wall, cpu, clips = time.perf_counter(), time.process_time(), 0
    for batch in loader:
        clips += len(batch["index"])
    return clips / (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu) / clips


def measure(folder: Path, shards: Path, *, workers: Sequence[int], rounds: int, batch: int) -> dict[str, Any]:
    """Every data set with every number of workers, taking turns, so that a busy moment hits all alike."""
    from avfast.data import EpochSampler
    from avfast.engine.config import DataConfig
    from avfast.engine.sources import training_loader

    sets, missing = data_sets(folder, shards, ASK)
    result: dict[str, Any] = {"levels_from_avfast": differences(sets), "missing": missing, "rates": []}
    watch = machine.Watch()
    for count in workers:
        loaders = {}
        for name, data in sets.items():
            sampler = EpochSampler(len(data), seed=0, batch_size=batch, drop_last=False)
            loaders[name] = training_loader(data, sampler, DataConfig(workers=count), pin_memory=False)
            epoch(loaders[name])  # workers start, files come into the cache of the system
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
        for _ in range(rounds):
            for name, loader in loaders.items():
                found[name].append(epoch(loader))
        for name, rows in found.items():
            rates = [rate for rate, _ in rows]
            row = {"name": name, "workers": count, "clips_per_s": rates, "best": max(rates)}
            result["rates"].append(row if count else row | {"cpu_ms_per_clip": min(cpu for _, cpu in rows)})
    busy = watch.stop()
    result["objections"] = busy.objections(max(1, *workers))
    return result


def lines(results: dict[str, Any]) -> list[str]:
    """A line per measurement, the best of the rounds, and how it stands to avfast from a folder."""
    best = {(row["name"], row["workers"]): row for row in results["rates"]}
    said = []
    for (name, workers), row in best.items():
        own = best["avfast, folder", workers]["best"]
        cpu = f", {row['cpu_ms_per_clip']:.2f} ms of CPU per clip" if "cpu_ms_per_clip" in row else ""
        said.append(f"{workers} workers  {name:<16}{row['best']:7.0f} clips/s  x{row['best'] / own:.2f}{cpu}")
    said += [f"not measured: {name} ({reason})" for name, reason in results["missing"].items()]
    return said + [f"not a quiet machine: {reason}" for reason in results["objections"]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avfast.benches.clip_loader", description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=lambda text: tuple(map(int, text.split(","))), default=(0, 2))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    parser.add_argument("--record", action="store_true", help="write them to this machine's file in benches/results")
    options = parser.parse_args(argv)
    from avfast.data import ClipSource
    from avfast.data.demo import make_demo_clips
    from avfast.data.shard_writer import write_shards

    torch.set_num_threads(1)
    facts = machine.facts()
    with tempfile.TemporaryDirectory() as base:
        folder, shards = Path(base) / "clips", Path(base) / "shards"
        make_demo_clips(folder, clips=options.clips, seed=0)
        write_shards(ClipSource.open(folder), shards)
        found = measure(folder, shards, workers=options.workers, rounds=options.rounds, batch=options.batch)
    settings = {"clips": options.clips, "batch": options.batch, "rounds": options.rounds, **ASK}
    results = {"schema": SCHEMA, "machine": facts, "settings": settings, **found}
    recorded = RESULTS / f"clip_loader_{machine.slug(facts)}.json" if options.record else None
    for path in filter(None, (options.json, recorded)):
        save(results, path)
    print("\n".join(lines(results)))
    return 0


def load(path: Path) -> dict[str, Any]:
    """Results from a file.

    Raises:
        ValueError: it holds something else.
    """
    results = json.loads(path.read_text())
    if results.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected avfast results of schema {SCHEMA}")
    return results


if __name__ == "__main__":
    sys.exit(main())
