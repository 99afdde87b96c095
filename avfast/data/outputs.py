"""Where a command may write, asked before its work begins: nobody should lose an hour to a wrong path."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avfast.errors import AvfastError, ConfigError, RunFault


def require_folder(path: str | Path, option: str) -> Path:
    """A folder that is there or could be made; nothing is written.

    Raises:
        ConfigError: a file is in the way, or the place is read-only.
    """
    path = Path(path)
    nearest = next(p for p in [path, *path.absolute().parents] if p.exists() or p.is_symlink())
    if not nearest.is_dir():
        raise ConfigError(f"{option}: cannot write to '{path}': '{nearest}' is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}: cannot write to '{path}': '{nearest}' is read-only")
    return path


def prepare_file(path: str | Path | None, option: str) -> Path | None:
    """Make the folder of a file that a command will write at its end; None stays None.

    Raises:
        ConfigError: it could not be written.
    """
    if path is None:
        return None
    path = Path(path)
    require_folder(path.parent, option)
    if path.is_dir():
        raise ConfigError(f"{option}: cannot write to '{path}': it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option}: cannot write to '{path}': {error.strerror}") from error
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes `path`: where the disk does not take it, the error names the file.

    Raises:
        RunFault: no space, no quota, a limit on the size of files, an input/output error.
    """
    try:
        yield
    except AvfastError:
        raise
    except Exception as error:
        if (why := _refused(error, path)) is None:
            raise
        raise RunFault(f"cannot write '{path}': {why}") from error


def _refused(error: Exception, path: Path) -> str | None:
    """What the disk said; None for an error that is about something else."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error).__name__ == "SafetensorError":
        return str(error).split("I/O error: ")[-1]
    if isinstance(error, RuntimeError) and re.search("inline_container|PytorchStreamWriter", str(error)):
        # torch.save notices that less was written than it meant to, and does not say why.
        full = shutil.disk_usage(path.parent).free < 1 << 20
        return os.strerror(errno.ENOSPC) if full else "it was cut short (a full disk, a quota, a limit on file sizes)"
    return None
