"""What a run keeps so that its report can be written again: read from the run's folder, and from nothing else.

``run.json`` is written before the first step: what was asked, on what data, on which machine. ``results.json`` is
written after the evaluation: scores, times, and whatever else only the evaluation knew. Beside them stand
``config.json``, ``metrics.jsonl`` (also of the control) and ``figures/data``. All of it is plain JSON and arrays:
reading it runs no code, and a damaged file costs what it held, by name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avfast.engine.checkpoint import write_atomic
from avfast.engine.journal import parse_rows
from avfast.errors import DataError
from avfast.evaluate import Score

SCHEMA = 1
START, RESULTS, CONFIG, LOG = "run.json", "results.json", "config.json", "metrics.jsonl"
UNKNOWN = "media of an unknown kind: the version of avfast that ran this did not keep it"


@dataclass(frozen=True)
class Section:
    """One part of a report: a heading and Markdown text."""

    heading: str
    text: str


@dataclass
class RunSummary:
    """Everything a report says about a run, and where it came from.

    Attributes:
        honesty: what kind of data the numbers come from.
        stopped: "finished", "budget", the name of a signal, words about an error; "" where nothing says how it ended.
        step: steps done, by the results or else by the log; ``steps`` are those asked for.
        scores: by arm (trained, untrained, shuffled) and name; empty without results.
        pictures: title to file, relative to the folder that the report stands in.
        files: relative to ``out``.
        problems: a line for each file that is damaged.
        complete: whether the run's own version kept all that this one reads.
    """

    out: Path
    recipe: str = ""
    honesty: str = UNKNOWN
    plan_lines: list[str] = field(default_factory=list)
    how: list[str] = field(default_factory=list)
    command: str = ""
    noun: str = "clips"
    shuffled: str = ""
    supervised: bool = False
    curves: str = "Curves"
    bounds: dict[str, float] = field(default_factory=dict)
    device: str = ""
    stopped: str = ""
    step: int = 0
    steps: int = 0
    best_step: int = 0
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    control_steps: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    class_only: float | None = None
    errors: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    control_rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    complete: bool = True

    @property
    def labelled(self) -> bool:
        """Whether it learned classes, so that its control has shuffled labels."""
        return self.supervised or any(name.startswith("accuracy ") for name in self.scores.get("trained", {}))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Rows of the log."""
        return [row for row in self.rows if row["kind"] == kind]


def write_json(path: Path, values: Any) -> None:
    text = json.dumps(values, indent=1) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_start(out: Path, facts: dict[str, Any]) -> None:
    """``run.json``; what an earlier call left there is replaced."""
    write_json(out / START, {"schema": SCHEMA, **facts, "stopped": ""})


def write_stopped(out: Path, reason: str) -> None:
    """Note why a run ended without results; a full disk must not hide that reason from the terminal."""
    facts, _ = read_json(out / START)
    with contextlib.suppress(OSError):
        write_json(out / START, {**facts, "stopped": reason})


def write_results(out: Path, results: dict[str, Any]) -> None:
    """``results.json``: its presence says that a run came to its evaluation."""
    scores = {name: {k: s.to_dict() for k, s in row.items()} for name, row in results["scores"].items()}
    sections = [[s.heading, s.text] for s in results["sections"]]
    write_json(out / RESULTS, {"schema": SCHEMA, **results, "scores": scores, "sections": sections})


