"""A number and everything that must stand beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Score:
    """One measured value with its context.

    Attributes:
        value: the number, or None when it is not available (``reason`` says why).
        chance: what guessing scores under the same protocol, on average.
        chance_range: where 95 % of guesses fall; a value inside it is no evidence of anything.
        interval: 95 % bootstrap interval of ``value``, or None.
        n: how many test items it is a mean over.
        protocol: how it was measured, in one line.
        reason: why it is not available.
    """

    value: float | None
    chance: float | None = None
    chance_range: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    protocol: str = ""
    reason: str = ""

    @classmethod
    def unavailable(cls, reason: str, protocol: str = "") -> Score:
        return cls(None, protocol=protocol, reason=reason)

    def text(self) -> str:
        """``0.812 [0.750, 0.875]`` or ``not available``."""
        if self.value is None:
            return "not available"
        text = f"{self.value:.3f}"
        return text if self.interval is None else f"{text} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"

    def chance_text(self) -> str:
        """``0.062 (0.000 to 0.188)``, or nothing where chance is not known."""
        if self.chance is None:
            return ""
        text = f"{self.chance:.3f}"
        return (
            text if self.chance_range is None else f"{text} ({self.chance_range[0]:.3f} to {self.chance_range[1]:.3f})"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Any) -> Score:
        """The score that :meth:`to_dict` told, also after a way through JSON; unknown keys are left out.

        Raises:
            ValueError: it is something else.

        >>> Score.from_dict(Score(0.5, interval=(0.25, 0.75), n=4).to_dict()).text()
        '0.500 [0.250, 0.750]'
        """
        if not isinstance(stored, dict) or "value" not in stored:
            raise ValueError(f"a score is an object with a value, got {stored!r:.80}")
        values = {f.name: stored[f.name] for f in fields(cls) if f.name in stored}
        for name in ("value", "chance"):
            if not isinstance(values.get(name), (int, float, type(None))):
                raise ValueError(f"a score's {name} is a number or null, got {values[name]!r:.80}")
        for name in ("chance_range", "interval"):
            pair = values.get(name)
            if pair is not None:
                good = isinstance(pair, (list, tuple)) and len(pair) == 2
                if not good or not all(isinstance(x, (int, float)) for x in pair):
                    raise ValueError(f"a score's {name} is two numbers or null, got {pair!r:.80}")
                values[name] = tuple(pair)
        if not isinstance(values.get("n", 0), int):
            raise ValueError(f"a score's n is a whole number, got {values['n']!r:.80}")
        return cls(**{k: str(v) if k in ("protocol", "reason") else v for k, v in values.items()})


def bootstrap_interval(
    values: np.ndarray, clusters: np.ndarray | None = None, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean.

    Clips of one class share a photograph and a sound, or a speaker and a room: they are not independent. With
    `clusters` the classes are resampled, not the clips, and the interval is as wide as that deserves.

    Args:
        values: one number per test item, ``[N]``.
        clusters: the class of each item, ``[N]`` integers, or None for independent items.

    >>> bootstrap_interval(np.ones(10))
    (1.0, 1.0)
    """
    rng = np.random.default_rng(seed)
    values = np.asarray(values, dtype=np.float64)
    if clusters is None:
        picks = rng.integers(0, len(values), size=(resamples, len(values)))
        means = values[picks].mean(axis=1)
    else:
        _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
        total = np.bincount(inverse, weights=values)
        count = np.bincount(inverse).astype(np.float64)
        picks = rng.integers(0, len(count), size=(resamples, len(count)))
        means = total[picks].sum(axis=1) / count[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
