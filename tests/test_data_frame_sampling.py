"""Moments of pictures: equal parts, a random one of each, and a reduced picture rate; clips of one stream alone."""

from __future__ import annotations

import math
import wave

import numpy as np
import pytest
import torch
from data_fixtures import demo_dir, plain_clip  # noqa: F401

pytest.importorskip("av", reason="reading media needs PyAV")

from avfast.data import ClipDataset, ClipSource  # noqa: E402
from avfast.data.frame_sampling import frame_times, segment_times  # noqa: E402
from avfast.data.media import MediaError, MediaFile, read_all  # noqa: E402
from avfast.data.randomness import Draws  # noqa: E402
from avfast.errors import DataError  # noqa: E402

SETTINGS = {"size": 32, "duration": 1.2, "sample_rate": 16000, "seed": 5}


@pytest.mark.parametrize("fps", [0.0, 1.0, 2.5])
def test_one_moment_of_every_segment_and_all_of_them_are_drawn(fps):
    seen = [set(), set(), set()]
    for i in range(300):
        times = segment_times(2.0, 10.0, 3, fps=fps, draws=Draws("clip", i))
        assert times == sorted(times)
        for k, t in enumerate(times):
            seen[k].add(round(t, 6))
    if not fps:
        for k, moments in enumerate(seen):
            assert 2 + 10 * k / 3 <= min(moments) and max(moments) < 2 + 10 * (k + 1) / 3 + 1e-6
            assert min(moments) < 2.1 + 10 * k / 3 and max(moments) > 1.9 + 10 * (k + 1) / 3
        return
    steps = math.floor(10 * fps)
    grid = [{round(2 + (s + 0.5) / fps, 6) for s in range(k * steps // 3, (k + 1) * steps // 3)} for k in range(3)]
    assert seen == grid


def test_evaluation_takes_the_middle_of_every_segment():
    assert segment_times(1.0, 2.0, 2) == frame_times(1.0, 2.0, 2) == [1.5, 2.5]
    assert segment_times(0.0, 10.0, 3, fps=1.0) == [1.5, 4.5, 8.5]
    assert segment_times(0.0, 3.0, 3, fps=1.0, draws=Draws(0)) == [0.5, 1.5, 2.5], "one picture each: no choice"
    with pytest.raises(ValueError, match="expected at least 3 pictures in 2 s, got 2"):
        segment_times(0.0, 2.0, 3, fps=1.0)


@pytest.mark.parametrize("cache", [None, "memory"])
def test_training_shows_the_pictures_of_its_segments(demo_dir, cache):  # noqa: F811
    """Against pictures cut one by one at the same moments; the draws before and after stay those of their keys."""
    source = ClipSource.open(demo_dir)
    options = SETTINGS | {"frames": 3, "train": True, "crop_scale": (1.0, 1.0), "flip": 0.0, "cache": cache}
    dataset = ClipDataset(source, sampling="segments", **options)
    even = ClipDataset(source, **options)
    different = 0
    for epoch in range(4):
        draws = Draws(5, epoch, source.records[1].id)
        whole = read_all(source.records[1].path, size=32, sample_rate=16000)
        start = draws.uniform(0.0, max(whole.duration - 1.2, 0.0))
        times = segment_times(start, 1.2, 3, draws=draws)
        want = whole.cut(start=start, duration=1.2, frames=3, times=times)
        got = dataset[epoch, 1]
        if cache:  # the same decoding: the same length, to the bit
            assert torch.equal(got["frames"], want.frames) and torch.equal(got["waveform"], want.waveform)
        assert torch.equal(got["waveform"], even[epoch, 1]["waveform"])
        different += not torch.equal(got["frames"], even[epoch, 1]["frames"])
    assert different >= 2
    evaluation = {**options, "train": False}
    plain, segments = (ClipDataset(source, sampling=s, **evaluation) for s in ("even", "segments"))
    assert torch.equal(plain[0, 1]["frames"], segments[3, 1]["frames"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "random"}, "sampling: expected one of"),
        ({"fps": 2.0}, r"fps: expected 0, or 3 pictures in 1.2 s, got 2 per second"),
        ({"fps": -1.0}, "fps: expected 0"),
        ({"fps": float("nan")}, "fps: expected 0"),
        ({"frames": 0, "sound": False}, "frames, sound: expected pictures or sound, got neither"),
    ],
)
def test_wrong_options(demo_dir, change, message):  # noqa: F811
    with pytest.raises(ValueError, match=f"avfast.data.ClipDataset: {message}"):
        ClipDataset(ClipSource.open(demo_dir), train=True, **{**SETTINGS, "frames": 3, **change})


def sound_file(path, seconds=3.0):
    tone = (8000 * np.sin(np.arange(round(seconds * 44100)) / 20)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(44100)
        file.writeframes(tone.tobytes())
    return path


@pytest.mark.parametrize("cache", [None, "memory"])
def test_sound_alone_and_pictures_alone(tmp_path, cache):
    rows = [{"path": sound_file(tmp_path / "a.wav").name}]
    sounds = ClipSource.from_rows(tmp_path, rows)
    item = ClipDataset(sounds, frames=0, train=True, cache=cache, **SETTINGS)[0, 0]
    assert "frames" not in item and item["waveform"].shape == (19200,) and item["waveform"].std() > 0.1
    with pytest.raises(DataError, match="has no video stream"):
        ClipDataset(sounds, frames=1, train=True, cache=cache, **SETTINGS)[0, 0]
    rows = [{"path": plain_clip(tmp_path / "b.avi", sound=False, seconds=3.0, video_codec=("mpeg4",)).name}]
    pictures = ClipSource.from_rows(tmp_path, rows)
    item = ClipDataset(pictures, frames=2, sound=False, train=True, cache=cache, **SETTINGS)[0, 0]
    assert "waveform" not in item and item["frames"].shape == (2, 3, 32, 32)
    with pytest.raises(DataError, match="has no audio stream"):
        ClipDataset(pictures, frames=2, train=True, cache=cache, **SETTINGS)[0, 0]


@pytest.mark.parametrize("cache", [None, "memory"])
def test_what_is_not_wanted_changes_nothing_of_the_rest(demo_dir, cache):  # noqa: F811
    source = ClipSource.open(demo_dir)
    options = SETTINGS | {"train": True, "cache": cache}
    both = ClipDataset(source, frames=3, **options)
    heard, seen = ClipDataset(source, frames=0, **options), ClipDataset(source, frames=3, sound=False, **options)
    for key in ((0, 0), (1, 5)):
        assert torch.equal(heard[key]["waveform"], both[key]["waveform"])
        assert torch.equal(seen[key]["frames"], both[key]["frames"])


def test_late_windows_and_too_short_files_of_one_stream(tmp_path):
    path = sound_file(tmp_path / "long.wav", 4.0)
    whole = read_all(path, size=8, sample_rate=16000, pictures=False)
    assert whole.duration == pytest.approx(4.0, abs=0.01) and not len(whole.frames)
    with MediaFile(path) as media:
        late = media.decode(size=8, sample_rate=16000, window=(2.5, 1.0, ()), pictures=False)
    want, got = (d.cut(start=2.5, duration=1.0, frames=0).waveform for d in (whole, late))
    assert (got - want).abs().max() < 1e-3
    with pytest.raises(MediaError, match=r"holds 1.00 s of sound in the 3 s from 3.00 s on"):
        whole.cut(start=3.0, duration=3.0, frames=0)
    with pytest.raises(ValueError, match="expected one of them at least"), MediaFile(path) as media:
        media.decode(size=8, sample_rate=16000, pictures=False, sound=False)
