"""``avfast report``: the report of a run and its pictures again, from the run's folder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from avfast.engine import figures
from avfast.engine.closing import closing_lines
from avfast.engine.drawing import Kept, kept_drawings
from avfast.engine.record import RunSummary, read_run
from avfast.engine.report import REPORT, write_report
from avfast.errors import ConfigError

CURVES = "curves.png"
AGAIN = "rebuilt"


def report_command(runs: list[Path], out: Path | None, *, say: Callable[[str], None] = print) -> int:
    """Rebuild the report of a run, or compare several.

    Args:
        out: a folder, or a file ending in ``.md``; by default the report of one run goes into its own folder, and a
            comparison is only printed.

    Returns:
        0; 1 if a file of a run is damaged (each is named, and the rest is told).

    Raises:
        AvfastError: a folder holds no run, or the place cannot be written.
    """
    if len(runs) > 1:
        from avfast.engine.compare import compare

        return compare(runs, out, say=say)
    from avfast.engine.pipelines import pipeline_report

    folder = runs[0]
    if (rebuild_all := pipeline_report(folder)) is not None:
        return rebuild_all(folder, *target(folder, out), say=say)
    run, report = rebuild(folder, out)
    for line in closing_lines(run, report):
        say(line)
    return 1 if run.problems else 0


def rebuild(folder: Path, out: Path | None = None) -> tuple[RunSummary, Path]:
    """Read a run, draw its pictures again and write its report.

    A run of a version that kept less has a report that says more than can be told again: it stays, and the new one goes
    into the folder ``rebuilt`` of the run.

    Returns:
        The run, and the path of its report.
    """
    run = read_run(folder)
    base, name = target(folder, out)
    if not run.complete and out is None and (folder / REPORT).is_file():
        base = folder / AGAIN
        run.notes.append(f"'{REPORT}' of the version that ran it says more; it was left as it is")
    with writing(base):
        draw_pictures(run, base)
        return run, write_report(run, base / name)


@contextmanager
def writing(base: Path) -> Iterator[None]:
    """A place that cannot be written is named, with the way out."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write to '{error.filename or base}': {error.strerror or error}; choose another place with --out"
        ) from error


def draw_pictures(run: RunSummary, base: Path) -> None:
    """Every picture of a run into `base`, and ``run.pictures``; one that cannot be drawn again, but lies in the run's
    folder, is shown from there if the report stands there too."""
    kept, problems = kept_drawings(run.out)
    run.problems += problems
    drawn: dict[str, Path | None] = {run.curves: figures.curves(base / CURVES, run.rows, run.control_rows, run.bounds)}
    files = {run.curves: CURVES}
    for picture in kept:
        path = drawn_again(picture, base, run.problems)
        if picture.title:
            drawn[picture.title], files[picture.title] = path, picture.file
    shown = {title: path is not None or (base / files[title]).is_file() for title, path in drawn.items()}
    run.pictures = {title: files[title] for title in drawn if shown[title]}


def drawn_again(picture: Kept, base: Path, problems: list[str]) -> Path | None:
    """Draw a kept picture under `base`; a line is added to `problems` where its values are none that can be drawn."""
    try:
        return picture.drawing.draw(base / picture.file)
    except OSError:
        raise  # the disk, not the picture
    except Exception as error:  # the file was made by something else
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problems.append(f"'{picture.file}' cannot be drawn from what is kept of it ({reason})")
        return None


def target(folder: Path, out: Path | None) -> tuple[Path, str]:
    """Folder and name of a report."""
    if out is None:
        return folder, REPORT
    if out.suffix == ".md" and not out.is_dir():
        return out.parent, out.name
    if out.is_file():
        raise ConfigError(f"--out: expected a folder or a file ending in .md, got the file '{out}'")
    return out, REPORT
