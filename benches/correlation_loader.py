"""How fast CIM is fed: ``python -m avfast.benches.correlation_loader --workers 2 --record``.

Decoded pictures (uint8, in memory) to normalised contexts and augmented exemplars, through a DataLoader whose workers
have one thread each. No file is read and none decoded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from . import machine
from .run import RESULTS, save

SCHEMA = "correlation_loader/1"


class Pictures(Dataset):
    """So many pictures of noise, a batch at a time."""

    def __init__(self, batches: int, batch: int, side: int) -> None:
        self.batches = batches
        self.images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        self.views = None

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int):
        from avfast.data import CorrelationViews

        self.views = self.views or CorrelationViews()
        seeds = torch.arange(len(self.images)) + index * len(self.images)
        return tuple(self.views(self.images, seeds))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def rates(workers: int, batch: int, side: int, batches: int, rounds: int) -> list[float]:
    """Images per second of each round, the first (in which workers start) left out."""
    loader = DataLoader(
        Pictures(batches, batch, side),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_one_thread,
        persistent_workers=True,
    )
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in loader:
            pass
        found.append(batches * batch / (time.perf_counter() - start))
    return found[1:]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m avfast.benches.correlation_loader", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=256, help="of the decoded pictures")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    parser.add_argument("--record", action="store_true", help="write them to this machine's file in benches/results")
    options = parser.parse_args(argv)
    sizes = {name: getattr(options, name) for name in ("workers", "batch", "side", "batches", "rounds")}
    facts = machine.facts()
    found = rates(**sizes)
    results = {"schema": SCHEMA, "machine": facts, "settings": sizes, "images_per_s": found}
    recorded = RESULTS / f"correlation_loader_{machine.slug(facts)}.json" if options.record else None
    for path in filter(None, (options.json, recorded)):
        save(results, path)
    spread = f"median of {len(found)} rounds, {min(found):.0f} to {max(found):.0f}"
    how = f"{options.workers} workers of one thread, pictures of {options.side} x {options.side}"
    print(f"{statistics.median(found):.0f} images/s ({spread}), {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
