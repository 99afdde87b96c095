"""Ways to read the same clip that avfast does not use: what a first script does with PyAV, and torchcodec."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avfast.data.frame_sampling import frame_times, middle


def plain_pyav(path: Path, *, frames: int, size: int, duration: float, sample_rate: int) -> tuple[Tensor, Tensor]:
    """The middle of a file, read in the obvious way: every frame ``to_ndarray(format="rgb24")``, then torch resizes.

    Frames uint8 ``[T, 3, size, size]``, sound float32 ``[S]``.
    """
    import av

    with av.open(str(path)) as container:
        for stream in (container.streams.video[0], container.streams.audio[0]):
            stream.codec_context.thread_count = 1
        length = float(container.duration / av.time_base)
        start = middle(length, duration)
        pictures, times = [], []
        for frame in container.decode(video=0):
            pictures.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
            times.append(frame.time)
        at = torch.searchsorted(torch.tensor(times), torch.tensor(frame_times(start, duration, frames)), right=True) - 1
        shown = torch.stack([pictures[i] for i in at.clamp(min=0)]).permute(0, 3, 1, 2)
        container.seek(0)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=sample_rate)
        blocks = [b for frame in container.decode(audio=0) for b in resampler.resample(frame)] + resampler.resample(
            None
        )
        sound = torch.cat([torch.from_numpy(block.to_ndarray())[0] for block in blocks])
    return _square(shown, size), _cut(sound, start, duration, sample_rate)


def torchcodec(path: Path, *, frames: int, size: int, duration: float, sample_rate: int) -> tuple[Tensor, Tensor]:
    """The same with torchcodec's decoders, one thread, seeking by time."""
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    video = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode="approximate")
    length = float(video.metadata.duration_seconds)
    start = middle(length, duration)
    last = (video.metadata.end_stream_seconds or length) - 1e-3
    shown = video.get_frames_played_at([min(t, last) for t in frame_times(start, duration, frames)]).data
    decoder = AudioDecoder(str(path), sample_rate=sample_rate, num_channels=1)
    sound = decoder.get_samples_played_in_range(start, start + duration).data[0]
    return _square(shown, size), _cut(sound, 0.0, duration, sample_rate)


def torchcodec_missing() -> str:
    """Why torchcodec cannot be used here, in one line; "" where it can."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else 'does not import'}"[:200]
    return ""


def _square(shown: Tensor, size: int) -> Tensor:
    height, width = shown.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    shown = shown[..., top : top + side, left : left + side]
    return F.interpolate(shown, (size, size), mode="bilinear", antialias=True)


def _cut(sound: Tensor, start: float, duration: float, sample_rate: int) -> Tensor:
    first, count = round(start * sample_rate), round(duration * sample_rate)
    sound = sound[first : first + count]
    return F.pad(sound, (0, count - len(sound)))
