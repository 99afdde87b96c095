"""Facts about files that are slow to find, remembered by path, size and modification time."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from avfast.data.index_files import user_folder
from avfast.data.members import Member
from avfast.data.replacing import clear_half_written, replacing

NAME = ".avfast-cache.json"


class FileCache:
    """A JSON file beside the data (in the user's cache folder if that is not writable).

    An entry holds as long as the file keeps its size and modification time. A damaged cache is an empty one,
    and a cache that cannot be written costs time and nothing else. It may have come with the data: what :meth:`get`
    gives is to be checked like any input.
    """

    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.kind = root, kind
        self._path = root / NAME if os.access(root, os.W_OK) else user_folder(root) / NAME
        self._all: dict[str, Any] = {}
        clear_half_written(self._path.parent, re.escape(NAME))
        try:
            loaded = json.loads(self._path.read_text())
            self._all = loaded if isinstance(loaded, dict) else {}
        except (OSError, ValueError, RecursionError):
            pass
        entries = self._all.get(kind)
        self._entries: dict[str, Any] = entries if isinstance(entries, dict) else {}
        self._changed = False

    def get(self, path: Path | Member) -> Any:
        """What was remembered of the file, or None."""
        entry = self._entries.get(self._key(path))
        stamp = _stamp(path)
        return entry[1] if stamp and isinstance(entry, list) and len(entry) == 2 and entry[0] == stamp else None

    def put(self, path: Path, value: Any) -> None:
        if stamp := _stamp(path):
            self._entries[self._key(path)] = [stamp, value]
            self._changed = True

    def save(self) -> None:
        if not self._changed:
            return
        try:
            with replacing(self._path, NAME) as file:
                file.write(json.dumps(self._all | {self.kind: self._entries}).encode())
            self._changed = False
        except OSError:
            pass

    def _key(self, path: Path | Member) -> str:
        return os.path.relpath(str(path), self.root)


def _stamp(path: Path | Member) -> list[int] | None:
    """Size and time; of a member of a shard its own place and size, and the shard's time."""
    inside = isinstance(path, Member)
    try:
        status = os.stat(path.shard if inside else path)
    except OSError:
        return None
    return [*([path.offset, path.size] if inside else [status.st_size]), status.st_mtime_ns]
