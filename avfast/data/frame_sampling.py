"""Which moments of a clip its pictures show: the centres of equal parts, or one picture of each part at random."""

from __future__ import annotations

import math

from avfast.data.randomness import Draws

SAMPLINGS = ("even", "segments")
"""How training picks pictures: the centre of every part, or one of it at random. Evaluation takes the centres."""


def middle(total: float, duration: float) -> float:
    """Where a clip of ``duration`` starts to sit in the middle of ``total`` seconds."""
    return max((total - duration) / 2, 0.0)


def frame_times(start: float, duration: float, frames: int) -> list[float]:
    """The centres of ``frames`` equal parts of the interval.

    >>> frame_times(1.0, 2.0, 2)
    [1.5, 2.5]
    """
    return [start + (k + 0.5) * duration / frames for k in range(frames)]


def segment_times(
    start: float, duration: float, frames: int, *, fps: float = 0.0, draws: Draws | None = None
) -> list[float]:
    """One moment of each of ``frames`` equal parts of the interval, in order.

    Source: the loader of "Revisiting Pre-training in Audio-Visual Learning" (Xia et al. 2023): pictures at 1 fps in
    three segments, a random one of each in training, the middle one in evaluation.

    Args:
        start, duration: the interval in seconds.
        frames: number of parts.
        fps: pictures per second that may be chosen, as if the video had been stored at that rate: the moments are
            centres of steps of ``1 / fps``. 0 for any moment.
        draws: where the random moments come from; None takes the middle of every part.

    Raises:
        ValueError: at that rate there are fewer pictures than parts.

    >>> segment_times(0.0, 9.0, 3, fps=1.0)
    [1.5, 4.5, 7.5]
    >>> all(3 * k <= t < 3 * k + 3 for k, t in enumerate(segment_times(0.0, 9.0, 3, draws=Draws("clip"))))
    True
    """
    if not fps:
        if draws is None:
            return frame_times(start, duration, frames)
        return [start + (k + draws.uniform()) * duration / frames for k in range(frames)]
    steps = pictures_at(duration, fps)
    if steps < frames:
        raise ValueError(
            f"avfast.data.segment_times: fps: expected at least {frames} pictures in {duration:g} s, got {steps}"
        )
    chosen = []
    for k in range(frames):
        first, end = k * steps // frames, (k + 1) * steps // frames
        step = first + (draws.integer(end - first) if draws is not None else (end - first) // 2)
        chosen.append(start + (step + 0.5) / fps)
    return chosen


def pictures_at(duration: float, fps: float) -> int:
    """Whole steps of ``1 / fps`` in ``duration`` seconds.

    >>> pictures_at(10.0, 1.0), pictures_at(2.0, 0.4)
    (10, 0)
    """
    return math.floor(duration * fps + 1e-6)
