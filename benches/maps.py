"""What the benches of map losses share: small logits, a class for every pixel of a large map, and the exact answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .training import Step


@dataclass
class Maps:
    """``target`` as the published code keeps it, ``boxes`` where the target is one: what a dtype or a form other than
    int64 needs is made before the clock runs."""

    logits: Tensor  # [M, C, h, w]
    target: Tensor  # int64 [M, S, S]
    align_corners: bool
    boxes: Tensor | None = None  # [M, 5]

    def __post_init__(self) -> None:
        self.bytes = self.target.to(torch.uint8)
        self.inside = self.target.to(self.logits.dtype)
        self.weights = tuple(
            bilinear(side, size, self.align_corners).to(self.logits)
            for side, size in zip(self.logits.shape[2:], self.target.shape[1:], strict=True)
        )

    def step(self, forward: Callable[[Maps], Tensor]) -> Step:
        """The target is no parameter, but nobody holds it for backward that would not be alive anyway."""
        fixed = [self.target, self.bytes, self.inside, *self.weights]
        return Step(lambda: forward(self), {"logits": self.logits}, None, parameters=fixed, inputs=[self.logits])


def bilinear(side: int, size: int, align_corners: bool) -> Tensor:
    """Weights ``[size, side]`` of linear interpolation along one side, in float64."""
    at = torch.arange(size, dtype=torch.float64)
    at = at * ((side - 1) / max(size - 1, 1)) if align_corners else ((at + 0.5) * side / size - 0.5).clamp_min(0)
    return (1 - (at.clamp_max(side - 1)[:, None] - torch.arange(side)).abs()).clamp_min(0)


def oracle(n: Maps) -> dict[str, Tensor]:
    """Float64: interpolation as two products with its weights, and softmax less truth, taken back through them."""
    rows, columns = (
        bilinear(side, size, n.align_corners).to(n.logits.device)
        for side, size in zip(n.logits.shape[2:], n.target.shape[1:], strict=True)
    )
    loss, gradients = 0.0, []
    for logits, target in zip(n.logits.detach().double(), n.target, strict=True):  # a map at a time
        p = (rows @ logits @ columns.T).log_softmax(0)
        loss = loss - p.gather(0, target[None]).sum()
        slope = p.exp().scatter_add(0, target[None], torch.full_like(target[None], -1.0, dtype=torch.float64))
        gradients.append(rows.T @ slope @ columns)
    return {"output": loss / n.target.numel(), "d_logits": torch.stack(gradients) / n.target.numel()}


def published(n: Maps) -> Tensor:
    """Logits at full size, and the cross-entropy of each pixel."""
    large = F.interpolate(n.logits, n.target.shape[1:], mode="bilinear", align_corners=n.align_corners)
    return F.cross_entropy(large, n.target)


def upsampled(n: Maps, logits: Tensor) -> Tensor:
    """Interpolation as a product with its weights along each side; so is its gradient."""
    return n.weights[0] @ logits @ n.weights[1].T


def logistic(n: Maps) -> Tensor:
    """Softmax cross-entropy of two classes is the logistic loss of their difference, which alone is upsampled."""
    odds = upsampled(n, n.logits[:, 1] - n.logits[:, 0])
    return (F.softplus(odds).sum() - torch.dot(odds.flatten(), n.inside.flatten())) / odds.numel()
