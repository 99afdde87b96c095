"""Facts about files that are slow to find, remembered by path, size and modification time."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

NAME = ".avfast-cache.json"


class FileCache:
    """A JSON file beside the data (in the user's cache folder if that is not writable).

    An entry holds as long as the file keeps its size and modification time. A damaged cache is an empty one,
    and a cache that cannot be written costs time and nothing else.
    """

    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.kind = root, kind
        self._path = root / NAME if os.access(root, os.W_OK) else _user_cache(root)
        self._all: dict[str, Any] = {}
        try:
            loaded = json.loads(self._path.read_text())
            self._all = loaded if isinstance(loaded, dict) else {}
        except (OSError, ValueError):
            pass
        entries = self._all.get(kind)
        self._entries: dict[str, Any] = entries if isinstance(entries, dict) else {}
        self._changed = False

    def get(self, path: Path) -> Any:
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
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=NAME)
            with os.fdopen(handle, "w") as file:
                json.dump(self._all | {self.kind: self._entries}, file)
            os.replace(name, self._path)
            self._changed = False
        except OSError:
            pass

    def _key(self, path: Path) -> str:
        return os.path.relpath(path, self.root)


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _user_cache(root: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "avfast" / (str(root.resolve()).strip("/").replace("/", "_") + ".json")
