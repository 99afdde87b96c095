"""One report of all stages: what the pictures are worth, what the sounds do to them, and where each stage's own is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avfast.data.demo import honesty_line
from avfast.engine.config import DataConfig
from avfast.engine.drawing import Album
from avfast.engine.inputs import InputPipeline
from avfast.engine.record import RunSummary, write_json
from avfast.engine.scene import manipulation
from avfast.engine.scene.localise import localisation_figure, mosaic_scores
from avfast.engine.scene.scores import PICTURES, SceneScores, scene_scores
from avfast.engine.scene.synthesis import Synthesiser
from avfast.engine.sources import build_dataset, evaluation_loader, readable
from avfast.engine.stages import Stages, begin_stages, closing_lines, read_stages, write_stages_report
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
    """Score and draw, keep what came out, and write ``report.md`` from that; the first line says what kind of data it
    is."""
    from avfast.engine.scene.pipeline import RECIPE, STAGES, stage_method

    synthesiser = Synthesiser.load(scene.out / "export")
    found = scene_scores(scene, stage_method, synthesiser)
    clips = _test_clips(scene, stage_method)
    album = Album(scene.out)
    localised = {} if clips is None else _show(scene, stage_method, synthesiser, found, clips, album)
    results: dict[str, Any] = {
        arm: {name: score.to_dict() for name, score in row.items()} for arm, row in found.scores.items()
    }
    results |= {"localiser": {name: score.to_dict() for name, score in localised.items()}}
    if found.judge is not None:
        results["judge"] = {"accuracy": found.judge.to_dict()}
    write_json(scene.out / "results.json", results)
    begin_stages(scene.out, RECIPE, **scene_facts(scene), seconds=seconds)
    stages = read_stages(scene.out, RECIPE, STAGES)
    stages.pictures = {title: str(path.relative_to(scene.out)) for title, path in album.pictures.items()}
    report = write_stages_report(stages, compose)
    for line in closing_lines(stages, report):
        scene.say(line)
    return report


def scene_facts(scene: Scene) -> dict[str, Any]:
    """What the report of all stages needs to know beside the scores."""
    config = scene.config.method
    given = {"image": scene.given, "generator": config.generator_weights}
    facts = {
        "honesty": honesty_line(scene.bundle.source.manifest), "given": {k: v for k, v in given.items() if v},
        "rule": config.frame_rule, "frames": config.frames,
    }  # fmt: skip
    if scene.targets.is_file():
        scores = SceneTargets.read(scene.targets).scores
        facts["spread"] = (scores.amax(dim=1) - scores.amin(dim=1)).mean().item()
    return facts


def compose(stages: Stages) -> list[str]:
    """The parts of the report, from what the run kept."""
    try:
        scores = {
            arm: {str(name): Score.from_dict(score) for name, score in row.items()}
            for arm, row in stages.results.items() if arm in (*COLUMNS, "localiser", "judge")
        }  # fmt: skip
    except (ValueError, AttributeError) as error:
        stages.own_problems.append(f"'{stages.out / 'results.json'}' is damaged ({error})")
        scores = {}
    drawn = "\n\n".join(f"{title}\n\n![{title}]({file})" for title, file in stages.pictures.items())
    return [
        "## Result",
        _result(scores, stages),
        "## Where a sound comes from",
        _localised(scores.get("localiser", {}), stages.facts),
        "## Pictures",
        drawn
        or "no pictures: no test split, not drawn yet, or matplotlib is not installed (pip install 'avfast[plots]')",
        "## Alignment of sounds with pictures",
        _alignment(stages.runs.get("audio")),
    ]


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
    scene: Scene, load: Any, synthesiser: Synthesiser, found: SceneScores, clips: dict[str, Tensor], album: Album
) -> dict[str, Score]:
    """Scores of localisation on mosaics; every figure that can be made goes into the album."""
    labels, waveforms = clips["label"], clips["waveform"]
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
    album.add("Pictures from the sounds of test clips", "figures/scenes.png", draw.scene_sheet(
        synthesiser, waveforms[picks], clips["raw"][picks], [names[i] for i in picks], right=right
    ))  # fmt: skip
    album.add("Volume", "figures/volume.png", draw.volume_sweep(synthesiser, waveforms[one]))
    mixture = draw.mixture(synthesiser, waveforms[one], waveforms[two], names=(names[one], names[two]))
    album.add("Mixture of two sounds", "figures/mixture.png", mixture)
    together = draw.image_and_sound(synthesiser, clips["raw"][one], waveforms[two])
    album.add("Picture and sound together", "figures/image_and_sound.png", together)
    edited = draw.edit_by_sound(synthesiser, clips["raw"][one], waveforms[one])
    album.add("A picture edited by a sound that becomes louder", "figures/edit.png", edited)
    album.add("Localisation", "figures/localisation.png", localisation_figure(
        clips["frames"][shown], own, mosaic[shown], heat[shown], [names[i] for i in shown]
    ))  # fmt: skip
    return scores


def _one_of_each(labels: Tensor, most: int = 12) -> list[int]:
    """The first clip of every class, or the first clips where there are no labels."""
    if bool((labels < 0).any()):
        return list(range(min(most, len(labels))))
    return [int((labels == label).nonzero()[0]) for label in labels.unique()][:most]


def _result(scores: dict[str, dict[str, Score]], stages: Stages) -> str:
    if "trained" not in scores:
        return "not available: " + ("no test split" if stages.results else "the run has not come to its evaluation")
    arms, judge = [arm for arm in COLUMNS if arm in scores], scores.get("judge", {}).get("accuracy")
    rows = [
        "| metric | chance | " + " | ".join(COLUMNS[arm] for arm in arms) + " |",
        "|---|---|" + "---|" * len(arms),
    ]
    protocols: list[str] = []
    for name, score in scores["trained"].items():
        cells = [scores[arm][name].text() if name in scores[arm] else "" for arm in arms]
        rows.append(f"| {name} | {score.chance_text()} | " + " | ".join(cells) + " |")
        protocols += [score.protocol] if score.protocol and score.protocol not in protocols else []
    head = scores["trained"].get("R@1")
    lines = []
    if head is not None and head.value is not None:
        chance = head.chance or 1.0
        firsts = {arm: scores[arm].get("R@1") for arm in arms if arm != "trained"}
        others = [f"{COLUMNS[arm]} {s.value:.3f}" for arm, s in firsts.items() if s is not None and s.value is not None]
        stages.heads.append(
            f"A judge trained on real frames finds the right class in {head.value:.3f} of the drawn pictures, "
            f"{head.value / chance:.1f} times chance [chance {chance:.3f}; {', '.join(others)}; n={head.n}]"
        )
        lines.append(f"**{stages.heads[-1]}**\n")
    if judge is not None:
        lines.append(f"The judge itself is right on {judge.text()} of the real test frames.\n")
    return "\n".join([
        *lines, *rows, "", *(f"- {text}" for text in LEGEND),
        f"- {PICTURES} pictures of each clip, from the same noise in every column.", "", "Protocols:", "",
        *(f"{i + 1}. `{text}`" for i, text in enumerate(protocols)),
    ])  # fmt: skip


def _localised(scores: dict[str, Score], facts: dict[str, Any]) -> str:
    lines = []
    if isinstance(spread := facts.get("spread"), float):
        lines.append(
            f"- The picture of a clip is chosen by rule `{facts.get('rule')}` among {facts.get('frames')} frames; "
            f"scores within a clip differ by {spread:.3f} on average."
        )
    rows = ["", "| metric | value | chance | protocol |", "|---|---|---|---|"]
    rows += [f"| {n} | {s.text()} | {s.chance_text()} | `{s.protocol}` |" for n, s in scores.items()]
    return "\n".join(lines + (rows if scores else [])) or "not known yet"


def _alignment(run: RunSummary | None) -> str:
    if run is None or "trained" not in run.scores:
        return "not known yet"
    rows = ["| metric | trained | chance | untrained | shuffled pairs |", "|---|---|---|---|---|"]
    for metric, score in run.scores["trained"].items():
        if score.value is None or not metric.startswith(("R@", "median rank")):
            continue
        others = [run.scores.get(arm, {}).get(metric) for arm in ("untrained", "shuffled")]
        cells = ["not run" if s is None or s.value is None else f"{s.value:.3f}" for s in others]
        chance = "" if score.chance is None else f"{score.chance:.3f}"
        rows.append(f"| {metric} | {score.value:.3f} | {chance} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)
