"""Six exemplars of every image, from the drawn boxes to 64 x 64 bytes and the maps of where they came from."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .candidate import PUBLISHED, Candidate, Case
from .opponents import installed, ours

#: (B, E, side of an image)
SHAPES = {"recipe": (16, 6, 224), "small": (2, 2, 96)}
SEED, OUT, CONTEXT = 0, 64, 160


class Batch(NamedTuple):
    """Decoded images, and what the sampler of this seed draws for each exemplar before the image is rotated."""

    images: Tensor  # uint8 [B, 3, S, S]
    count: int
    theta: np.ndarray  # [B, E]
    drawn: np.ndarray  # [B, E, 4]: top, left, bottom, right in pixels of the image


@functools.lru_cache(maxsize=1)  # nobody writes to it
def batch(shape: tuple[int, int, int]) -> Batch:
    """Smooth pictures: what interpolation leaves open is small."""
    from avfast.ops._counter import Uniforms, combine
    from avfast.ops.sample_exemplars import _draw

    b, e, side = shape
    coarse = torch.rand(b, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1).mul(255).byte()
    keys = combine(SEED, np.arange(b)[:, None], 0, np.arange(e)[None])
    theta, edges = _draw(Uniforms(keys), side, (0.05, 0.48), (1 / 3, 3), (-45, 45))
    return Batch(images, e, theta.numpy(), torch.stack(edges, -1).numpy() + side / 2)


# ---------------------------------------------------------------------------------------------- as published


def published(data: Batch) -> tuple[Tensor, Tensor]:
    """Image by image, exemplar by exemplar: the whole image and its masks are rotated, edges are searched in masks."""
    from PIL import Image

    crops, maps = [], []
    for image, thetas, boxes in zip(data.images, data.theta, data.drawn, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        for theta, box in zip(thetas, boxes, strict=True):
            crop, target = one(picture, float(theta), *(int(edge) for edge in box))
            crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
            maps.append(torch.from_numpy(target))
    grid = (len(data.images), data.count)
    return torch.stack(crops).unflatten(0, grid), torch.stack(maps).unflatten(0, grid)


def one(picture, theta: float, top: int, left: int, bottom: int, right: int):
    """One exemplar and its map, as CIM prepares them."""
    from PIL import Image

    def turned(image, angle):
        return image.rotate(angle, Image.Resampling.NEAREST, expand=True)

    side = picture.width
    box = np.zeros((side, side), dtype=np.uint8)
    box[top:bottom, left:right] = 255
    around = extent(np.array(turned(Image.fromarray(box), theta)))
    everything = Image.new("L", (side, side), 255)
    support = np.array(turned(everything, theta)) > 0
    t, l, b, r = revised(support, theta, *around)  # noqa: E741
    rotated = turned(picture, theta)
    crop = rotated.crop((l, t, r, b)).resize((OUT, OUT), Image.Resampling.BICUBIC)

    label = np.zeros(support.shape, dtype=np.uint8)
    label[t:b, l:r] = 1
    back = turned(Image.fromarray(label), -theta)
    there = turned(turned(everything, theta), -theta)
    t, l, b, r = extent(np.array(there))  # noqa: E741
    small = back.crop((l, t, r, b)).resize((CONTEXT, CONTEXT), Image.Resampling.BICUBIC)
    return crop, (np.array(small) == 1).astype(np.int64)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def revised(support: np.ndarray, theta: float, top: int, left: int, bottom: int, right: int):
    """Edges moved inwards until the corners of the box are pixels of the rotated image."""

    def outside(y: int, x: int) -> bool:
        return not support[y, x]

    t, l, b, r = top, left, bottom, right  # noqa: E741
    if theta > 0:
        if outside(top, left):
            t = max(top, np.nonzero(support[:, left])[0].min())
        if outside(top, right - 1):
            r = min(right, np.nonzero(support[t])[0].max() + 1)
        if outside(bottom - 1, left):
            l = max(left, np.nonzero(support[bottom - 1])[0].min())  # noqa: E741
        if outside(b - 1, r - 1):
            b = min(bottom, np.nonzero(support[:, r - 1])[0].max() + 1)
    else:
        if outside(top, left):
            l = max(left, np.nonzero(support[top])[0].min())  # noqa: E741
        if outside(top, right - 1):
            t = max(top, np.nonzero(support[:, right - 1])[0].min())
        if outside(bottom - 1, left):
            b = min(bottom, np.nonzero(support[:, l])[0].max() + 1)
        if outside(b - 1, r - 1):
            r = min(right, np.nonzero(support[b - 1])[0].max() + 1)
    return t, l, b, r


# ------------------------------------------------------------------------------------------------------ ours


def avfast_exemplars(data: Batch):
    """Boxes drawn and cut; the five numbers of each are the map, and the loss reads them as they are."""
    import avfast

    size = data.images.shape[-1]

    def call():
        exemplars = avfast.sample_exemplars(len(data.images), count=data.count, size=size, generator=SEED)
        return avfast.crop_exemplars(data.images, exemplars, OUT), exemplars.boxes

    return call


def view(result) -> dict[str, Tensor]:
    """Exemplars in [0, 1]; a map is compared by its owner's tests, not here."""
    return {"crops": result[0].double() / 255}


def oracle(data: Batch) -> dict[str, Tensor]:
    import avfast

    size = data.images.shape[-1]
    exemplars = avfast.sample_exemplars(len(data.images), count=data.count, size=size, generator=SEED)
    with avfast.use_backend("torch"):
        return {"crops": avfast.crop_exemplars(data.images.double() / 255, exemplars, OUT)}


def case(name: str, device: str = "cpu") -> Case:
    b, e, side = shape = SHAPES[name]
    return Case(
        op="exemplars",
        shape_name=name,
        shape=shape,
        inputs=lambda: batch(shape),
        oracle=oracle,
        candidates=(
            Candidate(
                "published (PIL)", lambda data: lambda: published(data), PUBLISHED, view, missing=installed("PIL")
            ),
            *ours("crop_exemplars", avfast_exemplars, view, device),
        ),
        dtype=torch.uint8,
        device=device,
        bytes_moved=b * 3 * side * side + b * e * 3 * OUT * OUT,
        # The published boxes are whole pixels found in masks, off by up to 1.5, and their pixels the nearest ones.
        least_allowance=0.1,
    )


def cases(device: str = "cpu") -> list[Case]:
    if device != "cpu":
        return []
    return [case("recipe"), case("small")]


def test_exemplars(case, candidate, measure):
    measure(case, candidate)
