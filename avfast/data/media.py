"""Clips out of media files: pictures and sound cut by time stamp on one clock.

A clip is asked for in seconds. Pictures are the ones on screen at the centres of ``frames`` equal parts of
the interval; sound is placed sample by sample where its own time stamps put it. Both clocks start at the
container's start time, so that what happens together in the file stays together in the tensors
(pytorch/vision#2474 is the bug this avoids).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avfast.data.converters import PictureSink, SoundSink, require_av
from avfast.data.frame_sampling import frame_times, middle
from avfast.data.limits import Refused, check_bytes, check_pixels, check_rate, max_file_bytes, max_pixels
from avfast.data.members import Member, MemberFile
from avfast.errors import UnreadableFile

# Decoders need some input before they are right: one AAC frame, 80 ms of Opus. Seeking lands this much
# earlier.
PREROLL = 0.25
# Short seeks cost more than decoding the few frames they would skip.
SEEK_FROM = 1.0
# A clip may lack this share of its interval (encoders round durations); the rest is held still and silent.
MIN_COVERAGE = 0.9


class MediaError(UnreadableFile):
    """A media file cannot give what was asked of it.

    ``cause`` is one of ``missing``, ``unreadable``, ``no-video``, ``no-audio``, ``too-short``, ``too-large``, or
    ``changed`` (the shard, since it was indexed).
    """


@dataclass(frozen=True)
class MediaInfo:
    """What the headers of a file say. Times in seconds; a field that the file does not tell is None."""

    duration: float | None
    has_video: bool
    has_audio: bool
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    n_frames: int | None = None
    video_codec: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    audio_codec: str | None = None
    container: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Clip:
    """``frames`` uint8 ``[T, 3, H, W]``, ``waveform`` float32 ``[S]``, ``start`` in seconds into the file."""

    frames: Tensor
    waveform: Tensor
    start: float


@dataclass(frozen=True)
class Decoded:
    """A decoded stretch of a file, from which clips are cut without touching the file again.

    ``frames`` uint8 ``[F, 3, H, W]`` with their ``times``; ``waveform`` float32 ``[S]`` whose first sample is
    at ``audio_start``; ``video_end`` is when the last picture leaves the screen, ``audio_end`` when the sound
    stops. All times in seconds. Of a stream that was not asked for there is nothing but its end (infinity if the
    file has none).
    """

    path: str
    frames: Tensor
    times: tuple[float, ...]
    video_end: float
    waveform: Tensor
    audio_start: float
    audio_end: float
    sample_rate: int
    has_pictures: bool = True
    has_sound: bool = True

    @property
    def duration(self) -> float:
        """Seconds for which there are both pictures and sound, counted from the file's start."""
        return min(self.video_end, self.audio_end)

    def cut(self, *, start: float | None, duration: float, frames: int, times: Sequence[float] | None = None) -> Clip:
        """The clip ``[start, start + duration)``; ``start=None`` is the middle. The pictures are those on screen at
        ``times``, by default :func:`~avfast.data.frame_sampling.frame_times`.

        Raises:
            MediaError: more than a tenth of the interval is not there (cause ``too-short``).
        """
        start = middle(self.duration, duration) if start is None else start
        shown = self._pictures(start, duration, frame_times(start, duration, frames) if times is None else times)
        return Clip(shown, self._sound(start, duration), start)

    def _pictures(self, start: float, duration: float, targets: Sequence[float]) -> Tensor:
        if not self.has_pictures or not targets:
            return self.frames[:0]
        slack = (1 - MIN_COVERAGE) * duration
        if targets[0] < self.times[0] - slack or targets[-1] > self.video_end + slack:
            raise MediaError(
                self.path,
                "too-short",
                f"has pictures from {self.times[0]:.2f} to {self.video_end:.2f} s, but {duration:g} s "
                f"from {start:.2f} s on needs them from {targets[0]:.2f} to {targets[-1]:.2f}",
            )
        return self.frames[[max(bisect_right(self.times, t) - 1, 0) for t in targets]]

    def _sound(self, start: float, duration: float) -> Tensor:
        if not self.has_sound:
            return self.waveform
        wanted = round(duration * self.sample_rate)
        first = round((start - self.audio_start) * self.sample_rate)
        low, high = max(first, 0), min(first + wanted, len(self.waveform))
        if high - low < MIN_COVERAGE * wanted:
            held = max(high - low, 0) / self.sample_rate
            raise MediaError(
                self.path,
                "too-short",
                f"holds {held:.2f} s of sound in the {duration:g} s from {start:.2f} s on",
            )
        waveform = torch.zeros(wanted)
        waveform[low - first : high - first] = self.waveform[low:high]
        return waveform


def probe(path: str | Path | Member) -> MediaInfo:
    """Read the headers of a media file (no decoding, about a millisecond).

    Raises:
        MediaError: the file is missing or is not media.
        MissingDependency: PyAV is not installed.
    """
    with MediaFile(path) as media:
        return media.info


