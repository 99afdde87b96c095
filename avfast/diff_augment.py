"""Augmentation that a generator is trained through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from avfast.ops import _check

__all__ = ["POLICIES", "diff_augment"]

Draw = Callable[[int], Tensor]
"""``[B, k]`` uniform in [0, 1)."""


def diff_augment(
    images: Tensor,
    *,
    policy: Sequence[str] = ("colour", "translation", "cutout"),
    generator: torch.Generator | None = None,
    draw: Draw | None = None,
) -> Tensor:
    """Change pictures at random, every one on its own, so that gradients pass.

    A discriminator that sees real and generated pictures only after this cannot learn a small data set by heart, and
    the generator does not learn the changes. Source: Zhao et al. 2020, "Differentiable augmentation for data-efficient
    GAN training", section 3.

    =============== =============================================================================================
    ``colour``      brightness: plus U(-0.5, 0.5); saturation: distance of a pixel's channels from their mean times
                    U(0, 2); contrast: distance from the picture's mean times U(0.5, 1.5)
    ``translation`` by up to an eighth of each side, in whole pixels; zeros come in
    ``cutout``      a rectangle of half of each side, its centre anywhere, becomes zero
    =============== =============================================================================================

    Args:
        images: ``[B, C, H, W]``, usually in [-1, 1].
        policy: what to do, in this order; empty for nothing.
        generator: of the random numbers; on the device of the images or on the CPU.
        draw: gives the random numbers in its place, ``[B, k]`` uniform in [0, 1) for k, such as
            ``avfast.nn.sample_draws.SampleDraws(keys).uniform``.

    Returns:
        ``[B, C, H, W]``.

    Raises:
        TypeError, ValueError: not a floating picture, or an unknown change.

    >>> images = torch.rand(2, 3, 8, 8)
    >>> moved = diff_augment(images, policy=("translation",), generator=torch.Generator().manual_seed(0))
    >>> moved.shape, torch.equal(diff_augment(images, policy=()), images)
    (torch.Size([2, 3, 8, 8]), True)
    """
    _check.floating("diff_augment", "images", images)
    if images.dim() != 4 or not images.numel():
        _check.fail("diff_augment", "images", "shape (B, C, H, W), none of them 0", tuple(images.shape))
    if isinstance(policy, str):
        _check.fail("diff_augment", "policy", "a sequence of names", repr(policy), TypeError)
    for name in policy:
        _check.one_of("diff_augment", "policy", name, tuple(POLICIES))
    source = images.device if generator is None else generator.device

    def drawn(count: int) -> Tensor:
        return torch.rand(len(images), count, generator=generator, device=source).to(images.device)

    for name in policy:
        images = POLICIES[name](images, draw or drawn)
    return images


def _colour(images: Tensor, draw: Draw) -> Tensor:
    brightness, saturation, contrast = draw(3).to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    level = images.mean(dim=(1, 2, 3), keepdim=True)
    return level + (images - level) * (0.5 + contrast)


def _translated(images: Tensor, draw: Draw) -> Tensor:
    amounts = draw(2)
    for dim, amount in zip((2, 3), amounts.unbind(1), strict=True):
        side = images.shape[dim]
        most = int(side / 8 + 0.5)
        shift = (amount * (2 * most + 1)).long() - most  # [B]
        source = torch.arange(side, device=images.device) - shift[:, None]  # [B, side]
        shape = [len(images), 1, 1, 1]
        shape[dim] = side
        inside = ((source >= 0) & (source < side)).view(shape)
        # Around the edge instead of off it: no cell is read twice, which keeps the backward pass free of collisions.
        images = images.gather(dim, (source % side).view(shape).expand_as(images)) * inside
    return images


def _cut_out(images: Tensor, draw: Draw) -> Tensor:
    amounts = draw(2)
    hidden = torch.ones((), dtype=torch.bool, device=images.device)
    for dim, amount in zip((2, 3), amounts.unbind(1), strict=True):
        side = images.shape[dim]
        extent = int(side / 2 + 0.5)
        first = (amount * (side + 1 - extent % 2)).long() - extent // 2  # [B], of the rectangle
        place = torch.arange(side, device=images.device) - first[:, None]  # [B, side]
        shape = [len(images), 1, 1, 1]
        shape[dim] = side
        hidden = hidden & ((place >= 0) & (place < extent)).view(shape)
    return images * ~hidden


POLICIES: dict[str, Callable[[Tensor, Draw], Tensor]] = {
    "colour": _colour,
    "translation": _translated,
    "cutout": _cut_out,
}
"""Changes by name."""
