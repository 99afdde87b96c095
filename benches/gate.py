"""The regression gate: our ratio to the published form, measured in the same run, against the committed one.

Absolute times never gate: they change with the machine's mood. A ratio that falls more than 15 % below the
committed one is measured again, three times in all, and fails only if it falls short every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

TOLERANCE = 0.15
ATTEMPTS = 3

Key = tuple[str, int]  # (case key, threads)


def ratio_table(results: dict) -> dict[Key, float]:
    """How many times faster than the published form avfast is, per case and thread count."""
    return {
        (record["key"], record["threads"]): record["ratio_to_published"]
        for record in results["cases"]
        if record["ratio_to_published"] is not None
    }


def shortfalls(now: Mapping[Key, float], committed: Mapping[Key, float], tolerance: float = TOLERANCE) -> list[Key]:
    """Cases of ``committed`` that are more than ``tolerance`` slower now; what has no ratio now is `lost`."""
    return [key for key, ratio in committed.items() if key in now and now[key] < ratio * (1 - tolerance)]


def lost(now: Mapping[Key, float], committed: Mapping[Key, float]) -> list[Key]:
    """Cases that had a ratio and have none now: struck out, failed, or gone."""
    return [key for key in committed if key not in now]


def gate(
    measure: Callable[[Sequence[Key] | None], dict],
    committed: dict,
    *,
    tolerance: float = TOLERANCE,
    attempts: int = ATTEMPTS,
) -> list[str]:
    """Sentences about what regressed; an empty list passes.

    ``measure(keys)`` returns results of these cases, or of all for None.
    """
    wanted = ratio_table(committed)
    best = ratio_table(measure(None))
    for _ in range(attempts - 1):
        again = [*shortfalls(best, wanted, tolerance), *lost(best, wanted)]
        if not again:
            return []
        for key, ratio in ratio_table(measure(again)).items():
            best[key] = max(ratio, best.get(key, 0.0))
    failed = [
        f"{key} on {threads} threads: {best[key, threads]:.2f}x the published form, "
        f"committed {wanted[key, threads]:.2f}x, allowed {wanted[key, threads] * (1 - tolerance):.2f}x"
        for key, threads in shortfalls(best, wanted, tolerance)
    ]
    missing = [
        f"{key} on {threads} threads: no valid ratio (struck out, failed or not measured), "
        f"committed {wanted[key, threads]:.2f}x"
        for key, threads in lost(best, wanted)
    ]
    return failed + missing
