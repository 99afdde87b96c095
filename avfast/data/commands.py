"""What ``avfast demo-data`` and ``avfast media-scan`` do: print, and return the exit status."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avfast.errors import ConfigError
from avfast.terminal import is_live


def demo_data_command(
    dir: str | Path,
    *,
    kind: str = "clips",
    clips: int | None = None,
    images: int | None = None,
    seed: int = 0,
    faults: bool = False,
    photos: str | Path | None = None,
    sounds: str | Path | None = None,
) -> int:
    """Make a demonstration set and say what it is; returns 0. ``kind`` is ``"clips"``, ``"labelled"``, ``"cutaways"``
    or ``"scenes"``.

    Raises:
        AvfastError: see :func:`avfast.data.demo.make_demo_clips` and :func:`avfast.data.demo.make_scenes`; or an option
            of the other kind.
    """
    from avfast.data import demo
    from avfast.data.demo import honesty_line, make_scenes

    if kind == "scenes":
        given = {"--clips": clips, "--faults": faults or None, "--photos": photos, "--sounds": sounds}
        for option, value in given.items():
            if value is not None:
                raise ConfigError(f"{option} belongs to --kind clips")
        with progress_bar("making scenes") as progress:
            manifest = make_scenes(dir, seed=seed, progress=progress, **({} if images is None else {"images": images}))
        print(honesty_line(manifest))
        _print_splits(manifest, dir, "scenes")
        return 0
    if images is not None:
        raise ConfigError("--images belongs to --kind scenes")
    if kind != "clips" and faults:
        raise ConfigError("--faults belongs to --kind clips")
    makers = {
        "clips": demo.make_demo_clips, "labelled": demo.make_labelled_clips, "cutaways": demo.make_cutaway_clips
    }  # fmt: skip
    make, options = makers[kind], {"faults": faults} if kind == "clips" else {}
    if clips is not None:
        options["clips"] = clips
    with progress_bar("making clips") as progress:
        manifest = make(dir, seed=seed, photos=photos, sounds=sounds, progress=progress, **options)
    print(honesty_line(manifest))
    for note in manifest["notes"]:
        print(f"note: {note}")
    _print_splits(manifest, dir, "clips")
    if manifest["faults"]:
        print(f"{len(manifest['faults'])} broken files in {Path(dir) / 'faults'}")
    print(f"sources, licences and hashes: {Path(dir) / 'manifest.json'}")
    return 0


def _print_splits(manifest: dict[str, Any], dir: str | Path, noun: str) -> None:
    splits = Counter(clip["split"] for clip in manifest["clips"])
    print(f"{len(manifest['clips'])} {noun} in {dir}: " + ", ".join(f"{n} {name}" for name, n in splits.items()))


def media_scan_command(
    dir: str | Path, *, json_path: str | Path | None = None, workers: int = 2, min_duration: float = 1.0
) -> int:
    """Scan a folder and print a table; returns 1 if any file is unusable, else 0.

    Raises:
        AvfastError: the folder does not exist or holds no media files.
    """
    from avfast.data.outputs import prepare_file, writing
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
        with writing(Path(json_path)):
            Path(json_path).write_text(json.dumps(report.to_dict(), indent=1))
        print(f"written: {json_path}")
    return 1 if report.unusable else 0


def shards_command(data: str | Path, out: Path, *, size: str = "1GB", kind: str = "clips", seed: int = 0) -> int:
    """Pack a source into shards and say how they are read; returns 0.

    Raises:
        AvfastError: see :meth:`avfast.data.ClipSource.open` and :func:`avfast.data.shard_writer.write_shards`.
    """
    from avfast.data.layouts import open_source
    from avfast.data.outputs import require_folder
    from avfast.data.shard_writer import parse_size, write_shards
    from avfast.data.sources import EXTENSIONS, IMAGE_EXTENSIONS

    limit = parse_size(size)
    require_folder(out, "OUT")
    source = open_source(data, extensions=IMAGE_EXTENSIONS if kind == "images" else EXTENSIONS)
    with progress_bar("packing") as progress:
        shards = write_shards(source, out, size=limit, seed=seed, progress=progress)
    total = sum(shard.stat().st_size for shard in shards)
    print(f"{len(source)} {kind} in {len(shards)} shards, {total / 1e6:,.1f} MB: {out}")
    print(f"train on them with --data {out}; webdataset reads them too")
    return 0


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A ``rich`` bar on a terminal; nothing otherwise, so that logs stay readable."""
    if not is_live(sys.stdout):
        yield None
        return
    try:
        from rich.progress import Progress
    except (ImportError, RuntimeError, OSError):
        yield None
        return
    with Progress(transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
