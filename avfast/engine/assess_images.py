"""The table of an image recipe's report: dense and image-level scores of frozen features, read from the test split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from avfast.engine.image_inputs import ImagePipeline
from avfast.engine.sources import readable
from avfast.evaluate import Score, knn_accuracy, linear_probe, linear_segmentation
from avfast.methods import Method

MOST_MAP_BYTES = 1 << 30
"""Feature maps of a split are kept in memory up to this size."""


@dataclass
class Mapped:
    """One split through one encoder, on the CPU: pooled features ``[N, C]``, labels ``[N]``, and maps ``[N, C, h, w]``
    with masks ``[N, H, W]`` where the data have masks."""

    features: Tensor
    labels: Tensor
    maps: Tensor | None
    masks: Tensor | None
    errors: dict[str, int]


@torch.no_grad()
def map_split(method: Method, pipeline: ImagePipeline, loader: DataLoader) -> Mapped:
    """Run a split through the encoder of `method` in eval mode."""
    was_training = method.training
    method.eval()
    features, labels, maps, masks, errors, kept = [], [], [], [], {}, 0
    for batch in readable(loader, errors):
        found = method.dense_features(pipeline.plain(batch))
        features.append(found.mean(dim=(2, 3)).float().cpu())
        labels.append(batch["label"])
        kept += found.numel() * 4
        if "mask" in batch and kept <= MOST_MAP_BYTES:
            maps.append(found.float().cpu())
            masks.append(batch["mask"])
    method.train(was_training)
    dense = len(maps) == len(features)
    return Mapped(
        torch.cat(features), torch.cat(labels), torch.cat(maps) if dense else None,
        torch.cat(masks) if dense else None, errors,
    )  # fmt: skip


def assess_images(
    method: Method,
    pipeline: ImagePipeline,
    loaders: dict[str, DataLoader | None],
    *,
    labelled: bool,
    mask_classes: int,
    context: str,
) -> tuple[dict[str, Score], dict[str, int]]:
    """All scores of one model by name, and the pictures of the test split that could not be read."""
    if loaders["test"] is None:
        return {"mIoU": Score.unavailable("no test split")}, {}
    train, test = (map_split(method, pipeline, loaders[name]) for name in ("train", "test"))
    val = None if loaders["val"] is None else map_split(method, pipeline, loaders["val"])
    scores: dict[str, Score] = {}
    if train.maps is None or test.maps is None:
        scores["mIoU"] = Score.unavailable("the data have no masks, or their maps do not fit into memory")
    elif val is None or val.maps is None:
        scores["mIoU"] = Score.unavailable("no validation split to choose the regularisation on")
    else:
        parts = [(part.maps, part.masks) for part in (train, val, test)]
        scores |= linear_segmentation(*parts, classes=mask_classes, context=context)
    if not labelled:
        return scores | {name: Score.unavailable("needs labels") for name in ("kNN image", "linear probe image")}, {}
    scores["kNN image"] = knn_accuracy(train.features, train.labels, test.features, test.labels, context=context)
    scores["linear probe image"] = (
        Score.unavailable("no validation split to choose the regularisation on")
        if val is None
        else linear_probe(*((part.features, part.labels) for part in (train, val, test)), context=context)
    )
    return scores, test.errors
