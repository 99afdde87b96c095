"""``report.md``: what was run, on what, how well, and beside what."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from avfast import env
from avfast.engine.assess import score_table
from avfast.engine.progress import clock
from avfast.engine.tables import align_tables
from avfast.evaluate import Score
from avfast.printable import code

HEADLINE = (
    "accuracy joint", "accuracy audio", "accuracy video",
    "R@1 audio->video class-level", "R@1 audio->video instance-level", "map IoU", "mIoU", "kNN image",
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One part of a report: a heading and Markdown text."""

    heading: str
    text: str


@dataclass
class RunSummary:
    """Everything a report says about a run."""

    out: Path
    recipe: str
    honesty: str
    plan_lines: list[str]
    stopped: str
    step: int
    steps: int
    best_step: int
    scores: dict[str, dict[str, Score]]
    control_steps: int | None
    device: str
    seconds: dict[str, float]
    class_only: float | None
    rows: list[dict[str, Any]]
    errors: dict[str, int]
    pictures: dict[str, Path]
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    noun: str = "clips"
    shuffled: str = ""


def write_report(summary: RunSummary, extra: list[Section] | None = None) -> Path:
    """Write ``report.md`` into the run's folder; its first line says what kind of data the numbers come
    from."""
    path = summary.out / "report.md"
    sections = [
        Section("Result", _result(summary)),
        Section("Training", _training(summary)),
        *([Section("Pictures", _pictures(summary))] if summary.pictures else []),
        *(extra or []),
        Section("How it was run", _how(summary)),
    ]
    files = sorted({*summary.files, path})
    listing = "\n".join(f"- `{file.relative_to(summary.out)}`" for file in files)
    body = "\n\n".join(f"## {s.heading}\n\n{s.text.strip()}" for s in [*sections, Section("Files", listing)])
    path.write_text(align_tables(f"{summary.honesty}\n\n# {summary.recipe}: report\n\n{body}\n"))
    return path


def headline(scores: dict[str, dict[str, Score]]) -> list[str]:
    """The one or two lines a person remembers."""
    lines = []
    for name in HEADLINE:
        trained = scores["trained"].get(name)
        if trained is None:
            continue
        if trained.value is None:
            lines.append(f"{name}: not available ({trained.reason})")
            continue
        parts = [f"chance {trained.chance_text()}"]
        for other in ("untrained", "shuffled"):
            score = scores.get(other, {}).get(name)
            parts.append(f"{other} {score.value:.3f}" if score and score.value is not None else f"{other} not run")
        lines.append(f"{name}: {trained.value:.3f} [{', '.join(parts)}; n={trained.n}]")
    return lines


LEGEND_CLIPS = (
    "Beside chance: where 95 % of guesses fall (classes, or clips, permuted); inside is no evidence.",
    "R@k: share of queries with a right answer among the k nearest (higher is better). Median rank of the first "
    "right answer: lower is better, 1 is best.",
)
NEGATIVES = "Clips of one class in one batch are negatives of each other: the loss need not reach its floor."
LEGEND_LABELLED = (
    "Accuracy of the joint model, and of what it says from one modality, the other masked at its head; of nothing: its "
    "bias. Chance guesses by the class frequencies of the training split.",
    "Shapley value: what a modality adds to the accuracy, averaged over who was there before; the two sum to the joint "
    "accuracy less that of nothing.",
    "kNN and linear probe: of each encoder inside the model.",
)
LEGEND_IMAGES = (
    "mIoU: mean over classes of intersection over union, a linear head on frozen maps; chance calls everything the "
    "commonest class.",
    "Pixel accuracy: of the same head, which weighs rare classes up; where one class fills most of every image it can "
    "be below chance while the mIoU is well above.",
    "kNN and linear probe: the class of the whole image from its pooled features.",
)


