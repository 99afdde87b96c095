"""Pictures of a run. matplotlib is optional: every function returns None, and the report says so, where it
is absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

GOOD, BAD = "#2a7f3f", "#b03030"


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
    """Loss, validation R@1, effective rank, and data against compute time over steps."""
    if (figure_class := matplotlib_figure()) is None or not main:
        return None
    figure = figure_class(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    train = [row for row in main if row["kind"] == "train"]
    val = [row for row in main if row["kind"] == "val"]
    loss, recall, rank, times = axes.flat
    loss.plot(*_series(train, "loss"), label="training")
    loss.plot(*_series(val, "loss"), label="validation", marker="o", ms=3)
    loss.plot(
        *_series([r for r in control if r["kind"] == "train"], "loss"),
        label="training, shuffled pairs",
        ls=":",
    )
    for name, value in bounds.items():
        loss.axhline(value, lw=0.8, ls="--", color="grey")
        loss.annotate(name, (0.01, value), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
    loss.set_title("loss")
    key = "R@1_audio_video_instance"
    recall.plot(*_series(val, key), marker="o", ms=3, label="validation")
    recall.plot(*_series([r for r in control if r["kind"] == "val"], key), ls=":", label="after shuffled pairs")
    recall.set_title("audio->video R@1, instance-level, validation")
    for name in train[-1]["collapse"] if train else ():
        rank.plot([r["step"] for r in train], [r["collapse"][name]["effective_rank"] for r in train], label=name)
    rank.set_title("effective rank of a batch (1 = collapse)")
    steps = [r["step"] for r in train]
    times.stackplot(
        steps,
        [r["data_s"] * 1e3 for r in train],
        [r["compute_s"] * 1e3 for r in train],
        labels=["data", "compute"],
    )
    times.set_title("milliseconds per step")
    for axis in axes.flat:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return _save(figure, path)


def similarity(path: Path, audio: Tensor, video: Tensor, labels: Tensor) -> Path | None:
    """Cosine similarity of every sound (rows) with every picture (columns), ``[N, D]`` each, sorted by
    label."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    order = torch.argsort(labels, stable=True)
    matrix = normalize(audio[order], dim=1) @ normalize(video[order], dim=1).T
    figure = figure_class(figsize=(5.5, 4.8), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix.numpy(), cmap="magma")
    figure.colorbar(image, ax=axis, label="cosine")
    axis.set(xlabel="picture of test clip", ylabel="sound of test clip", title="test clips, sorted by class")
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
    """
    if (figure_class := matplotlib_figure()) is None:
        return None
    scores = normalize(audio, dim=1) @ normalize(video, dim=1).T
    picks = _spread(len(audio), queries)
    figure = figure_class(figsize=(2.3 * (top + 1), 1.9 * len(picks)), layout="constrained")
    axes = figure.subplots(len(picks), top + 1, squeeze=False)
    for row, query in zip(axes, picks, strict=True):
        row[0].imshow(spectrograms[query].numpy(), origin="lower", aspect="auto", cmap="magma")
        row[0].set_title(_name(labels[query], names), fontsize=7)
        for place, (axis, found) in enumerate(zip(row[1:], scores[query].topk(top).indices.tolist(), strict=True)):
            right = found == query if labels[query] < 0 else bool(labels[found] == labels[query])
            axis.imshow(frames[found].permute(1, 2, 0).numpy())
            axis.set_title(f"{place + 1}. {_name(labels[found], names)}", fontsize=7, color=GOOD if right else BAD)
    _strip(axes)
    figure.suptitle("sound -> nearest pictures among the test clips (green: same class)", fontsize=9)
    return _save(figure, path)


def contact_sheet(
    path: Path, frames: Tensor, spectrograms: Tensor, labels: Tensor, names: Sequence[str], *, clips: int = 8
) -> Path | None:
    """What the model sees and hears: frames uint8 ``[N, T, 3, H, W]`` beside spectrograms ``[N, bins,
    time]``."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    picks = _spread(len(frames), clips)
    count = min(frames.shape[1], 4)
    figure = figure_class(figsize=(1.5 * count + 3.5, 1.5 * len(picks)), layout="constrained")
    axes = figure.subplots(len(picks), count + 1, squeeze=False, width_ratios=[1.0] * count + [2.2])
    for row, clip in zip(axes, picks, strict=True):
        for axis, frame in zip(row, frames[clip][:count], strict=False):
            axis.imshow(frame.permute(1, 2, 0).numpy())
        row[0].set_title(_name(labels[clip], names), fontsize=7, loc="left")
        row[-1].imshow(spectrograms[clip].numpy(), origin="lower", aspect="auto", cmap="magma")
    _strip(axes)
    return _save(figure, path)


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
