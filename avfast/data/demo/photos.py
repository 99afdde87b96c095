"""Where the pictures of the demonstration set come from: the user's folder or the photographs here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avfast.data.converters import require_av
from avfast.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "photos"
# Crops are never smaller than the clips' pictures at this short side, so that zooming shows detail and no
# blur.
SHORT_SIDE = 200


@dataclass(frozen=True)
class Photo:
    """``image`` float32 ``[3, H, W]`` in [0, 255] with a short side of 200 pixels, and where it is from."""

    name: str
    image: Tensor
    title: str
    licence: str
    author: str
    source: str


def choose_photos(count: int, folder: str | Path | None = None) -> list[Photo]:
    """``count`` photographs: the user's if a folder is given, else those shipped with avfast.

    Raises:
        DataError: the folder has fewer than ``count`` readable pictures.
    """
    photos = shipped_photos() if folder is None else folder_photos(Path(folder))
    if len(photos) < count:
        raise DataError(f"{folder or SHIPPED}: {count} pictures are needed, {len(photos)} can be read")
    return photos[:count]


def shipped_photos() -> list[Photo]:
    """The sixteen public-domain and CC0 pictures of ``avfast/data/assets`` (see LICENSES.md there)."""
    rows = json.loads((SHIPPED / "photos.json").read_text())["photos"]
    return [
        Photo(
            Path(r["file"]).stem,
            read_photo(SHIPPED / r["file"]),
            r["title"],
            r["licence"],
            r["author"],
            r["source"],
        )
        for r in rows
    ]


def folder_photos(folder: Path) -> list[Photo]:
    """All readable pictures below a folder, in a fixed order."""
    photos = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()):
        try:
            image = read_photo(path)
        except DataError:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix().replace("/", "-")
        photos.append(Photo(name, image, path.name, "as given by the user", "user", str(path)))
    return photos


def read_photo(path: Path) -> Tensor:
    """Read a picture with PyAV and bring its short side to 200 pixels.

    Raises:
        DataError: it cannot be read.
    """
    av = require_av()
    try:
        with av.open(str(path)) as container:
            rgb = next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError, OSError, StopIteration, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error})") from error
    image = torch.from_numpy(rgb).permute(2, 0, 1).float()
    scale = SHORT_SIDE / min(image.shape[1:])
    size = [round(side * scale) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 255)
