"""``report.md``: what was run, on what, how well, and beside what."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from avfast.engine.assess import score_table
from avfast.engine.progress import clock
from avfast.evaluate import Score

HEADLINE = ("R@1 audio->video class-level", "R@1 audio->video instance-level")


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
    rows: list[dict[str, Any]]
    errors: dict[str, int]
    pictures: dict[str, Path]
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_report(summary: RunSummary, extra: list[Section] | None = None) -> Path:
    """Write ``report.md`` into the run's folder; its first line says what kind of data the numbers come
    from."""
    path = summary.out / "report.md"
    sections = [
        Section("Result", _result(summary)),
        Section("Training", _training(summary)),
        *([Section("Pictures", _pictures(summary))] if summary.pictures else []),
        *(extra or []),
        Section("How it was run", _how()),
    ]
    files = sorted({*summary.files, path})
    listing = "\n".join(f"- `{file.relative_to(summary.out)}`" for file in files)
    body = "\n\n".join(f"## {s.heading}\n\n{s.text.strip()}" for s in [*sections, Section("Files", listing)])
    path.write_text(f"{summary.honesty}\n\n# {summary.recipe}: report\n\n{body}\n")
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


def _result(summary: RunSummary) -> str:
    protocols: list[str] = []
    lines = [
        "| metric | trained | chance | untrained | shuffled pairs | n | protocol |",
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
        f"Shuffled pairs: a second training of {summary.control_steps} steps with every sound tied to a "
        "wrong picture, evaluated with its last weights on true pairs."
        if summary.control_steps is not None
        else "Shuffled pairs: not run (run.control=false)."
    )
    legend = [
        "In square brackets: 95 % bootstrap interval over test clips, resampled by class where labels exist.",
        "Beside chance: where 95 % of guesses fall (classes, or clips, permuted); inside is no evidence.",
        f"Trained: the checkpoint of step {summary.best_step}, selected on the validation split; the "
        "test split was read once, for this table."
        if summary.best_step
        else "Trained: the last weights; nothing was selected.",
        "Untrained: the initial weights with batch-norm statistics from one pass over the training split.",
        control,
        "Probes read encoder features; an untrained network can score high on easy data: read across.",
        "Clips of one class in one batch are negatives of each other: the loss need not reach its floor.",
    ]  # fmt: skip
    notes = "\n".join(f"{i + 1}. `{text}`" for i, text in enumerate(protocols))
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
    state = "finished" if summary.stopped == "finished" else f"stopped by {summary.stopped}"
    text.append(f"- {state} at step {summary.step} of {summary.steps}")
    text += [f"- {name}: {clock(seconds)}" for name, seconds in summary.seconds.items()]
    if train:
        data, compute = (sum(r[k] for r in train) / len(train) for k in ("data_s", "compute_s"))
        rate = sum(r["clips_per_s"] for r in train) / len(train)
        text.append(f"- {rate:.0f} clips/s; per step {data * 1e3:.0f} ms data, {compute * 1e3:.0f} ms compute")
        for name, c in train[-1]["collapse"].items():
            text.append(
                f"- {name} embeddings of the last batch: std {c['std']:.2f} (1 = spread evenly), "
                f"effective rank {c['effective_rank']:.1f}, mean cosine {c['mean_cosine']:.2f}"
            )
    broken = sum(summary.errors.values())
    text.append(f"- clips that could not be read: {len(summary.errors)} files, {broken} times")
    text += [f"  - `{name}` ({count})" for name, count in sorted(summary.errors.items())[:10]]
    text += [f"- {note}" for note in summary.notes]
    return "\n".join(text)


def _pictures(summary: RunSummary) -> str:
    shown = (f"**{title}**\n\n![{title}]({p.relative_to(summary.out)})" for title, p in summary.pictures.items())
    return "\n\n".join(shown)


def _how() -> str:
    import numpy

    words = " ".join(["avfast", *sys.argv[1:]])
    versions = [
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"NumPy {numpy.__version__}",
    ]
    versions += _optional_versions()
    return "\n".join(
        [
            f"- command: `{words}`",
            f"- date: {time.strftime('%Y-%m-%d %H:%M:%S %z')}",
            f"- machine: {platform.machine()}, {platform.system()}, {torch.get_num_threads()} threads",
            f"- versions: {', '.join(versions)}",
        ]
    )


def _optional_versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("avfast", "accelerate", "transformers", "av", "scikit-learn"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
