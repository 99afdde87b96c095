"""The table of soak results: one section per machine, one row per thing that was tried."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SCHEMA = "soak/1"
COLUMNS = ("check", "what was done", "times", "result", "time", "numbers")
HEAD = """# Soak

Long checks of what must hold for a week; the tests run the same checks small. Made by `make soak`
(`python -m avfast.benches.soak.run --record`); times are of a machine with other work, and promise nothing.
"""


def load(path: Path) -> dict:
    """Results of `run.measure` from a file. Raises ValueError if it holds something else."""
    data = json.loads(Path(path).read_text())
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected avfast soak results of schema {SCHEMA}")
    return data


def markdown(every: Sequence[dict]) -> str:
    """All machines, as `SOAK.md` shows them."""
    return "\n".join([HEAD, *map(section, every)])


def section(results: dict) -> str:
    """One machine: who it is, the table, and what failed in words."""
    machine = results["machine"]
    name = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['cpu_capability']}"
    lines = [f"## {name}", "", f"{machine['system']}.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += [_line(record, row) for record in results["checks"] for row in record["rows"]]
    lines += ["", "How each was run:", ""]
    for record in results["checks"]:
        unit = f"{record['size']} {record['unit']}".strip()
        lines.append(f"* {record['check']}: `{record['command']}`, {unit}, {record['versions']}, {record['date']}")
    failures = [f"* {record['check']}, {row['name']}: {text}" for record, row, text in _failures(results)]
    return "\n".join([*lines, "", *(["What failed:", "", *failures, ""] if failures else [])])


def _failures(results: dict) -> list[tuple[dict, dict, str]]:
    return [(record, row, text) for record in results["checks"] for row in record["rows"] for text in row["failures"]]


def _line(record: dict, row: dict) -> str:
    result = f"**{len(row['failures'])} failed**" if row["failures"] else row["result"]
    if row["missing"]:
        result += f": {row['missing']}"
    numbers = ", ".join(f"{name} {number(value)}" for name, value in row["numbers"].items())
    cells = (f"{record['check']}: {row['name']}", row["done"], row["times"], result, duration(row["seconds"]), numbers)
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def number(value: float | int | str) -> str:
    """Short, and exact for whole numbers.

    >>> number(20000), number(0.123456), number("gloo")
    ('20000', '0.123', 'gloo')
    """
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """
    >>> duration(0.25), duration(61), duration(5400)
    ('0.2 s', '61 s', '90 min')
    """
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
