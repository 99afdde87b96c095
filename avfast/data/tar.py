"""What a tar file holds and where, read strictly and without unpacking anything.

Python's `tarfile` is made to get as much as it can out of an archive: it ends at a damaged header as if the archive
ended there, follows a negative size backwards, and reads whatever length a header claims into memory. A training set
must not shrink in silence, so this reader says what is wrong and where, and it is quicker. Formats: ustar, pax and GNU,
without compression.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from avfast.data.lists import leaves, shown

BLOCK = 512
EXTRA = 1 << 16  # bytes of a long name or of pax records; nothing honest needs more
KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
    b"S": "a sparse file", b"M": "a part of a file", b"V": "a volume label", b"D": "a directory dump",
}  # fmt: skip


class HostileTar(Exception):
    """A member of a kind or name that training data have no use for."""


class DamagedTar(Exception):
    """From here on nothing can be read; members before are good."""


@dataclass(frozen=True)
class TarMember:
    """A regular file: its name, and ``size`` bytes from byte ``offset`` on."""

    name: str
    offset: int
    size: int


def tar_members(path: Path) -> Iterator[TarMember]:
    """The regular files of a tar file, in order. Directories are passed over.

    Raises:
        HostileTar: an absolute name or one with ``..``; a link, device, pipe or sparse file.
        DamagedTar: a header or length that cannot be, no end mark, or something behind it.
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=1 << 16) as file:
        end = os.fstat(file.fileno()).st_size
        place, extra = 0, {}
        while True:
            file.seek(place)
            header = file.read(BLOCK)
            if len(header) < BLOCK:
                raise DamagedTar(f"ends at byte {end} without an end mark; it was cut off, or is no tar file")
            if not any(header):
                return _check_rest(file, place)
            kind, size = header[156:157], _size(header, place)
            start = place + BLOCK
            place = start + (size + BLOCK - 1) // BLOCK * BLOCK
            if kind in (b"L", b"K", b"x", b"g"):
                if size > EXTRA or start + size > end:
                    raise DamagedTar(f"has {size} bytes of names at byte {start - BLOCK}, expected at most {EXTRA}")
                extra |= _extra(kind, file.read(size), start - BLOCK)
                continue
            name = extra.get("path") or _name(header)
            if "size" in extra:
                size = extra["size"]
                place = start + (size + BLOCK - 1) // BLOCK * BLOCK
            extra = {}
            if kind in KINDS:
                raise HostileTar(f"holds {KINDS[kind]}: '{shown(name)}'")
            if kind not in (b"0", b"\0", b"7", b"5"):
                raise HostileTar(f"holds a member of the unknown type {kind!r}: '{shown(name)}'")
            if leaves(name):
                raise HostileTar(f"holds the name '{shown(name)}', which leaves the archive")
            if kind == b"5" or name.endswith("/"):
                continue
            if start + size > end:
                raise DamagedTar(f"holds '{shown(name)}' of {size} bytes from byte {start} on, and ends at byte {end}")
            yield TarMember(name.removeprefix("./"), start, size)


def _size(header: bytes, place: int) -> int:
    """The length field, once the sum over the header is right."""
    stored = header[148:156].split(b"\0")[0].strip()
    unsigned = sum(header[:148]) + sum(header[156:]) + 8 * 0x20
    if not stored or not _is_octal(stored) or int(stored, 8) != unsigned:
        raise DamagedTar(f"has a damaged header at byte {place}")
    field = header[124:136]
    if field[0] & 0x80:  # GNU's way to write large numbers; a first byte of 255 means a negative one
        if field[0] != 0x80:
            raise DamagedTar(f"has a negative length at byte {place}")
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if digits and not _is_octal(digits):
        raise DamagedTar(f"has a length that is no number at byte {place}")
    return int(digits or b"0", 8)


def _is_octal(digits: bytes) -> bool:
    return all(0x30 <= digit <= 0x37 for digit in digits)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return os.fsdecode(name)


def _extra(kind: bytes, data: bytes, place: int) -> dict:
    """What a header of names says of the member after it."""
    if kind == b"K":
        return {}  # the target of a link, and links are refused
    if kind == b"L":
        return {"path": os.fsdecode(data.split(b"\0")[0])}
    found: dict = {}
    while data and data[0]:
        digits, _, _ = data[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not length or length > len(data) or record[-1:] != b"\n":
            raise DamagedTar(f"has damaged pax records at byte {place}")
        data = data[length:]
        if key.startswith(b"GNU.sparse"):
            raise HostileTar("holds a sparse file")
        if kind == b"x" and key == b"path":
            found["path"] = value.split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif kind == b"x" and key == b"size":
            if not value.isdigit() or len(value) > 20:
                raise DamagedTar(f"has a length that is no number at byte {place}")
            found["size"] = int(value)
    return found


def _check_rest(file: io.BufferedReader, place: int) -> None:
    """Behind the end mark there may be padding, and nothing else: what is there would be lost in silence."""
    file.seek(place)
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            raise DamagedTar(f"goes on behind its end mark at byte {place}; archives glued together are read to there")
