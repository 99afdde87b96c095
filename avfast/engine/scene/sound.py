"""One waveform out of any file with sound: the length and rate a model was trained on, whatever the file has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from avfast.data.converters import SoundSink
from avfast.data.limits import Refused, check_bytes
from avfast.data.media import PREROLL, MediaError, MediaFile, middle
from avfast.data.scan import SILENCE
from avfast.errors import ConfigError

# Sound that starts later than this many seconds into its file is sought; before, all of the file is decoded.
SOUGHT_FROM = 60.0


@dataclass(frozen=True)
class Sound:
    """``waveform`` float32 ``[S]`` as a model hears it, and what the file had: ``seconds``, ``sample_rate`` in Hz,
    ``channels``. ``silent`` where no sample of the waveform is louder than 1e-4 of full scale."""

    path: Path
    waveform: Tensor
    seconds: float
    sample_rate: int
    channels: int
    silent: bool


def open_sound(path: str | Path, sample_rate: int, duration: float) -> Sound:
    """The sound of a file, with what the file says of itself.

    Args:
        path: anything with sound that FFmpeg reads: wav, mp3, ogg, flac, m4a, mp4...
        sample_rate: of the waveform, in Hz; the file's own is resampled.
        duration: seconds of the waveform. A shorter sound is repeated from its start; of a longer one, the middle.

    Returns:
        Sound: its waveform is the mean of all channels, float32 ``[round(duration * sample_rate)]``, not clipped and
            not made louder: front-ends that hear loudness need it as it is. Silence is no error, see ``Sound.silent``.

    Raises:
        MediaError: the file is missing, empty or broken, has no audio stream, or no sample in it.
        ConfigError: a rate or a duration that gives no sample.
        MissingDependency: PyAV is not installed.
    """
    wanted = round(duration * sample_rate) if math.isfinite(duration) else 0
    if wanted < 1 or sample_rate < 1:
        raise ConfigError(f"read_sound: expected a rate and a duration above 0, got {sample_rate} Hz and {duration} s")
    path = Path(path)
    if not path.is_file():
        raise MediaError(path, "missing", "no such file")
    if not path.stat().st_size:
        raise MediaError(path, "unreadable", "is empty")
    with SoundFile(path) as file:
        if file.audio is None:
            raise MediaError(path, "no-audio", "has no audio stream")
        waveform, seconds = file.sound(sample_rate, wanted)
        rate, channels = file.audio.rate, file.audio.channels
    if not len(waveform):
        raise MediaError(path, "too-short", "has an audio stream without a sample of sound")
    waveform = waveform.repeat(-(-wanted // len(waveform)))
    first = (len(waveform) - wanted) // 2 if seconds >= duration else 0
    waveform = waveform[first : first + wanted].clone()
    return Sound(path, waveform, seconds, rate, channels, waveform.abs().max().item() < SILENCE)


def read_sound(path: str | Path, sample_rate: int, duration: float) -> Tensor:
    """The waveform of :func:`open_sound`, float32 ``[round(duration * sample_rate)]``.

    >>> read_sound("/no/such/file.wav", 16000, 10.0)
    Traceback (most recent call last):
    ...
    avfast.data.media.MediaError: /no/such/file.wav: no such file
    """
    return open_sound(path, sample_rate, duration).waveform


class SoundFile(MediaFile):
    """A media file of which only the sound is read."""

    def sound(self, sample_rate: int, wanted: int) -> tuple[Tensor, float]:
        """Mono samples, and how many seconds the file has: the ``wanted`` ones in the middle of a long file, else all
        of them."""
        try:
            known = self.audio.duration and float(self.audio.duration * self.audio.time_base)
            length = wanted / sample_rate
            if known and (start := middle(known, length)) > SOUGHT_FROM:
                self._seek(start - PREROLL)
                sought = self._sound(sample_rate, start + length)
                first = 0 if sought is None else round((start - sought.start) * sample_rate)
                # Lengths in headers may be guesses, and an index may lead past its aim: then all is read after all.
                if sought is not None and first >= 0 and len(kept := sought.join()[first : first + wanted]) == wanted:
                    return torch.from_numpy(kept), known
                self._seek(0.0)
            read = self._sound(sample_rate, math.inf)
            waveform = torch.zeros(0) if read is None else torch.from_numpy(read.join())
        except Refused as error:
            raise MediaError(self.path, error.cause, error.detail) from None
        except (self._av.FFmpegError, OSError, ArithmeticError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MediaError(self.path, "unreadable", f"cannot be decoded ({reason}); it may be truncated") from error
        return waveform, len(waveform) / sample_rate

    def _sound(self, sample_rate: int, end: float) -> SoundSink | None:
        sink = SoundSink(self._av, sample_rate, end, self.max_bytes)
        for packet in self._container.demux(self.audio):
            for frame in packet.decode():
                if frame.time is not None:
                    sink.add(frame, frame.time - self.origin)
                    check_bytes(sink.bytes, self.max_bytes)
            if sink.done:
                break
        sink.flush()
        return sink if sink.blocks else None
