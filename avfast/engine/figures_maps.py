"""Picture of correlational image modelling: exemplars, where they come from and where a model puts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from avfast.engine.figures import GOOD, _save, _strip
from avfast.engine.figures_images import _shown, matplotlib_figure
from avfast.nn.location_maps import map_agreement


def correlation_maps(
    path: Path, context: Tensor, exemplars: Tensor, maps: Any, *, pictures: int = 4, each: int = 3
) -> Path | None:
    """Some pictures, one a row; for some exemplars of each the exemplar beside the context with its true outline and
    its predicted map.

    Args:
        context: normalised, ``[B, 3, C, C]``.
        exemplars: normalised, ``[B, E, 3, P, P]``.
        maps: ``logits`` ``[B, E, C, C]``, ``truth`` of the same shape, ``prior`` ``[C, C]`` and ``level``.
    """
    if (figure_class := matplotlib_figure()) is None:
        return None
    count, each = min(pictures, len(context)), min(each, exemplars.shape[1])
    figure = figure_class(figsize=(2.6 * each, 1.45 * count + 0.5), layout="constrained")
    axes = figure.subplots(count, 2 * each, squeeze=False)
    chance = map_agreement(maps.prior, maps.truth).iou.mean().item()
    overlap = map_agreement(maps.logits.sigmoid() > maps.level, maps.truth).iou
    level = float(maps.level)
    for b, row in enumerate(axes):
        for e in range(each):
            piece, place = row[2 * e], row[2 * e + 1]
            piece.imshow(_shown(exemplars[b, e]).permute(1, 2, 0).numpy())
            piece.set_title(f"exemplar {e + 1}", fontsize=7)
            probability = maps.logits[b, e].sigmoid().cpu().numpy()
            place.imshow(_shown(context[b]).permute(1, 2, 0).numpy())
            place.imshow(probability, cmap="magma", vmin=0, vmax=1, alpha=0.55)
            place.contour(maps.truth[b, e].cpu().numpy(), levels=[0.5], colors=[GOOD], linewidths=1.5)
            if probability.min() < level < probability.max():
                place.contour(probability, levels=[level], colors=["white"], linewidths=1.0, linestyles="--")
            place.set_title(f"IoU {overlap[b, e].item():.2f}", fontsize=7)
    _strip(axes)
    figure.suptitle(
        "where pieces of test images were cut from (line) and where they are put (colour); "
        f"best fixed map: IoU {chance:.2f}",
        fontsize=8,
    )
    return _save(figure, path)
