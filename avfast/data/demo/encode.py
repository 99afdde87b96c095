"""Writing a clip: pictures and sound to one file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from avfast.data.converters import require_av
from avfast.errors import DataError

H264 = ("libx264", "libopenh264", "h264")
AAC = ("aac", "libfdk_aac")
VP9 = ("libvpx-vp9", "libvpx")
OPUS = ("libopus", "opus")


def first_codec(names: tuple[str, ...]) -> str:
    """The first encoder of ``names`` that this FFmpeg has.

    Raises:
        DataError: it has none of them.
    """
    av = require_av()
    for name in names:
        try:
            av.Codec(name, "w")
        except (av.FFmpegError, ValueError):
            continue
        return name
    raise DataError(f"this build of PyAV has no encoder of {', '.join(names)}")


def write_clip(
    path: Path,
    frames: np.ndarray,
    fps: int,
    waveform: np.ndarray | None,
    sample_rate: int,
    *,
    video_codec: tuple[str, ...] = H264,
    audio_codec: tuple[str, ...] = AAC,
    options: dict[str, str] | None = None,
) -> None:
    """Encode pictures uint8 ``[F, H, W, 3]`` and mono sound float32 ``[S]`` (or none), both starting at time
    zero.

    One thread and fixed settings: the same input gives the same file with the same FFmpeg.
    """
    av = require_av()
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(first_codec(video_codec), rate=fps)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.gop_size = fps
        video.thread_count = 1
        if video.codec_context.name == "libx264":
            # A constant quantiser: at this picture size x264's look-ahead differed from run to run.
            video.options = {"preset": "veryfast", "qp": "22"}
        elif video.codec_context.name.startswith("libvpx"):
            video.options = {"deadline": "realtime", "cpu-used": "8"}
        audio = None
        if waveform is not None:
            audio = container.add_stream(first_codec(audio_codec), rate=sample_rate, layout="mono")
            audio.bit_rate = 64000
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            sound = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = sample_rate, 0, Fraction(1, sample_rate)
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
