"""A file inside a file: what a media reader is given for a record of a shard."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from avfast.errors import UnreadableFile


@dataclass(frozen=True)
class Member:
    """``size`` bytes of the file ``shard`` from byte ``offset`` on, called ``name``.

    It answers what readers ask of a path: ``name``, ``stem``, ``suffix``, ``str``. ``stamp`` is ``(size, mtime_ns)`` of
    the shard when it was indexed.
    """

    shard: Path
    member: str
    offset: int
    size: int
    stamp: tuple[int, int] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.member).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.member).suffix

    def __str__(self) -> str:
        return f"{self.shard}/{self.member}"

    def open(self) -> MemberFile:
        """The bytes as a raw, seekable, read-only file.

        Raises:
            UnreadableFile: the shard is gone (cause ``missing``) or is another one than was indexed (``changed``).
        """
        try:
            handle = os.open(self.shard, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UnreadableFile(self, "missing", f"cannot be opened ({error.strerror})") from error
        status = os.fstat(handle)
        if self.stamp is not None and (status.st_size, status.st_mtime_ns) != tuple(self.stamp):
            os.close(handle)
            raise UnreadableFile(self, "changed", "lies in a shard that was changed since it was indexed")
        return MemberFile(handle, self)


class MemberFile(io.RawIOBase):
    """Reads a :class:`Member` by position: no state is shared with other readers of the shard."""

    def __init__(self, handle: int, member: Member) -> None:
        super().__init__()
        self._handle, self._member, self._place = handle, member, 0
        self.name = str(member)  # decoders look at the ending

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = max(min(len(buffer), self._member.size - self._place), 0)
        found = os.pread(self._handle, count, self._member.offset + self._place) if count else b""
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._member.size}
        if whence not in start:
            raise ValueError(f"avfast.data.MemberFile.seek: whence: expected 0, 1 or 2, got {whence}")
        place = start[whence] + offset
        if place < 0:
            raise OSError(22, "negative seek position")
        self._place = place
        return place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


@contextmanager
def opened(path: str | Path | Member) -> Iterator[io.BufferedIOBase]:
    """A file or a member of a shard, open for reading."""
    file = io.BufferedReader(path.open()) if isinstance(path, Member) else Path(path).open("rb")
    with file:
        yield file
