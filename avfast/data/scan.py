"""Which media files of a collection cannot be used for learning sound and pictures together, and why."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avfast.data.filecache import FileCache
from avfast.data.limits import Refused, check_peak
from avfast.data.listing import walk
from avfast.data.media import MIN_COVERAGE, MediaError, MediaFile, MediaInfo
from avfast.data.members import Member
from avfast.data.shards import is_shards
from avfast.data.sources import EXTENSIONS, ClipSource, media_files
from avfast.errors import DataError, MissingDependency
from avfast.printable import printable

PROBLEMS = {
    "unreadable": "cannot be opened or decoded",
    "truncated": "ends before its header says",
    "no-video": "has no video stream",
    "no-audio": "has no audio stream",
    "too-short": "is shorter than a clip",
    "too-large": "asks for more memory than one file may",
    "muted": "is silent all the way",
    "still": "shows one picture all the way",
    "odd-codec": "plays, but its codecs start late or seek badly",
}
# These play. A loader reads them, at some cost or risk; all other problems make a file unusable.
HARMLESS = ("odd-codec",)
USUAL_VIDEO = frozenset("h264 hevc mpeg4 vp9 libvpx-vp9 av1 libdav1d vp8 libvpx mpeg2video".split())
USUAL_AUDIO = frozenset("aac mp3 mp3float flac pcm_s16le ac3 alac vorbis".split())
# Below -80 dB of full scale nothing is heard.
SILENCE = 1e-4
# Pictures are compared as 16 x 16 grey squares; a largest change of fewer levels than this is coding noise.
STILLNESS = 4
VERSION = 2  # of the rules above: remembered results of other rules do not count
# Of long files this much is decoded; the rest is checked by its packets only.
DECODE_SECONDS = 60.0


@dataclass(frozen=True)
class FileReport:
    """What was found in one file: ``problems`` of :data:`PROBLEMS`, ``detail`` in the decoder's words."""

    path: str
    problems: tuple[str, ...]
    detail: str = ""
    info: dict[str, Any] | None = None

    @property
    def usable(self) -> bool:
        return all(p in HARMLESS for p in self.problems)


@dataclass(frozen=True)
class MediaScanReport:
    """The scan of a collection. ``cached`` counts files that were unchanged since an earlier scan."""

    root: str
    files: tuple[FileReport, ...]
    cached: int = 0

    @property
    def unusable(self) -> tuple[FileReport, ...]:
        return tuple(f for f in self.files if not f.usable)

    @property
    def counts(self) -> dict[str, int]:
        """Files per problem, in the order of :data:`PROBLEMS`; problems nobody has are left out."""
        found = {p: sum(p in f.problems for f in self.files) for p in PROBLEMS}
        return {p: n for p, n in found.items() if n}

    @property
    def summary(self) -> str:
        usable = len(self.files) - len(self.unusable)
        causes = ", ".join(f"{n} {p}" for p, n in self.counts.items()) or "no problems"
        return f"{printable(self.root)}: {usable} of {len(self.files)} files usable ({causes})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "root": self.root,
            "files": len(self.files),
            "usable": len(self.files) - len(self.unusable),
            "counts": self.counts,
            "problems": [asdict(f) for f in self.files if f.problems],
        }

    def table(self) -> Any:
        """The files with problems as a ``rich`` table.

        Raises:
            MissingDependency: rich is not installed; ``str(report)`` needs nothing.
        """
        from avfast.errors import MissingDependency

        try:
            from rich.markup import escape
            from rich.table import Table
        except (ImportError, RuntimeError, OSError) as error:
            raise MissingDependency("rich", extra="train", purpose="printing tables") from error
        table = Table(title=escape(self.summary), title_justify="left")
        for column in ("file", "problem", "detail"):
            table.add_column(column, overflow="fold")
        for row in self._rows():
            table.add_row(*map(escape, row))
        return table

    def __str__(self) -> str:
        rows = [self.summary, *("  " + "  ".join(filter(None, row)) for row in self._rows())]
        return "\n".join(rows)

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            (
                printable(f.path),
                ", ".join(f.problems),
                printable(f.detail) or "; ".join(PROBLEMS[p] for p in f.problems),
            )
            for f in self.files
            if f.problems
        ]


