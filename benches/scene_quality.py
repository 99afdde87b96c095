"""What choosing a clip's picture by its sound does: ``python -m avfast.benches.scene_quality --seeds 0,1 --json OUT``.

Clips that cut away: what is heard is on screen for two fifths of the time, and when is known. For every seed an image
encoder and a localiser learn as in the recipe `sound2scene`; then the audio encoder learns from the frame that each
rule chooses, and from a frame that is known to be right. Scores are of the test split: whether a sound finds, among
frames that do show what is heard, one of its class.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from . import machine
from .run import save

RULES = ("top1", "top10", "middle", "random", "known")
SCORES = ("right frame", "R@1 class-level", "R@1 instance-level")
WORDS = ("method.frames=20", "image:run.steps=150", "localiser:run.steps=200", "audio:run.steps=150",
         "audio:run.control=false")  # fmt: skip
SCHEMA = "scene_quality/1"


def measure(
    data: str | None, seeds: Sequence[int], words: Sequence[str], folder: Path, *, rules: Sequence[str] = RULES,
    tell=print,
) -> dict:  # fmt: skip
    """Train and score the rules for every seed; plain JSON types."""
    from avfast.data.demo import make_cutaway_clips

    if data is None:
        make_cutaway_clips(folder / "clips")
        data = str(folder / "clips")
    rows = []
    for seed in seeds:
        scene, table, shown = _prepare(data, seed, [*WORDS, *words], folder / f"seed{seed}")
        for rule in rules:
            began = time.monotonic()
            scores = _score(scene, table, shown, rule)
            row = {"rule": rule, "seed": seed, "seconds": round(time.monotonic() - began, 1), "scores": scores}
            rows.append(row)
            tell(f"{rule}, seed {seed}: " + ", ".join(f"{n} {s['value']:.3f}" for n, s in scores.items()))
    return {"schema": SCHEMA, "machine": machine.facts(), "words": [*WORDS, *words], "rows": rows}


def _prepare(data: str, seed: int, words: Sequence[str], out: Path):
    """The stages before the audio encoder, the table of frames, and which of them show what is heard, ``[N, T]``."""
    from avfast.data.media import frame_times, middle
    from avfast.engine.pretrain import Request
    from avfast.engine.scene import pipeline
    from avfast.nn.scene_targets import SceneTargets
    from avfast.ops._counter import content_key

    request = Request("sound2scene", data, out, device="cpu", words=[*words, f"run.seed={seed}"])
    scene = pipeline.open_scene(request, lambda line: None)
    pipeline.write_frames(scene)
    for name in ("image", "localiser"):
        pipeline.run_stage(scene, name)
    pipeline.write_targets(scene)
    table = SceneTargets.read(scene.targets)
    windows = {r.path.name: r.id for r in scene.bundle.source.records}
    manifest = scene.bundle.source.manifest or {}
    c = scene.config.method
    shown = torch.zeros_like(table.scores, dtype=torch.bool)
    for clip in manifest["clips"]:
        start, end = clip["shown"]
        times = torch.tensor(frame_times(middle(clip["duration"], c.duration), c.duration, table.frames))
        row = table.rows(torch.tensor([content_key(windows[Path(clip["path"]).name])]))
        shown[row] = (times >= start) & (times < end)
    return scene, table, shown


def _score(scene, table, shown: torch.Tensor, rule: str) -> dict:
    """The audio stage with frames by one rule, and what its sounds find."""
    from avfast.engine.pretrain import pretrain
    from avfast.engine.scene.pipeline import RECIPE
    from avfast.evaluate import cross_modal_retrieval
    from avfast.nn.scene_targets import SceneTargets
    from avfast.nn.sound_localiser import select_frames

    known = SceneTargets(table.keys, table.features, shown.float(), {"rule": "known"})
    own = known if rule == "known" else table
    path = scene.out / f"targets-{rule}.safetensors"
    own.save(path)
    name = "top1" if rule == "known" else rule
    words = [*scene.words("audio"), f"method.frame_rule={name}", f"method.targets={path}"]
    request = dataclasses.replace(scene.request, recipe=RECIPE, data=scene.data, out=scene.out / rule, words=words)
    pretrain(request, say=lambda line: None)
    method = _trained(request)
    train, test = (_keys(scene, split) for split in ("train", "test"))
    chosen = select_frames(own.scores[own.rows(train)], name, ids=train)
    right = shown[own.rows(train), chosen].double().mean().item()
    audio = _sounds(scene, method)
    video = known.of(test, select_frames(known.scores[known.rows(test)], "top1"))
    labels = torch.tensor(scene.bundle.splits["test"].labels)
    found = {r.level: r.recall[1] for r in cross_modal_retrieval(audio, video, labels) if r.direction == "audio->video"}
    scores = {"right frame": {"value": right, "chance": shown.double().mean().item(), "n": len(train)}}
    return scores | {f"R@1 {level}": score.to_dict() for level, score in found.items()}


def _trained(request):
    from avfast.engine.build import build_method
    from avfast.engine.checkpoint import load_checkpoint
    from avfast.engine.config import parse_config

    method = build_method(parse_config(request.recipe, request.words))
    method.load_state_dict(load_checkpoint(request.out / "checkpoints" / "last.pt")["model"])
    return method.eval()


def _keys(scene, split: str) -> torch.Tensor:
    from avfast.ops._counter import content_key

    return torch.tensor([content_key(record.id) for record in scene.bundle.splits[split].records])


def _sounds(scene, method) -> torch.Tensor:
    """Embeddings of the test split's sounds, ``[N, D]``, in its order."""
    from avfast.engine.assess import embed_split
    from avfast.engine.config import DataConfig
    from avfast.engine.inputs import InputPipeline
    from avfast.engine.sources import build_dataset, evaluation_loader

    part = scene.bundle.splits["test"]
    data = build_dataset(part, method.inputs, DataConfig(), seed=0, train=False, cache=False)
    return embed_split(method, InputPipeline(method.inputs), evaluation_loader(data, 16)).embeddings["audio"]


