"""What CIM learns: ``python -m avfast.benches.cim_quality --seeds 0,1 --out RUNS --record --readme README.md``.

`avfast pretrain --recipe cim` for every seed, with its control, which sees exemplars of other pictures. All scores are
of the test split: maps of held-out pictures beside the best map that is the same for every exemplar, and frozen
features read by a linear segmentation head, nearest neighbours and a linear classifier. With ``--out`` an interrupted
bench goes on where it was, by the same command; what is scored already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import machine
from .report import readme_with, update_readme
from .run import RESULTS, save

MODELS = ("trained", "untrained", "shuffled")
SCORES = ("map IoU", "map accuracy", "mIoU", "pixel accuracy", "kNN image", "linear probe image")
SCHEMA = "cim_quality/1"
MARKERS = "cim"


def measure(data: str, seeds: Sequence[int], words: Sequence[str], folder: Path, *, tell=print) -> dict:
    """Train and score every seed; plain JSON types."""
    from avfast.engine.config import parse_config

    rows = []
    for seed in seeds:
        results = _results(data, [*words, f"run.seed={seed}"], folder / str(seed))
        for model, scores in results["scores"].items():
            found = {name: scores[name] for name in SCORES if name in scores}
            rows.append({"model": model, "seed": seed, "steps": results["step"], "scores": found})
        tell(f"seed {seed}: map IoU {results['scores']['trained']['map IoU']['value']:.3f}")
    settings = parse_config("cim", list(words)).to_dict()
    return {"schema": SCHEMA, "machine": machine.facts(), "data": data, "settings": settings, "rows": rows}


def _results(data: str, words: list[str], out: Path) -> dict:
    """What a run was scored, as its folder keeps it; trains first, or on, unless it ended there with these settings."""
    from avfast.engine.config import parse_config
    from avfast.engine.pretrain import Request, pretrain

    scored, settings = out / "results.json", out / "config.json"
    wanted = parse_config("cim", words).to_dict()
    if not (scored.is_file() and json.loads(settings.read_text()) == json.loads(json.dumps(wanted))):
        pretrain(Request("cim", data, out, device="cpu", words=words, resume="auto"), say=lambda line: None)
    return json.loads(scored.read_text())


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
    parser.add_argument("--record", action="store_true", help="write them to this machine's file in benches/results")
    parser.add_argument("--readme", type=Path, help="put the table between the markers of this file")
    chosen = parser.parse_intermixed_args(arguments)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    if chosen.readme:
        try:
            readme_with(chosen.readme, "", MARKERS)  # before the training, not after it
        except (OSError, ValueError) as error:
            parser.error(f"--readme: {error}")
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(chosen.data, seeds, chosen.words, chosen.out or Path(scratch))
    recorded = RESULTS / f"cim_quality_{machine.slug(results['machine'])}.json" if chosen.record else None
    for path in filter(None, (chosen.json, recorded)):
        save(results, path)
    if chosen.readme:
        update_readme(chosen.readme, table(results), MARKERS)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
