"""A classifier of real frames, to judge pictures it had no part in making."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.ops import _check

LR, WEIGHT_DECAY, WARMUP = 2e-3, 1e-2, 10
SHIFT, COLOUR = 0.125, 0.2


class FrameClassifier(nn.Module):
    """Features and logits in one call, which is what :func:`avfast.evaluate.generation_scores` asks of a network.

    Args:
        backbone: pictures to features ``[B, D]`` or a map ``[B, D, h, w]``, which is averaged.
        head: features ``[B, D]`` to logits ``[B, K]``.

    >>> judge = FrameClassifier(nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5))
    >>> features, logits = judge(torch.zeros(2, 3, 16, 16))
    >>> features.shape, logits.shape
    (torch.Size([2, 8]), torch.Size([2, 5]))
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Of pictures ``[B, 3, H, W]`` in [-1, 1]: features ``[B, D]`` and logits ``[B, K]``."""
        features = self.backbone(pictures)
        features = features.mean(dim=(2, 3)) if features.dim() == 4 else features
        if features.dim() != 2:
            expected = "a backbone with an output [B, D] or [B, D, h, w]"
            _check.fail("evaluate.FrameClassifier", "backbone", expected, list(features.shape))
        return features, self.head(features)


@torch.enable_grad()
def train_classifier(
    backbone: nn.Module,
    head: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 64,
) -> FrameClassifier:
    """Train ``head`` on ``backbone``, in place, by cross-entropy on real frames.

    Frames are mirrored, shifted by up to an eighth of their side and changed in brightness and colour. AdamW, a short
    warm-up and a cosine to 0. With the same initial weights, seed and number of threads the result is the same; the
    random state of PyTorch is left as it was.

    Args:
        backbone, head: see :class:`FrameClassifier`; what has ``requires_grad`` is trained.
        images: float ``[N, 3, S, S]`` in [-1, 1], all in memory.
        labels: int64 ``[N]`` of classes from 0.
        steps: optimiser steps.
        seed: of the order of frames, their changes and whatever the network draws.
        batch: frames per step, at most N.

    Returns:
        the classifier in evaluation mode, without gradients.

    Raises:
        TypeError, ValueError: images, labels or numbers that do not fit, values outside [-1, 1], or a loss that is not
            finite.

    >>> images = torch.cat([torch.full((8, 3, 8, 8), -0.5), torch.full((8, 3, 8, 8), 0.5)])
    >>> labels = torch.arange(16) // 8
    >>> judge = train_classifier(nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 2), images, labels, steps=80)
    >>> torch.equal(judge(images)[1].argmax(dim=1), labels)
    True
    """
    name = "evaluate.train_classifier"
    _checked(name, images, labels, steps, batch)
    judge = FrameClassifier(backbone, head).train()
    device = next((p.device for p in judge.parameters()), images.device)
    weights = [p for p in judge.parameters() if p.requires_grad]
    if not weights:
        _check.fail(name, "backbone, head", "weights to train", "none that require a gradient")
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    generator = torch.Generator().manual_seed(seed)
    queue, highest = torch.empty(0, dtype=torch.int64), int(labels.max())
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout and the like draw from here
        for step in range(steps):
            while len(queue) < batch:
                queue = torch.cat([queue, torch.randperm(len(images), generator=generator)])
            rows, queue = queue[:batch], queue[batch:]
            pictures = _changed(images[rows].float().cpu(), generator).to(device)
            _, logits = judge(pictures)
            if highest >= logits.shape[1]:
                _check.fail(name, "labels", f"classes below the {logits.shape[1]} of head", highest)
            loss = F.cross_entropy(logits, labels[rows].to(device))
            if not math.isfinite(loss.item()):
                _check.fail(name, "images", f"a finite loss at step {step}", loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    return judge.eval().requires_grad_(False)


def _checked(name: str, images: Tensor, labels: Tensor, steps: int, batch: int) -> None:
    _check.floating(name, "images", images)
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not images.numel():
        _check.fail(name, "images", "[N >= 1, 3, S, S]", list(images.shape))
    if not bool(((images >= -1) & (images <= 1)).all()):
        _check.fail(name, "images", "values in [-1, 1]", "others, or NaN")
    if labels.dtype != torch.int64 or tuple(labels.shape) != (len(images),):
        _check.fail(name, "labels", f"int64 [{len(images)}]", f"{labels.dtype} {list(labels.shape)}")
    if int(labels.min()) < 0:
        _check.fail(name, "labels", "classes from 0", int(labels.min()))
    for argument, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            _check.fail(name, argument, "a positive number", value)


def _changed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, shifted (the edge is repeated) and with other colours, each picture ``[B, 3, S, S]`` for itself."""
    count, side = len(pictures), pictures.shape[-1]
    reach = int(side * SHIFT)
    down, across = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator)
    place = torch.arange(side)
    rows, columns = (place + down).clamp(0, side - 1), (place + across).clamp(0, side - 1)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    moved = pictures[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [B, S, S, 3]
    gain, offset = COLOUR * (2 * torch.rand(2, count, 1, 1, 3, generator=generator) - 1)
    return (moved * (1 + gain) + offset).clamp(-1, 1).permute(0, 3, 1, 2).contiguous()
