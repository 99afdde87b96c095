"""The folder that ``avfast generate`` writes: pictures, their list, and one sheet of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from avfast.data.outputs import require_folder
from avfast.engine.checkpoint import write_atomic
from avfast.engine.scene.manipulation import sheet
from avfast.errors import ConfigError, MissingDependency

LIST, SHEET = "generated.json", "contact_sheet.png"
WRITER, VERSION = "avfast generate", 1
SHEET_ROWS, SHEET_PICTURES = 24, 8


class GeneratedFolder:
    """A folder of pictures that is new, empty, or was written by this class before.

    Pictures of an earlier call are removed when the first new one comes, and nothing else is. The list is written
    after every sound, so that whatever ends the command, the pictures that are there are known.

    Args:
        path: the folder; made with the first picture.
        facts: what the list says beside the pictures.

    Raises:
        ConfigError: the folder cannot be written, or holds files of something else.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = require_folder(path, "--out")
        self._facts = {"generator": WRITER, "version": VERSION, **facts}
        self._earlier = _earlier(path)
        self._rows: list[tuple[str, Tensor, Tensor]] = []
        self.sounds: list[dict[str, Any]] = []

    def add(self, name: str, pictures: Tensor, spectrogram: Tensor, entry: dict[str, Any]) -> list[str]:
        """Write pictures uint8 ``[K, 3, S, S]`` as ``name_0.png`` and on; returns the names of the files.

        Args:
            spectrogram: ``[bins, time]``, for the sheet.
            entry: what the list says of the sound.
        """
        image = _pillow()
        if not self.sounds:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self._earlier:
                (self.path / file).unlink(missing_ok=True)
        names = [f"{name}_{k}.png" for k in range(len(pictures))]
        self.sounds.append({"name": name, **entry, "pictures": names})
        self._save_list([])
        for file, picture in zip(names, pictures, strict=True):
            image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(self.path / file)
        if len(self._rows) < SHEET_ROWS:
            self._rows.append((name, spectrogram, pictures[:SHEET_PICTURES]))
        return names

    def finish(self, failed: list[dict[str, str]], *, duration: float, title: str) -> Path | None:
        """Write the final list, and the sheet where matplotlib is installed; returns the path of the sheet."""
        self._save_list(failed)
        names, spectrograms, pictures = zip(*self._rows, strict=True)
        if len(self.sounds) > len(self._rows):
            title = f"{title}; the first {len(self._rows)} of {len(self.sounds)} sounds"
        return sheet(self.path / SHEET, spectrograms, pictures, names, title, duration=duration)

    def _save_list(self, failed: list[dict[str, str]]) -> None:
        text = json.dumps({**self._facts, "sounds": self.sounds, "failed": failed}, indent=1) + "\n"
        write_atomic(self.path / LIST, lambda path: path.write_text(text))


def _earlier(folder: Path) -> list[str]:
    """Names of the files that an earlier call left in the folder."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    try:
        known = json.loads((folder / LIST).read_text())
        if known["generator"] != WRITER:
            raise ValueError("written by something else")
        names = [name for sound in known["sounds"] for name in sound["pictures"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--out: '{folder}' holds files that {WRITER} did not write (no {LIST} of its own); choose another folder"
        ) from error
    # A list that someone edited must not lead to files elsewhere.
    return [SHEET, *(n for n in names if isinstance(n, str) and Path(n).name == n and n.endswith(".png"))]


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingDependency("pillow", extra="train", purpose="writing pictures") from error
    return PIL.Image
