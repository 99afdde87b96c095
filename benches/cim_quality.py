"""What CIM learns: ``python -m avfast.benches.cim_quality --data demo --seeds 0,1 --json OUT``.

`avfast pretrain --recipe cim` for every seed, with its control, which sees exemplars of other pictures. All scores are
of the test split: maps of held-out pictures beside the best map that is the same for every exemplar, and frozen
features read by a linear segmentation head, nearest neighbours and a linear classifier.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import machine
from .run import save

MODELS = ("trained", "untrained", "shuffled")
SCORES = ("map IoU", "map accuracy", "mIoU", "pixel accuracy", "kNN image", "linear probe image")
SCHEMA = "cim_quality/1"


def measure(data: str, seeds: Sequence[int], words: Sequence[str], folder: Path, *, tell=print) -> dict:
    """Train and score every seed; plain JSON types."""
    from avfast.engine.config import parse_config
    from avfast.engine.pretrain import Request, pretrain

    rows = []
    for seed in seeds:
        began = time.monotonic()
        request = Request("cim", data, folder / str(seed), device="cpu", words=[*words, f"run.seed={seed}"])
        summary = pretrain(request, say=lambda line: None)
        seconds = round(time.monotonic() - began, 1)
        for model, scores in summary.scores.items():
            found = {name: scores[name].to_dict() for name in SCORES if name in scores}
            rows.append({"model": model, "seed": seed, "steps": summary.step, "seconds": seconds, "scores": found})
        tell(f"seed {seed}: map IoU {rows[-len(summary.scores)]['scores']['map IoU']['value']:.3f} ({seconds:.0f} s)")
    settings = parse_config("cim", list(words)).to_dict()
    return {"schema": SCHEMA, "machine": machine.facts(), "data": data, "settings": settings, "rows": rows}


def table(results: dict) -> str:
    """Models by scores: the mean over seeds, and every seed beside it."""
    lines = ["| model | " + " | ".join(SCORES) + " |", "|" + " --- |" * (len(SCORES) + 1)]
    for model in (*MODELS, "chance"):
        rows = [row["scores"] for row in results["rows"] if row["model"] == (model if model in MODELS else "trained")]
        key = "value" if model in MODELS else "chance"
        cells = []
        for name in SCORES:
            known = [row[name][key] for row in rows if row.get(name, {}).get(key) is not None]
            each = ", ".join(f"{value:.3f}" for value in known)
            cells.append(f"{statistics.mean(known):.3f} ({each})" if known else "–")
        if rows:
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avfast.benches.cim_quality", description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--data", default="demo", help="demo, or a folder of images")
    parser.add_argument("--seeds", default="0,1", help="comma-separated")
    parser.add_argument("--out", type=Path, help="keep the runs here")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    chosen = parser.parse_args(arguments)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(chosen.data, seeds, chosen.words, chosen.out or Path(scratch))
    if chosen.json:
        save(json.loads(json.dumps(results)), chosen.json)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
