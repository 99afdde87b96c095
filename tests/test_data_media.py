"""Clips by time stamp: alignment, seeking, cropping, and clear errors for broken files."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from data_fixtures import flash_and_click, plain_clip

av = pytest.importorskip("av", reason="reading media needs PyAV")

from avfast.data.demo.encode import OPUS, VP9, write_clip  # noqa: E402
from avfast.data.media import MediaError, frame_times, probe, read_all, read_clip  # noqa: E402
from avfast.errors import DataError, MissingDependency  # noqa: E402

FLASH = 2.12
KINDS = {
    "mp4": {},
    "mkv": {"audio_codec": ("flac",)},
    "webm": {"video_codec": VP9, "audio_codec": OPUS, "rate": 48000},
    "ts": {"rate": 44100},
}


@pytest.fixture(scope="module", params=KINDS)
def flash_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("flash") / f"flash.{request.param}"
    return flash_and_click(path, at=FLASH, **KINDS[request.param])


def events(clip, duration, rate):
    """Times of the first white frame and of the click's first loud sample, in the file's seconds."""
    bright = clip.frames.float().mean((1, 2, 3)) > 120
    times = frame_times(clip.start, duration, len(clip.frames))
    loud = clip.waveform.abs() > 0.3
    return times[int(bright.nonzero()[0])], clip.start + int(loud.nonzero()[0]) / rate


@pytest.mark.parametrize("start", [0.0, 0.913, 1.37, 1.8, 2.09])
def test_flash_and_click_land_together(flash_file, start):
    duration, frames, rate = 4.0 - start - 0.2, 300, 16000
    clip = read_clip(flash_file, start=start, duration=duration, frames=frames, size=24, sample_rate=rate)
    flash, click = events(clip, duration, rate)
    # Each is known to one sampling step. Only MPEG-TS drops the encoders' delays: 23 ms for both streams.
    tolerance = 0.03 if flash_file.suffix == ".ts" else 0.002
    assert abs(click - FLASH) < tolerance
    assert abs(flash - FLASH) < tolerance + duration / frames
    assert abs(flash - click) < tolerance + duration / frames


def test_window_equals_whole_file_decoding(flash_file):
    whole = read_all(flash_file, size=24, sample_rate=16000)
    for start in (0.3, 1.6, 2.04):
        kept = whole.cut(start=start, duration=1.2, frames=7)
        read = read_clip(flash_file, start=start, duration=1.2, frames=7, size=24, sample_rate=16000)
        assert torch.equal(kept.frames, read.frames)
        # After a seek the resampler starts at another phase: at most one sample of shift.
        inner, n = kept.waveform[5:-5], len(kept.waveform)
        shifts = [(inner - read.waveform[5 + s : n - 5 + s]).abs().mean() for s in (-1, 0, 1)]
        assert min(shifts) <= 0.02 * kept.waveform.abs().max()


def test_shapes_types_and_length(flash_file):
    clip = read_clip(flash_file, start=None, duration=1.0003, frames=5, size=(20, 30), sample_rate=11025)
    assert clip.frames.shape == (5, 3, 20, 30) and clip.frames.dtype == torch.uint8
    assert clip.waveform.shape == (round(1.0003 * 11025),) and clip.waveform.dtype == torch.float32
    assert clip.start == pytest.approx(1.5, abs=0.03)


def test_probe(tmp_path):
    info = probe(plain_clip(tmp_path / "a.mp4"))
    assert info.has_video and info.has_audio
    assert (info.width, info.height, info.fps, info.n_frames) == (32, 32, 12.0, 18)
    assert (info.sample_rate, info.video_codec, info.audio_codec) == (16000, "h264", "aac")
    assert info.duration == pytest.approx(1.5, abs=0.01)


def test_crop_keeps_aspect_and_squash_does_not(tmp_path):
    frames = np.zeros((24, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = 255  # the middle third is white
    path = tmp_path / "wide.mp4"
    write_clip(path, frames, 12, np.zeros(32000, np.float32), 16000)
    ask = {"start": 0.0, "duration": 1.0, "frames": 2, "size": 32, "sample_rate": 16000}
    center = read_clip(path, **ask).frames[0, 0].float()
    squash = read_clip(path, **ask, crop="squash").frames[0, 0].float()
    assert center[:, 4:-4].mean() > 240
    assert squash[:, :8].mean() < 15 and squash[:, -8:].mean() < 15 and squash[:, 13:19].mean() > 240
    with pytest.raises(ValueError, match="crop"):
        read_clip(path, **ask, crop="middle")


def test_rotation_of_phone_videos(tmp_path):
    frames = np.zeros((12, 32, 64, 3), np.uint8)
    frames[:, :, :20] = 255  # white on the left as stored
    path = tmp_path / "phone.mp4"
    write_clip(path, frames, 12, np.zeros(16000, np.float32), 16000)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # first track: its display matrix, turned by 90 degrees clockwise
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4")
    data[at : at + 36] = matrix.tobytes()
    path.write_bytes(data)
    image = read_all(path, size=(64, 32), sample_rate=16000).frames[0, 0].float()
    assert image[:16].mean() > 230 and image[28:].mean() < 25  # now on top


def test_stereo_is_mixed_and_resampled(tmp_path):
    path, rate = tmp_path / "s.mkv", 44100
    t = np.arange(2 * rate) / rate
    left = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("flac", rate=rate, layout="stereo")
        for _ in range(20):
            black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(video.encode(black))
        container.mux(video.encode(None))
        pair = (np.stack([left, 0 * left]) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pair, format="s16p", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    wave = read_clip(path, start=0.25, duration=1.5, frames=2, size=16, sample_rate=16000).waveform.double()
    at = 0.25 + torch.arange(24000, dtype=torch.float64) / 16000
    expected = 0.25 * torch.sin(2 * torch.pi * 440 * at)  # the mean of tone and silence
    assert (wave - expected).abs().max() < 0.01


def cause_of(path, **changes):
    ask = {"start": 0.0, "duration": 1.0, "frames": 3, "size": 16, "sample_rate": 16000} | changes
    with pytest.raises(DataError) as caught:
        read_clip(path, **ask)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, MediaError)
    return caught.value.cause


def test_broken_files_name_file_and_cause(tmp_path):
    good = plain_clip(tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert cause_of(tmp_path / "cut.mp4") == "unreadable"
    assert cause_of(tmp_path / "noise.mp4") == "unreadable"
    assert cause_of(tmp_path / "empty.mp4") == "unreadable"
    assert cause_of(tmp_path / "none.mp4") == "missing"
    assert cause_of(tmp_path) == "missing"
    assert cause_of(plain_clip(tmp_path / "mute.mp4", sound=False)) == "no-audio"


def test_sound_without_pictures(tmp_path):
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 32000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert cause_of(path) == "no-video"


def test_clips_that_reach_beyond_the_file(tmp_path):
    path = plain_clip(tmp_path / "short.mp4", seconds=1.0)
    assert cause_of(path, duration=2.0) == "too-short"
    assert cause_of(path, start=0.5) == "too-short"
    assert cause_of(path, start=40.0) == "too-short"
    # Up to a tenth may be missing: still picture and silence fill it.
    clip = read_clip(path, start=0.0, duration=1.08, frames=3, size=16, sample_rate=16000)
    assert len(clip.waveform) == round(1.08 * 16000)


def test_interrupted_download(tmp_path):
    """A file whose header came first opens well; the missing end must not become a constant picture."""
    whole = plain_clip(tmp_path / "whole.mp4", seconds=4.0, options={"movflags": "faststart"}).read_bytes()
    path = tmp_path / "part.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    assert probe(path).duration == pytest.approx(4.0, abs=0.1)
    assert cause_of(path, start=2.8) in ("too-short", "unreadable")


def test_a_colon_in_the_name_is_not_a_protocol(tmp_path, monkeypatch):
    plain_clip(tmp_path / "at.mp4").rename(tmp_path / "at 12:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert probe("at 12:30.mp4").has_video


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = plain_clip(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependency, match=r"pip install 'avfast\[train\]'"):
        probe(path)


def test_importing_the_data_package_needs_no_extra():
    code = """
import sys, avfast.data, avfast.data.scan, avfast.data.commands, avfast.data.frontends
print(sorted({"av", "rich", "scipy", "sklearn", "PIL", "torchvision", "torchaudio"} & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_files_are_closed_after_errors(tmp_path):

    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"x" * 100)
    mute = plain_clip(tmp_path / "mute.mp4", sound=False)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if before is None:
        pytest.skip("this system does not list open files in /proc/self/fd")
    for _ in range(20):
        for path in (bad, mute):
            with pytest.raises(DataError):
                read_clip(path, start=0.0, duration=1.0, frames=1, size=8, sample_rate=16000)
    assert len(os.listdir("/proc/self/fd")) <= before
