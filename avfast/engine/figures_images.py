"""Pictures of an image recipe's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avfast.data.images import IMAGENET_MEAN, IMAGENET_STD
from avfast.engine.figures import BAD, GOOD, _save, _strip, matplotlib_figure

BEST = 5
"""Cells drawn of a picture none of whose pairs is good enough."""


def correspondences(path: Path, view_q: Tensor, view_k: Tensor, matches: Any, *, pictures: int = 4) -> Path | None:
    """Two views of some pictures side by side, with a line from each kept cell of the first to its cell of the second;
    where none is kept, dashed lines from the few most similar ones.

    Args:
        view_q, view_k: normalised views ``[B, 3, S, S]``.
        matches: ``index`` int64, ``similarity`` and ``keep`` bool, each ``[B, cells]``, ``grid`` (rows, columns), and
            ``truth`` or None: lines are green where they agree with the geometry of the crops, red where not.
    """
    if (figure_class := matplotlib_figure()) is None:
        return None
    count, side = min(pictures, len(view_q)), view_q.shape[-1]
    rows, columns = matches.grid
    figure = figure_class(figsize=(5.6, 2.75 * count + 0.5), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False)[:, 0]
    gap = side // 8
    for b, axis in enumerate(axes):
        pair = torch.ones(3, side, 2 * side + gap)
        pair[:, :, :side], pair[:, :, side + gap :] = _shown(view_q[b]), _shown(view_k[b])
        axis.imshow(pair.permute(1, 2, 0).numpy())
        cells, found, right = _chosen(matches, b)
        kept = bool(matches.keep[b].any())
        for number, (cell, place, good) in enumerate(zip(cells, found, right, strict=True)):
            shift = (0.618 * number % 1 - 0.5) * 0.6 * side / rows  # level lines of one row do not cover each other
            (y0, x0), (y1, x1) = (_centre(c, rows, columns, side) for c in (cell, place))
            axis.plot(
                [x0, x1 + side + gap], [y0 + shift, y1 + shift], color=GOOD if good else BAD,
                ls="-" if kept else "--", lw=1.2, alpha=0.85, marker="o", ms=3,
            )  # fmt: skip
        axis.set_title(_caption(kept, right, known=matches.truth is not None), fontsize=8, loc="left")
    _strip(axes)
    same = "" if matches.truth is None else " (green: the same place)"
    figure.suptitle(f"cells of a {rows} x {columns} map that find each other in two views{same}", fontsize=9)
    return _save(figure, path)


def _chosen(matches: Any, b: int) -> tuple[list[int], list[int], list[bool]]:
    """Cells of picture b to draw, where each was found, and whether that is right."""
    cells = matches.keep[b].nonzero()[:, 0]
    if not len(cells):
        cells = matches.similarity[b].topk(min(BEST, matches.similarity.shape[1])).indices
    found = matches.index[b, cells]
    right = (
        torch.ones_like(found, dtype=torch.bool) if matches.truth is None else matches.truth.index[b, cells] == found
    )
    return cells.tolist(), found.tolist(), right.tolist()


def _caption(kept: bool, right: list[bool], *, known: bool) -> str:
    same = f", {sum(right)} at the same place" if known else ""
    if kept:
        return f"{len(right)} {'pair' if len(right) == 1 else 'pairs'}{same}"
    return f"no pair is similar enough both ways; dashed: the {len(right)} most similar cells{same}"


def _centre(cell: int, rows: int, columns: int, side: int) -> tuple[float, float]:
    return (cell // columns + 0.5) * side / rows, (cell % columns + 0.5) * side / columns


def _shown(view: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (view.cpu() * std + mean).clamp(0, 1)
