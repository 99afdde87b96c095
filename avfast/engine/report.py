"""``report.md``: what was run, on what, how well, and beside what. Everything in it comes from the run's folder."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from avfast import env
from avfast.engine import figures
from avfast.engine.checkpoint import write_atomic
from avfast.engine.demo_data import FOLDERS
from avfast.engine.going_on import going_on
from avfast.engine.progress import clock
from avfast.engine.record import RunSummary, Section
from avfast.engine.report_scores import result_text
from avfast.engine.tables import align_tables
from avfast.engine.watch import warnings_of
from avfast.printable import code, printable

REPORT = "report.md"


def write_report(run: RunSummary, path: Path | None = None) -> Path:
    """Write the report of `run` to `path`, by default ``report.md`` in its folder; ``run.files`` is filled. The first
    line says what kind of data the numbers come from."""
    path = path or run.out / REPORT
    run.files = run_files(run.out)
    sections = [
        Section("Result", result_text(run) if run.scores else _no_result(run)),
        Section("Training", _training(run)),
        *([Section("Pictures", _pictures(run))] if run.pictures else []),
        *(Section(s.heading, _without_missing(s.text, path.parent)) for s in run.sections),
        *([Section("How it was run", "\n".join(f"- {line}" for line in run.how))] if run.how else []),
        Section("Going on", "\n".join(f"- {line}" for line in going_on(run, "RUN"))),
        *([Section("Damaged", "\n".join(f"- {printable(line)}" for line in run.problems))] if run.problems else []),
        Section("Files", "\n".join(f"- {code(file.relative_to(run.out))}" for file in run.files)),
    ]
    body = "\n\n".join(f"## {s.heading}\n\n{s.text.strip()}" for s in sections)
    return write_text(path, f"{run.honesty}\n\n# {run.recipe}: report\n\n{body}\n")


def write_text(path: Path, text: str) -> Path:
    """Markdown with its tables aligned."""
    aligned = align_tables(text)
    write_atomic(path, lambda temporary: temporary.write_text(aligned, encoding="utf-8"))
    return path


def run_files(out: Path) -> list[Path]:
    """What a run left, its report included; not the data that were made for it, nor hidden files."""
    made = {"clips", *FOLDERS}
    found = {p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".")} | {out / REPORT}
    return sorted(p for p in found if not made & set(p.relative_to(out).parts[:2]))


def _without_missing(text: str, base: Path) -> str:
    """A section without pictures that are not there, because nothing could draw them."""
    return re.sub(r"!\[[^\]]*\]\(([^)]+)\)\n*", lambda m: m[0] if (base / m[1]).is_file() else "", text)


def how_lines(device: str) -> list[str]:
    """Machine and versions of this process."""
    facts = env.facts()
    library = f"{facts['library']}; instruction set {facts.get('instruction set', 'not known')}"
    names = ("avfast", "numpy", "accelerate", "transformers", "av", "scikit-learn")
    others = [f"{name} {version}" for name in names if (version := env.version_of(name)) != "not installed"]
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}", *others]
    return [
        f"machine: {env.cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}; "
        f"GPU: {facts['gpu']}",
        f"trained on: {device}",
        f"compiled library of avfast: {library}; backend {facts['backend']}",
        f"versions: {', '.join(versions)}",
    ]


def ending(run: RunSummary) -> str:
    """How a run ended, in half a sentence."""
    where = f"step {run.step}" + (f" of {run.steps}" if run.steps else "")
    if run.stopped == "finished":
        return f"finished at {where}"
    if run.stopped:
        return f"stopped at {where} by {run.stopped}"
    if run.scores:
        return f"evaluated at {where}"
    return f"no end on record: still running, or killed; the log ends at {where}"


def speed(run: RunSummary) -> list[str]:
    """Speed, waiting and memory over the whole log, a line each."""
    names = ("data_s", "compute_s", "samples_per_s")
    train = [row for row in run.of("train") if all(_is_number(row.get(name)) for name in names)]
    if not train:
        return []
    data, compute, rate = (sum(row[name] for row in train) / len(train) for name in names)
    lines = [
        f"training speed: {rate:.0f} {run.noun}/s; per step {data * 1e3:.0f} ms waiting for data, "
        f"{compute * 1e3:.0f} ms compute"
    ]
    memory = {"rss_mib": "of the main process", "cuda_peak_mib": "on the GPU"}
    peaks = {k: max((r[k] for r in train if _is_number(r.get(k))), default=0) for k in memory}
    if told := [f"{peaks[k]} MiB {where}" for k, where in memory.items() if peaks[k]]:
        lines.append(f"memory at most: {', '.join(told)}")
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _no_result(run: RunSummary) -> str:
    broken = any("results.json" in line for line in run.problems)
    why = "their file is damaged" if broken else "the run has not come to its evaluation"
    best = [row for row in run.of("val") if _is_number(row.get("loss"))]
    lines = [f"No scores: {why}."]
    if best:
        row = min(best, key=lambda r: r["loss"])
        lines.append(f"Best validation loss so far: {row['loss']:.3f}, at step {row['step']}.")
    return "\n".join(lines)


def _training(run: RunSummary) -> str:
    text = ["```", *run.plan_lines, "```", ""] if run.plan_lines else []
    text.append(f"- {ending(run)}")
    text += [f"- {name}: {clock(seconds)} (minutes:seconds)" for name, seconds in run.seconds.items()]
    text += [f"- {line}" for line in speed(run)]
    train = run.of("train")
    for name, c in figures.collapse_of(train[-1]).items() if train else ():
        std, rank, cosine = (c.get(key) for key in ("std", "effective_rank", "mean_cosine"))
        if all(map(_is_number, (std, rank, cosine))):
            text.append(
                f"- {name} embeddings of the last batch: std {std:.2f} (1 = spread evenly), "
                f"effective rank {rank:.1f}, mean cosine {cosine:.2f}"
            )
    text += [f"- warning: {line}" for line in warnings_of(run.rows)]
    text += [f"- warning of the control: {line}" for line in warnings_of(run.control_rows)]
    text += [f"- warning: {line}" for line in faults(run.rows)]
    text += unreadable(run)
    if not run.complete:
        text.append("- an older version of avfast ran this: plan, times and pictures of the test split were not kept")
    if not run.pictures:
        missing = figures.matplotlib_figure() is None
        why = "matplotlib is not installed (pip install 'avfast[plots]')" if missing else "there is nothing to draw"
        text.append(f"- no pictures: {why}")
    text += [f"- {note}" for note in run.notes]
    return "\n".join(text)


def faults(rows: list[dict[str, Any]]) -> list[str]:
    """What went wrong at single steps, a line for each cause."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "fault":
            found.setdefault(str(row.get("cause")), []).append(row)
    lines = []
    for cause, seen in found.items():
        steps = ", ".join(str(row["step"]) for row in seen[-5:])
        what = "dropped, something in them was not finite" if cause == "nonfinite" else cause
        text = f": {seen[-1]['text']}" if isinstance(seen[-1].get("text"), str) else ""
        lines.append(printable(f"{len(seen)} steps: {what} (the last at {steps}){text}"))
    return lines


def unreadable(run: RunSummary) -> list[str]:
    """Files that could not be read, the first ten by name."""
    if not run.seconds and not run.errors:  # not on record
        return []
    times = sum(run.errors.values())
    lines = [f"- {run.noun} that could not be read: {len(run.errors)} files, {times} times"]
    return lines + [f"  - {code(name)} ({count})" for name, count in sorted(run.errors.items())[:10]]


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


def _pictures(run: RunSummary) -> str:
    return "\n\n".join(
        f"**{title}.** {CAPTIONS.get(title, '')}\n\n![{title}]({file})" for title, file in run.pictures.items()
    )
