"""What the files that a configuration names hold, so that a moved run folder is not a changed configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avfast.data.identity import file_sha256


def content_hashes(config: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by key for every value of the method's section that is the path of a file or folder.

    Args:
        config: flat, as :meth:`TrainConfig.to_dict` gives it.

    >>> content_hashes({"method.audio": "resnet-tiny", "run.steps": 3})
    {}
    """
    texts = {k: v for k, v in config.items() if k.startswith("method.") and isinstance(v, str) and v}
    return {key: content_hash(Path(text)) for key, text in texts.items() if Path(text).exists()}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder with their names; hidden ones do not count."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(p for p in path.rglob("[!.]*") if p.is_file())
    lines = [f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
