"""Picture of correlational image modelling: exemplars, where they come from and where a model puts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avfast.engine.drawing import Drawing
from avfast.engine.figures import GOOD, _strip, save_figure
from avfast.engine.figures_images import matplotlib_figure, shown_bytes
from avfast.nn.location_maps import map_agreement


def correlation_maps(context: Tensor, exemplars: Tensor, maps: Any, *, pictures: int = 4, each: int = 3) -> Drawing:
    """Some pictures, one a row; for some exemplars of each the exemplar beside the context with its true outline and
    its predicted map.

    Args:
        context: normalised, ``[B, 3, C, C]``.
        exemplars: normalised, ``[B, E, 3, P, P]``.
        maps: ``logits`` ``[B, E, C, C]``, ``truth`` of the same shape, ``prior`` ``[C, C]`` and ``level``.
    """
    overlap = map_agreement(maps.logits.sigmoid() > maps.level, maps.truth).iou
    return Drawing("correlation_maps", {
        "context": shown_bytes(context[:pictures]),
        "exemplars": shown_bytes(exemplars[:pictures, :each]),
        "probability": maps.logits[:pictures, :each].detach().float().sigmoid().cpu(),
        "truth": maps.truth[:pictures, :each].cpu().to(torch.uint8),
        "overlap": overlap[:pictures, :each].float().cpu(),
        "chance": map_agreement(maps.prior, maps.truth).iou.mean().item(), "level": float(maps.level),
    })  # fmt: skip


def draw_correlation_maps(
    path: Path, context: Tensor, exemplars: Tensor, probability: Tensor, truth: Tensor, overlap: Tensor,
    chance: float, level: float,
) -> Path | None:  # fmt: skip
    """Contexts uint8 ``[N, 3, C, C]``, exemplars uint8 ``[N, E, 3, P, P]``, maps ``[N, E, C, C]`` and how far they
    agree with the truth, ``[N, E]``."""
    if (figure_class := matplotlib_figure()) is None:
        return None
    count, each = exemplars.shape[:2]
    figure = figure_class(figsize=(2.6 * each, 1.45 * count + 0.5), layout="constrained")
    axes = figure.subplots(count, 2 * each, squeeze=False)
    for b, row in enumerate(axes):
        for e in range(each):
            piece, place = row[2 * e], row[2 * e + 1]
            piece.imshow(exemplars[b, e].permute(1, 2, 0).numpy())
            piece.set_title(f"exemplar {e + 1}", fontsize=7)
            shown = probability[b, e].numpy()
            place.imshow(context[b].permute(1, 2, 0).numpy())
            place.imshow(shown, cmap="magma", vmin=0, vmax=1, alpha=0.55)
            place.contour(truth[b, e].numpy(), levels=[0.5], colors=[GOOD], linewidths=1.5)
            if shown.min() < level < shown.max():
                place.contour(shown, levels=[level], colors=["white"], linewidths=1.0, linestyles="--")
            place.set_title(f"IoU {overlap[b, e].item():.2f}", fontsize=7)
    _strip(axes)
    figure.suptitle(
        "where pieces of test images were cut from (line) and where they are put (colour); "
        f"best fixed map: IoU {chance:.2f}",
        fontsize=8,
    )
    return save_figure(figure, path)
