"""What DenseCL learns: ``python -m avfast.benches.densecl_quality --data demo --seeds 0,1 --json OUT``.

Encoders of one kind, frozen and read by the same heads: untrained, MoCo-v2 (DenseCL with ``loss_lambda=0``), DenseCL
with positives found by features (as published) and by geometry, and one trained on the masks and labels themselves. The
methods differ in the words of ``ARMS`` alone and train through `avfast pretrain`; words such as ``optim.lr=1e-3`` go to
all. Dense scores are a linear segmentation head (mIoU), image scores nearest neighbours; both on the test split. The
record says which settings were tried on it.
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

import torch
import torch.nn.functional as F
from torch import nn

from . import machine
from .run import save

ARMS = {
    "MoCo-v2": ["method.loss_lambda=0"],
    "DenseCL": ["method.loss_lambda=0.5"],
    "DenseCL by geometry": ["method.loss_lambda=0.5", "method.match=geometry"],
}
ORDER = ("untrained", *ARMS, "supervised")
SCORES = ("mIoU", "pixel accuracy", "kNN image", "linear probe image")
STEPS = 400
SCHEMA = "densecl_quality/2"


def measure(
    data: str, seeds: Sequence[int], words: Sequence[str], folder: Path, *, arms: Sequence[str] = ORDER, tell=print
) -> dict:
    """Train and score the arms for every seed; plain JSON types. ``untrained`` comes with any method."""
    from avfast.engine.config import parse_config

    rows = []
    for seed in seeds:
        for arm, own in ARMS.items():
            if arm not in arms:
                continue
            began, out = time.monotonic(), folder / f"{arm}-{seed}"
            summary = _pretrain(data, seed, [*words, *own], out)
            rows.append(_row(arm, seed, summary.scores["trained"], summary.step, time.monotonic() - began))
            rows[-1]["match_agreement"] = [r["match_agreement"] for r in summary.rows if "match_agreement" in r]
            tell(_line(rows[-1]))
        rows.append(_row("untrained", seed, summary.scores["untrained"], 0, 0.0))
        tell(_line(rows[-1]))
        if "supervised" not in arms:
            continue
        began = time.monotonic()
        scores, steps = supervised(data, seed, words, out)
        rows.append(_row("supervised", seed, scores, steps, time.monotonic() - began))
        tell(_line(rows[-1]))
    settings = parse_config("densecl", list(words)).to_dict()
    head = {"schema": SCHEMA, "machine": machine.facts(), "data": data, "settings": settings, "arms": ARMS}
    return head | {"rows": rows}


def _pretrain(data: str, seed: int, words: Sequence[str], out: Path):
    from avfast.engine.pretrain import Request, pretrain

    words = [*words, f"run.seed={seed}", "run.control=false"]
    return pretrain(Request("densecl", data, out, device="cpu", words=words), say=lambda line: None)


def supervised(data: str, seed: int, words: Sequence[str], out: Path) -> tuple[dict, int]:
    """The same encoder trained with its masks and labels (cross-entropy of a 1x1 convolution on the map and of a linear
    layer on its mean), on single crops, for as many steps. ``out``: a run whose demo scenes serve again."""
    from avfast.data import EpochSampler, build_loader
    from avfast.engine.assess_images import assess_images
    from avfast.engine.build import build_method
    from avfast.engine.config import parse_config
    from avfast.engine.image_inputs import ImagePipeline
    from avfast.engine.sources import build_dataset, evaluation_loader, open_data

    config = parse_config("densecl", [*words, f"run.seed={seed}"])
    method = build_method(config)
    bundle = open_data(out / "demo-scenes" if data == "demo" else data, method.inputs)
    pipeline = ImagePipeline(method.inputs)
    make = {"inputs": method.inputs, "data": config.data, "seed": seed, "cache": True}
    train = build_dataset(bundle.splits["train"], train=True, **make)
    batch = config.data.batch_size
    sampler = EpochSampler(len(train), seed=seed, batch_size=batch, world_size=1)
    loader = build_loader(train, sampler)

    torch.manual_seed(seed)
    dense = nn.Conv2d(method.encoder.channels, bundle.mask_classes, 1)
    whole = nn.Linear(method.encoder.channels, len(bundle.source.classes))
    parameters = [*method.encoder.parameters(), *dense.parameters(), *whole.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.run.steps)
    step = 0
    method.train()
    while step < config.run.steps:
        for item in loader:
            if step == config.run.steps:
                break
            images, masks = _crops(pipeline.plain(item)["image"], item["mask"], method.inputs.size)
            features = method.encoder(images)
            logits = F.interpolate(dense(features), masks.shape[1:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(logits, masks) + F.cross_entropy(whole(features.mean(dim=(2, 3))), item["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
    loaders = {
        name: evaluation_loader(build_dataset(part, train=False, **make), batch) for name, part in bundle.splits.items()
    }
    scores, _ = assess_images(
        method, pipeline, loaders, labelled=bundle.labelled, mask_classes=bundle.mask_classes,
        context=f"split=test fingerprint={bundle.fingerprint[:12]}",
    )  # fmt: skip
    return scores, step


def _crops(images: torch.Tensor, masks: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random square windows of 40 to 100 % of the side, some mirrored, with their masks."""
    side = torch.empty(len(images)).uniform_(0.4, 1.0)
    centre = (torch.rand(len(images), 2) * 2 - 1) * (1 - side)[:, None]
    flip = torch.where(torch.rand(len(images)) < 0.5, -1.0, 1.0)
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = side * flip, side, centre
    at = F.affine_grid(affine, (len(images), 1, size, size), align_corners=False)
    cut = F.grid_sample(images, at, mode="bilinear", padding_mode="reflection", align_corners=False)
    labels = F.grid_sample(masks[:, None].float(), at, mode="nearest", padding_mode="reflection", align_corners=False)
    return cut, labels[:, 0].long()


