"""Where in the picture is it? The loss of CIM's maps against the rotated boxes they should show, forward and backward.

The others are given the map of each box for nothing, int64 as the published loader sends it or as they like it best;
what drawing it costs them as well is in rows of its own.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate import BACKEND, CONTEXT, PUBLISHED, Case
from .maps import Maps, logistic, oracle, published
from .opponents import compiled_step, eager_step, ours

#: (maps, logits of each, their side, side of the map, side of the picture in pixels)
SHAPES = {
    "recipe": (96, 2, 10, 160, 224),
    "maps-64": (64, 2, 10, 160, 224),
    "small": (5, 2, 6, 24, 32),
    "card": (1536, 2, 10, 160, 224),
}


def drawn(boxes: Tensor, size: int, source: int) -> Tensor:
    """bool ``[M, S, S]``: pixels whose centres, turned about the picture's, lie in the upright box."""
    at = (torch.arange(size, dtype=torch.float64, device=boxes.device) + 0.5) * (source / size) - source / 2
    theta, top, left, bottom, right = (x[:, None, None] for x in boxes.double().unbind(1))
    cos, sin = theta.deg2rad().cos(), theta.deg2rad().sin()
    x, y = cos * at + sin * at[:, None], cos * at[:, None] - sin * at
    return (left <= x) & (x < right) & (top <= y) & (y < bottom)


@functools.lru_cache(maxsize=1)
def _values(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    import avfast

    m, c, side, size, source = shape
    boxes = avfast.sample_exemplars(m, count=1, size=source, generator=0).boxes[:, 0]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(m, c, side, side, generator=generator), drawn(boxes, size, source).long(), boxes


def inputs(shape: tuple[int, ...], device: str) -> Maps:
    """Nobody writes to them; the logits are a fresh leaf."""
    logits, target, boxes = (x.to(device, copy=True) for x in _values(shape))
    return Maps(logits.requires_grad_(), target, True, boxes)


def case(name: str, device: str = "cpu") -> Case:
    m, c, side, size, source = shape = SHAPES[name]
    small = name == "small"

    def map_made(n: Maps) -> Tensor:
        target = drawn(n.boxes, size, source).long()
        large = F.interpolate(n.logits, target.shape[1:], mode="bilinear", align_corners=True)
        return F.cross_entropy(large, target)

    def boxes(n: Maps) -> Tensor:
        import avfast

        return avfast.rotated_box_bce(n.logits, n.boxes, size=size, source_size=source)

    def map_in_bytes(n: Maps) -> Tensor:
        import avfast

        return avfast.rotated_box_bce(n.logits, n.bytes, size=size, source_size=source)

    return Case(
        op="rotated_box_bce",
        shape_name=name,
        shape=shape,
        inputs=lambda: inputs(shape, device),
        oracle=oracle,
        candidates=(
            eager_step("eager, map given", published, PUBLISHED),
            eager_step("lean, map given", logistic),
            eager_step("eager, map drawn", map_made, CONTEXT),
            compiled_step("eager, map given", published, device, slow=small),
            compiled_step("lean, map given", logistic, device, slow=small),
            *ours("rotated_box_bce", lambda n: n.step(boxes), dict, device),
            eager_step("avfast, map given in uint8", map_in_bytes, BACKEND),
        ),
        mode="forward+backward",
        device=device,
        bytes_moved=2 * 4 * m * c * side * side,
    )


def cases(device: str = "cpu") -> list[Case]:
    names = ("card",) if torch.device(device).type == "cuda" else ("recipe", "maps-64", "small")
    return [case(name, device) for name in names]


def test_rotated_box_bce(case, candidate, measure):
    measure(case, candidate)
