"""What a check returns: rows, each one thing that was done so many times and how often it failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

OK, FAILED, NOT_RUN = "ok", "failed", "not run"


@dataclass(frozen=True)
class Row:
    """``name`` in a few words, ``done``: what was done and what had to hold, ``times``: how often.

    ``failures`` says in words what did not hold (nothing: all did); ``missing`` why the row could not run at all.
    ``seconds`` is wall time, ``numbers`` what was measured, by name and with the unit in the name; plain JSON values.

    >>> Row("kill", "SIGKILL, then --resume auto: equal weights", times=20).result
    'ok'
    """

    name: str
    done: str
    times: int = 1
    failures: Sequence[str] = ()
    seconds: float = 0.0
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    missing: str = ""

    @property
    def result(self) -> str:
        return FAILED if self.failures else NOT_RUN if self.missing else OK

    def record(self) -> dict:
        """Plain JSON types, the result among them."""
        return {**asdict(self), "failures": list(self.failures), "numbers": dict(self.numbers), "result": self.result}
