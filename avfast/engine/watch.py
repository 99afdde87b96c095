"""What a person should be told about a training that runs but does not run well."""

from __future__ import annotations

from typing import Any

from avfast.engine.config import DataConfig
from avfast.evaluate import collapse_warning

LOADER_BOUND = 0.5
"""Share of an interval spent waiting for data from which on the loader is called the limit."""
LONGEST_LOADER, LONGEST_COLLAPSE = 100, 1000
"""Steps after which a warning is given at the latest; before, a tenth of the run is left to caches and warm-up."""


class Watch:
    """Looks at every line of the log, and remembers what it has said.

    Args:
        steps: of the whole run.
        start: steps done before, by an earlier call.
    """

    def __init__(self, data: DataConfig, steps: int, *, start: int = 0) -> None:
        self.data, self.start = data, start
        self.loader_from = start + min(steps // 10, LONGEST_LOADER)
        self.collapse_from = min(steps // 10, LONGEST_COLLAPSE)
        self._first = True
        self._said: set[str] = set()

    def warnings(self, step: int, row: dict[str, Any], collapse: dict[str, dict[str, float]]) -> dict[str, str]:
        """What is wrong at this line, by subject: ``"audio"`` for embeddings, ``"loader-bound"``.

        Args:
            row: ``data_s`` and ``compute_s`` of the interval.
            collapse: indicators by embedding, see :func:`avfast.evaluate.collapse_indicators`.
        """
        found = {}
        if step > self.collapse_from:
            found = {name: text for name, values in collapse.items() if (text := collapse_warning(values))}
        # The first interval fills caches and starts workers: it says nothing about the rest.
        share, first, self._first = waiting_share([row]), self._first, False
        if step > self.loader_from and share > LOADER_BOUND and not first:
            found["loader-bound"] = f"{share:.0%} of the time waits for data; {self._cure()}"
        return found

    def news(self, warnings: dict[str, str]) -> list[str]:
        """Those not said yet. A collapse is said again when it comes back; the loader's limit is said once."""
        fresh = [name for name in warnings if name not in self._said]
        self._said = set(warnings) | (self._said & {"loader-bound"})
        return [warning_line(name, warnings[name]) for name in fresh]

    def _cure(self) -> str:
        d = self.data
        workers = "data.workers=2" if d.workers == 0 else f"more than data.workers={d.workers}"
        return f"try {workers}" + ("" if d.cache == "memory" else " or data.cache=memory")


def warning_line(name: str, text: str) -> str:
    """
    >>> warning_line("audio", "embeddings nearly identical (mean cosine 0.99)")
    'audio embeddings nearly identical (mean cosine 0.99)'
    """
    return f"{name}: {text}" if name == "loader-bound" else f"{name} {text}"


def waiting_share(rows: list[dict[str, Any]]) -> float:
    """Share of the time of training rows that was spent waiting for data.

    >>> waiting_share([{"data_s": 0.75, "compute_s": 0.25}])
    0.75
    """
    data, compute = (sum(row[key] for row in rows) for key in ("data_s", "compute_s"))
    return data / max(1e-9, data + compute)


def warnings_of(rows: list[dict[str, Any]]) -> list[str]:
    """The warnings of a whole log, one line each: between which steps, and how it was at last.

    >>> rows = [{"kind": "train", "step": n, "warnings": {"audio": f"bad {n}"} if n < 30 else {}} for n in (10, 20, 30)]
    >>> warnings_of(rows)
    ['steps 10 to 20: audio bad 20']
    """
    found: dict[str, list[tuple[int, str]]] = {}
    last = 0
    for row in rows:
        if row.get("kind") != "train":
            continue
        last = row["step"]
        warned = row.get("warnings")
        for name, text in warned.items() if isinstance(warned, dict) else ():
            found.setdefault(name, []).append((last, text))
    lines = []
    for name, seen in found.items():
        (first, _), (end, text) = seen[0], seen[-1]
        when = f"step {end}" if first == end else f"steps {first} to {end}"
        lines.append(f"{when}{', the last ones' if end == last and first != end else ''}: {warning_line(name, text)}")
    return lines
