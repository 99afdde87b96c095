"""Random patches of spectrograms and frames set to zero: half of 32 x 8 of 1024 x 128, half of 10 x 10 of 224 x 224."""

from __future__ import annotations

import functools
import random
from typing import NamedTuple

import torch
from torch import Tensor

from .candidate import COMPILED, LEAN, PUBLISHED, Candidate, Case
from .compiled import compiled, missing
from .opponents import ours

RATIO, SEED = 0.5, 0


class Pictures(NamedTuple):
    x: Tensor  # [B, C, H, W]
    patch: tuple[int, int]


#: (B, C, H, W) and the patch
SHAPES = {"spectrogram": ((64, 1, 1024, 128), (32, 8)), "frames": ((96, 3, 224, 224), (10, 10))}


@functools.lru_cache(maxsize=1)  # nobody writes to it
def pictures(name: str, device: str) -> Pictures:
    shape, patch = SHAPES[name]
    return Pictures(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device), patch)


def grid(n: Pictures) -> tuple[int, int]:
    return n.x.shape[2] // n.patch[0], n.x.shape[3] // n.patch[1]


def by_slices(n: Pictures) -> Tensor:
    """As published: a draw from a list of places and a slice assignment for each, picture by picture."""
    out, (rows, columns), (h, w) = n.x.clone(), grid(n), n.patch
    for picture in out:
        for place in random.sample(range(rows * columns), int(rows * columns * RATIO)):
            y, x = place // columns * h, place % columns * w
            picture[:, y : y + h, x : x + w] = 0
    return out


def ranked(n: Pictures) -> Tensor:
    """Ranks of random numbers, a mask of patches made as large as the picture, and a product."""
    (rows, columns), (h, w) = grid(n), n.patch
    noise = torch.rand(len(n.x), rows * columns, device=n.x.device)
    keep = noise.argsort(1).argsort(1) >= int(rows * columns * RATIO)
    mask = keep.view(-1, 1, rows, columns).to(n.x.dtype).repeat_interleave(h, 2).repeat_interleave(w, 3)
    mask = torch.nn.functional.pad(mask, (0, n.x.shape[3] - mask.shape[3], 0, n.x.shape[2] - mask.shape[2]), value=1.0)
    return n.x * mask


def in_view(n: Pictures) -> Tensor:
    """The same ranks, and a product in a view of patches in which the mask repeats without being made."""
    (rows, columns), (h, w) = grid(n), n.patch
    noise = torch.rand(len(n.x), rows * columns, device=n.x.device)
    last = noise.kthvalue(int(rows * columns * RATIO), dim=1, keepdim=True).values
    keep = (noise > last).view(-1, 1, rows, 1, columns, 1)
    out = n.x.clone()
    inside = out[:, :, : rows * h, : columns * w].unflatten(3, (columns, w)).unflatten(2, (rows, h))
    inside.mul_(keep)
    return out


def avfast_patches(n: Pictures):
    import avfast

    return lambda: avfast.mask_patches(n.x, RATIO, n.patch, seed=SEED)[0]


def in_place(function):
    """The same on a picture of one's own, whose masked pixels alone are written: what a training step does with its
    batch. Every call draws the same patches."""

    def prepare(n: Pictures):
        own = Pictures(n.x.clone(), n.patch)
        return lambda: function(own)

    return prepare


def slices_in_place(n: Pictures) -> Tensor:
    (rows, columns), (h, w) = grid(n), n.patch
    for picture in n.x:
        for place in random.Random(SEED).sample(range(rows * columns), int(rows * columns * RATIO)):
            y, x = place // columns * h, place % columns * w
            picture[:, y : y + h, x : x + w] = 0
    return n.x


def view_in_place(n: Pictures) -> Tensor:
    (rows, columns), (h, w) = grid(n), n.patch
    noise = torch.rand(len(n.x), rows * columns, generator=torch.Generator().manual_seed(SEED)).to(n.x.device)
    last = noise.kthvalue(int(rows * columns * RATIO), dim=1, keepdim=True).values
    inside = n.x[:, :, : rows * h, : columns * w].unflatten(3, (columns, w)).unflatten(2, (rows, h))
    inside.mul_((noise > last).view(-1, 1, rows, 1, columns, 1))
    return n.x


def avfast_in_place(n: Pictures) -> Tensor:
    import avfast

    return avfast.mask_patches(n.x, RATIO, n.patch, seed=SEED, inplace=True)[0]


def view(result: Tensor) -> dict[str, Tensor]:
    """What no draw changes: how many pixels of each picture are hidden."""
    return {"hidden": (result == 0).sum(dim=(1, 2, 3)).double()}


def oracle(n: Pictures) -> dict[str, Tensor]:
    rows, columns = grid(n)
    hidden = int(rows * columns * RATIO) * n.patch[0] * n.patch[1] * n.x.shape[1]
    return {"hidden": torch.full((len(n.x),), float(hidden), dtype=torch.float64)}


def case(name: str, device: str = "cpu") -> Case:
    shape, _ = SHAPES[name]

    def plainly(label: str, function, role: str) -> Candidate:
        return Candidate(label, lambda n: lambda: function(n), role, view)

    return Case(
        op="mask_patches",
        shape_name=name,
        shape=shape,
        inputs=lambda: pictures(name, device),
        oracle=oracle,
        candidates=(
            plainly("slice assignment", by_slices, PUBLISHED),
            plainly("ranked", ranked, LEAN),
            plainly("in a view", in_view, LEAN),
            Candidate(
                "compile(ranked)",
                lambda n: (lambda fast: lambda: fast(n))(compiled(ranked)),
                COMPILED,
                view,
                missing=lambda: missing(device),
            ),  # fmt: skip
            *ours("mask_patches", avfast_patches, view, device),
        ),
        device=device,
        bytes_moved=2 * 4 * torch.Size(shape).numel(),
        traffic="copy",
    )


def case_in_place(name: str, device: str = "cpu") -> Case:
    shape, _ = SHAPES[name]
    return Case(
        op="mask_patches",
        shape_name=name,
        shape=shape,
        inputs=lambda: pictures(name, device),
        oracle=oracle,
        candidates=(
            Candidate("slice assignment", in_place(slices_in_place), PUBLISHED, view),
            Candidate("in a view", in_place(view_in_place), LEAN, view),
            *ours("mask_patches", in_place(avfast_in_place), view, device),
        ),
        mode="in-place",
        device=device,
        bytes_moved=int(4 * torch.Size(shape).numel() * RATIO),
        traffic="copy",
    )


def cases(device: str = "cpu") -> list[Case]:
    return [make(name, device) for name in SHAPES for make in (case, case_in_place)]


def test_mask_patches(case, candidate, measure):
    measure(case, candidate)
