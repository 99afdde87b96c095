"""One report of all stages: what the pictures are worth, what the sounds do to them, and where each stage's own is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avfast.data.demo import honesty_line
from avfast.engine.checkpoint import write_atomic
from avfast.engine.config import DataConfig
from avfast.engine.inputs import InputPipeline
from avfast.engine.progress import clock
from avfast.engine.scene import manipulation
from avfast.engine.scene.localise import localisation_figure, mosaic_scores
from avfast.engine.scene.scores import PICTURES, SceneScores, scene_scores
from avfast.engine.scene.synthesis import Synthesiser
from avfast.engine.sources import build_dataset, evaluation_loader, readable
from avfast.engine.tables import align_tables
from avfast.evaluate import Score
from avfast.nn.scene_targets import SceneTargets

if TYPE_CHECKING:
    from avfast.engine.scene.pipeline import Scene

COLUMNS = {
    "trained": "sound", "shuffled": "shuffled pairs", "untrained": "untrained", "mean": "mean picture",
    "nearest": "nearest training frame", "true": "own frame",
}  # fmt: skip
LEGEND = (
    "sound: drawn from the sound alone. shuffled pairs: the same, by an audio encoder trained on wrong pairs. "
    "untrained: by its initial weights. mean picture: from the mean feature of all training frames, whatever is heard.",
    "nearest training frame: not drawn, the training frame nearest to the sound's feature: what retrieval would show. "
    "own frame: drawn from the feature of the clip's own frame, the best a sound could point to with this generator.",
    "R@k: the clip's class is among the k that the judge finds likeliest. FID, precision, recall, density, coverage: "
    "in the judge's feature space against the real test frames; they compare within this table only, never with "
    "published numbers, which use other networks.",
)


def write_scene_report(scene: Scene, *, seconds: float) -> Path:
    """Score, draw, and write ``report.md`` and ``results.json``; the first line says what kind of data it is."""
    from avfast.engine.scene.pipeline import stage_method

    synthesiser = Synthesiser.load(scene.out / "export")
    found = scene_scores(scene, stage_method, synthesiser)
    clips = _test_clips(scene, stage_method)
    localised, pictures = ({}, {}) if clips is None else _show(scene, stage_method, synthesiser, found, clips)
    parts = [
        honesty_line(scene.bundle.source.manifest),
        "# sound2scene: report of all stages",
        "## Result",
        _result(found),
        "## Where a sound comes from",
        _localised(localised, scene),
        "## Pictures",
        "\n\n".join(f"{title}\n\n![{title}]({path.relative_to(scene.out)})" for title, path in pictures.items())
        or "no pictures: no test split, or matplotlib is not installed (pip install 'avfast[plots]')",
        "## Alignment of sounds with pictures",
        _alignment(scene.out / "audio"),
        "## Stages",
        _stages(scene),
        f"This call took {clock(seconds)} (minutes:seconds). Draw from your own sounds with "
        f"`avfast generate --audio FILE --checkpoint {scene.out} --out DIR`.",
    ]
    results = {arm: {name: score.to_dict() for name, score in row.items()} for arm, row in found.scores.items()}
    results |= {"localiser": {name: score.to_dict() for name, score in localised.items()}}
    if found.judge is not None:
        results["judge"] = {"accuracy": found.judge.to_dict()}
    write_atomic(scene.out / "results.json", lambda path: path.write_text(json.dumps(results, indent=1) + "\n"))
    text = align_tables("\n\n".join(parts) + "\n")
    write_atomic(scene.out / "report.md", lambda path: path.write_text(text))
    return scene.out / "report.md"


def _test_clips(scene: Scene, load: Any) -> dict[str, Tensor] | None:
    """Middle frames as networks and as people see them, spectrograms, waveforms and labels of the test split."""
    part = scene.bundle.splits["test"]
    if part is None:
        return None
    inputs = load(scene, "audio", untrained=True).inputs
    pipeline = InputPipeline(inputs)
    rows: dict[str, list[Tensor]] = {}
    dataset = build_dataset(part, inputs, DataConfig(), seed=0, train=False, cache=False)
    for batch in readable(evaluation_loader(dataset, 16)):
        ready = pipeline(batch)
        kept = {"frames": ready["frames"][:, 0], "raw": batch["frames"][:, 0], "spectrogram": ready["spectrogram"],
                "waveform": batch["waveform"], "label": batch["label"]}  # fmt: skip
        for name, value in kept.items():
            rows.setdefault(name, []).append(value)
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _show(
    scene: Scene, load: Any, synthesiser: Synthesiser, found: SceneScores, clips: dict[str, Tensor]
) -> tuple[dict[str, Score], dict[str, Path]]:
    """Localisation on mosaics, and every figure that could be made, by its title."""
    folder, labels, waveforms = scene.out / "figures", clips["label"], clips["waveform"]
    classes = scene.bundle.source.classes
    names = [classes[label] if label >= 0 else f"clip {i}" for i, label in enumerate(labels.tolist())]
    picks = _one_of_each(labels)
    localiser = load(scene, "localiser").localiser
    context = f"split=test fingerprint={scene.bundle.fingerprint[:12]}"
    scores, mosaic, heat = mosaic_scores(localiser, clips["frames"], clips["spectrogram"], labels, context=context)
    shown = picks[:6]
    with torch.no_grad():
        own = localiser.maps(clips["frames"][shown], clips["spectrogram"][shown])
    right = None if found.judged is None else (found.judged == found.labels)[picks].tolist()
    one, two = picks[0], picks[len(picks) // 2]
    draw = manipulation
    made = {
        "Pictures from the sounds of test clips": draw.scene_sheet(
            folder / "scenes.png", synthesiser, waveforms[picks], clips["raw"][picks], [names[i] for i in picks],
            right=right,
        ),
        "Volume": draw.volume_sweep(folder / "volume.png", synthesiser, waveforms[one]),
        "Mixture of two sounds": draw.mixture(
            folder / "mixture.png", synthesiser, waveforms[one], waveforms[two], names=(names[one], names[two])
        ),
        "Picture and sound together": draw.image_and_sound(
            folder / "image_and_sound.png", synthesiser, clips["raw"][one], waveforms[two]
        ),
        "A picture edited by a sound that becomes louder": draw.edit_by_sound(
            folder / "edit.png", synthesiser, clips["raw"][one], waveforms[one]
        ),
        "Localisation": localisation_figure(
            folder / "localisation.png", clips["frames"][shown], own, mosaic[shown], heat[shown],
            [names[i] for i in shown],
        ),
    }  # fmt: skip
    return scores, {title: path for title, path in made.items() if path is not None}


def _one_of_each(labels: Tensor, most: int = 12) -> list[int]:
    """The first clip of every class, or the first clips where there are no labels."""
    if bool((labels < 0).any()):
        return list(range(min(most, len(labels))))
    return [int((labels == label).nonzero()[0]) for label in labels.unique()][:most]


def _result(found: SceneScores) -> str:
    if not found.scores:
        return "not available: no test split"
    arms = list(found.scores)
    rows = [
        "| metric | chance | " + " | ".join(COLUMNS[arm] for arm in arms) + " |",
        "|---|---|" + "---|" * len(arms),
    ]
    protocols = []
    for name, score in found.scores["trained"].items():
        cells = [found.scores[arm][name].text() for arm in arms]
        rows.append(f"| {name} | {score.chance_text()} | " + " | ".join(cells) + " |")
        protocols += [score.protocol] if score.protocol and score.protocol not in protocols else []
    head = found.scores["trained"].get("R@1")
    lines = []
    if head is not None and head.value is not None:
        chance = head.chance or 1.0
        others = ", ".join(f"{COLUMNS[arm]} {found.scores[arm]['R@1'].value:.3f}" for arm in arms if arm != "trained")
        lines.append(
            f"**A judge trained on real frames finds the right class in {head.value:.3f} of the drawn pictures, "
            f"{head.value / chance:.1f} times chance [chance {chance:.3f}; {others}; n={head.n}]**\n"
        )
    if found.judge is not None:
        lines.append(f"The judge itself is right on {found.judge.text()} of the real test frames.\n")
    return "\n".join([
        *lines, *rows, "", *(f"- {text}" for text in LEGEND),
        f"- {PICTURES} pictures of each clip, from the same noise in every column.", "", "Protocols:", "",
        *(f"{i + 1}. `{text}`" for i, text in enumerate(protocols)),
    ])  # fmt: skip


def _localised(scores: dict[str, Score], scene: Scene) -> str:
    table = SceneTargets.read(scene.targets)
    spread = (table.scores.amax(dim=1) - table.scores.amin(dim=1)).mean()
    rule = scene.config.method.frame_rule
    lines = [
        f"- The picture of a clip is chosen by rule `{rule}` among {table.frames} frames; scores within a clip differ "
        f"by {spread:.3f} on average."
    ]
    rows = ["", "| metric | value | chance | protocol |", "|---|---|---|---|"]
    rows += [f"| {n} | {s.text()} | {s.chance_text()} | `{s.protocol}` |" for n, s in scores.items()]
    return "\n".join(lines + (rows if scores else []))


def _alignment(folder: Path) -> str:
    results = json.loads((folder / "results.json").read_text())["scores"]
    rows = ["| metric | trained | chance | untrained | shuffled pairs |", "|---|---|---|---|---|"]
    for metric, score in results["trained"].items():
        if score["value"] is None or not metric.startswith(("R@", "median rank")):
            continue
        cells = [
            f"{results[arm][metric]['value']:.3f}" if arm in results else "not run" for arm in ("untrained", "shuffled")
        ]
        chance = "" if score["chance"] is None else f"{score['chance']:.3f}"
        rows.append(f"| {metric} | {score['value']:.3f} | {chance} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def _stages(scene: Scene) -> str:
    lines = []
    for name in ("image", "localiser", "generator", "audio"):
        folder = scene.out / name
        if not (folder / "results.json").is_file():
            given = scene.given if name == "image" else scene.config.method.generator_weights
            lines.append(f"- {name}: left out, `{given}` was given")
            continue
        results = json.loads((folder / "results.json").read_text())
        step = results["best_step"] or results["step"]
        lines.append(f"- {name}: {results['step']} steps, weights of step {step}; [report]({name}/report.md)")
    return "\n".join(lines)
