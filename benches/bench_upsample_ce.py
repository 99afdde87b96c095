"""Cross-entropy of upsampled logits, forward and backward: the loss of a segmentation head.

Two classes are the maps of CIM, nineteen those of street scenes. Targets are int64, as loaders and torch have them;
the leanest form of two classes is given its float one for nothing.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate import BACKEND, PUBLISHED, Case
from .maps import Maps, logistic, oracle, published, upsampled
from .opponents import compiled_step, eager_step, ours

#: (M, C, side of the logits, side of the target, align_corners)
SHAPES = {
    "two": (64, 2, 10, 160, True),
    "cityscapes": (2, 19, 64, 512, False),
    "small": (3, 5, 7, 24, False),
    "card": (16, 150, 128, 512, False),
}


@functools.lru_cache(maxsize=1)
def _values(shape: tuple) -> tuple[Tensor, Tensor]:
    """Logits that know something of a target made of patches."""
    m, c, side, size, _ = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(c, (m, 1, side, side), generator=generator)
    logits = torch.randn(m, c, side, side, generator=generator) + F.one_hot(coarse[:, 0], c).movedim(3, 1)
    target = F.interpolate(coarse.float(), (size, size), mode="nearest")[:, 0].long()
    return logits, target


def inputs(shape: tuple, device: str) -> Maps:
    """Nobody writes to them; the logits are a fresh leaf."""
    logits, target = _values(shape)
    return Maps(logits.to(device, copy=True).requires_grad_(), target.to(device), shape[-1])


def lean(n: Maps) -> Tensor:
    if n.logits.shape[1] == 2:
        return logistic(n)
    return F.cross_entropy(upsampled(n, n.logits), n.target)


def avfast_loss(n: Maps) -> Tensor:
    import avfast

    return avfast.upsample_cross_entropy(n.logits, n.target, align_corners=n.align_corners)


def avfast_bytes(n: Maps) -> Tensor:
    import avfast

    return avfast.upsample_cross_entropy(n.logits, n.bytes, align_corners=n.align_corners)


def case(name: str, device: str = "cpu") -> Case:
    m, c, side, size, _ = shape = SHAPES[name]
    small = name == "small"
    return Case(
        op="upsample_cross_entropy",
        shape_name=name,
        shape=shape[:-1],
        inputs=lambda: inputs(shape, device),
        oracle=oracle,
        candidates=(
            eager_step("eager", published, PUBLISHED),
            eager_step("lean", lean),
            compiled_step("eager", published, device, slow=small),
            compiled_step("lean", lean, device, slow=small),
            *ours("upsample_cross_entropy", lambda n: n.step(avfast_loss), dict, device),
            eager_step("avfast, uint8 target", avfast_bytes, BACKEND),
        ),
        mode="forward+backward",
        device=device,
        bytes_moved=m * (8 * size * size + 2 * 4 * c * side * side),
    )


def cases(device: str = "cpu") -> list[Case]:
    names = ("card",) if torch.device(device).type == "cuda" else ("two", "cityscapes", "small")
    return [case(name, device) for name in names]


def test_upsample_cross_entropy(case, candidate, measure):
    measure(case, candidate)
