"""What the tests of DenseCL share: a small encoder, random batches, and two views of real photographs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate

from avfast.encoders import Encoder
from avfast.methods.densecl import DenseCL, DenseCLConfig


def encoder(channels: int = 3, width: int = 8) -> Encoder:
    """Stride 8, with batch norm: a map of 4 x 4 for 32 pixels."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    net = nn.Sequential(*block(channels, width), *block(width, 2 * width), *block(2 * width, 2 * width))
    return Encoder(net, 2 * width)


def method(*, channels: int = 3, width: int = 8, seed: int = 0, **options) -> DenseCL:
    torch.manual_seed(seed)
    config = DenseCLConfig(**{"dim": 6, "queue": 20, "momentum": 0.9, "group_size": 4} | options)
    return DenseCL(config, encoder=encoder(channels, width)).train()


def crops(size: int, generator: torch.Generator) -> Tensor:
    side = torch.rand(size, 2, generator=generator) * 0.5 + 0.4
    corner = torch.rand(size, 2, generator=generator) * (1 - side)
    return torch.cat([corner, side, (torch.rand(size, 1, generator=generator) < 0.5).float()], dim=1)


def batch(size: int = 8, *, seed: int = 0, pixels: int = 32, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("view_q", "view_k", "image")
    pictures = {name: torch.randn(size, 3, pixels, pixels, generator=generator, dtype=dtype) for name in names}
    return pictures | {"crop_q": crops(size, generator), "crop_k": crops(size, generator)}


# ------------------------------------------------------------------------------------------- photographs


@functools.cache
def photographs() -> Tensor:
    """The sixteen photographs of avfast, grey, ``[16, 1, 160, 160]`` in [0, 1]: no colour to tell them apart by."""
    from avfast.data.demo.photos import shipped_photos

    images = [interpolate(p.image[None], (160, 160), mode="bilinear", antialias=True) for p in shipped_photos()]
    return torch.cat(images).mean(dim=1, keepdim=True) / 255


def cut(which: Tensor, boxes: Tensor, generator: torch.Generator) -> Tensor:
    """Crops ``boxes`` ``[N, 5]`` of photographs, ``[N, 1, 32, 32]``, each under its own light and noise."""
    centre = (torch.arange(32) + 0.5) / 32
    top, left, height, width, flip = (v.unsqueeze(1) for v in boxes.unbind(1))
    x = left + torch.where(flip > 0.5, 1 - centre, centre) * width
    y = top + centre * height
    grid = torch.stack([x[:, None, :].expand(-1, 32, -1), y[:, :, None].expand(-1, -1, 32)], dim=-1) * 2 - 1
    pictures = grid_sample(photographs()[which], grid, align_corners=False)
    contrast, light = torch.rand(2, len(which), 1, 1, 1, generator=generator)
    noise = torch.randn(pictures.shape, generator=generator)
    return (pictures - 0.5) * (0.8 + 2.4 * contrast) + (1.2 * light - 0.6) + 0.1 * noise


def photo_views(size: int, generator: torch.Generator, *, shuffled: bool = False) -> dict[str, Tensor]:
    """Two views of the same region of a photograph; ``shuffled``: of two regions that have nothing in common."""
    which = torch.randint(16, (size,), generator=generator)
    region = torch.rand(size, 2, generator=generator) * 0.6

    def box() -> Tensor:
        side = 0.2 + 0.2 * torch.rand(size, 1, generator=generator)
        corner = region + torch.rand(size, 2, generator=generator) * (0.4 - side)
        return torch.cat([corner, side, side, (torch.rand(size, 1, generator=generator) < 0.5).float()], dim=1)

    boxes = box(), box()
    order = torch.arange(size).roll(int(shuffled))
    return {
        "view_q": cut(which, boxes[0], generator),
        "view_k": cut(which, boxes[1], generator)[order],
        "crop_q": boxes[0],
        "crop_k": boxes[1][order],
    }


def labelled_crops(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Plain crops and the number of their photograph."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(16, (size,), generator=generator)
    corner = torch.rand(size, 2, generator=generator) * 0.6 + 0.05
    boxes = torch.cat([corner, torch.full((size, 2), 0.3), torch.zeros(size, 1)], dim=1)
    return cut(which, boxes, generator), which
