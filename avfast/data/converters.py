"""From decoder frames to arrays: two converters per open file, made once and used for every frame."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from avfast.data.limits import Refused, check_bytes, check_peak
from avfast.data.rgb import RgbConverter
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
    """Keeps the frames on screen at the target times (all frames if there are none), as ``[3, H, W]``.

    Converting to RGB can cost as much as decoding: colour, crop and size are one step, for kept frames only.
    """

    def __init__(
        self, av: ModuleType, size: int | tuple[int, int], crop: str, targets: Sequence[float] | None, codec: str = ""
    ):
        if crop not in ("center", "squash"):
            raise ValueError(f"avfast.data.read_clip: crop: expected 'center' or 'squash', got {crop!r}")
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.targets = None if targets is None else list(targets)
        self.times: list[float] = []
        self.end, self.done = 0.0, False
        self._converter = RgbConverter(av, (self.height, self.width), crop, codec)
        self._held: tuple[Any, float] | None = None

    def add(self, frame: Any, time: float) -> None:
        unit = frame.time_base
        length = frame.duration * unit.numerator / unit.denominator if frame.duration else 0.0
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
        return 3 * self.height * self.width * len(self.times)

    def pictures(self) -> Tensor:
        """uint8 ``[F, 3, H, W]``, at :attr:`times`."""
        return self._converter.pictures()

    def _keep(self, frame: Any, time: float) -> None:
        self._converter.add(frame)
        self.times.append(time)


class SoundSink:
    """Collects mono float samples at the wanted rate, placed by time stamp."""

    # Samples are counted, because time stamps are rounded to ticks. Only a lag beyond what the resampler can
    # hold back (a few milliseconds) means that input is missing.
    GAP = 0.1

    def __init__(self, av: ModuleType, sample_rate: int, end: float, max_bytes: int) -> None:
        self.sample_rate, self.until, self.max_bytes = sample_rate, end, max_bytes
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
            check_bytes(self.bytes + 4 * gap * self.sample_rate, self.max_bytes)  # a time stamp may say anything
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
            channels = frame.to_ndarray().reshape(frame.samples, -1)
            block = channels[:, 0] if channels.shape[1] == 1 else channels.mean(1)
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
