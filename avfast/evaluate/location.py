"""Scores of maps that say where pieces of a picture belong, beside answers that need no picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from avfast.evaluate.scores import Score, bootstrap_interval
from avfast.nn.location_maps import map_agreement


def location_scores(maps: Iterable[Any], *, context: str = "") -> dict[str, Score]:
    """Mean IoU and pixel accuracy of predicted maps.

    Beside the IoU as chance: that of the best map that is the same for every piece (all background has 0). Beside the
    accuracy: the better of that map and of all background. Intervals resample pictures.

    Args:
        maps: one object per batch with ``logits`` float ``[B, E, S, S]``, ``truth`` uint8 of the same shape, ``prior``
            bool ``[S, S]``, and ``level``, the probability at which maps are cut for the overlap.
        context: added to the protocol.

    >>> from types import SimpleNamespace
    >>> truth = torch.tensor([[1, 0], [0, 0]], dtype=torch.uint8).expand(3, 2, 2, 2)
    >>> maps = SimpleNamespace(logits=truth.float() - 0.5, truth=truth, prior=torch.ones(2, 2) > 0, level=0.5)
    >>> scores = location_scores([maps])
    >>> scores["map IoU"].value, scores["map IoU"].chance, scores["map accuracy"].chance
    (1.0, 0.25, 0.75)
    """
    rows, side = [], 0
    for found in maps:
        side = found.truth.shape[-1]
        overlap = map_agreement(found.logits.sigmoid() > found.level, found.truth).iou
        right = map_agreement(found.logits > 0, found.truth).accuracy
        prior = map_agreement(found.prior, found.truth)
        background = (found.truth == 0).float().mean(dim=(-2, -1))
        values = torch.stack([overlap, right, prior.iou, prior.accuracy, background])
        rows.append(values.mean(dim=2).cpu())  # [5, B]
    table = torch.cat(rows, dim=1).double()
    iou, accuracy, prior_iou, prior_accuracy, background = table.mean(dim=1).tolist()
    protocol = f"mean over exemplars, {side} x {side} pixels; {context}".rstrip("; ")
    return {
        "map IoU": Score(
            iou, prior_iou, None, bootstrap_interval(table[0].numpy()), table.shape[1],
            f"map IoU with the true rotated box; chance: the best map that is the same for every exemplar "
            f"(all background: 0); "
            f"maps are cut at the probability that is best for that one; {protocol}",
        ),
        "map accuracy": Score(
            accuracy, max(prior_accuracy, background), None, bootstrap_interval(table[1].numpy()), table.shape[1],
            f"share of pixels on the right side of the box's edge; chance: the better of all background "
            f"({background:.3f}) and the best fixed map ({prior_accuracy:.3f}); {protocol}",
        ),
    }  # fmt: skip
