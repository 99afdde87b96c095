"""From decoder frames to arrays: two converters per open file, made once and used for every frame."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from avfast.data.limits import Refused, check_bytes, check_peak, check_pixels
from avfast.errors import MissingDependency


def require_av() -> ModuleType:
    """PyAV, or the error that says how to get it."""
    try:
        import av
        import av.video.reformatter
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("av", extra="train", purpose="reading media files") from error
    return av


class PictureSink:
    """Keeps the frames on screen at the target times (all frames if there are none), as ``[H, W, 3]``.

    Converting to RGB costs more than decoding: one reformatter does colour and size together, for kept frames
    only.
    """

    def __init__(self, av: ModuleType, size: int | tuple[int, int], crop: str, targets: Sequence[float] | None):
        if crop not in ("center", "squash"):
            raise ValueError(f"avfast.data.read_clip: crop: expected 'center' or 'squash', got {crop!r}")
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.crop, self.targets = crop, None if targets is None else list(targets)
        self.images: list[np.ndarray] = []
        self.times: list[float] = []
        self.end, self.done = 0.0, False
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._held: tuple[Any, float] | None = None

    def add(self, frame: Any, time: float) -> None:
        length = float(frame.duration * frame.time_base) if frame.duration else 0.0
        if not length and self._held:
            length = time - self._held[1]  # containers without frame durations: as long as the frame before
        self.end = max(self.end, time + length)
        if self.targets is None:
            self._keep(frame, time)
            return
        # The held frame is on screen until this one: it is kept if a target falls in between.
        if self._held and self.targets and self.targets[0] < time:
            self._keep(*self._held)
            self.targets = [t for t in self.targets if t >= time]
        self._held = (frame, time)
        if self.targets and self.targets[-1] < time + length:
            self._keep(frame, time)
            self.targets = []
        self.done = not self.targets

    @property
    def bytes(self) -> int:
        return 3 * self.height * self.width * len(self.images)

    def _keep(self, frame: Any, time: float) -> None:
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        rows, columns = self.height, self.width
        if self.crop == "center":
            scale = max(rows / height, columns / width)
            rows, columns = max(round(height * scale), rows), max(round(width * scale), columns)
            # A picture of 2 x 16384 is small, and as high as a clip it is not.
            check_pixels(columns, rows, f"shows pictures of {frame.width} x {frame.height}, at the wanted size")
        stored = (columns, rows) if turns % 2 else (rows, columns)
        rgb = self._reformatter.reformat(
            frame, width=stored[1], height=stored[0], format="rgb24", interpolation="AREA"
        ).to_ndarray()
        rgb = np.rot90(rgb, turns)
        top, left = (rows - self.height) // 2, (columns - self.width) // 2
        self.images.append(rgb[top : top + self.height, left : left + self.width])
        self.times.append(time)


class SoundSink:
    """Collects mono float samples at the wanted rate, placed by time stamp."""

    # Samples are counted, because time stamps are rounded to ticks. Only a lag beyond what the resampler can
    # hold back (a few milliseconds) means that input is missing.
    GAP = 0.1

    def __init__(self, av: ModuleType, sample_rate: int, end: float) -> None:
        self.sample_rate, self.until = sample_rate, end
        self.blocks: list[np.ndarray] = []
        self.start, self.done = 0.0, False
        self._count = 0
        # Channels side by side, not apart: PyAV reads eight planes at most, and past them where there is nothing.
        self._resampler = av.AudioResampler(format="flt", rate=sample_rate)
        self._in_start: float | None = None

    def add(self, frame: Any, time: float) -> None:
        if self._in_start is None:
            self._in_start = self.start = time
        try:
            resampled = self._resampler.resample(frame)
        except ValueError as error:
            raise Refused("unreadable", f"holds sound that changes its form ({error})") from error
        self._place(resampled)
        expected = self._in_start + self._count / self.sample_rate
        gap = time + frame.samples / frame.sample_rate - expected
        if gap > self.GAP:
            check_bytes(self.bytes + 4 * gap * self.sample_rate)  # a time stamp may say anything
            silence = np.zeros(round(gap * self.sample_rate), np.float32)
            self.blocks.append(silence)
            self._count += len(silence)
        self.done = self.start + self._count / self.sample_rate >= self.until

    @property
    def bytes(self) -> int:
        return 4 * self._count

    def flush(self) -> None:
        if self._in_start is not None:
            self._place(self._resampler.resample(None))

    def _place(self, frames: list[Any]) -> None:
        for frame in frames:
            # The mean of the channels stays in [-1, 1]; FFmpeg's own mix to mono weighs them by 0.71.
            block = frame.to_ndarray().reshape(frame.samples, -1).mean(1)
            self.blocks.append(block)
            self._count += len(block)

    def join(self) -> np.ndarray:
        """All samples.

        Raises:
            Refused: some are not finite, or so loud that they cannot be meant.
        """
        waveform = np.concatenate(self.blocks)
        check_peak(float(np.abs(waveform).max(initial=0.0)))
        return waveform
