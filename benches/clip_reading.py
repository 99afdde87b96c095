"""How fast clips are read: ``python -m avfast.benches.clip_reading --record``.

A whole clip from file to tensors, pictures and sound, in one thread. The ways differ in one thing, how a decoded frame
becomes an RGB picture of the wanted size; they take turns in one process, and the best of many rounds counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from . import machine
from .run import RESULTS, save

SCHEMA = "clip_reading/1"
FPS, SECONDS, RATE = 12, 2, 16000
#: (height, width) of the video -> side of the pictures
SIZES = {(96, 96): 64, (240, 320): 112, (360, 640): 112, (720, 1280): 224}
PER_FRAME, REUSED, ONE_THREAD, OURS, FLOOR = "per frame", "reused", "reused, one thread", "avfast", "decoding alone"


def write_clips(folder: Path, height: int, width: int, clips: int) -> list[Path]:
    """So many H.264 clips with AAC: a photograph each, drifting, with the noise of a camera."""
    from avfast.data.demo.encode import write_clip
    from avfast.data.demo.photos import shipped_photos

    generator, paths = torch.Generator().manual_seed(0), []
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(SECONDS * RATE) / RATE).astype(np.float32)
    for number, photo in enumerate(shipped_photos()[:clips]):
        sides = (height + 64, width + 64)
        image = torch.nn.functional.interpolate(photo.image[None], size=sides, mode="bicubic")[0]
        frames = []
        for i in range(FPS * SECONDS):
            top, left = int(32 + 30 * np.sin(i / 5)), int(32 + 30 * np.cos(i / 4))
            seen = image[:, top : top + height, left : left + width]
            seen = seen + 2 * torch.randn(seen.shape, generator=generator)
            frames.append(seen.clamp(0, 255).byte().permute(1, 2, 0).numpy())
        paths.append(folder / f"{height}_{number}.mp4")
        write_clip(paths[-1], np.stack(frames), FPS, tone, RATE)
    return paths


class Reformatted:
    """What PyAV users write, in the place of :class:`avfast.data.rgb.RgbConverter`: upright frames resized, cropped."""

    def __init__(self, av, size, crop, codec, *, reuse: bool, threads: int) -> None:
        self.size, self.options = size, {"format": "rgb24", "interpolation": "AREA", "threads": threads}
        self.reformatter = av.video.reformatter.VideoReformatter() if reuse else None
        self.images: list[np.ndarray] = []

    def add(self, frame) -> None:
        scale = max(self.size[0] / frame.height, self.size[1] / frame.width)
        rows, columns = (max(round(n * scale), s) for n, s in zip((frame.height, frame.width), self.size, strict=True))
        wanted = {"width": columns, "height": rows, **self.options}
        converted = self.reformatter.reformat(frame, **wanted) if self.reformatter else frame.reformat(**wanted)
        rgb = converted.to_ndarray()
        top, left = (rows - self.size[0]) // 2, (columns - self.size[1]) // 2
        self.images.append(rgb[top : top + self.size[0], left : left + self.size[1]])

    def pictures(self) -> torch.Tensor:
        return torch.from_numpy(np.stack(self.images)).permute(0, 3, 1, 2).contiguous()


class Unconverted:
    """Frames decoded, and let go."""

    def __init__(self, av, size, crop, codec) -> None:
        self.empty = torch.empty(1, 3, *size, dtype=torch.uint8)

    def add(self, frame) -> None:
        pass

    def pictures(self) -> torch.Tensor:
        return self.empty


def ways() -> dict[str, Callable | None]:
    """Way -> what stands in for the converter; None is avfast's own."""

    def reformatted(**how):
        return lambda *arguments: Reformatted(*arguments, **how)

    return {
        PER_FRAME: reformatted(reuse=False, threads=0),
        REUSED: reformatted(reuse=True, threads=0),
        ONE_THREAD: reformatted(reuse=True, threads=1),
        OURS: None,
        FLOOR: Unconverted,
    }


def measure(paths: Sequence[Path], side: int, rounds: int) -> dict[str, dict[str, float]]:
    """Way -> milliseconds per clip, on the clock and of this process' processor time, best round of each clip."""
    from avfast.data import converters
    from avfast.data.media import read_all

    stands_in: dict[str, Callable | None] = ways()
    best: dict[tuple[str, Path], tuple[float, ...]] = {}
    for turn in range(rounds):
        order = list(stands_in)
        for path in paths:
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                own = stands_in[name] or converters.RgbConverter
                with mock.patch.object(converters, "RgbConverter", own):
                    wall, cpu = time.perf_counter(), time.process_time()
                    read_all(path, size=side, sample_rate=RATE)
                    took = time.perf_counter() - wall, time.process_time() - cpu
                before = best.get((name, path), took)
                best[name, path] = tuple(map(min, before, took))
    return {
        name: {
            clock: 1e3 * statistics.mean(best[name, path][i] for path in paths)
            for i, clock in enumerate(("wall", "cpu"))
        }
        for name in stands_in
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avfast.benches.clip_reading", description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=8, help="of each size")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    parser.add_argument("--record", action="store_true", help="write them to this machine's file in benches/results")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    facts, rows = machine.facts(), []
    with tempfile.TemporaryDirectory() as folder:
        for (height, width), side in SIZES.items():
            paths = write_clips(Path(folder), height, width, options.clips)
            times = measure(paths, side, max(2, options.rounds * 240 // (height + 144)))
            rows.append({"height": height, "width": width, "side": side, "ms_per_clip": times})
            shown = ", ".join(f"{name} {found['wall']:.2f}" for name, found in times.items())
            print(f"{width} x {height} to {side}: ms per clip: {shown}", flush=True)
            print("  " + ratios(times), flush=True)
    settings = {"clips": options.clips, "rounds": options.rounds, "frames": FPS * SECONDS}
    results = {"schema": SCHEMA, "machine": facts, "settings": settings, "rows": rows}
    recorded = RESULTS / f"clip_reading_{machine.slug(facts)}.json" if options.record else None
    for path in filter(None, (options.json, recorded)):
        save(results, path)
    return 0


def ratios(times: dict[str, dict[str, float]]) -> str:
    """How many times as long as avfast each other way takes, on both clocks."""
    found = []
    for name in (PER_FRAME, REUSED, ONE_THREAD):
        wall, cpu = (times[name][clock] / times[OURS][clock] for clock in ("wall", "cpu"))
        found.append(f"{name} {wall:.2f}x ({cpu:.2f}x of processor time)")
    return "; ".join(found)


if __name__ == "__main__":
    sys.exit(main())
