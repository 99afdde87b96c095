"""Sound of any file as a model wants it: rates, lengths, channels, codecs, silence, and files that are broken."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import plain_clip
from scene_fixtures import tone, write_wav

av = pytest.importorskip("av", reason="reading media needs PyAV")

from avfast.data.media import MediaError  # noqa: E402
from avfast.engine.scene import sound as sounds  # noqa: E402
from avfast.engine.scene.sound import open_sound, read_sound  # noqa: E402
from avfast.errors import ConfigError  # noqa: E402

RATE = 16000


def encode(path: Path, samples: np.ndarray, rate: int, codec: str, format: str = "fltp") -> Path:
    """Mono float samples ``[S]`` through an encoder of FFmpeg."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(format=format, layout="mono", rate=rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def strongest(waveform: torch.Tensor, rate: int = RATE) -> float:
    """Frequency of the largest bin, in Hz."""
    return (torch.fft.rfft(waveform).abs().argmax() * rate / len(waveform)).item()


def test_samples_of_the_same_rate_come_as_they_are(tmp_path):
    x = tone(1.0, RATE)
    found = open_sound(write_wav(tmp_path / "a.wav", x, RATE), RATE, 1.0)
    torch.testing.assert_close(found.waveform, torch.from_numpy(x).float(), rtol=0, atol=1 / 32000)
    assert (found.seconds, found.sample_rate, found.channels, found.silent) == (1.0, RATE, 1, False)
    assert found.waveform.dtype is torch.float32


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_other_rates_keep_pitch_and_level(tmp_path, rate):
    found = open_sound(write_wav(tmp_path / "a.wav", tone(2.0, rate), rate), RATE, 2.0)
    assert found.waveform.shape == (2 * RATE,) and found.sample_rate == rate
    assert strongest(found.waveform) == pytest.approx(440.0, abs=1.0)
    assert found.waveform[2000:-2000].pow(2).mean().sqrt().item() == pytest.approx(0.5 / math.sqrt(2), rel=0.01)


def test_channels_are_averaged(tmp_path):
    left, right = tone(1.0, RATE, 300.0), tone(1.0, RATE, 900.0, 0.3)
    found = open_sound(write_wav(tmp_path / "a.wav", np.stack([left, right], 1), RATE), RATE, 1.0)
    assert found.channels == 2
    torch.testing.assert_close(found.waveform, torch.from_numpy((left + right) / 2).float(), rtol=0, atol=1e-4)
    # Opposite channels cancel: the mean of what is there, not its loudness.
    assert open_sound(write_wav(tmp_path / "b.wav", np.stack([left, -left], 1), RATE), RATE, 1.0).silent


def test_short_sound_is_repeated_from_its_start(tmp_path):
    x = torch.from_numpy(tone(0.2, RATE, 37.0)).float()
    found = open_sound(write_wav(tmp_path / "a.wav", x.numpy(), RATE), RATE, 1.1)
    torch.testing.assert_close(found.waveform, x.repeat(6)[: round(1.1 * RATE)], rtol=0, atol=1 / 32000)
    assert found.seconds == pytest.approx(0.2)
    one = write_wav(tmp_path / "one.wav", np.array([0.25]), RATE)
    torch.testing.assert_close(read_sound(one, RATE, 0.01), torch.full((160,), 0.25), rtol=0, atol=1e-4)


def test_of_a_longer_sound_the_middle(tmp_path):
    ramp = np.linspace(-1, 1, 3 * RATE)
    found = open_sound(write_wav(tmp_path / "a.wav", ramp, RATE), RATE, 1.0)
    torch.testing.assert_close(found.waveform, torch.from_numpy(ramp[RATE : 2 * RATE]).float(), rtol=0, atol=1 / 32000)
    assert found.seconds == pytest.approx(3.0)


def test_of_a_long_file_only_the_middle_is_decoded(tmp_path, monkeypatch):
    seconds, rate = 150, 8000
    # Every second has a pitch of its own, so that the place shows.
    x = np.concatenate([tone(1.0, rate, 200.0 + 10 * k) for k in range(seconds)])
    decoded, place = [], sounds.SoundSink._place
    monkeypatch.setattr(sounds.SoundSink, "_place", lambda self, frames: decoded.extend(frames) or place(self, frames))
    for path in (write_wav(tmp_path / "a.wav", x, rate), encode(tmp_path / "a.flac", x, rate, "flac", "s16")):
        decoded.clear()
        found = open_sound(path, rate, 2.0)
        whole = torch.from_numpy(x[74 * rate : 76 * rate]).float()
        torch.testing.assert_close(found.waveform, whole, rtol=0, atol=1e-4)
        assert found.seconds == pytest.approx(150.0, abs=0.1)
        assert 2.0 < sum(frame.samples for frame in decoded) / rate < 5.0


