"""What a record is known by: its content, whatever its name and place.

The id decides splits, augmentation, confidences and the fingerprint of a data set. For a file of up to 1 MiB it is the
SHA-256 of its bytes. Of a larger one only the length, the first and the last 64 KiB are hashed: reading terabytes to
give them names would take hours. Two large files of one length with the same beginning and end count as one clip; a
byte that is changed in the middle of a large file changes nothing here. Where a file lies (alone, or in a shard) makes
no difference.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from avfast.errors import DataError

WHOLE = 1 << 20
EDGE = 1 << 16
ID_BYTES = 32
MARK = b"avfast edges 1"
BLOCK = 128  # files that a thread takes at a time
THREADS = 4  # reading and hashing leave the interpreter lock; more threads than cores hide the latency of a disk


def region_digest(handle: int, offset: int, size: int) -> bytes:
    """The 32 bytes of the id of ``size`` bytes from ``offset`` on in an open file."""
    if size <= WHOLE:
        return hashlib.sha256(_read(handle, offset, size)).digest()
    ends = _read(handle, offset, EDGE) + _read(handle, offset + size - EDGE, EDGE)
    return hashlib.sha256(MARK + size.to_bytes(8, "little") + ends).digest()


def content_digest(path: str | Path) -> bytes:
    """The 32 bytes of the id of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(handle).st_size
            if not size:
                os.pread(handle, 1, 0)  # an empty file can be read; what only says that it is empty may not
            return region_digest(handle, 0, size)
        finally:
            os.close(handle)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def content_id(path: str | Path) -> str:
    """The id of a file, in hex; of a file of up to 1 MiB, its SHA-256."""
    return content_digest(path).hex()


def content_digests(
    paths: Sequence[str], into: np.ndarray, rows: np.ndarray, progress: Callable[[int, int], None]
) -> None:
    """Ids of many files: ``into[rows[i]]`` (uint8 ``[N, 32]``) becomes that of ``paths[i]``, in threads.

    What was done when an error or Ctrl-C ends it stays done.
    """

    def block(start: int) -> int:
        for path, row in zip(paths[start : start + BLOCK], rows[start : start + BLOCK], strict=True):
            into[row] = np.frombuffer(content_digest(path), np.uint8)
        return min(start + BLOCK, len(paths))

    pool = ThreadPoolExecutor(min(THREADS, 2 * (os.cpu_count() or 1)))
    try:
        for done in pool.map(block, range(0, len(paths), BLOCK)):
            progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of all bytes of a file, in hex.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _read(handle: int, offset: int, size: int) -> bytes:
    """So many bytes; fewer only where the file ends. One call of the system may give less than was asked for."""
    found = os.pread(handle, size, offset)
    while len(found) < size and (more := os.pread(handle, size - len(found), offset + len(found))):
        found += more
    return found
