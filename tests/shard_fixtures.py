"""Tar files for the tests of shards, honest ones and others."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path


def tar(path: Path, *members, format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file of ``(name, bytes)`` pairs and of ready ``TarInfo`` objects, which have no content."""
    with tarfile.open(path, "w", format=format) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                name, data = member
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is not a file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def sample(stem: str, ending: str = "mp4", **facts):
    """The files of one sample; a source never opens them as media, so any bytes do."""
    return (f"{stem}.{ending}", f"clip {stem}".encode()), (f"{stem}.json", json.dumps(facts).encode())
