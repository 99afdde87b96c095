"""Mutated media files through every reader: each gives a result or names the file, and none crashes, hangs or swells.

The readers run in a process of their own, so that a crash is seen, put down to the file that was being read, and the
rest goes on. Limits are set low (see avfast.data.limits), so that a file that passes them by shows as memory.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import mutations
from .rows import Row

UNIT, SMALL, LONG, MINUTES = "files", 200, 20_000, 25

PER_FILE_SECONDS = 20.0  # of all readers together; a usual one takes a thirtieth of a second
PER_FILE_MIB = 300  # growth of the largest memory ever used
LIMITS = {"AVFAST_MAX_PIXELS": "4000000", "AVFAST_MAX_FILE_BYTES": str(32 << 20)}
READING = {"size": 32, "sample_rate": 8000}


def check(size: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    """``size`` files through all readers, in a child that is started again wherever it dies."""
    for library in ("av", "PIL"):
        try:
            __import__(library)
        except ImportError:
            return [Row("mutated media", "read or named, within limits", missing=f"'{library}' is not installed")]
    began, failures, outcomes, next_file, starts = time.monotonic(), [], Counter(), 0, 0
    slowest, most = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        originals = mutations.write_originals(Path(folder) / "originals")
        while next_file < size:
            starts += 1
            for line in _child(folder, seed, next_file, size):
                if "ended" in line:
                    what = mutations.mutated(originals, seed, next_file)[0]
                    failures.append(f"seed {seed} file {next_file} ({what}): {line['ended']}")
                    next_file += 1
                    break
                next_file = line["file"] + 1
                failures += [f"seed {seed} file {line['file']} ({line['what']}): {text}" for text in line["failures"]]
                outcomes.update(line["outcomes"])
                slowest, most = max(slowest, line["seconds"]), max(most, line["mib"])
                if next_file % 1000 == 0:
                    say(f"{next_file} of {size} files, {len(failures)} failures")
    numbers = {
        "readings": sum(outcomes.values()),
        "read": outcomes["read"],
        "refused": outcomes["refused"],
        "slowest_s": round(slowest, 3),
        "largest_growth_mib": most,
        "processes": starts,
    }
    done = (
        "probe, read_clip, read_all, scan_file, read_sound, read_picture, datasets under 'skip': a result or an error"
    )
    return [Row("mutated media", done + " naming the file", size, failures, time.monotonic() - began, numbers)]


def _child(folder: str, seed: int, first: int, size: int) -> Iterator[dict[str, Any]]:
    """What the child says of each file; ``{"ended": why}`` where it does not come to the end."""
    command = [sys.executable, "-m", __spec__.name, folder, str(seed), str(first), str(size)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **LIMITS, "OMP_NUM_THREADS": "1"}
    )
    try:
        limit = PER_FILE_SECONDS + 120  # the first line comes after all imports
        while True:
            if not select.select([process.stdout], [], [], limit)[0]:
                yield {"ended": f"no answer for {limit:g} s"}
                return
            if not (line := process.stdout.readline()):
                break
            limit = 3 * PER_FILE_SECONDS
            yield json.loads(line)
        if code := process.wait():
            yield {"ended": f"the process ended with {code}" if code > 0 else f"the process died of signal {-code}"}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _serve(folder: Path, seed: int, first: int, size: int) -> None:
    import torch

    torch.set_num_threads(1)
    originals = sorted((folder / "originals").iterdir())
    work = folder / "work"
    work.mkdir(exist_ok=True)
    for path in originals:  # what is loaded when it is first used is no growth
        readings(path, work)
    for number in range(first, size):
        what, content = mutations.mutated(originals, seed, number)
        path = work / f"file{originals[number % len(originals)].suffix}"
        path.write_bytes(content)
        before, began = _peak_mib(), time.monotonic()
        outcomes, failures = readings(path, work)
        seconds, mib = time.monotonic() - began, _peak_mib() - before
        if seconds > PER_FILE_SECONDS:
            failures.append(f"took {seconds:.1f} s")
        if mib > PER_FILE_MIB:
            failures.append(f"took {mib} MiB")
        line = {
            "file": number,
            "what": what,
            "outcomes": outcomes,
            "failures": failures,
            "seconds": seconds,
            "mib": mib,
        }
        print(json.dumps(line), flush=True)


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def readings(path: Path, folder: Path) -> tuple[dict[str, int], list[str]]:
    """One file through every reader: how often it was read and refused, and what went wrong in words."""
    outcomes, failures = {"read": 0, "refused": 0}, []
    from avfast.errors import UnreadableFile

    for name, reader in readers(path, folder).items():
        try:
            problem = reader()
        except UnreadableFile as error:
            outcomes["refused"] += 1
            if error.path != str(path) or not error.cause or not str(error).startswith(f"{path}: "):
                failures.append(f"{name}: the error does not name the file: {error!r}")
        except BaseException as error:  # noqa: BLE001 - what is looked for
            failures.append(f"{name}: {type(error).__name__}: {error}")
        else:
            outcomes["read"] += 1
            if problem:
                failures.append(f"{name}: {problem}")
    return outcomes, failures


def readers(path: Path, folder: Path) -> dict[str, Callable[[], str | None]]:
    """Every way to read a file, by name. Each raises, or says what is wrong with what it read."""
    from avfast.data import image_folder, media, scan
    from avfast.engine.scene.sound import open_sound

    def whole(**streams: bool) -> str | None:
        decoded = media.read_all(path, **READING, **streams)
        return _frames(decoded.frames) or _sound(decoded.waveform)

    def clip() -> str | None:
        found = media.read_clip(path, start=None, duration=1.0, frames=3, **READING)
        return _frames(found.frames, 3) or _sound(found.waveform, 8000)

    def scanned() -> str | None:
        report = scan.scan_file(path)
        return None if set(report.problems) <= set(scan.PROBLEMS) else f"problems {report.problems}"

    def picture() -> str | None:
        return _frames(image_folder.read_picture(path, 32)[None], 1)

    def mask() -> str | None:
        found = image_folder.read_mask(path, 32)
        return None if found.shape == (32, 32) else f"a mask of {tuple(found.shape)}"

    if path.suffix in (".mp4", ".wav"):
        return {
            "probe": lambda: media.probe(path) and None,
            "read_clip": clip,
            "read_all": whole,
            "read_all of pictures": lambda: whole(sound=False),
            "read_all of sound": lambda: whole(pictures=False),
            "scan_file": scanned,
            "read_sound": lambda: _sound(open_sound(path, 8000, 1.0).waveform, 8000),
            "ClipDataset": lambda: _sample(path, folder),
        }
    return {"read_picture": picture, "read_mask": mask, "ImageDataset": lambda: _sample(path, folder)}


def _sample(path: Path, folder: Path) -> str | None:
    """A dataset of this one file, under ``skip``: the sample is whole, or says why it is not there."""
    from avfast.data import ClipDataset
    from avfast.data.image_folder import ImageDataset
    from avfast.data.sources import ClipRecord, ClipSource

    source = ClipSource(folder, (ClipRecord(path, "0" * 64),))
    if path.suffix in (".mp4", ".wav"):
        data = ClipDataset(source, frames=2, duration=1.0, seed=0, train=True, on_error="skip", **READING)
    else:
        data = ImageDataset(source, size=32, seed=0, train=True, on_error="skip")
    data._made = float("inf")  # the file is replaced between two numbers of this check, and is meant to be
    sample = data[(0, 0)]
    if sample["errors"]:
        return None if sample["errors"][0]["path"] == str(path) else f"errors {sample['errors']}"
    if "image" in sample:
        return _frames(sample["image"][None], 1)
    return _frames(sample["frames"], 2) or _sound(sample["waveform"], 8000)


def _frames(frames: Any, count: int | None = None) -> str | None:
    good = frames.dim() == 4 and frames.shape[1:] == (3, 32, 32) and count in (None, len(frames))
    return None if good else f"pictures of {tuple(frames.shape)}"


def _sound(waveform: Any, count: int | None = None) -> str | None:
    good = waveform.dim() == 1 and bool(waveform.isfinite().all()) and count in (None, len(waveform))
    return None if good else f"sound of {tuple(waveform.shape)}, finite: {bool(waveform.isfinite().all())}"


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
