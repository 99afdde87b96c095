"""Where an exemplar lies in the rotated image: its box, and what is left of it inside the image's support.

All in float64 and in centred coordinates: the origin is the centre of the source image, x to the right and y down.
Rotated by ``theta`` counter-clockwise, a point ``(X, Y)`` comes to ``Xr = cos X + sin Y``, ``Yr = -sin X + cos Y``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Corners this far outside the support, in pixels, are rounding.
TOLERANCE = 1e-9
# A revised box narrower than this many pixels is no exemplar.
LEAST_SIDE = 1.0

Edges = tuple[Tensor, Tensor, Tensor, Tensor]


def bounding_box(theta: Tensor, edges: Edges) -> Edges:
    """Upright box around a drawn box (top, left, bottom, right) once the image is rotated by ``theta`` degrees."""
    cos, sin = _direction(theta)
    top, left, bottom, right = edges
    return (
        cos * top - torch.maximum(sin * left, sin * right),
        cos * left + torch.minimum(sin * top, sin * bottom),
        cos * bottom - torch.minimum(sin * left, sin * right),
        cos * right + torch.maximum(sin * top, sin * bottom),
    )


def inside_support(theta: Tensor, x: Tensor, y: Tensor, half: float) -> Tensor:
    """Whether rotated points lie on the rotated image, a square of side ``2 half``."""
    cos, sin = _direction(theta)
    limit = half + TOLERANCE
    return ((cos * x - sin * y).abs() <= limit) & ((sin * x + cos * y).abs() <= limit)


def revise(theta: Tensor, edges: Edges, half: float) -> Edges:
    """Move the edges of an upright box inwards until its four corners lie on the rotated image.

    Source: Li et al. 2023, "Correlational Image Modeling for Self-Supervised Visual Pre-Training" (CIM), whose data
    pipeline searches masks for what the four edges of the rotated square say in closed form. Each step looks at an
    original corner, the last one at a corner of edges already moved. A box of which less than a pixel would be left is
    shrunk about its centre instead.
    """
    top, left, bottom, right = edges
    support = _Support(theta, half)

    def out(x: Tensor, y: Tensor) -> Tensor:
        return ~inside_support(theta, x, y, half)

    # Counter-clockwise: the image's upper left corner is the leftmost point of the support.
    t = torch.where(out(left, top), torch.maximum(top, support.first_row(left)), top)
    r = torch.where(out(right, top), torch.minimum(right, support.last_column(t)), right)
    l = torch.where(out(left, bottom), torch.maximum(left, support.first_column(bottom)), left)  # noqa: E741
    b = torch.where(out(r, bottom), torch.minimum(bottom, support.last_row(r)), bottom)
    counter_clockwise = (t, l, b, r)

    l = torch.where(out(left, top), torch.maximum(left, support.first_column(top)), left)  # noqa: E741
    t = torch.where(out(right, top), torch.maximum(top, support.first_row(right)), top)
    b = torch.where(out(left, bottom), torch.minimum(bottom, support.last_row(l)), bottom)
    r = torch.where(out(right, b), torch.minimum(right, support.last_column(b)), right)
    clockwise = (t, l, b, r)

    turned = theta > 0
    moved = tuple(torch.where(turned, x, y) for x, y in zip(counter_clockwise, clockwise, strict=True))
    corners = [out(x, y) for x in (moved[1], moved[3]) for y in (moved[0], moved[2])]
    lost = (moved[2] - moved[0] < LEAST_SIDE) | (moved[3] - moved[1] < LEAST_SIDE) | torch.stack(corners).any(0)
    shrunk = support.shrink(edges)
    return tuple(torch.where(lost, x, y) for x, y in zip(shrunk, moved, strict=True))


def _direction(theta: Tensor) -> tuple[Tensor, Tensor]:
    radians = theta * (math.pi / 180)
    return radians.cos(), radians.sin()


class _Support:
    """Rows and columns on which the rotated image lies; ``|theta| <= 90`` degrees."""

    def __init__(self, theta: Tensor, half: float) -> None:
        self.cos, self.sin = _direction(theta)
        self.half = half
        # Divisors: an upright image has no slanted edge, so that its limits go to infinity.
        self.steep = torch.copysign(self.sin.abs().clamp_min(1e-300), self.sin)
        self.flat = self.cos.clamp_min(1e-300)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (self.cos * x - self.half) / self.steep, (self.cos * x + self.half) / self.steep
        above, below = (-self.sin * x - self.half) / self.flat, (-self.sin * x + self.half) / self.flat
        return torch.maximum(torch.minimum(a, b), above), torch.minimum(torch.maximum(a, b), below)

    def _columns(self, y: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (-self.cos * y - self.half) / self.steep, (-self.cos * y + self.half) / self.steep
        before, after = (self.sin * y - self.half) / self.flat, (self.sin * y + self.half) / self.flat
        return torch.maximum(torch.minimum(a, b), before), torch.minimum(torch.maximum(a, b), after)

    def first_row(self, x: Tensor) -> Tensor:
        return self._rows(x)[0]

    def last_row(self, x: Tensor) -> Tensor:
        return self._rows(x)[1]

    def first_column(self, y: Tensor) -> Tensor:
        return self._columns(y)[0]

    def last_column(self, y: Tensor) -> Tensor:
        return self._columns(y)[1]

    def shrink(self, edges: Edges) -> Edges:
        """The box made smaller about its centre until it touches the border of the support."""
        top, left, bottom, right = edges
        x, y, w, h = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
        across = (self.half - (self.cos * x - self.sin * y).abs()) / (self.cos * w + self.sin.abs() * h)
        along = (self.half - (self.sin * x + self.cos * y).abs()) / (self.sin.abs() * w + self.cos * h)
        factor = torch.minimum(across, along).clamp(0, 1)
        return y - factor * h, x - factor * w, y + factor * h, x + factor * w
