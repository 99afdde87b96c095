"""What the localiser finds: maps for a picture, and scores where the place of the sound is known by construction."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avfast.engine.drawing import Drawing
from avfast.engine.figures import _strip, matplotlib_figure, save_figure
from avfast.evaluate import Score, localisation_scores
from avfast.nn.pictures import to_signed
from avfast.nn.sound_localiser import SoundLocaliser

QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Rows and columns of the pictures of a mosaic."""


def mosaics(frames: Tensor, labels: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Four pictures in one, of which one belongs to the sound of each clip; the place of that one is known.

    Args:
        frames: ``[N, 3, S, S]``, one of each clip.
        labels: int64 ``[N]``; the other three are of other classes where there are such, else of other clips.

    Returns:
        Mosaics ``[N, 3, S, S]`` and boxes float ``[N, 4]`` (left, top, right, bottom, as fractions).

    >>> pictures, boxes = mosaics(torch.zeros(4, 3, 8, 8), torch.arange(4))
    >>> pictures.shape, boxes.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4, 4]))
    """
    n, half = len(frames), frames.shape[-1] // 2
    small = F.interpolate(frames, (half, half), mode="bilinear", antialias=True)
    generator = torch.Generator().manual_seed(seed)
    made, boxes = frames.new_zeros(n, *frames.shape[1:3], frames.shape[3]), torch.zeros(n, 4)
    for i in range(n):
        others = ((labels != labels[i]) if bool((labels >= 0).all()) else torch.arange(n) != i).nonzero()[:, 0]
        others = others if len(others) >= 3 else (torch.arange(n) != i).nonzero()[:, 0]
        picks = others[torch.randperm(len(others), generator=generator)[:3]].tolist()
        own = int(torch.randint(4, (), generator=generator))
        picks.insert(own, i)
        for (row, column), pick in zip(QUARTERS, picks, strict=True):
            made[i, :, row * half : (row + 1) * half, column * half : (column + 1) * half] = small[pick]
        row, column = QUARTERS[own]
        boxes[i] = torch.tensor([column, row, column + 1, row + 1]) / 2
    return made, boxes


@torch.no_grad()
def mosaic_scores(
    localiser: SoundLocaliser, frames: Tensor, spectrograms: Tensor, labels: Tensor, *, context: str
) -> tuple[dict[str, Score], Tensor, Tensor]:
    """cIoU and its area under the curve on mosaics; also the mosaics and their heat maps, for a picture."""
    pictures, boxes = mosaics(frames, labels)
    heat = torch.cat([localiser.maps(p, s) for p, s in zip(pictures.split(16), spectrograms.split(16), strict=True)])
    # A quarter of the picture sounds, so a quarter is called sounding.
    return localisation_scores(heat, boxes, share=0.25, context=f"mosaics of four clips {context}"), pictures, heat


def localisation_figure(
    frames: Tensor, own_heat: Tensor, mosaic: Tensor, mosaic_heat: Tensor, names: list[str], *, most: int = 6
) -> Drawing:
    """Frames with their maps, and mosaics with theirs: ``[N, 3, S, S]`` normalised and ``[N, h, w]`` each."""
    return Drawing("localisation", {
        "frames": _shown(frames[:most]), "own_heat": own_heat[:most].cpu(), "mosaic": _shown(mosaic[:most]),
        "mosaic_heat": mosaic_heat[:most].cpu(), "names": names[:most],
    })  # fmt: skip


def _shown(pictures: Tensor) -> Tensor:
    return ((to_signed(pictures) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def draw_localisation(
    path: Path, frames: Tensor, own_heat: Tensor, mosaic: Tensor, mosaic_heat: Tensor, names: list[str]
) -> Path | None:
    """Pictures uint8 ``[N, 3, S, S]`` and maps ``[N, h, w]``."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    count = len(frames)
    figure = figure_class(figsize=(1.7 * count + 0.6, 7.2), layout="constrained")
    axes = figure.subplots(4, count, squeeze=False)
    for column in range(count):
        for row, (pictures, heat) in enumerate(((frames, own_heat), (mosaic, mosaic_heat))):
            shown = pictures[column].permute(1, 2, 0).numpy()
            side = shown.shape[0]
            large = F.interpolate(heat[column][None, None], (side, side), mode="bilinear")[0, 0].numpy()
            axes[2 * row, column].imshow(shown)
            axes[2 * row + 1, column].imshow(shown)
            axes[2 * row + 1, column].imshow(large, cmap="jet", alpha=0.5)
        axes[0, column].set_title(names[column], fontsize=7)
    _strip(axes)
    for row, label in enumerate(("frame", "heard where", "mosaic", "heard where")):
        axes[row, 0].set_ylabel(label, fontsize=8)
    figure.suptitle("cosine of every place with the sound (red: high); a mosaic holds the clip and three others")
    return save_figure(figure, path)
