"""Pictures of a run. matplotlib is optional: every ``draw_`` function returns None, and the report says so, where it
is absent; what would be drawn is kept all the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from avfast.data.media import frame_times
from avfast.engine.drawing import Drawing
from avfast.engine.validate import RECALL

GOOD, BAD = "#2a7f3f", "#b03030"
MOST_TICKS, MOST_ROWS = 40, 500
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
    """Loss, validation R@1 beside chance and control, effective rank, and data against compute time over steps; None
    too where there is no row to draw."""
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
    for name in collapse_of(train[-1]) if train else ():
        points = [{"step": row["step"], **collapse_of(row).get(name, {})} for row in train]
        rank.plot(*_series(points, "effective_rank"), label=name)
    rank.set_ylim(bottom=0)
    rank.set(title="effective rank of a batch (1 = collapse)", ylabel="dimensions")
    timed = [r for r in train if isinstance(r.get("data_s"), float) and isinstance(r.get("compute_s"), float)]
    parts = [[r[key] * 1e3 for r in timed] for key in ("data_s", "compute_s")]
    times.stackplot([r["step"] for r in timed], parts, labels=["waiting for data", "compute"])
    times.set(title="time per step", ylabel="milliseconds")
    for axis in axes.flat:
        if axis.get_legend() is None and axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return save_figure(figure, path)


def compared_curves(path: Path, runs: dict[str, list[dict[str, Any]]]) -> Path | None:
    """Training and validation loss of several runs over steps, by name."""
    if (figure_class := matplotlib_figure()) is None or not any(runs.values()):
        return None
    figure = figure_class(figsize=(11, 4.2), layout="constrained")
    for axis, kind, title in zip(figure.subplots(1, 2), ("train", "val"), ("training", "validation"), strict=True):
        for name, rows in runs.items():
            axis.plot(*_series([row for row in rows if row["kind"] == kind], "loss"), label=name, marker="o", ms=2)
        axis.set(title=f"loss, {title}", xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return save_figure(figure, path)


def similarity(audio: Tensor, video: Tensor, labels: Tensor, names: Sequence[str]) -> Drawing:
    """Cosine similarity of every sound (rows) with every picture (columns), ``[N, D]`` each, sorted by label; of at
    most :data:`MOST_ROWS` clips, spread evenly."""
    order = torch.argsort(labels, stable=True)
    order = order[spread(len(order), MOST_ROWS)]
    matrix = normalize(audio[order], dim=1) @ normalize(video[order], dim=1).T
    return Drawing("similarity", {"matrix": matrix, "labels": labels[order], "names": list(names)})


def draw_similarity(path: Path, matrix: Tensor, labels: Tensor, names: Sequence[str]) -> Path | None:
    """A matrix ``[N, N]`` of cosines of clips in the order of their labels ``[N]``."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    figure = figure_class(figsize=(7.0, 5.2), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(image, ax=axis, label="cosine similarity")
    axis.set_title("sounds (rows) and pictures (columns) of the test clips, sorted by class", fontsize=10)
    axis.set_xlabel("test clip")
    if len(labels) and labels[0] >= 0 and len(labels.unique()) <= MOST_TICKS:
        middles = [(labels == label).nonzero().double().mean().item() for label in labels.unique()]
        axis.set_yticks(middles, [_name(label, names) for label in labels.unique()], fontsize=6)
    return save_figure(figure, path)


def spread(n: int, k: int) -> list[int]:
    """At most `k` of `n` positions, evenly from the first to the last.

    >>> spread(10, 3), spread(2, 6)
    ([0, 4, 9], [0, 1])
    """
    return torch.linspace(0, n - 1, min(n, k)).round().long().unique().tolist()


def neighbours(audio: Tensor, video: Tensor, *, queries: int = 6, top: int = 3) -> tuple[list[int], Tensor]:
    """Some sounds, by position, and for each the `top` pictures that lie closest, ``[queries, top]``; embeddings
    ``[N, D]``."""
    picks = spread(len(audio), queries)
    cosine = normalize(audio[picks], dim=1) @ normalize(video, dim=1).T
    return picks, cosine.topk(min(top, len(video))).indices


def retrieved(
    picks: list[int],
    found: Tensor,
    labels: Tensor,
    frames: dict[int, Tensor],
    spectrograms: dict[int, Tensor],
    names: Sequence[str],
    *,
    duration: float,
) -> Drawing:
    """For some sounds, the spectrogram and the frames the model puts closest; the colour says whether the class agrees.

    Args:
        picks, found: of :func:`neighbours`.
        labels: ``[N]``, -1 where unknown (then the clip itself counts as right).
        frames: by position, one frame uint8 ``[3, H, W]`` of each clip that was found.
        spectrograms: by position, ``[bins, time]`` of each sound.
        names: class names.
        duration: seconds of a clip.
    """
    right = [
        [place == query if labels[query] < 0 else bool(labels[place] == labels[query]) for place in row]
        for query, row in zip(picks, found.tolist(), strict=True)
    ]
    return Drawing("retrieved", {
        "spectrograms": torch.stack([spectrograms[query] for query in picks]),
        "frames": torch.stack([torch.stack([frames[place] for place in row]) for row in found.tolist()]),
        "right": right, "heard": [_name(labels[query], names) for query in picks],
        "seen": [[_name(labels[place], names) for place in row] for row in found.tolist()],
        "clips": len(labels), "labelled": bool((labels >= 0).all()), "duration": duration,
    })  # fmt: skip


