"""A checksum of the whole file, inside the file.

``torch.save`` writes a zip archive whose checksums cover the tensors, but neither the headers nor the padding between
them. The seal is the SHA-256 of everything before it, kept in the comment that ends a zip archive, so that the file
stays one file (one rename puts both in place) and ``torch.load`` reads it as before.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

MARK = b"avfast-sha256:"
DIGEST = 32
END = b"PK\x05\x06"
"""How the last record of a zip archive begins; without a comment, 22 bytes that end in a length of 0."""


def add_seal(path: Path) -> None:
    """Seal the zip archive at `path`, which has no comment.

    Raises:
        ValueError: no such archive.
    """
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 22))
        end = file.read(22)
        if not end.startswith(END) or end[20:] != b"\0\0":
            raise ValueError(f"{path}: expected a zip archive without a comment")
        file.seek(size - 2)
        file.write((len(MARK) + DIGEST).to_bytes(2, "little") + MARK)
        file.flush()
        digest = _digest(file, size + len(MARK))
        file.seek(size + len(MARK))
        file.write(digest)


def check_seal(path: Path) -> bool | None:
    """Whether the file is as it was sealed; None where there is no seal, or none that can be told from other bytes.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = size - DIGEST - len(MARK)
        if start < 0:
            return None
        file.seek(start)
        if file.read(len(MARK)) != MARK:
            return None
        kept = file.read(DIGEST)
        return _digest(file, size - DIGEST) == kept


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first `size` bytes."""
    file.seek(0)
    digest, left = hashlib.sha256(), size
    while left and (part := file.read(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    return digest.digest()
