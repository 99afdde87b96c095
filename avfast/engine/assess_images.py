"""The table of an image recipe's report: dense and image-level scores of frozen features, read from the test split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from avfast.engine.image_inputs import ImagePipeline
from avfast.engine.sources import readable
from avfast.evaluate import Score, knn_accuracy, linear_probe, linear_segmentation, location_scores
from avfast.evaluate.segmentation import IGNORE
from avfast.methods import Method
from avfast.methods.base import CorrelationInputs

NO_VAL = "no validation split to choose the regularisation on"
MOST_MAP_BYTES = 1 << 30
"""Feature maps of a split are kept in memory up to this size."""


@dataclass
class Mapped:
    """One split through one encoder, on the CPU: pooled features ``[N, C]``, labels ``[N]``, maps ``[N, C, h, w]`` with
    masks ``[N, H, W]``, and the images that could not be read. ``no_maps`` says why there are no maps, if so."""

    features: Tensor
    labels: Tensor
    maps: Tensor | None
    masks: Tensor | None
    errors: dict[str, int]
    no_maps: str = ""


@torch.no_grad()
def map_split(method: Method, pipeline: ImagePipeline, loader: DataLoader) -> Mapped:
    """Run a split through the encoder of `method` in eval mode."""
    was_training = method.training
    method.eval()
    features, labels, maps, masks, errors, no_maps = [], [], [], [], {}, ""
    for batch in readable(loader, errors):
        found = method.dense_features(pipeline.plain(batch))
        features.append(found.mean(dim=(2, 3)).float().cpu())
        labels.append(batch["label"])
        if no_maps:
            continue
        if "mask" not in batch:
            no_maps = "the data have no masks"
        elif (needed := found[0].numel() * 4 * len(loader.dataset)) > MOST_MAP_BYTES:
            no_maps = f"the feature maps of a split would take {needed / 2**30:.1f} GiB of memory"
        else:
            maps.append(found.float().cpu())
            masks.append(batch["mask"])
    method.train(was_training)
    dense = (None, None) if no_maps else (torch.cat(maps), torch.cat(masks))
    return Mapped(torch.cat(features), torch.cat(labels), *dense, errors, no_maps)


@torch.no_grad()
def located(method: Method, pipeline: ImagePipeline, loader: DataLoader) -> Iterator[Any]:
    """Predicted and true maps of a split in eval mode, batch by batch, with the draws of that split."""
    was_training = method.training
    method.eval()
    for batch in readable(loader):
        yield method.location_maps(pipeline(batch))
    method.train(was_training)


def assess_images(
    method: Method,
    pipeline: ImagePipeline,
    loaders: dict[str, DataLoader | None],
    *,
    labelled: bool,
    mask_classes: int,
    context: str,
) -> tuple[dict[str, Score], dict[str, int]]:
    """All scores of one model by name, and the images of any split that could not be read."""
    if loaders["test"] is None:
        return {"mIoU": Score.unavailable("no test split")}, {}
    train, test = (map_split(method, pipeline, loaders[name]) for name in ("train", "test"))
    val = None if loaders["val"] is None else map_split(method, pipeline, loaders["val"])
    parts = [part for part in (train, val, test) if part is not None]
    errors = {key: count for part in parts for key, count in part.errors.items()}
    scores: dict[str, Score] = {}
    if isinstance(pipeline.inputs, CorrelationInputs):
        scores |= location_scores(located(method, pipeline, loaders["test"]), context=context)
    if reason := next((part.no_maps for part in parts if part.no_maps), "") or _foreign_class(parts, mask_classes):
        scores["mIoU"] = Score.unavailable(reason)
    elif val is None:
        scores["mIoU"] = Score.unavailable(NO_VAL)
    else:
        dense = [(part.maps, part.masks) for part in parts]
        scores |= linear_segmentation(*dense, classes=mask_classes, context=context)
    if not labelled:
        return scores | {
            name: Score.unavailable("needs labels") for name in ("kNN image", "linear probe image")
        }, errors
    scores["kNN image"] = knn_accuracy(train.features, train.labels, test.features, test.labels, context=context)
    scores["linear probe image"] = (
        Score.unavailable(NO_VAL)
        if val is None
        else linear_probe(*((part.features, part.labels) for part in parts), context=context)
    )
    return scores, errors


def _foreign_class(parts: list[Mapped], mask_classes: int) -> str:
    """Why the masks do not fit the list of classes, or nothing; said here rather than raised after a long training."""
    largest = max(int(part.masks.masked_fill(part.masks == IGNORE, 0).max()) for part in parts)
    if largest < mask_classes:
        return ""
    return f"a mask holds the class number {largest}, and the manifest lists {mask_classes} classes"