def _result(summary: RunSummary) -> str:
    images = summary.noun == "images"
    labelled = any(name.startswith("accuracy") for name in summary.scores["trained"])
    control_name = "Shuffled labels" if labelled else "Shuffled pairs"
    protocols: list[str] = []
    lines = [
        f"| metric | trained | chance | untrained | {control_name.lower()} | n | protocol |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in score_table(summary.scores):
        trained: Score = row["trained"]
        mark = ""
        if trained.protocol:
            if trained.protocol not in protocols:
                protocols.append(trained.protocol)
            mark = f"[{protocols.index(trained.protocol) + 1}]"
        value = trained.text() if trained.value is not None else f"not available: {trained.reason}"
        chance = trained.chance_text()
        others = [_other(row[name]) for name in ("untrained", "shuffled")]
        lines.append(
            f"| {row['metric']} | {value} | {chance} | {others[0]} | {others[1]} | {trained.n or ''} | {mark} |"
        )
    control = (
        f"{control_name}: a second training of {summary.control_steps} steps with {summary.shuffled}, evaluated with "
        f"its last weights{'' if images or labelled else ' on true pairs'}."
        if summary.control_steps is not None
        else f"{control_name}: not run (run.control=false)."
    )
    legend = [
        f"In square brackets: 95 % bootstrap interval over test {summary.noun}, resampled by class where labels exist.",
        *(LEGEND_LABELLED if labelled else LEGEND_IMAGES if images else LEGEND_CLIPS),
        f"Trained: the checkpoint of step {summary.best_step}, selected on the validation split; the "
        "test split decided nothing."
        if summary.best_step
        else "Trained: the last weights; nothing was selected.",
        "Untrained: the initial weights with batch-norm statistics from one pass over the training split.",
        control,
        "Probes read encoder features; an untrained network can score high on easy data: read across.",
        *([] if images or labelled else [NEGATIVES]),
    ]  # fmt: skip
    notes = "\n".join(f"{i + 1}. `{text}`" for i, text in enumerate(protocols))
    if summary.class_only is not None:
        legend.insert(
            2,
            f"A model that always finds the class and guesses the clip within it would score {summary.class_only:.3f} "
            "in R@1 at instance level; only what is above that comes from the single clip.",
        )
    return "\n".join(
        [
            *(f"**{line}**\n" for line in headline(summary.scores)),
            *lines,
            "",
            *(f"- {t}" for t in legend),
            "",
            "Protocols:",
            "",
            notes,
        ]
    )


def _other(score: Score | None) -> str:
    return "not run" if score is None else score.text()


def _training(summary: RunSummary) -> str:
    train = [row for row in summary.rows if row["kind"] == "train"]
    text = ["```", *summary.plan_lines, "```", ""]
    ended = "finished" if summary.stopped == "finished" else f"stopped by {summary.stopped}"
    text.append(f"- {ended} at step {summary.step} of {summary.steps}")
    text += [f"- {name}: {clock(seconds)} (minutes:seconds)" for name, seconds in summary.seconds.items()]
    if train:
        data, compute = (sum(r[k] for r in train) / len(train) for k in ("data_s", "compute_s"))
        rate = sum(r["samples_per_s"] for r in train) / len(train)
        text.append(
            f"- training speed: {rate:.0f} {summary.noun}/s; per step {data * 1e3:.0f} ms waiting for data, "
            f"{compute * 1e3:.0f} ms compute"
        )
        for name, c in train[-1]["collapse"].items():
            text.append(
                f"- {name} embeddings of the last batch: std {c['std']:.2f} (1 = spread evenly), "
                f"effective rank {c['effective_rank']:.1f}, mean cosine {c['mean_cosine']:.2f}"
            )
    broken = sum(summary.errors.values())
    text.append(f"- {summary.noun} that could not be read: {len(summary.errors)} files, {broken} times")
    text += [f"  - {code(name)} ({count})" for name, count in sorted(summary.errors.items())[:10]]
    text += [f"- {note}" for note in summary.notes]
    return "\n".join(text)


CAPTIONS = {
    "Curves": "Loss (the lines are for a training batch; a validation batch may be smaller), validation score beside "
    "chance and the shuffled-pair control, collapse indicator, and time per step, whose first interval fills caches.",
    "Contrast curves": "Training loss against the queue, which gets harder while random rows leave it; validation loss "
    "against the keys of its own batch. Similarities are cosines; match agreement is the share of cells whose match by "
    "features is their place by geometry.",
    "Similarity of test clips": "Red blocks along the diagonal, one per class, are what training aims at.",
    "Retrieval": "For some sounds of the test split, the pictures the trained model puts nearest.",
    "Map curves": "Loss beside those of two answers that need no picture, overlap of predicted and true maps beside "
    "the best fixed map, collapse indicator, and time per step, whose first interval fills caches.",
    "Correlation maps": "Exemplars of test images (turned, recoloured, some mirrored), where they were cut from (line) "
    "and where the trained model puts them (colour: probability; dashed: where it is cut for the IoU).",
    "Correspondence": "Two views of test images, and lines between cells whose backbone features find each other both "
    "ways. Green: the cell that shows the same place by the geometry of the crops; red: another one.",
    "Contact sheet": "Test clips as the model gets them: frames beside the spectrogram, on one clock.",
}


def _pictures(summary: RunSummary) -> str:
    parts = []
    for title, path in summary.pictures.items():
        parts.append(f"**{title}.** {CAPTIONS.get(title, '')}\n\n![{title}]({path.relative_to(summary.out)})")
    return "\n\n".join(parts)


def _how(summary: RunSummary) -> str:
    facts = env.facts()
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}", *_versions()]
    library = f"{facts['library']}; instruction set {facts.get('instruction set', 'not known')}"
    return "\n".join(
        [
            f"- command: `{shlex.join(['avfast', *sys.argv[1:]])}`; every setting is in `config.json`",
            f"- date: {time.strftime('%Y-%m-%d %H:%M:%S %z')}",
            f"- machine: {env.cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}; "
            f"GPU: {facts['gpu']}",
            f"- trained on: {summary.device}",
            f"- compiled library of avfast: {library}; backend {facts['backend']}",
            f"- versions: {', '.join(versions)}",
        ]
    )


def _versions() -> list[str]:
    names = ("avfast", "numpy", "accelerate", "transformers", "av", "scikit-learn")
    return [f"{name} {version}" for name in names if (version := env.version_of(name)) != "not installed"]
