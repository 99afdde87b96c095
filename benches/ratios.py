"""What one record says about avfast against the others. A headline is always the *worst* ratio."""

from __future__ import annotations

from .candidate import OPPONENTS, OURS, PUBLISHED


def ratios(record: dict) -> dict:
    """How many times faster avfast is than each opponent, the worst, and against the published form."""
    timed = [c for c in record["candidates"] if c["status"] == "ok"]
    ours = next((c for c in timed if c["role"] == OURS), None)
    if ours is None:
        return {"speedups": {}, "worst": None, "ratio_to_published": None}
    others = [c for c in timed if c["role"] in OPPONENTS]
    speedups = {c["name"]: c["median_s"] / ours["median_s"] for c in others}
    worst = min(speedups, key=speedups.get) if speedups else None
    published = next((speedups[c["name"]] for c in others if c["role"] == PUBLISHED), None)
    return {
        "speedups": speedups,
        "worst": {"against": worst, "ratio": speedups[worst]} if worst else None,
        "ratio_to_published": published,
    }


def is_difference(ratio: float, noise: float | None) -> bool:
    """Whether a ratio of two times is outside the noise floor of its record."""
    return noise is None or max(ratio, 1 / ratio) - 1 > noise
