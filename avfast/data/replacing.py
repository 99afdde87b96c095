"""Files that are kept beside the data: replaced whole or not at all, though others may write there at the same time.

A writer holds a lock on its half-written file for as long as it lives. One without a lock belongs to a process that was
killed, and the next one that reads or writes there removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

RANDOM = "[a-z0-9_]{8}"  # what tempfile adds to a name


@contextmanager
def replacing(path: Path, prefix: str) -> Iterator[IO[bytes]]:
    """A file to write that becomes `path` when the block ends, and nothing when it is left by an error.

    Args:
        prefix: of the name that it has until then, in the same folder.

    Raises:
        OSError: the disk did not take it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    try:
        with os.fdopen(handle, "wb") as file:
            with suppress(OSError):  # no locks on this file system
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.replace(name, path)  # a file that was taken for a dead writer's is gone, which is an OSError
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def clear_half_written(folder: Path, prefix: str) -> None:
    """Remove what killed writers left in `folder`: files whose names begin with `prefix`, a regular expression, and end
    as :mod:`tempfile` ends them. Those that somebody is writing stay, and so do all where the file system has no locks.
    """
    ours = re.compile(prefix + RANDOM)
    try:
        names = [name for name in os.listdir(folder) if ours.fullmatch(name)]
    except OSError:
        return
    for name in names:
        with suppress(OSError), open(folder / name, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(folder / name)
