"""Pictures of a run. matplotlib is optional: every function returns None, and the report says so, where it
is absent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from avfast.data.media import frame_times
from avfast.engine.validate import RECALL

GOOD, BAD = "#2a7f3f", "#b03030"
MOST_TICKS = 40
WATCHED = ("queue_fill", "pos_sim", "neg_sim", "dense_pos_sim", "dense_neg_sim", "match_agreement")
"""Metrics of momentum contrast that explain its loss, drawn where a method logs them."""
WATCHED_MAPS = ("map_iou", "prior_iou", "map_accuracy", "background_accuracy")
"""The same of maps."""


def matplotlib_figure() -> type | None:
    """The Figure class, which needs no display and no global state, or None."""
    try:
        from matplotlib.figure import Figure
    except (ImportError, RuntimeError, OSError):
        return None
    return Figure


def curves(
    path: Path, main: list[dict[str, Any]], control: list[dict[str, Any]], bounds: dict[str, float]
) -> Path | None:
    """Loss, validation R@1 beside chance and control, effective rank, and data against compute time over steps."""
    if (figure_class := matplotlib_figure()) is None or not main:
        return None
    figure = figure_class(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    train = [row for row in main if row["kind"] == "train"]
    val = [row for row in main if row["kind"] == "val"]
    loss, recall, rank, times = axes.flat
    shuffled = {kind: [row for row in control if row["kind"] == kind] for kind in ("train", "val")}
    loss.plot(*_series(train, "loss"), label="training")
    loss.plot(*_series(val, "loss"), label="validation", marker="o", ms=3)
    loss.plot(*_series(shuffled["train"], "loss"), label="training, shuffled pairs", ls=":", color="C2")
    loss.plot(*_series(shuffled["val"], "loss"), label="validation after shuffled pairs", ls=":", color="C3")
    for name, value in bounds.items():
        loss.axhline(value, lw=0.8, ls="--", color="grey")
        loss.annotate(f"{name} {value:.2f}", (0.01, value), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
    loss.margins(y=0.1)
    loss.set(title="loss", ylabel="nats")
    if watched := [key for key in WATCHED + WATCHED_MAPS if train and key in train[-1]]:
        for key in watched:
            recall.plot(*_series(train, key), label=key.replace("_", " "))
        low = min(0.0, *(value for key in watched for value in _series(train, key)[1]))
        # A third of the height more, for the legend.
        recall.set_ylim(low - 0.35 * (1.05 - low), 1.05)
        recall.set(title="what explains the loss, training", ylabel="cosine, or share")
        recall.legend(fontsize=8, ncols=3, loc="lower center")
    elif accuracies := [key for key in val[-1] if key.startswith("accuracy_")] if val else []:
        for i, key in enumerate(accuracies):
            recall.plot(*_series(val, key), marker="o", ms=3, color=f"C{i}", label=key.removeprefix("accuracy_"))
            recall.plot(*_series(shuffled["val"], key), ls=":", color=f"C{i}")
        if "chance" in bounds:
            recall.axhline(math.exp(-bounds["chance"]), lw=0.8, ls="--", color="grey", label="chance")
        recall.set(
            title="accuracy, validation (dotted: after shuffled labels)", ylabel="share of clips", ylim=(-0.05, 1.05)
        )
    else:
        recall.plot(*_series(val, RECALL), marker="o", ms=3, label="trained on true pairs")
        recall.plot(*_series(shuffled["val"], RECALL), marker="o", ms=3, ls=":", label="trained on shuffled pairs")
        recall.plot(*_series(val, f"{RECALL} chance"), lw=0.8, ls="--", color="grey", label="chance")
        recall.set(title="audio to video R@1, instance-level, validation", ylabel="share of clips", ylim=(-0.05, 1.05))
    for name in train[-1]["collapse"] if train else ():
        rank.plot([r["step"] for r in train], [r["collapse"][name]["effective_rank"] for r in train], label=name)
    rank.set_ylim(bottom=0)
    rank.set(title="effective rank of a batch (1 = collapse)", ylabel="dimensions")
    parts = [[r[key] * 1e3 for r in train] for key in ("data_s", "compute_s")]
    times.stackplot([r["step"] for r in train], parts, labels=["waiting for data", "compute"])
    times.set(title="time per step", ylabel="milliseconds")
    for axis in axes.flat:
        if axis.get_legend() is None and axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return _save(figure, path)


def similarity(path: Path, audio: Tensor, video: Tensor, labels: Tensor, names: Sequence[str]) -> Path | None:
    """Cosine similarity of every sound (rows) with every picture (columns), ``[N, D]`` each, sorted by
    label."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    order = torch.argsort(labels, stable=True)
    matrix = normalize(audio[order], dim=1) @ normalize(video[order], dim=1).T
    figure = figure_class(figsize=(7.0, 5.2), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(image, ax=axis, label="cosine similarity")
    axis.set_title("sounds (rows) and pictures (columns) of the test clips, sorted by class", fontsize=10)
    axis.set_xlabel("test clip")
    ranked = labels[order]
    if len(ranked) and ranked[0] >= 0 and len(ranked.unique()) <= MOST_TICKS:
        middles = [(ranked == label).nonzero().double().mean().item() for label in ranked.unique()]
        axis.set_yticks(middles, [_name(label, names) for label in ranked.unique()], fontsize=6)
    return _save(figure, path)


def retrieved(
    path: Path,
    audio: Tensor,
    video: Tensor,
    labels: Tensor,
    frames: Tensor,
    spectrograms: Tensor,
    names: Sequence[str],
    *,
    duration: float,
    queries: int = 6,
    top: int = 3,
) -> Path | None:
    """For some sounds, the spectrogram and the frames the model puts closest; the colour says whether the
    class agrees.

    Args:
        audio, video: embeddings ``[N, D]``.
        labels: ``[N]``, -1 where unknown (then the clip itself counts as right).
        frames: one frame per clip, uint8 ``[N, 3, H, W]``.
        spectrograms: ``[N, bins, time]``.
        names: class names.
        duration: seconds of a clip.
    """
    if (figure_class := matplotlib_figure()) is None:
        return None
    scores = normalize(audio, dim=1) @ normalize(video, dim=1).T
    picks = _spread(len(audio), queries)
    figure = figure_class(figsize=(2.3 * (top + 1), 1.9 * len(picks)), layout="constrained")
    axes = figure.subplots(len(picks), top + 1, squeeze=False)
    for place, (row, query) in enumerate(zip(axes, picks, strict=True)):
        _spectrogram(row[0], spectrograms[query], duration, last=place == len(picks) - 1)
        row[0].set_title(f"sound: {_name(labels[query], names)}", fontsize=7)
        for rank, (axis, found) in enumerate(zip(row[1:], scores[query].topk(top).indices.tolist(), strict=True), 1):
            right = found == query if labels[query] < 0 else bool(labels[found] == labels[query])
            axis.imshow(frames[found].permute(1, 2, 0).numpy())
            axis.set_title(f"{rank}. {_name(labels[found], names)}", fontsize=7, color=GOOD if right else BAD)
    _strip(axes[:, 1:])
    kind = "same class" if bool((labels >= 0).all()) else "the clip itself"
    figure.suptitle(f"sounds, and the nearest pictures among {len(audio)} test clips (green: {kind})", fontsize=9)
    return _save(figure, path)


def contact_sheet(
    path: Path,
    frames: Tensor,
    spectrograms: Tensor,
    labels: Tensor,
    names: Sequence[str],
    *,
    duration: float,
    clips: int = 8,
) -> Path | None:
    """What the model sees and hears: frames uint8 ``[N, T, 3, H, W]`` beside spectrograms ``[N, bins, time]``, on one
    clock of `duration` seconds."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    picks = _spread(len(frames), clips)
    times = frame_times(0.0, duration, frames.shape[1])
    count = min(frames.shape[1], 4)
    figure = figure_class(figsize=(1.5 * count + 4.2, 1.55 * len(picks) + 0.6), layout="constrained")
    axes = figure.subplots(len(picks), count + 1, squeeze=False, width_ratios=[1.0] * count + [2.4])
    for place, (row, clip) in enumerate(zip(axes, picks, strict=True)):
        for axis, frame, second in zip(row[:-1], frames[clip], times, strict=False):
            axis.imshow(frame.permute(1, 2, 0).numpy())
            axis.set_xlabel(f"{second:.2f} s", fontsize=7)
        _spectrogram(row[-1], spectrograms[clip], duration, last=place == len(picks) - 1)
        for second in times[:count]:
            row[-1].axvline(second, color="white", lw=0.8, ls="--")
        row[0].set_title(_name(labels[clip], names), fontsize=8, loc="left")
    _strip(axes[:, :-1])
    figure.suptitle("test clips as the model gets them (dashed: when the frames were taken)", fontsize=9)
    return _save(figure, path)


def _spectrogram(axis: Any, values: Tensor, duration: float, *, last: bool) -> None:
    """One spectrogram over seconds; only the last of a column names its axis."""
    extent = (0.0, duration, -0.5, len(values) - 0.5)
    axis.imshow(values.numpy(), origin="lower", aspect="auto", cmap="magma", extent=extent)
    axis.tick_params(labelsize=7)
    axis.set_ylabel("frequency bin", fontsize=7)
    if last:
        axis.set_xlabel("seconds", fontsize=7)


def _series(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    kept = [row for row in rows if isinstance(row.get(key), (int, float))]
    return [row["step"] for row in kept], [row[key] for row in kept]


def _spread(n: int, k: int) -> list[int]:
    return torch.linspace(0, n - 1, min(n, k)).round().long().unique().tolist()


def _name(label: Tensor, names: Sequence[str]) -> str:
    return names[int(label)] if label >= 0 else "no label"


def _strip(axes: Any) -> None:
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
