"""One report of all stages, from what they left in their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from avfast.data.demo import honesty_line
from avfast.engine.checkpoint import write_atomic
from avfast.engine.progress import clock
from avfast.engine.sources import open_data
from avfast.engine.tables import align_tables
from avfast.ops.mask_ratio import mask_ratio

COLUMNS = ("trained", "untrained", "shuffled")


def write_finetune_report(out: Path, stages: Sequence[str], *, data: str, seconds: float) -> Path:
    """Write ``out/report.md`` and return its path; its first line says what kind of data the numbers come from."""
    found = {name: json.loads((out / name / "results.json").read_text()) for name in stages}
    config = json.loads((out / stages[-1] / "config.json").read_text())
    parts = [
        honesty_line(open_data(data, on_error=config["data.on_error"]).source.manifest),
        f"# {config['recipe']}: report of all stages",
        "## Accuracy",
        _accuracy(found),
        "## What the modalities are worth in the joint model",
        _worth(found[stages[-1]], out / stages[-1] / "metrics.jsonl"),
        "## Confidence and masks",
        _masks(out, config),
        "## Stages",
        "\n".join(
            f"- {name}: {r['step']} steps, weights of step {r['best_step'] or r['step']}; [report]({name}/report.md)"
            for name, r in found.items()
        ),
        f"This call took {clock(seconds)} (minutes:seconds).",
    ]
    text = align_tables("\n\n".join(parts) + "\n")
    write_atomic(out / "report.md", lambda path: path.write_text(text))
    return out / "report.md"


def _cell(results: dict[str, Any], column: str, metric: str) -> str:
    score = results["scores"].get(column, {}).get(metric)
    if score is None or score["value"] is None:
        return ""
    interval = "" if score["interval"] is None else " [{:.3f}, {:.3f}]".format(*score["interval"])
    return f"{score['value']:.3f}{interval}"


def _accuracy(found: dict[str, Any]) -> str:
    rows = [
        "| what | stage | trained | chance | untrained | shuffled labels |",
        "|---|---|---|---|---|---|",
    ]
    for name, results in found.items():
        for metric, score in results["scores"]["trained"].items():
            if not metric.startswith(("accuracy", "linear probe")) or metric == "accuracy nothing":
                continue
            chance = "" if score["chance"] is None else f"{score['chance']:.3f}"
            cells = [_cell(results, column, metric) for column in COLUMNS]
            rows.append(f"| {metric} | {name} | {cells[0]} | {chance} | {cells[1]} | {cells[2]} |")
    return "\n".join([
        *rows, "",
        "- In square brackets: 95 % bootstrap interval over test clips, resampled by class.",
        "- In the joint stage, the accuracy of one modality is what the joint model says with the other one masked at "
        "its head; the probe reads the encoder inside the joint model.",
    ])  # fmt: skip


def _worth(joint: dict[str, Any], log: Path) -> str:
    lines = [
        f"- {metric}: {score['value']:.3f}"
        for metric, score in joint["scores"]["trained"].items()
        if metric.startswith("Shapley") and score["value"] is not None
    ]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    shares = [r["audio_gradient_share"] for r in rows if r["kind"] == "train" and "audio_gradient_share" in r]
    if shares:
        lines.append(
            f"- share of the gradient at the head's input that goes to audio: {shares[0]:.2f} at first, "
            f"{shares[-1]:.2f} at the end (0.5 is even)"
        )
    epochs = [r for r in rows if r["kind"] == "val" and "accuracy_joint" in r]
    if epochs:
        lines += ["", "| step | validation loss | joint | audio | video |", "|---|---|---|---|---|"]
        lines += [
            f"| {r['step']} | {r['loss']:.3f} | {r['accuracy_joint']:.3f} | {r['accuracy_audio']:.3f} | "
            f"{r['accuracy_video']:.3f} |" for r in epochs
        ]  # fmt: skip
    return "\n".join(lines)


def _masks(out: Path, config: dict[str, Any]) -> str:
    means = {s: json.loads((out / s / "confidence.json").read_text())["confidence"] for s in ("audio", "video")}
    both = sorted(means["audio"].keys() & means["video"].keys())
    audio, video = (torch.tensor([means[s][id] for id in both]) for s in ("audio", "video"))
    rows = ["| stream | clips | mean confidence | quartiles |", "|---|---|---|---|"]
    for name, c in (("audio", audio), ("video", video)):
        quartiles = ", ".join(f"{q:.2f}" for q in c.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist())
        rows.append(f"| {name} | {len(c)} | {c.mean():.3f} | {quartiles} |")
    mode = config["method.masks"]
    options = {name: config[f"method.{name}"] for name in ("threshold", "eta", "rho", "rule")}
    ratios = mask_ratio(audio, video, **options)
    told = ", ".join(f"{name} {value}" for name, value in options.items())
    rows += ["", f"Masks: {mode} ({told})."]
    if mode != "none":
        rows += [
            f"- {name}: {(r > 0).float().mean():.0%} of the clips are masked, mean ratio {r.mean():.3f}"
            + (" (which every clip gets)" if mode == "mean" else "")
            for name, r in zip(("audio", "video"), ratios, strict=True)
        ]
    return "\n".join(rows)
