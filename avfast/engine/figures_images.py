"""Pictures of an image recipe's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avfast.data.images import IMAGENET_MEAN, IMAGENET_STD
from avfast.engine.drawing import Drawing
from avfast.engine.figures import BAD, GOOD, _strip, matplotlib_figure, save_figure

BEST = 5
"""Cells drawn of a picture none of whose pairs is good enough."""


def correspondences(view_q: Tensor, view_k: Tensor, matches: Any, *, pictures: int = 4) -> Drawing:
    """Two views of some pictures side by side, with a line from each kept cell of the first to its cell of the second;
    where none is kept, dashed lines from the few most similar ones.

    Args:
        view_q, view_k: normalised views ``[B, 3, S, S]``.
        matches: ``index`` int64, ``similarity`` and ``keep`` bool, each ``[B, cells]``, ``grid`` (rows, columns), and
            ``truth`` or None: lines are green where they agree with the geometry of the crops, red where not.
    """
    chosen = [_chosen(matches, b) for b in range(min(pictures, len(view_q)))]
    views = torch.stack([view_q[: len(chosen)], view_k[: len(chosen)]], dim=1)
    return Drawing("correspondences", {
        "views": shown_bytes(views), "grid": list(matches.grid), "known": matches.truth is not None,
        "lines": [[list(line) for line in zip(*lines, strict=True)] for lines, _ in chosen],
        "kept": [kept for _, kept in chosen],
    })  # fmt: skip


def draw_correspondences(
    path: Path, views: Tensor, grid: list[int], known: bool, lines: list[list[list[Any]]], kept: list[bool]
) -> Path | None:
    """Views uint8 ``[N, 2, 3, S, S]`` and for each picture its lines: cell, cell of the other view, and whether that is
    right."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    count, side = len(views), views.shape[-1]
    rows, columns = grid
    figure = figure_class(figsize=(5.6, 2.75 * count + 0.5), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False)[:, 0]
    gap = side // 8
    for b, axis in enumerate(axes):
        pair = torch.full((3, side, 2 * side + gap), 255, dtype=torch.uint8)
        pair[:, :, :side], pair[:, :, side + gap :] = views[b]
        axis.imshow(pair.permute(1, 2, 0).numpy())
        for number, (cell, place, good) in enumerate(lines[b]):
            shift = (0.618 * number % 1 - 0.5) * 0.6 * side / rows  # level lines of one row do not cover each other
            (y0, x0), (y1, x1) = (_centre(c, rows, columns, side) for c in (cell, place))
            axis.plot(
                [x0, x1 + side + gap], [y0 + shift, y1 + shift], color=GOOD if good else BAD,
                ls="-" if kept[b] else "--", lw=1.2, alpha=0.85, marker="o", ms=3,
            )  # fmt: skip
        axis.set_title(_caption(kept[b], [good for _, _, good in lines[b]], known=known), fontsize=8, loc="left")
    _strip(axes)
    same = " (green: the same place)" if known else ""
    figure.suptitle(f"cells of a {rows} x {columns} map that find each other in two views{same}", fontsize=9)
    return save_figure(figure, path)


def _chosen(matches: Any, b: int) -> tuple[tuple[list[int], list[int], list[bool]], bool]:
    """Cells of picture b to draw, where each was found, and whether that is right; and whether they were kept."""
    cells = matches.keep[b].nonzero()[:, 0]
    kept = bool(len(cells))
    if not kept:
        cells = matches.similarity[b].topk(min(BEST, matches.similarity.shape[1])).indices
    found = matches.index[b, cells]
    right = (
        torch.ones_like(found, dtype=torch.bool) if matches.truth is None else matches.truth.index[b, cells] == found
    )
    return (cells.tolist(), found.tolist(), right.tolist()), kept


def _caption(kept: bool, right: list[bool], *, known: bool) -> str:
    same = f", {sum(right)} at the same place" if known else ""
    if kept:
        return f"{len(right)} {'pair' if len(right) == 1 else 'pairs'}{same}"
    return f"no pair is similar enough both ways; dashed: the {len(right)} most similar cells{same}"


def _centre(cell: int, rows: int, columns: int, side: int) -> tuple[float, float]:
    return (cell // columns + 0.5) * side / rows, (cell % columns + 0.5) * side / columns


def shown_bytes(pictures: Tensor) -> Tensor:
    """Normalised pictures ``[..., 3, H, W]`` as people see them, uint8."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pictures.cpu() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
