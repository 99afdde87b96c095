"""The last lines of a run on the terminal, and of ``avfast report``."""

from __future__ import annotations

from pathlib import Path

from avfast.engine.going_on import going_on
from avfast.engine.progress import clock
from avfast.engine.record import RunSummary
from avfast.engine.report import ending, faults, speed, unreadable
from avfast.engine.report_scores import headline
from avfast.engine.watch import warnings_of
from avfast.printable import printable

MOST_FILES = 60


def closing_lines(run: RunSummary, report: Path) -> list[str]:
    """What was trained and how it ended, the scores beside theirs, times, warnings, files, and how to go on.

    Args:
        report: where the report of the run was written; ``run.files`` is filled.
    """
    if run.best_step:
        weights = f"; evaluated with the weights of step {run.best_step}, the best on the validation split"
    else:
        weights = "; evaluated with the last weights" if run.scores else ""
    lines = [f"{run.recipe}: {ending(run)}{weights}", *headline(run.scores)]
    if run.seconds:
        lines.append("time: " + ", ".join(f"{name} {clock(seconds)}" for name, seconds in run.seconds.items()))
    lines += speed(run)
    lines += [f"warning: {text}" for text in warnings_of(run.rows)]
    lines += [f"warning of the control: {text}" for text in warnings_of(run.control_rows)]
    lines += [f"warning: {text}" for text in faults(run.rows)]
    if run.errors:
        lines += [f"warning: {unreadable(run)[0].removeprefix('- ')}; the report names them"]
    lines += [f"damaged: {text}" for text in run.problems]
    # In one order for people: what they read first comes last.
    files = sorted({*run.files, report})
    lines += ["written:", *(f"  {path}" for path in files[:MOST_FILES])]
    if len(files) > MOST_FILES:
        lines.append(f"  and {len(files) - MOST_FILES} more, all listed in the report")
    lines += [*going_on(run, str(run.out)), f"read '{report}' first"]
    return [printable(line) for line in lines]  # they name files