def read_clip(
    path: str | Path | Member,
    *,
    start: float | None,
    duration: float,
    frames: int,
    size: int | tuple[int, int],
    sample_rate: int,
    crop: str = "center",
) -> Clip:
    """Read one clip from a file with pictures and sound.

    Args:
        path: any container and codec that FFmpeg reads, a file or a member of a shard.
        start: seconds from the file's start; None takes the middle.
        duration: seconds.
        frames: pictures per clip, the ones on screen at :func:`~avfast.data.frame_sampling.frame_times`.
        size: ``H = W`` or ``(H, W)`` of the pictures.
        sample_rate: of the waveform in Hz; the mean of all channels.
        crop: ``"center"`` keeps the aspect and cuts what stands over; ``"squash"`` fits the whole picture.

    Returns:
        Clip: frames uint8 ``[T, 3, H, W]`` in RGB, waveform float32 ``[round(duration * sample_rate)]`` in
            [-1, 1]. Up to 10 % of the interval may be missing in the file; there the last picture stays and
            the sound is zero.

    Raises:
        MediaError: a ``DataError`` naming the file and the cause; also for files that ask for more than
            :mod:`avfast.data.limits` allows, and for sound that is not finite.
        MissingDependency: PyAV is not installed.
    """
    with MediaFile(path) as media:
        start = middle(media.require_duration(), duration) if start is None else start
        window = (start, duration, frame_times(start, duration, frames))
        decoded = media.decode(size=size, sample_rate=sample_rate, crop=crop, window=window)
    return decoded.cut(start=start, duration=duration, frames=frames)


def read_all(
    path: str | Path | Member,
    *,
    size: int | tuple[int, int],
    sample_rate: int,
    crop: str = "center",
    pictures: bool = True,
    sound: bool = True,
) -> Decoded:
    """Decode a whole file once; arguments and errors as for :func:`read_clip`, ``pictures`` and ``sound`` as for
    :meth:`MediaFile.decode`."""
    with MediaFile(path) as media:
        return media.decode(size=size, sample_rate=sample_rate, crop=crop, pictures=pictures, sound=sound)