def _row(arm: str, seed: int, scores: dict, steps: int, seconds: float) -> dict:
    found = {name: scores[name].to_dict() for name in SCORES if name in scores}
    return {"arm": arm, "seed": seed, "steps": steps, "seconds": round(seconds, 1), "scores": found}


def _value(row: dict, name: str) -> float | None:
    return row["scores"].get(name, {}).get("value")


def _line(row: dict) -> str:
    values = ", ".join(f"{name} {_value(row, name):.3f}" for name in SCORES if _value(row, name) is not None)
    return f"{row['arm']}, seed {row['seed']}: {values} ({row['seconds']:.0f} s)"


def table(results: dict) -> str:
    """Arms by scores: the mean over seeds, and every seed beside it."""
    lines = ["| encoder | " + " | ".join(SCORES) + " |", "|" + " --- |" * (len(SCORES) + 1)]
    for arm in ORDER:
        own = [row for row in results["rows"] if row["arm"] == arm]
        cells = [arm]
        for name in SCORES:
            values = [_value(row, name) for row in own]
            known = [value for value in values if value is not None]
            each = ", ".join(f"{value:.3f}" for value in known)
            cells.append(f"{statistics.mean(known):.3f} ({each})" if known else "–")
        if own:
            lines.append("| " + " | ".join(cells) + " |")
    chance = {n: s["chance"] for row in results["rows"][:1] for n, s in row["scores"].items()}
    lines.append("| chance | " + " | ".join(f"{chance[n]:.3f}" if n in chance else "–" for n in SCORES) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m avfast.benches.densecl_quality", description=__doc__.split("\n")[0]
    )
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings of the recipe, for both methods")
    parser.add_argument(
        "--data", default="demo", help="demo, or a folder of images with masks as `avfast demo-data` makes"
    )
    parser.add_argument("--seeds", default="0,1", help="comma-separated")
    parser.add_argument("--steps", type=int, default=STEPS, help="of every training")
    parser.add_argument("--arms", default=",".join(ORDER), metavar="A,B", help=f"some of: {', '.join(ORDER)}")
    parser.add_argument("--out", type=Path, help="keep the runs here")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    chosen = parser.parse_args(arguments)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    arms = [arm.strip() for arm in chosen.arms.split(",")]
    if not set(arms) <= set(ORDER) or not set(arms) & set(ARMS):
        parser.error(f"--arms: expected some of {', '.join(ORDER)}, one of them a method, got {chosen.arms}")
    words = [f"run.steps={chosen.steps}", *chosen.words]
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(chosen.data, seeds, words, chosen.out or Path(scratch), arms=arms)
    if chosen.json:
        save(json.loads(json.dumps(results)), chosen.json)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
