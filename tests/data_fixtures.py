"""Media files that the data tests share, made once per session in a temporary folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avfast.data.demo import make_demo_clips
from avfast.data.demo.encode import write_clip

CLIPS = 24  # 8 classes of 3 takes: one each for train, val and test


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory) -> Path:
    """A demonstration set with the broken files. Tests must not change it."""
    pytest.importorskip("av", reason="reading and writing media needs PyAV")
    folder = tmp_path_factory.mktemp("demo")
    make_demo_clips(folder, clips=CLIPS, seed=3, faults=True)
    return folder


def flash_and_click(path: Path, *, at: float, seconds: float = 4.0, fps: int = 25, rate: int = 16000, **codecs) -> Path:
    """A black clip with one white frame and one 5 ms click, both from ``at`` on (a multiple of 1 / fps)."""
    frames = np.full((round(seconds * fps), 48, 64, 3), 16, np.uint8)
    frames[round(at * fps)] = 235
    wave = np.zeros(round(seconds * rate), np.float32)
    burst = np.arange(round(0.005 * rate))
    wave[round(at * rate) + burst] = 0.9 * np.sign(np.cos(2 * np.pi * 1500 * burst / rate))
    write_clip(path, frames, fps, wave, rate, **codecs)
    return path


def plain_clip(path: Path, *, seconds: float = 1.5, level: int = 90, sound: bool = True, **codecs) -> Path:
    """A moving gradient with a tone."""
    fps, rate = 12, 16000
    count = round(seconds * fps)
    ramp = (np.arange(32)[None] * 5 + np.arange(count)[:, None] * 4 + level) % 256
    frames = np.broadcast_to(ramp[:, None, :, None], (count, 32, 32, 3)).astype(np.uint8)
    tone = (0.4 * np.sin(2 * np.pi * 500 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
    write_clip(path, frames, fps, tone if sound else None, rate, **codecs)
    return path