def test_a_length_that_a_header_only_guesses_is_no_trap(tmp_path, monkeypatch):
    path = write_wav(tmp_path / "a.wav", tone(3.0, RATE), RATE)
    expected = read_sound(path, RATE, 1.0)
    monkeypatch.setattr(sounds, "SOUGHT_FROM", 0.1)
    torch.testing.assert_close(read_sound(path, RATE, 1.0), expected, rtol=0, atol=1e-6)
    monkeypatch.setattr(sounds, "middle", lambda total, length: 2.9)  # as if the header had said 6.8 seconds
    torch.testing.assert_close(read_sound(path, RATE, 1.0), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "codec", "format", "rate"),
    [("a.mp3", "libmp3lame", "fltp", 44100), ("a.ogg", "libopus", "flt", 48000), ("a.flac", "flac", "s16", 22050),
     ("a.m4a", "aac", "fltp", 16000)],
)  # fmt: skip
def test_compressed_sound(tmp_path, name, codec, format, rate):
    try:
        path = encode(tmp_path / name, tone(1.5, rate), rate, codec, format)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot write {codec}: {error}")
    found = open_sound(path, RATE, 1.0)
    assert found.waveform.shape == (RATE,) and not found.silent and found.sample_rate == rate
    assert found.seconds == pytest.approx(1.5, abs=0.1)
    assert strongest(found.waveform) == pytest.approx(440.0, abs=2.0)
    assert found.waveform.pow(2).mean().sqrt().item() == pytest.approx(0.5 / math.sqrt(2), rel=0.05)


def test_sound_of_a_video(tmp_path):
    found = open_sound(plain_clip(tmp_path / "a.mp4"), RATE, 1.0)
    assert found.waveform.shape == (RATE,) and not found.silent
    assert strongest(found.waveform) == pytest.approx(500.0, abs=2.0)


def test_silence_is_said_and_is_no_error(tmp_path):
    found = open_sound(write_wav(tmp_path / "a.wav", np.zeros(RATE), RATE), RATE, 2.0)
    assert found.silent and not found.waveform.any()
    faint = open_sound(write_wav(tmp_path / "b.wav", tone(1.0, RATE, level=1e-3), RATE), RATE, 1.0)
    assert not faint.silent


def refused(path: Path, cause: str) -> str:
    with pytest.raises(MediaError) as caught:
        read_sound(path, RATE, 1.0)
    assert caught.value.cause == cause and str(path) in str(caught.value)
    return caught.value.detail


def test_broken_files_are_named_with_their_cause(tmp_path):
    assert refused(tmp_path / "nowhere.wav", "missing") == "no such file"
    (tmp_path / "empty.wav").touch()
    assert refused(tmp_path / "empty.wav", "unreadable") == "is empty"
    (tmp_path / "noise.mp3").write_bytes(bytes(range(256)) * 8)
    assert "may be truncated" in refused(tmp_path / "noise.mp3", "unreadable")
    assert "without a sample" in refused(write_wav(tmp_path / "none.wav", np.zeros(0), RATE), "too-short")
    assert refused(plain_clip(tmp_path / "mute.mp4", sound=False), "no-audio") == "has no audio stream"
    torn = plain_clip(tmp_path / "torn.mp4")
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 3])
    assert "may be truncated" in refused(torn, "unreadable")


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    x = tone(0.5, RATE)
    x[100] = np.nan
    detail = refused(encode(tmp_path / "a.wav", x, RATE, "pcm_f32le", "flt"), "unreadable")
    assert detail == "holds samples that are not finite numbers"


@pytest.mark.parametrize(
    ("rate", "duration"), [(0, 1.0), (RATE, 0.0), (RATE, -1.0), (RATE, math.inf), (RATE, math.nan)]
)
def test_no_sample_wanted(tmp_path, rate, duration):
    with pytest.raises(ConfigError, match="expected a rate and a duration above 0"):
        read_sound(tmp_path / "a.wav", rate, duration)