def draw_retrieved(
    path: Path, spectrograms: Tensor, frames: Tensor, right: list[list[bool]], heard: list[str], seen: list[list[str]],
    clips: int, labelled: bool, duration: float,
) -> Path | None:  # fmt: skip
    """Spectrograms ``[Q, bins, time]`` beside frames uint8 ``[Q, K, 3, H, W]``, with their names and verdicts."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    rows, top = frames.shape[:2]
    figure = figure_class(figsize=(2.3 * (top + 1), 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, top + 1, squeeze=False)
    for q, row in enumerate(axes):
        _spectrogram(row[0], spectrograms[q], duration, last=q == rows - 1)
        row[0].set_title(f"sound: {heard[q]}", fontsize=7)
        for k, axis in enumerate(row[1:]):
            axis.imshow(frames[q, k].permute(1, 2, 0).numpy())
            axis.set_title(f"{k + 1}. {seen[q][k]}", fontsize=7, color=GOOD if right[q][k] else BAD)
    _strip(axes[:, 1:])
    kind = "same class" if labelled else "the clip itself"
    figure.suptitle(f"sounds, and the nearest pictures among {clips} test clips (green: {kind})", fontsize=9)
    return save_figure(figure, path)


def contact_sheet(
    frames: Tensor, spectrograms: Tensor, labels: Tensor, names: Sequence[str], *, duration: float
) -> Drawing:
    """What the model sees and hears: frames uint8 ``[N, T, 3, H, W]``, of which the first four are shown, beside
    spectrograms ``[N, bins, time]``, on one clock of `duration` seconds; a row for each."""
    times = frame_times(0.0, duration, frames.shape[1])[:4]
    return Drawing("contact_sheet", {
        "frames": frames[:, :4], "spectrograms": spectrograms, "times": [float(t) for t in times],
        "titles": [_name(label, names) for label in labels], "duration": duration,
    })  # fmt: skip


def draw_contact_sheet(
    path: Path, frames: Tensor, spectrograms: Tensor, times: list[float], titles: list[str], duration: float
) -> Path | None:
    """Frames uint8 ``[N, K, 3, H, W]``, the same `times` in all rows, and spectrograms ``[N, bins, time]``."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    rows, count = frames.shape[:2]
    figure = figure_class(figsize=(1.5 * count + 4.2, 1.55 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, count + 1, squeeze=False, width_ratios=[1.0] * count + [2.4])
    for n, row in enumerate(axes):
        for axis, frame, second in zip(row[:-1], frames[n], times, strict=True):
            axis.imshow(frame.permute(1, 2, 0).numpy())
            axis.set_xlabel(f"{second:.2f} s", fontsize=7)
        _spectrogram(row[-1], spectrograms[n], duration, last=n == rows - 1)
        for second in times:
            row[-1].axvline(second, color="white", lw=0.8, ls="--")
        row[0].set_title(titles[n], fontsize=8, loc="left")
    _strip(axes[:, :-1])
    figure.suptitle("test clips as the model gets them (dashed: when the frames were taken)", fontsize=9)
    return save_figure(figure, path)


def _spectrogram(axis: Any, values: Tensor, duration: float, *, last: bool) -> None:
    """One spectrogram over seconds; only the last of a column names its axis."""
    extent = (0.0, duration, -0.5, len(values) - 0.5)
    axis.imshow(values.numpy(), origin="lower", aspect="auto", cmap="magma", extent=extent)
    axis.tick_params(labelsize=7)
    axis.set_ylabel("frequency bin", fontsize=7)
    if last:
        axis.set_xlabel("seconds", fontsize=7)


def collapse_of(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Indicators of a row by embedding; a log may have been written by something else."""
    stored = row.get("collapse")
    return {k: v for k, v in stored.items() if isinstance(v, dict)} if isinstance(stored, dict) else {}


def _series(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    kept = [row for row in rows if isinstance(row.get(key), (int, float))]
    return [row["step"] for row in kept], [row[key] for row in kept]


def _name(label: Tensor, names: Sequence[str]) -> str:
    return names[int(label)] if label >= 0 else "no label"


def _strip(axes: Any) -> None:
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])


def save_figure(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
