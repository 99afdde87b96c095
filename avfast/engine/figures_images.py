"""Pictures of an image recipe's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avfast.data.images import IMAGENET_MEAN, IMAGENET_STD
from avfast.engine.figures import _save, _strip, matplotlib_figure


def correspondences(path: Path, view_q: Tensor, view_k: Tensor, matches: Any, *, pictures: int = 4) -> Path | None:
    """Two views of some pictures side by side, with a line from each kept cell of the first to its cell of the second.

    Args:
        view_q, view_k: normalised views ``[B, 3, S, S]``.
        matches: ``index`` int64 ``[B, cells]``, ``keep`` bool ``[B, cells]``, ``grid`` (rows, columns), and ``truth``
            or None: lines are green where they agree with the geometry of the crops, red where not.
    """
    if (figure_class := matplotlib_figure()) is None:
        return None
    count, side = min(pictures, len(view_q)), view_q.shape[-1]
    rows, columns = matches.grid
    figure = figure_class(figsize=(5.2, 2.5 * count + 0.4), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False)[:, 0]
    gap = side // 8
    for b, axis in enumerate(axes):
        pair = torch.ones(3, side, 2 * side + gap)
        pair[:, :, :side], pair[:, :, side + gap :] = _shown(view_q[b]), _shown(view_k[b])
        axis.imshow(pair.permute(1, 2, 0).numpy())
        for cell in matches.keep[b].nonzero()[:, 0].tolist():
            found = int(matches.index[b, cell])
            (y0, x0), (y1, x1) = (_centre(c, rows, columns, side) for c in (cell, found))
            right = matches.truth is None or int(matches.truth.index[b, cell]) == found
            axis.plot([x0, x1 + side + gap], [y0, y1], color="#2a7f3f" if right else "#b03030", lw=0.9, alpha=0.8)
    _strip(axes)
    figure.suptitle("cells that find each other in two views (green: the same place)", fontsize=9)
    return _save(figure, path)


def _centre(cell: int, rows: int, columns: int, side: int) -> tuple[float, float]:
    return (cell // columns + 0.5) * side / rows, (cell % columns + 0.5) * side / columns


def _shown(view: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (view.cpu() * std + mean).clamp(0, 1)
