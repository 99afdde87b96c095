"""The report of the stages of Fusion Tuning: accuracies, what each modality is worth, confidences and masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from avfast.engine.record import RunSummary
from avfast.engine.stages import Stages
from avfast.errors import AvfastError
from avfast.ops.mask_ratio import mask_ratio

STAGES = ("audio", "video", "joint")
COLUMNS = ("trained", "untrained", "shuffled")


def compose(stages: Stages) -> list[str]:
    """The parts of the report, of whatever has been done."""
    parts = ["## Accuracy", _accuracy(stages.runs)]
    joint = stages.runs.get("joint")
    if joint is not None:
        parts += ["## What the modalities are worth in the joint model", _worth(joint)]
        parts += ["## Confidence and masks", _masks(stages, joint.config)]
    return parts


def _cell(run: RunSummary, column: str, metric: str) -> str:
    score = run.scores.get(column, {}).get(metric)
    return "" if score is None or score.value is None else score.text()


def _accuracy(runs: dict[str, RunSummary]) -> str:
    rows = [
        "| what | stage | trained | chance | untrained | shuffled labels |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        for metric, score in run.scores.get("trained", {}).items():
            if not metric.startswith(("accuracy", "linear probe")) or metric == "accuracy nothing":
                continue
            chance = "" if score.chance is None else f"{score.chance:.3f}"
            cells = [_cell(run, column, metric) for column in COLUMNS]
            rows.append(f"| {metric} | {name} | {cells[0]} | {chance} | {cells[1]} | {cells[2]} |")
    return "\n".join([
        *rows, "",
        "- In square brackets: 95 % bootstrap interval over test clips, resampled by class.",
        "- In the joint stage, the accuracy of one modality is what the joint model says with the other one masked at "
        "its head; the probe reads the encoder inside the joint model.",
    ])  # fmt: skip


def _worth(joint: RunSummary) -> str:
    lines = [
        f"- {metric}: {score.value:.3f}"
        for metric, score in joint.scores.get("trained", {}).items()
        if metric.startswith("Shapley") and score.value is not None
    ]
    shares = [r["audio_gradient_share"] for r in joint.of("train") if _number(r, "audio_gradient_share")]
    if shares:
        lines.append(
            f"- share of the gradient at the head's input that goes to audio: {shares[0]:.2f} at first, "
            f"{shares[-1]:.2f} at the end (0.5 is even)"
        )
    names = ("loss", "accuracy_joint", "accuracy_audio", "accuracy_video")
    epochs = [r for r in joint.of("val") if all(_number(r, name) for name in names)]
    if epochs:
        lines += ["", "| step | validation loss | joint | audio | video |", "|---|---|---|---|---|"]
        lines += [f"| {r['step']} | {' | '.join(f'{r[name]:.3f}' for name in names)} |" for r in epochs]
    return "\n".join(lines) or "not known yet"


def _number(row: dict[str, Any], name: str) -> bool:
    return isinstance(row.get(name), (int, float))


def _masks(stages: Stages, config: dict[str, Any]) -> str:
    try:
        means = {name: _confidence(stages.out / name / "confidence.json") for name in ("audio", "video")}
        mode = config["method.masks"]
        options = {name: config[f"method.{name}"] for name in ("threshold", "eta", "rho", "rule")}
        both = sorted(means["audio"].keys() & means["video"].keys())
        audio, video = (torch.tensor([means[s][id] for id in both]) for s in ("audio", "video"))
        ratios = mask_ratio(audio, video, **options)
    except (AvfastError, OSError, KeyError, ValueError, TypeError) as error:
        return f"not available: {str(error) or type(error).__name__}"
    rows = ["| stream | clips | mean confidence | quartiles |", "|---|---|---|---|"]
    for name, c in (("audio", audio), ("video", video)):
        quartiles = ", ".join(f"{q:.2f}" for q in c.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist())
        rows.append(f"| {name} | {len(c)} | {c.mean():.3f} | {quartiles} |")
    told = ", ".join(f"{name} {value}" for name, value in options.items())
    rows += ["", f"Masks: {mode} ({told})."]
    if mode != "none":
        rows += [
            f"- {name}: {(r > 0).float().mean():.0%} of the clips are masked, mean ratio {r.mean():.3f}"
            + (" (which every clip gets)" if mode == "mean" else "")
            for name, r in zip(("audio", "video"), ratios, strict=True)
        ]
    return "\n".join(rows)


def _confidence(path: Path) -> dict[str, float]:
    stored = json.loads(path.read_text(encoding="utf-8"))["confidence"]
    return {str(id): float(value) for id, value in stored.items()}
