"""Pictures that can be drawn again: each keeps what it was drawn from, in one small file of arrays."""

from __future__ import annotations

import importlib
import json
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avfast.engine.checkpoint import write_atomic
from avfast.errors import UnreadableFile

DRAWERS = {
    "similarity": "avfast.engine.figures:draw_similarity",
    "retrieved": "avfast.engine.figures:draw_retrieved",
    "contact_sheet": "avfast.engine.figures:draw_contact_sheet",
    "correspondences": "avfast.engine.figures_images:draw_correspondences",
    "correlation_maps": "avfast.engine.figures_maps:draw_correlation_maps",
    "batch_norms": "avfast.engine.dead_channels:draw_batch_norms",
    "sheet": "avfast.engine.scene.manipulation:sheet",
    "sweep": "avfast.engine.scene.manipulation:draw_sweep",
    "localisation": "avfast.engine.scene.localise:draw_localisation",
}
"""What draws each kind of picture, ``module:function``; a file can name no other code. A function takes the path and
the values of the drawing, and returns the path, or None without matplotlib."""
MOST_BYTES = 1 << 28
"""Unpacked, of one picture's file."""
FOLDER = Path("figures") / "data"


@dataclass(frozen=True)
class Drawing:
    """A picture before it is drawn: its kind, and by name what it is drawn from.

    Attributes:
        kind: a key of :data:`DRAWERS`.
        values: keyword arguments of the drawer: tensors, and what JSON can hold.
    """

    kind: str
    values: dict[str, Any]

    def draw(self, path: Path) -> Path | None:
        """Write the picture; None where matplotlib is absent."""
        module, name = DRAWERS[self.kind].split(":")
        return getattr(importlib.import_module(module), name)(path, **self.values)


@dataclass(frozen=True)
class Kept:
    """A drawing as a run keeps it.

    Attributes:
        title: in the report; "" for a picture that a section of the report shows itself.
        file: of the picture, relative to the run's folder.
        place: its number among the pictures of the report.
    """

    drawing: Drawing
    title: str
    file: str
    place: int

    def write(self, path: Path) -> None:
        tensors = {k: v for k, v in self.drawing.values.items() if isinstance(v, Tensor)}
        facts = {
            "kind": self.drawing.kind, "title": self.title, "file": self.file, "place": self.place,
            "values": {k: v for k, v in self.drawing.values.items() if k not in tensors},
        }  # fmt: skip
        arrays = {f"value_{name}": tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

        def save(temporary: Path) -> None:
            with open(temporary, "wb") as handle:
                np.savez_compressed(handle, facts=np.array(json.dumps(facts)), **arrays)

        write_atomic(path, save)

    @classmethod
    def read(cls, path: Path) -> Kept:
        """Read what :meth:`write` wrote, running no code from it.

        Raises:
            UnreadableFile: it is damaged, larger than :data:`MOST_BYTES`, or something else.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                    raise ValueError(f"holds more than {MOST_BYTES >> 20} MiB")
            with np.load(path, allow_pickle=False) as stored:
                facts = json.loads(str(stored["facts"]))
                arrays = {n.removeprefix("value_"): stored[n] for n in stored.files if n.startswith("value_")}
            kind, title, file, place = (facts[name] for name in ("kind", "title", "file", "place"))
            inside = isinstance(file, str) and not Path(file).is_absolute() and ".." not in Path(file).parts
            if kind not in DRAWERS or not isinstance(title, str) or not isinstance(place, int) or not inside:
                raise ValueError("holds something else")
            values = {**facts["values"], **{name: torch.from_numpy(array) for name, array in arrays.items()}}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UnreadableFile(path, "damaged", f"is damaged ({str(error) or type(error).__name__})") from error
        return cls(Drawing(kind, values), title, file, place)


class Album:
    """The pictures of a run: each is drawn, and what it was drawn from is kept under ``figures/data``.

    Args:
        out: the run's folder; what an earlier run kept there is removed.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.pictures: dict[str, Path] = {}
        self._count = 0
        shutil.rmtree(out / FOLDER, ignore_errors=True)

    def add(self, title: str, file: str, drawing: Drawing | None) -> Path | None:
        """Keep and draw ``out/file``; nothing for None. Returns the path where it could be drawn."""
        if drawing is None:
            return None
        self._count += 1
        Kept(drawing, title, file, self._count).write(self.out / FOLDER / f"{Path(file).stem}.npz")
        path = drawing.draw(self.out / file)
        if path is not None and title:
            self.pictures[title] = path
        return path


def kept_drawings(run: Path) -> tuple[list[Kept], list[str]]:
    """What a run kept, in the order of its report, and a line for each file that cannot be read."""
    found, problems = [], []
    for path in sorted((run / FOLDER).glob("*.npz")):
        try:
            found.append(Kept.read(path))
        except UnreadableFile as error:
            problems.append(str(error))
    return sorted(found, key=lambda kept: kept.place), problems
