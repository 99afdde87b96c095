"""Dense evaluation: a linear head on frozen feature maps, scored in mean intersection over union."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avfast.evaluate.scores import Score

STRENGTHS = (1e-4, 1e-2)
"""Weight decays the head chooses from, on the validation split."""
EPOCHS, BATCH, LR, TRAIN_STRIDE = 12, 64, 0.05, 4
IGNORE = 255
"""Mask value of pixels that are neither trained on nor scored, as in Pascal VOC."""


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts int64 ``[classes, classes]``: pixels of each true class (row) by predicted class (column).

    >>> confusion(torch.tensor([[0, 1]]), torch.tensor([[1, 1]]), 2).tolist()
    [[0, 0], [1, 1]]
    """
    truth, predicted = truth.flatten().long(), predicted.flatten().long()
    counted = truth != IGNORE
    pairs = (truth * classes + predicted)[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """Mean over the classes that occur (in truth or prediction) of intersection over union.

    >>> mean_iou(torch.tensor([[3, 1], [0, 4]]))  # 3/4 and 4/5
    0.775
    """
    counts = counts.double()
    hit = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hit
    return (hit / union)[union > 0].mean().item()


def linear_segmentation(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    classes: int,
    context: str = "",
) -> dict[str, Score]:
    """Scores of a 1x1 convolution on standardised frozen maps, its logits enlarged to the masks.

    Each argument is a pair: feature maps float ``[N, C, h, w]`` and masks uint8 ``[N, H, W]`` of class numbers. The
    head is trained on ``train`` (cross-entropy at a quarter of the masks' resolution, full resolution for scoring), its
    weight decay is chosen on ``val``, and ``test`` is read once. Classes are weighted by one over the square root of
    their share of ``train``: most pixels are background, and an even cross-entropy would predict little else.
    Deterministic.

    Returns:
        ``mIoU`` and ``pixel accuracy``; chance is what calling everything the commonest class of ``train`` scores. The
        interval of the mIoU is a bootstrap over pictures.

    Raises:
        ValueError: maps and masks do not fit together, or a class number is out of range.
    """
    for name, (maps, masks) in (("train", train), ("val", val), ("test", test)):
        if maps.dim() != 4 or masks.dim() != 3 or len(maps) != len(masks):
            raise ValueError(
                f"avfast.evaluate.linear_segmentation: {name}: expected maps [N, C, h, w] and masks [N, H, W], "
                f"got {tuple(maps.shape)} and {tuple(masks.shape)}"
            )
        known = masks[masks != IGNORE]
        if known.numel() and int(known.max()) >= classes:
            raise ValueError(
                f"avfast.evaluate.linear_segmentation: {name}: expected class numbers below {classes}, "
                f"got {int(known.max())}"
            )
    protocol = (
        f"segmentation/2 linear head on {tuple(train[0].shape[1:])} maps, n_train={len(train[0])} "
        f"n={len(test[0])} {context}"
    ).strip()
    if not (len(train[0]) and len(val[0]) and len(test[0])):
        return {name: Score.unavailable("a split is empty", protocol) for name in ("mIoU", "pixel accuracy")}
    mean = train[0].mean(dim=(0, 2, 3), keepdim=True)
    std = train[0].std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
    maps = [((x.float() - mean) / std) for x, _ in (train, val, test)]
    heads = [_fit(maps[0], train[1], classes, strength) for strength in STRENGTHS]
    best = max(heads, key=lambda head: mean_iou(_per_picture(head, maps[1], val[1], classes).sum(0)))
    counts = _per_picture(best, maps[2], test[1], classes)
    common = torch.bincount(train[1][train[1] != IGNORE].long(), minlength=classes).argmax()
    guessed = torch.stack([confusion(torch.full_like(mask, int(common)), mask, classes) for mask in test[1]])
    return {
        "mIoU": _score(mean_iou, counts, guessed, protocol),
        "pixel accuracy": _score(_accuracy, counts, guessed, protocol),
    }


def _accuracy(counts: Tensor) -> float:
    return (counts.diagonal().sum() / counts.sum().clamp(min=1)).item()


def _score(measure, counts: Tensor, guessed: Tensor, protocol: str) -> Score:
    """One number of summed counts ``[N, classes, classes]``, with the spread over resampled pictures."""
    rng = np.random.default_rng(0)
    resampled = [
        measure(counts[torch.from_numpy(rng.integers(0, len(counts), len(counts)))].sum(0)) for _ in range(200)
    ]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Score(
        value=measure(counts.sum(0)), chance=measure(guessed.sum(0)), interval=(float(low), float(high)),
        n=len(counts), protocol=protocol,
    )  # fmt: skip


@torch.enable_grad()
def _fit(maps: Tensor, masks: Tensor, classes: int, weight_decay: float) -> torch.nn.Conv2d:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.utils.skip_init(torch.nn.Conv2d, maps.shape[1], classes, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=weight_decay)
    batches = -(-len(maps) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    small = masks[:, TRAIN_STRIDE // 2 :: TRAIN_STRIDE, TRAIN_STRIDE // 2 :: TRAIN_STRIDE].long()
    shares = torch.bincount(small[small != IGNORE], minlength=classes).clamp(min=1).double()
    weight = shares.rsqrt()
    weight = (weight / weight.mean()).float()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(maps), generator=generator).split(BATCH):
            logits = F.interpolate(head(maps[rows]), small.shape[1:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(logits, small[rows], weight, ignore_index=IGNORE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head


@torch.no_grad()
def _per_picture(head: torch.nn.Module, maps: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Counts int64 ``[N, classes, classes]``."""
    parts = []
    for rows, truth in zip(maps.split(BATCH), masks.split(BATCH), strict=True):
        logits = F.interpolate(head(rows), truth.shape[1:], mode="bilinear", align_corners=False)
        parts += [confusion(p, t, classes) for p, t in zip(logits.argmax(1), truth, strict=True)]
    return torch.stack(parts)
