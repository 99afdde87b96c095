"""Pictures of what a model makes of louder, quieter, mixed and edited sounds.

The manipulations are those of the project page of Sung-Bin et al., CVPR 2023. In each figure all columns share their
noise, row by row: what differs between columns comes from the sound. A figure is computed first, as a drawing that can
be kept, and drawn then; without matplotlib ``draw`` returns None.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avfast.engine.drawing import Drawing
from avfast.engine.figures import BAD, GOOD, _spectrogram, _strip, matplotlib_figure, save_figure
from avfast.engine.scene.synthesis import Synthesiser
from avfast.nn.latents import edit_latent, mix_latents

GAINS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0)


def volume_sweep(
    synthesiser: Synthesiser, waveform: Tensor, *, gains: Sequence[float] = GAINS, seed: int = 0,
    count: int = 2,
) -> Drawing:  # fmt: skip
    """One sound ``[S]`` multiplied by each gain: what the network hears, and its pictures.

    Titles give the cosine of each latent with that of the sound as it is.
    """
    waveforms = torch.tensor(gains)[:, None] * waveform
    z, as_is = synthesiser.embed(waveforms), synthesiser.embed(waveform[None])
    titles = [f"gain {g:g}, cos {c:.2f}" for g, c in zip(gains, (z @ as_is.T)[:, 0].tolist(), strict=True)]
    return _sweep(
        synthesiser, z, titles, "one sound at several volumes (above: input of the network; cos: with gain 1)",
        waveforms=waveforms, seed=seed, count=count,
    )  # fmt: skip


def mixture(
    synthesiser: Synthesiser, first: Tensor, second: Tensor, *, gains: Sequence[float] = (0.0, *GAINS),
    names: tuple[str, str] = ("first", "second"), seed: int = 0, count: int = 2,
) -> Drawing:  # fmt: skip
    """Two sounds ``[S]`` added, the second at each gain, and at last the second alone."""
    waveforms = torch.cat([first + torch.tensor(gains)[:, None] * second, second[None]])
    # Names of classes are longer than a column is wide.
    titles = ["the first" if g == 0 else f"+ {g:g} x the second" for g in gains] + ["the second"]
    return _sweep(
        synthesiser, synthesiser.embed(waveforms), titles, f"{names[0]}, and {names[1]}, in one scene",
        waveforms=waveforms, seed=seed, count=count,
    )  # fmt: skip


def image_and_sound(
    synthesiser: Synthesiser, picture: Tensor, waveform: Tensor, *, steps: int = 5, seed: int = 0,
    count: int = 2,
) -> Drawing | None:  # fmt: skip
    """From a picture's latent (uint8 ``[3, H, W]``) to a sound's (``[S]``) in steps; None too where the model answers
    the sound with zeros."""
    z_v, z_a = synthesiser.embed_pictures(picture[None]), synthesiser.embed(waveform[None])
    if not z_a.any():
        return None  # a latent of zeros is no place to go to
    shares = torch.linspace(1, 0, steps).tolist()
    z = torch.cat([mix_latents(z_v, z_a, t) for t in shares])
    titles = [f"{t:.0%} picture" for t in shares]
    title = f"from the picture on the left to the sound (cosine of their latents {(z_v * z_a).sum().item():.2f})"
    return _sweep(synthesiser, z, titles, title, picture=picture, seed=seed, count=count)


def edit_by_sound(
    synthesiser: Synthesiser, picture: Tensor, waveform: Tensor, *,
    strengths: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0), quiet: float = 0.1, loud: float = 1.0, seed: int = 0,
    count: int = 2,
) -> Drawing:  # fmt: skip
    """A picture's latent moved along what a sound's does as its gain goes from `quiet` to `loud`."""
    z_v = synthesiser.embed_pictures(picture[None])
    z_quiet, z_loud = synthesiser.embed(torch.stack([quiet * waveform, loud * waveform])).split(1)
    z = torch.cat([edit_latent(z_v, z_quiet, z_loud, s) for s in strengths])
    titles = [f"strength {s:g}" for s in strengths]
    moved = torch.linalg.vector_norm(z_loud - z_quiet).item()
    title = f"the picture on the left, moved as its sound from gain {quiet:g} to {loud:g} (that moves by {moved:.2f})"
    return _sweep(synthesiser, z, titles, title, picture=picture, seed=seed, count=count)


def scene_sheet(
    synthesiser: Synthesiser, waveforms: Tensor, frames: Tensor, names: Sequence[str], *,
    right: Sequence[bool] | None = None, seed: int = 0, count: int = 4,
) -> Drawing:  # fmt: skip
    """Test clips, one a row: spectrogram, true frame, and pictures drawn from the sound alone.

    Args:
        waveforms: ``[N, S]``.
        frames: uint8 ``[N, 3, H, W]``.
        names: what each row is called.
        right: for each row whether the pictures were judged to be of its class; green or red titles.
    """
    spectrograms = drawn_spectrograms(synthesiser, waveforms)
    pictures = synthesiser.images(synthesiser.embed(waveforms), seed=seed, count=count)
    kind = "" if right is None else " (green: judged to be of the clip's class)"
    return Drawing("sheet", {
        "spectrograms": spectrograms, "pictures": pictures.cpu(), "names": list(names), "frames": frames,
        "title": f"pictures from the sounds of test clips{kind}", "right": None if right is None else list(right),
        "duration": synthesiser.duration,
    })  # fmt: skip


def sheet(
    path: Path, spectrograms: Sequence[Tensor], pictures: Sequence[Tensor], names: Sequence[str], title: str, *,
    duration: float, frames: Tensor | None = None, right: Sequence[bool] | None = None,
) -> Path | None:  # fmt: skip
    """A row for each sound: spectrogram ``[bins, time]``, true frame uint8 ``[3, H, W]`` if given, pictures uint8
    ``[K, 3, S, S]``."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    rows, columns = len(names), 1 + (frames is not None) + len(pictures[0])
    figure = figure_class(figsize=(1.35 * columns + 1.6, 1.45 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=[1.8] + [1.0] * (columns - 1))
    for n, row in enumerate(axes):
        _spectrogram(row[0], spectrograms[n], duration, last=n == rows - 1)
        shown = list(pictures[n]) if frames is None else [frames[n], *pictures[n]]
        for axis, picture in zip(row[1:], shown, strict=True):
            axis.imshow(picture.permute(1, 2, 0).cpu().numpy())
        colour = "black" if right is None else GOOD if right[n] else BAD
        row[0].set_title(names[n], fontsize=7, color=colour, loc="left")
        if frames is not None and n == 0:
            row[1].set_title("frame of the clip", fontsize=7)
    _strip(axes[:, 1:])
    figure.suptitle(title, fontsize=9)
    return save_figure(figure, path)


def drawn_spectrograms(synthesiser: Synthesiser, waveforms: Tensor) -> Tensor:
    """What the network hears of waveforms ``[N, S]``, as figures show it: ``[N, bins, time]``."""
    heard = synthesiser.spectrogram(waveforms)[:, 0].cpu()
    return heard.mT if synthesiser.inputs.frontend_options.get("layout") == "tf" else heard


def _sweep(
    synthesiser: Synthesiser, z: Tensor, titles: Sequence[str], title: str, *, seed: int, count: int,
    waveforms: Tensor | None = None, picture: Tensor | None = None,
) -> Drawing:  # fmt: skip
    """A column for each latent; above them spectrograms of one colour scale, or left of them a picture."""
    heard = None if waveforms is None else drawn_spectrograms(synthesiser, waveforms)
    pictures = synthesiser.images(z, seed=seed, count=count).cpu()
    return Drawing("sweep", {
        "pictures": pictures, "titles": list(titles), "title": title, "heard": heard, "picture": picture,
    })  # fmt: skip


def draw_sweep(
    path: Path, pictures: Tensor, titles: list[str], title: str, heard: Tensor | None, picture: Tensor | None
) -> Path | None:
    """Pictures uint8 ``[columns, K, 3, S, S]``, spectrograms ``[columns, bins, time]`` above them or None, a picture
    uint8 ``[3, H, W]`` left of them or None."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    count, top, left = pictures.shape[1], int(heard is not None), int(picture is not None)
    columns = len(pictures) + left
    figure = figure_class(figsize=(1.5 * columns + 0.6, 1.5 * (count + top) + 0.6), layout="constrained")
    axes = figure.subplots(count + top, columns, squeeze=False)
    if heard is not None:
        low, high = heard.min().item(), heard.max().item()
        for axis, values in zip(axes[0], heard, strict=True):
            axis.imshow(values.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high)
    for row, k in zip(axes[top:], range(count), strict=True):
        for axis, drawn in zip(row[left:], pictures[:, k], strict=True):
            _show(axis, drawn)
        if picture is not None:
            row[0].axis("off")
    if picture is not None:
        _show(axes[0, 0], picture)
        axes[0, 0].set_title("picture", fontsize=7)
    for axis, words in zip(axes[0, left:], titles, strict=True):
        axis.set_title(words, fontsize=7)
    _strip(axes)
    figure.suptitle(title, fontsize=9)
    return save_figure(figure, path)


def _show(axis: Any, picture: Tensor) -> None:
    axis.imshow(picture.permute(1, 2, 0).cpu().numpy())
