"""Several runs side by side: one table, and their curves in one picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from avfast.engine import figures
from avfast.engine.rebuild import CURVES, target, writing
from avfast.engine.record import UNKNOWN, RunSummary, read_run
from avfast.engine.report import ending, write_text
from avfast.engine.report_scores import HEADLINE
from avfast.engine.tables import align_tables
from avfast.engine.watch import warnings_of
from avfast.errors import ConfigError
from avfast.printable import printable

MOST_KEYS = 20


def compare(folders: list[Path], out: Path | None, *, say: Callable[[str], None] = print) -> int:
    """Print a table of runs; with `out`, write it there with a picture of their curves.

    Returns:
        0; 1 if a file of a run is damaged.
    """
    runs = dict(zip(short_names(folders), (read_run(folder) for folder in folders), strict=True))
    if len(runs) < len(folders):
        raise ConfigError("avfast report: the same run was given twice")
    parts = [comparison(runs), _differences(runs)]
    problems = [line for run in runs.values() for line in run.problems]
    if out is not None:
        base, name = target(folders[0], out)
        with writing(base):
            logs = {label: run.rows for label, run in runs.items()}
            picture = figures.compared_curves(base / CURVES, logs)
            shown = [] if picture is None else [f"![Curves]({CURVES})"]
            kinds = sorted({run.honesty for run in runs.values()})
            damaged = ["## Damaged", "\n".join(f"- {line}" for line in problems)] if problems else []
            text = ["\n".join(kinds), f"# {len(runs)} runs", *parts, *shown, *damaged]
            report = write_text(base / name, "\n\n".join(part for part in text if part) + "\n")
    for part in parts:
        say(printable(align_tables(part), keep="\n"))
    for line in problems:
        say(printable(f"damaged: {line}"))
    if out is not None:
        say(f"written: {report}" + (f", {picture}" if picture else ""))
    return 1 if problems else 0


def comparison(runs: dict[str, RunSummary]) -> str:
    """A row for each run, a column for each headline score that one of them has, chance beside it."""
    names = [n for n in HEADLINE if any(n in run.scores.get("trained", {}) for run in runs.values())]
    heads = ["run", "recipe", "ended", "best step", "last loss", *names, "warnings"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for label, run in runs.items():
        losses = [row["loss"] for row in run.of("train") if isinstance(row.get("loss"), float)]
        cells = [label, run.recipe, ending(run), str(run.best_step or ""), f"{losses[-1]:.3f}" if losses else ""]
        for name in names:
            score = run.scores.get("trained", {}).get(name)
            if score is None or score.value is None:
                cells.append("")
            else:
                chance = "" if score.chance is None else f" (chance {score.chance:.3f})"
                cells.append(f"{score.value:.3f}{chance}")
        warned = len(warnings_of(run.rows))
        rows.append(f"| {' | '.join([*cells, str(warned) if warned else ''])} |")
    kinds = {run.honesty for run in runs.values()}
    if len(kinds) > 1 or UNKNOWN in kinds:
        rows += ["", "The runs are not all known to be on the same kind of data."]
    return "\n".join(rows)


def _differences(runs: dict[str, RunSummary]) -> str:
    """The settings in which runs of one recipe differ."""
    configs = {label: run.config for label, run in runs.items()}
    keys = sorted({k for c in configs.values() for k in c if k != "recipe"})
    if len({run.recipe for run in runs.values()}) > 1:
        return ""
    changed = [k for k in keys if len({repr(c.get(k)) for c in configs.values()}) > 1]
    if not changed:
        return "Their settings are the same."
    rows = [f"| setting | {' | '.join(configs)} |", "|---" * (len(configs) + 1) + "|"]
    rows += [f"| {k} | {' | '.join(str(c.get(k, '')) for c in configs.values())} |" for k in changed[:MOST_KEYS]]
    if len(changed) > MOST_KEYS:
        rows.append(f"| and {len(changed) - MOST_KEYS} more |" + " |" * len(configs))
    return "\n".join(rows)


def short_names(folders: list[Path]) -> list[str]:
    """What runs are called: their folders without what all of them begin with.

    >>> short_names([Path("runs/a/x"), Path("runs/b/x")])
    ['a/x', 'b/x']
    """
    full = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath(full))
    return [str(path.relative_to(common)) if path != common else path.name for path in full]
