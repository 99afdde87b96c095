"""One file of every fault that real collections have, for the media scan to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from avfast.data.demo.encode import OPUS, VP9, write_clip
from avfast.data.demo.modelled import RATE
from avfast.data.demo.photos import Photo
from avfast.data.identity import file_sha256

FPS = 12


def plant_faults(
    folder: Path, good: Path, render: Callable[[Photo, np.ndarray], np.ndarray], photo: Photo
) -> list[dict[str, Any]]:
    """Write the broken files to ``folder`` and list them with the problem that a scan must report.

    ``truncated.mp4`` is the first part of ``good``; the others are made from ``photo``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 2 * FPS
    t = np.arange(2 * RATE) / RATE
    tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    moving = render(photo, np.stack([np.linspace(0, 60, count), np.linspace(60, 0, count), np.full(count, 120)], 1))
    still = np.repeat(moving[:1], count, axis=0)

    (folder / "truncated.mp4").write_bytes(good.read_bytes()[: good.stat().st_size * 6 // 10])
    write_clip(folder / "no_audio.mp4", moving, FPS, None, RATE)
    write_clip(folder / "muted.mp4", moving, FPS, 0 * tone, RATE)
    write_clip(folder / "still.mp4", still, FPS, tone, RATE)
    write_clip(folder / "short.mp4", moving[: FPS // 2], FPS, tone[: RATE // 2], RATE)
    write_clip(
        folder / "opus.webm", moving, FPS, np.repeat(tone, 3), 3 * RATE, video_codec=VP9, audio_codec=OPUS
    )  # Opus knows 48 kHz
    problems = {
        "truncated.mp4": "unreadable",
        "no_audio.mp4": "no-audio",
        "muted.mp4": "muted",
        "still.mp4": "still",
        "short.mp4": "too-short",
        "opus.webm": "odd-codec",
    }
    return [
        {"path": f"{folder.name}/{name}", "problem": problem, "sha256": file_sha256(folder / name)}
        for name, problem in problems.items()
    ]
