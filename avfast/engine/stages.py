"""A recipe of several runs, read back from its folder: what each stage left, and the report of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avfast.engine.drawing import kept_drawings
from avfast.engine.going_on import exported, resuming
from avfast.engine.progress import clock
from avfast.engine.rebuild import drawn_again, rebuild, writing
from avfast.engine.record import RESULTS, START, UNKNOWN, RunSummary, read_json, read_run, write_start
from avfast.engine.report import REPORT, ending, write_text
from avfast.engine.report_scores import headline
from avfast.engine.watch import warnings_of
from avfast.errors import DataError
from avfast.printable import printable


@dataclass
class Stages:
    """A folder with a run in a folder of each stage.

    Attributes:
        facts: of ``run.json``, which says that the folder is one of stages.
        runs: those that have begun, in the order of the stages.
        results: of the whole, where it has any of its own.
        pictures: of the whole, title to file.
        heads: lines a person remembers, filled by what composes the report.
    """

    out: Path
    recipe: str
    names: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, RunSummary] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    own_problems: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)

    @property
    def honesty(self) -> str:
        """What kind of data the numbers come from: the same for all stages."""
        return str(self.facts.get("honesty") or next((run.honesty for run in self.runs.values()), UNKNOWN))

    @property
    def command(self) -> str:
        """What was typed, where it was kept."""
        return next((run.command for run in reversed(self.runs.values()) if run.command), "")

    @property
    def problems(self) -> list[str]:
        return [*self.own_problems, *(line for run in self.runs.values() for line in run.problems)]

    @property
    def given(self) -> dict[str, str]:
        """Stages that were left out because the user gave what they would have made."""
        given = self.facts.get("given", {})
        return {str(k): str(v) for k, v in given.items()} if isinstance(given, dict) else {}


Compose = Callable[[Stages], list[str]]
"""What makes the parts of a report between its title and its list of stages, in Markdown."""


def begin_stages(out: Path, recipe: str, **facts: Any) -> None:
    """Note what a folder of stages is, before its first stage or after its last."""
    write_start(out, {"pipeline": recipe, **facts})


def read_stages(out: Path, recipe: str, names: tuple[str, ...]) -> Stages:
    """Read all that is there.

    Raises:
        DataError: no stage has begun.
    """
    found = Stages(out, recipe, names)
    for name, target in ((START, found.facts), (RESULTS, found.results)):
        stored, problem = read_json(out / name)
        target.update(stored)
        found.own_problems += [problem] if problem else []
    for name in names:
        try:
            found.runs[name] = read_run(out / name)
        except DataError:
            continue  # not begun, or given
    if not found.runs:
        raise DataError(f"'{out}' holds no stage of {recipe} that has begun: expected {', '.join(names)}")
    return found


def write_stages_report(stages: Stages, compose: Compose, path: Path | None = None) -> Path:
    """The report of all stages; its first line says what kind of data the numbers come from."""
    path = path or stages.out / REPORT
    parts = [stages.honesty, f"# {stages.recipe}: report of all stages", *compose(stages), "## Stages", _list(stages)]
    if isinstance(seconds := stages.facts.get("seconds"), (int, float)):
        parts.append(f"This call took {clock(seconds)} (minutes:seconds).")
    parts += ["## Going on", "\n".join(f"- {line}" for line in going_on(stages, "RUN"))]
    if stages.problems:
        parts += ["## Damaged", "\n".join(f"- {printable(line)}" for line in stages.problems)]
    return write_text(path, "\n\n".join(parts) + "\n")


def rebuild_stages(
    out: Path, recipe: str, names: tuple[str, ...], compose: Compose, base: Path, file: str, say: Callable[[str], None]
) -> int:
    """The report of all stages and that of each again, with their pictures; the status of ``avfast report``."""
    stages = read_stages(out, recipe, names)
    elsewhere = base.resolve() != out.resolve()
    for name in list(stages.runs):
        stages.runs[name], _ = rebuild(out / name, base / name if elsewhere else None)
    kept, problems = kept_drawings(out)
    stages.own_problems += problems
    with writing(base):
        for picture in kept:
            if drawn_again(picture, base, stages.own_problems) or (base / picture.file).is_file():
                stages.pictures[picture.title] = picture.file
        report = write_stages_report(stages, compose, base / file)
    for line in closing_lines(stages, report):
        say(line)
    return 1 if stages.problems else 0


def _list(stages: Stages) -> str:
    lines = []
    for name in stages.names:
        run = stages.runs.get(name)
        if run is None:
            given = stages.given.get(name)
            lines.append(f"- {name}: " + (f"left out, `{given}` was given" if given else "not begun"))
        else:
            weights = f", weights of step {run.best_step or run.step}" if run.scores else ""
            lines.append(f"- {name}: {ending(run)}{weights}; [report]({name}/{REPORT})")
    return "\n".join(lines)


def going_on(stages: Stages, folder: str) -> list[str]:
    """As :func:`avfast.engine.going_on.going_on`, for all stages together."""
    lines = [f"`{folder}` is the folder of this report"] if folder == "RUN" else []
    done = all(name in stages.given or _done(stages.runs.get(name)) for name in stages.names)
    if not done and stages.command:
        lines.append(f"go on where it stopped: `{resuming(stages.command)}`")
    if (stages.out / "export" / "avfast.json").is_file() and stages.recipe == "sound2scene":
        lines.append(f"draw from your own sounds: `avfast generate --audio FILE --checkpoint {folder} --out DIR`")
    for name in stages.runs:
        ready, plain = exported(stages.out / name / "export")
        if ready or plain:
            lines.append(f"networks of the stage {name}: `{folder}/{name}/export/` ({', '.join(ready + plain)})")
    return [*lines, f"write these reports and their pictures again: `avfast report {folder}`"]


def _done(run: RunSummary | None) -> bool:
    return run is not None and run.stopped == "finished"


def closing_lines(stages: Stages, report: Path) -> list[str]:
    """The last lines on the terminal: how each stage ended, the scores of the last, warnings, files, how to go on."""
    lines = []
    for name in stages.names:
        run = stages.runs.get(name)
        if run is None:
            lines.append(f"{name}: {'given' if name in stages.given else 'not begun'}")
            continue
        lines.append(f"{name}: {ending(run)}")
        lines += [f"warning of {name}: {text}" for text in warnings_of(run.rows)]
        if run.errors:
            lines.append(f"warning of {name}: {len(run.errors)} files could not be read; its report names them")
    scored = [run for run in stages.runs.values() if run.scores]
    lines += stages.heads or (headline(scored[-1].scores) if scored else [])
    if isinstance(seconds := stages.facts.get("seconds"), (int, float)):
        lines.append(f"time: {clock(seconds)}")
    lines += [f"damaged: {text}" for text in stages.problems]
    reports = [report, *(report.parent / name / REPORT for name in stages.runs)]
    lines += ["written:", *(f"  {path}" for path in reports)]
    lines += [*going_on(stages, str(stages.out)), f"read '{report}' first"]
    return [printable(line) for line in lines]  # they name files