def scan_media(
    source: str | Path | ClipSource,
    *,
    workers: int = 1,
    cache: bool = True,
    min_duration: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> MediaScanReport:
    """Open and decode every file of a folder (recursively), of shards or of a source, and report what is wrong with it.

    Args:
        workers: threads; decoding leaves the interpreter lock.
        cache: remember results by path, size and modification time.
        min_duration: seconds of sound and of pictures that a file must have.
        progress: called with (done, total).

    Raises:
        DataError: the folder does not exist or holds no media files, or a shard is refused. Broken files are results,
            not errors.
    """
    if not isinstance(source, ClipSource) and (is_shards(source) or _only_shards(Path(source))):
        source = ClipSource.open(source, damaged="drop")
    if isinstance(source, ClipSource):
        root, paths = source.root, [record.path for record in source.records]
    else:
        root = Path(source)
        if not root.is_dir():
            raise DataError(
                f"{root}: is a file, expected a folder" if Path(root).is_file() else f"{root}: no such folder"
            )
        paths = media_files(root)
        if not paths:
            raise DataError(f"{root}: holds no media files; looked for {' '.join(EXTENSIONS)} in it and below")
    memory = FileCache(root, f"scan-{VERSION}-{min_duration:g}") if cache else None
    known = {p: _remembered(memory.get(p)) for p in paths} if memory else {}
    fresh = [p for p in paths if not known.get(p)]
    results: dict[Path | Member, FileReport] = {}
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for path, report in zip(fresh, pool.map(lambda p: scan_file(p, root, min_duration), fresh), strict=True):
            results[path] = report
            if memory:
                memory.put(path, asdict(report))
            if progress is not None:
                progress(len(results), len(fresh))
    if memory:
        memory.save()
    for path in paths:
        if path not in results:
            results[path] = known[path]
    return MediaScanReport(str(root), tuple(results[p] for p in paths), len(paths) - len(fresh))


def _only_shards(folder: Path) -> bool:
    return folder.is_dir() and not media_files(folder) and bool(walk(folder, (".tar",)).names)


def _remembered(entry: Any) -> FileReport | None:
    """An earlier result; None for what is none, since the memory may have come along with the data."""
    try:
        report = FileReport(**(entry | {"problems": tuple(entry["problems"])}))
    except (TypeError, KeyError):
        return None
    good = isinstance(report.path, str) and isinstance(report.detail, str) and set(report.problems) <= set(PROBLEMS)
    return report if good else None


def scan_file(path: Path | Member, root: Path | None = None, min_duration: float = 1.0) -> FileReport:
    """Look at one file; whatever is in it, the answer is a report."""
    inside = Path(str(path))  # of a member, the shard and the name in it
    name = str(inside.relative_to(root) if root and inside.is_relative_to(root) else inside)
    info: MediaInfo | None = None
    try:
        with MediaFile(path) as media:
            info = media.info
            problems, detail = _examine(media, info, min_duration)
    except MediaError as error:
        problems, detail = [error.cause if error.cause in PROBLEMS else "unreadable"], error.detail
    except MissingDependency:  # says nothing about the file, and must not be remembered as if it did
        raise
    except Exception as error:  # noqa: BLE001 - garbage makes decoders fail in ways nobody can list
        problems, detail = ["unreadable"], f"{type(error).__name__}: {error}"
    return FileReport(name, tuple(problems), detail, info.to_dict() if info else None)


def _examine(media: MediaFile, info: MediaInfo, min_duration: float) -> tuple[list[str], str]:
    problems = []
    if not info.has_video:
        problems.append("no-video")
    if not info.has_audio:
        problems.append("no-audio")
    found, error = _decode(media)
    if error and not found.pictures and not found.samples:
        return ["unreadable"], error
    ends = [end for end, there in ((found.video_end, info.has_video), (found.audio_end, info.has_audio)) if there]
    end = min(ends, default=0.0)
    if info.duration and end < MIN_COVERAGE * info.duration:
        problems.append("truncated")
        error = error or f"header says {info.duration:.2f} s, the file holds {end:.2f} s"
    elif error:
        problems.append("unreadable")
    if end < MIN_COVERAGE * min_duration and "truncated" not in problems:
        problems.append("too-short")
    try:
        check_peak(found.peak)
    except Refused as refused:
        problems = [p for p in problems if p != refused.cause] + [refused.cause]
        error = error or refused.detail
    if info.has_audio and found.peak < SILENCE:
        problems.append("muted")
    if info.has_video and found.change < STILLNESS:
        problems.append("still")
    if _odd(info):
        problems.append("odd-codec")
    return problems, error


@dataclass
class _Found:
    pictures: int = 0
    samples: int = 0
    video_end: float = 0.0
    audio_end: float = 0.0
    peak: float = 0.0
    change: float = 0.0


def _decode(media: MediaFile) -> tuple[_Found, str]:
    """Decode (the first minute of) a file; the error that stopped it, if any, comes back as text."""
    av, found, first = media._av, _Found(), None
    grey = av.video.reformatter.VideoReformatter()
    streams = [s for s in (media.video, media.audio) if s is not None]
    try:
        for packet in media._container.demux(streams):
            if packet.pts is not None and packet.pts * packet.time_base - media.origin > DECODE_SECONDS:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - media.origin
                side = "video_end" if packet.stream is media.video else "audio_end"
                setattr(found, side, max(getattr(found, side), end))
                continue
            for frame in packet.decode():
                if frame.time is None:
                    continue
                if packet.stream is media.video:
                    length = float(frame.duration * frame.time_base) if frame.duration else 0.0
                    found.video_end = max(found.video_end, frame.time - media.origin + length)
                    found.pictures += 1
                    small = grey.reformat(frame, width=16, height=16, format="gray", interpolation="AREA").to_ndarray()
                    first = small.astype(np.int16) if first is None else first
                    found.change = max(found.change, float(np.abs(small - first).max()))
                else:
                    end = frame.time - media.origin + frame.samples / frame.sample_rate
                    found.audio_end = max(found.audio_end, end)
                    found.samples += frame.samples
                    # PyAV reads eight planes at most, and past them where there is nothing.
                    if not frame.format.is_planar or frame.layout.nb_channels <= 8:
                        found.peak = float(np.maximum(found.peak, _peak(frame.to_ndarray())))  # NaN stays
                    else:
                        found.peak = max(found.peak, 1.0)
    except (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        return found, getattr(error, "strerror", None) or str(error)
    return found, ""


def _peak(samples: np.ndarray) -> float:
    scale = float(np.iinfo(samples.dtype).max) if samples.dtype.kind in "iu" else 1.0
    wave = samples.astype(np.float64) / scale
    if samples.dtype.kind == "u":
        wave = 2 * wave - 1
    return float(np.abs(wave).max(initial=0.0))


def _odd(info: MediaInfo) -> bool:
    return (info.video_codec is not None and info.video_codec not in USUAL_VIDEO) or (
        info.audio_codec is not None and info.audio_codec not in USUAL_AUDIO
    )