def comparable_results(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what depends on the clock: those of two runs that computed the same are equal.

    >>> comparable_results({"step": 3, "seconds": {"training": 1.5}, "how": ["ended: now"]})
    {'step': 3}
    """
    return {name: value for name, value in results.items() if name not in ("seconds", "how")}


def read_run(out: Path) -> RunSummary:
    """Read a run back, whatever is there of it.

    Raises:
        DataError: the folder does not exist, or holds no run.
    """
    if not out.is_dir():
        raise DataError(f"'{out}' is no folder; expected that of a run")
    names = (START, CONFIG, RESULTS, LOG)
    if not any((out / name).is_file() for name in names):
        raise DataError(f"'{out}' holds no run of avfast: none of {', '.join(names)}")
    run = RunSummary(out)
    run.config = _read(run, CONFIG)
    run.recipe = str(run.config.get("recipe", "unknown recipe"))
    if steps := run.config.get("run.steps"):
        run.steps = steps if isinstance(steps, int) else 0
    for name, target in ((LOG, run.rows), (f"control/{LOG}", run.control_rows)):
        if (out / name).is_file() and (target is run.rows or run.config.get("run.control", True)):
            rows, torn = parse_rows(out / name)
            target += rows
            last = len(rows) + len(torn)
            if lines := [str(n) for n in torn if n != last]:  # the last one is torn by any kill, which is no damage
                run.problems.append(f"'{out / name}': cannot read line {', '.join(lines[:10])}")
    _guarded(run, START, _take_start)
    _guarded(run, RESULTS, _take_results)
    if not (out / RESULTS).is_file() or not run.scores:
        run.step = max([run.step, *(row["step"] for row in run.rows)])
    elif run.rows and run.rows[-1]["step"] > run.step:
        run.notes.append(f"the training went on to step {run.rows[-1]['step']} after the evaluation at step {run.step}")
    return run


def _take_start(run: RunSummary, facts: dict[str, Any]) -> None:
    run.complete = False
    if not facts:
        return
    if facts["schema"] > SCHEMA:
        run.problems.append(f"'{run.out / START}' has schema {facts['schema']}; this version reads {SCHEMA}")
    text = ("recipe", "honesty", "command", "noun", "shuffled", "curves", "device", "stopped")
    for name in text:
        setattr(run, name, _typed(facts, name, str))
    run.plan_lines, run.how = ([str(line) for line in _typed(facts, name, list)] for name in ("plan", "how"))
    run.supervised, run.steps = _typed(facts, "supervised", bool), _typed(facts, "steps", int)
    run.bounds = {str(k): float(v) for k, v in _typed(facts, "bounds", dict).items()}
    run.complete = True


def _take_results(run: RunSummary, results: dict[str, Any]) -> None:
    if not results:
        return
    run.scores = {
        str(arm): {str(name): Score.from_dict(score) for name, score in row.items()}
        for arm, row in _typed(results, "scores", dict).items()
    }
    run.step, run.best_step = _typed(results, "step", int), _typed(results, "best_step", int)
    if "mIoU" in run.scores.get("trained", {}):
        run.noun = "images"
    if "schema" not in results:  # of a version that kept no more
        run.complete = False
        run.control_steps = run.step if "shuffled" in run.scores else None
        return
    run.stopped, run.steps = _typed(results, "stopped", str), _typed(results, "steps", int)
    run.control_steps, run.class_only = results["control_steps"], results["class_only"]
    run.seconds = {str(k): float(v) for k, v in _typed(results, "seconds", dict).items()}
    run.errors = {str(k): int(v) for k, v in _typed(results, "errors", dict).items()}
    run.notes += [str(note) for note in _typed(results, "notes", list)]
    run.sections = [Section(str(heading), str(text)) for heading, text in _typed(results, "sections", list)]
    run.how += [str(line) for line in results.get("how", [])]


def _typed(values: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(values[name], kind):
        raise ValueError(f"{name}: expected {kind.__name__}, got {values[name]!r:.60}")
    return values[name]


def _guarded(run: RunSummary, name: str, take: Callable[[RunSummary, dict[str, Any]], None]) -> None:
    """Take what a file says; one that says something else is named, and costs only itself."""
    stored = _read(run, name)
    try:
        take(run, stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        run.problems.append(f"'{run.out / name}' is damaged ({what})")


def _read(run: RunSummary, name: str) -> dict[str, Any]:
    stored, problem = read_json(run.out / name)
    if problem:
        run.problems.append(problem)
    return stored


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """What a file holds, and what is wrong with it; both empty where it is absent."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return {}, f"'{path}' is damaged ({reason})"
    return (stored, "") if isinstance(stored, dict) else ({}, f"'{path}' is damaged (holds no JSON object)")
