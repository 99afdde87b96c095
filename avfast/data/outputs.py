"""Where a command may write, asked before its work begins: nobody should lose an hour to a wrong path."""

from __future__ import annotations

import os
from pathlib import Path

from avfast.errors import ConfigError


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