class MediaFile:
    """An open media file; a context manager, so that the container is closed whatever happens."""

    def __init__(self, path: str | Path | Member, *, threads: int = 1) -> None:
        self.path, self._av = str(path), require_av()
        self._source = _source(path)
        # The decoder's own limit too: the size in a header and that of the pictures need not agree.
        limit = {"max_pixels": str(min(max_pixels(), 2**31 - 1))}
        self.max_bytes = max_file_bytes()
        try:
            self._container = self._av.open(self._source, metadata_errors="replace", options=limit)
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        streams = self._container.streams
        # A cover picture in an audio file is a video stream of one frame; it is not a video.
        moving = [s for s in streams.video if not _is_cover(s)]
        self.video = moving[0] if moving and moving[0].codec_context else None
        self.audio = streams.audio[0] if streams.audio and streams.audio[0].codec_context else None
        for stream in (self.video, self.audio):
            if stream is not None and threads == 1:
                # DataLoader workers are the parallelism; decoder threads on top of them only fight.
                stream.thread_type = "NONE"
                stream.codec_context.thread_count = 1
        try:
            if self.video is not None:
                self.video.codec_context.options = limit
                check_pixels(self.video.width, self.video.height)
            if self.audio is not None:
                check_rate(self.audio.rate or 0)
        except Refused as error:
            self.__exit__()
            raise MediaError(path, error.cause, error.detail) from None

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._container.close()
        if isinstance(self._source, MemberFile):
            self._source.close()

    @property
    def origin(self) -> float:
        """The container's start time: zero on the clock of clips."""
        return (self._container.start_time or 0) / self._av.time_base

    @property
    def info(self) -> MediaInfo:
        video, audio = self.video, self.audio
        fields: dict[str, Any] = {}
        if video is not None:
            rate = video.average_rate or video.guessed_rate
            fields |= {"fps": float(rate) if rate else None, "n_frames": video.frames or None}
            fields |= {"width": video.width, "height": video.height, "video_codec": video.codec_context.name}
        if audio is not None:
            fields |= {
                "sample_rate": audio.rate,
                "channels": audio.channels,
                "audio_codec": audio.codec_context.name,
            }
        return MediaInfo(
            self._duration(),
            video is not None,
            audio is not None,
            container=self._container.format.name,
            **fields,
        )

    def require_duration(self) -> float:
        """Length in seconds; counted by reading the packets if the header does not say."""
        if (known := self._duration()) is not None:
            return known
        end = 0.0
        try:
            for packet in self._container.demux():
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base) - self.origin)
            self._container.seek(0)
        except self._av.FFmpegError as error:
            raise _unreadable(self.path, error) from error
        return end

    def _duration(self) -> float | None:
        ends = [end for s in (self.video, self.audio) if (end := self._end(s)) is not None]
        if ends:
            return min(ends)
        return self._container.duration / self._av.time_base if self._container.duration else None

    def _end(self, stream: Any) -> float | None:
        """When a stream ends by its header; None if there is none or it does not say."""
        if stream is None or not stream.duration:
            return None
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - self.origin

    def decode(
        self,
        *,
        size: int | tuple[int, int],
        sample_rate: int,
        crop: str = "center",
        window: tuple[float, float, Sequence[float]] | None = None,
        pictures: bool = True,
        sound: bool = True,
    ) -> Decoded:
        """Decode the whole file, or what a clip ``window = (start, duration, times of pictures)`` needs of it.

        Without ``pictures`` (or ``sound``), that stream is not decoded, and the file need not have it.
        """
        if pictures and self.video is None:
            raise MediaError(self.path, "no-video", "has no video stream")
        if sound and self.audio is None:
            raise MediaError(self.path, "no-audio", "has no audio stream")
        if not (pictures or sound):
            raise ValueError("avfast.data.MediaFile.decode: pictures, sound: expected one of them at least")
        wanted = (pictures, sound)
        try:
            if window is not None and window[0] > SEEK_FROM:
                self._seek(window[0] - PREROLL)
                decoded = self._decode(size, sample_rate, crop, window, wanted)
                if decoded is not None and _covers(decoded, window):
                    return decoded
                self._seek(0.0)  # the index led past what is wanted: read from the start instead
            decoded = self._decode(size, sample_rate, crop, window, wanted)
        except Refused as error:
            raise MediaError(self.path, error.cause, error.detail) from None
        except (self._av.FFmpegError, OSError, ArithmeticError, MemoryError) as error:
            raise _unreadable(self.path, error) from error
        if decoded is None:
            what = " or ".join(name for name, there in zip(("no picture", "no sound"), wanted, strict=True) if there)
            raise MediaError(self.path, "too-short", f"{what} could be decoded at the wanted time")
        return decoded

    def _seek(self, seconds: float) -> None:
        self._container.seek(int(max(seconds + self.origin, 0.0) * self._av.time_base))

    def _decode(self, size: Any, sample_rate: int, crop: str, window: Any, wanted: tuple[bool, bool]) -> Decoded | None:
        codec = self.video.codec_context.name if self.video else ""
        pictures = PictureSink(self._av, size, crop, window[2] if window else None, codec)
        sound = SoundSink(self._av, sample_rate, window[0] + window[1] if window else math.inf, self.max_bytes)
        pairs = [(s, sink) for s, sink, w in zip((self.video, self.audio), (pictures, sound), wanted, strict=True) if w]
        sinks: dict[int, PictureSink | SoundSink] = {stream.index: sink for stream, sink in pairs}
        for packet in self._container.demux(*(stream for stream, _ in pairs)):
            sink = sinks[packet.stream.index]
            if not sink.done:
                for frame in packet.decode():
                    if frame.time is not None:
                        sink.add(frame, frame.time - self.origin)
                        check_bytes(pictures.bytes + sound.bytes, self.max_bytes)
            elif all(sink.done for sink in sinks.values()):
                break
        sound.flush()
        if (wanted[0] and not pictures.times) or (wanted[1] and not sound.blocks):
            return None
        heard = sound.join() if wanted[1] else np.empty(0, np.float32)
        return Decoded(
            path=self.path,
            frames=pictures.pictures(),
            times=tuple(pictures.times),
            video_end=pictures.end if wanted[0] else self._end(self.video) or math.inf,
            waveform=torch.from_numpy(heard),
            audio_start=sound.start if wanted[1] else 0.0,
            audio_end=sound.start + len(heard) / sample_rate if wanted[1] else self._end(self.audio) or math.inf,
            sample_rate=sample_rate,
            has_pictures=wanted[0],
            has_sound=wanted[1],
        )


def _covers(decoded: Decoded, window: tuple[float, float, Sequence[float]]) -> bool:
    """Whether reading began early enough."""
    if decoded.has_pictures:
        return decoded.times[0] <= window[2][0]
    return decoded.audio_start <= window[0]


def _source(path: str | Path | Member) -> str | MemberFile:
    """What the decoder opens: the name of a file, or the part of a shard as a file object."""
    if isinstance(path, Member):
        try:
            return path.open()
        except UnreadableFile as error:
            raise MediaError(path, error.cause, error.detail) from error.__cause__
    if not Path(path).is_file():
        raise MediaError(path, "missing", "no such file")
    # An absolute path: FFmpeg would take what stands before a colon in a name for a protocol.
    return str(Path(path).absolute())


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in str(stream.disposition).lower()


def _unreadable(path: object, error: Exception) -> MediaError:
    reason = getattr(error, "strerror", None) or str(error)
    return MediaError(path, "unreadable", f"cannot be read ({reason}); it may be truncated or not a media file")