def table(results: dict) -> str:
    """Rules by scores: the mean over seeds, and every seed beside it."""
    lines = ["| frame | " + " | ".join(SCORES) + " |", "|" + " --- |" * (len(SCORES) + 1)]
    measured = {row["rule"] for row in results["rows"]}
    for rule in (rule for rule in RULES if rule in measured):
        cells = [rule]
        for name in SCORES:
            values = [row["scores"][name]["value"] for row in results["rows"] if row["rule"] == rule]
            cells.append(f"{statistics.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})")
        lines.append("| " + " | ".join(cells) + " |")
    chance = results["rows"][0]["scores"]
    return "\n".join([*lines, "| chance | " + " | ".join(f"{chance[name]['chance']:.3f}" for name in SCORES) + " |"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avfast.benches.scene_quality", description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings of the recipe, for all rules")
    parser.add_argument(
        "--data", metavar="DIR", help="clips as `avfast demo-data --kind cutaways` makes; made if left out"
    )
    parser.add_argument("--seeds", default="0,1", help="comma-separated")
    parser.add_argument("--rules", default=",".join(RULES), metavar="A,B", help=f"some of: {', '.join(RULES)}")
    parser.add_argument("--out", type=Path, help="keep the runs here")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    chosen = parser.parse_args(arguments)
    rules = chosen.rules.split(",")
    if not set(rules) <= set(RULES):
        parser.error(f"--rules: expected some of {', '.join(RULES)}, got {chosen.rules}")
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(
            chosen.data, [int(s) for s in chosen.seeds.split(",")], chosen.words, chosen.out or Path(scratch),
            rules=rules,
        )  # fmt: skip
    if chosen.json:
        save(json.loads(json.dumps(results)), chosen.json)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
