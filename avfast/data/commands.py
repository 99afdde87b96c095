"""What ``avfast demo-data`` and ``avfast media-scan`` do: print, and return the exit status."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def demo_data_command(
    dir: str | Path,
    *,
    clips: int = 160,
    seed: int = 0,
    faults: bool = False,
    photos: str | Path | None = None,
    sounds: str | Path | None = None,
) -> int:
    """Make the demonstration set and say what it is; returns 0.

    Raises:
        AvfastError: see :func:`avfast.data.demo.make_demo_clips`.
    """
    from avfast.data.demo import honesty_line, make_demo_clips

    with progress_bar("making clips") as progress:
        manifest = make_demo_clips(
            dir, clips=clips, seed=seed, faults=faults, photos=photos, sounds=sounds, progress=progress
        )
    splits: dict[str, int] = {}
    for clip in manifest["clips"]:
        splits[clip["split"]] = splits.get(clip["split"], 0) + 1
    print(honesty_line(manifest))
    for note in manifest["notes"]:
        print(f"note: {note}")
    print(f"{len(manifest['clips'])} clips in {dir}: " + ", ".join(f"{n} {name}" for name, n in splits.items()))
    if manifest["faults"]:
        print(f"{len(manifest['faults'])} broken files in {Path(dir) / 'faults'}")
    print(f"sources, licences and hashes: {Path(dir) / 'manifest.json'}")
    return 0


def media_scan_command(
    dir: str | Path, *, json_path: str | Path | None = None, workers: int = 2, min_duration: float = 1.0
) -> int:
    """Scan a folder and print a table; returns 1 if any file is unusable, else 0.

    Raises:
        AvfastError: the folder does not exist or holds no media files.
    """
    from avfast.data.outputs import prepare_file
    from avfast.data.scan import scan_media
    from avfast.errors import MissingDependency

    prepare_file(json_path, "--json")
    with progress_bar("scanning") as progress:
        report = scan_media(dir, workers=workers, min_duration=min_duration, progress=progress)
    if not report.counts:
        print(report.summary)
    else:
        try:
            table = report.table()
            from rich.console import Console

            Console().print(table)
        except MissingDependency:
            print(report)
    if json_path is not None:
        Path(json_path).write_text(json.dumps(report.to_dict(), indent=1))
        print(f"written: {json_path}")
    return 1 if report.unusable else 0


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A ``rich`` bar on a terminal; nothing otherwise, so that logs stay readable."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except (ImportError, RuntimeError, OSError):
        yield None
        return
    console = Console()
    if not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
