"""Geometric matches against pictures whose pixels say where they are."""

from __future__ import annotations

import math

import pytest
import torch

from avfast.nn import geometric_match, random_match
from avfast.ops.dense_contrastive import dense_contrastive

SIZE, VIEW = 336, 168  # pixels of the picture and of the key view; every grid below divides them


def random_crops(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    side = torch.rand(count, 2, generator=generator) * 0.6 + 0.25
    corner = torch.rand(count, 2, generator=generator) * (1 - side)
    flip = (torch.rand(count, 1, generator=generator) < 0.5).float()
    return torch.cat([corner, side, flip], dim=1)


def view(crop: torch.Tensor, size: int) -> torch.Tensor:
    """The crop of a picture that stores each pixel's own (y, x), resized and flipped: [size, size, 2].

    Bilinear sampling of a ramp is exact, so a pixel of the view says which place of the image it shows.
    """
    top, left, height, width, flip = crop.double().tolist()
    ramp = (torch.arange(SIZE, dtype=torch.float64) + 0.5) / SIZE
    image = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij"))[None]  # [1, 2, SIZE, SIZE]
    centre = 2 * (torch.arange(size, dtype=torch.float64) + 0.5) / size - 1
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    place = torch.stack([x * width + 2 * left + width - 1, y * height + 2 * top + height - 1], dim=-1)
    crop_view = torch.nn.functional.grid_sample(image, place[None], align_corners=False, padding_mode="border")[0]
    return (crop_view.flip(2) if flip else crop_view).movedim(0, 2)


@pytest.mark.parametrize("grid", [1, 3, 7, (4, 6)])
def test_matches_show_the_same_place_of_the_image(grid):
    rows, columns = grid if isinstance(grid, tuple) else (grid, grid)
    crop_q, crop_k = random_crops(8, seed=1), random_crops(8, seed=2)
    index, valid = geometric_match(crop_q, crop_k, grid)
    assert index.shape == valid.shape == (8, rows * columns)
    assert index.dtype == torch.int64 and valid.dtype == torch.bool
    assert torch.equal(index >= 0, valid) and index.max() < rows * columns and index.min() >= -1
    checked = 0
    for q, k, found, inside in zip(crop_q, crop_k, index, valid, strict=True):
        key = view(k, VIEW)
        fine = view(q, 2 * rows * columns)
        step_y, step_x = fine.shape[0] // rows, fine.shape[1] // columns
        for s in range(rows * columns):
            r, c = divmod(s, columns)
            y, x = r * step_y + step_y // 2, c * step_x + step_x // 2
            place = fine[y - 1 : y + 1, x - 1 : x + 1].mean(dim=(0, 1))  # the centre lies between four pixels
            distance = (key - place).norm(dim=2)
            nearest = divmod(distance.argmin().item(), VIEW)
            pixel = torch.tensor([k[2], k[3]]) / VIEW
            if inside[s]:
                cell = divmod(found[s].item(), columns)
                for got, n, side in zip(nearest, (rows, columns), cell, strict=True):
                    # The nearest pixel is in the cell, or at its very edge.
                    assert side * VIEW / n - 1 <= got < (side + 1) * VIEW / n + 1
                assert distance.min() <= pixel.norm()
                checked += 1
            else:
                assert distance.min() >= 0.4 * pixel.min()
    assert 0 < checked == valid.sum() < valid.numel()


def test_the_same_crop_matches_itself_and_its_mirror_backwards():
    crop = torch.tensor([[0.1, 0.2, 0.5, 0.4, 0.0]])
    flipped = crop.clone()
    flipped[0, 4] = 1
    straight = torch.arange(9).view(1, 9)
    mirrored = torch.tensor([[2, 1, 0, 5, 4, 3, 8, 7, 6]])
    for a, b, expected in ((crop, crop, straight), (flipped, flipped, straight), (crop, flipped, mirrored)):
        match = geometric_match(a, b, 3)
        assert torch.equal(match.index, expected) and match.valid.all()


def test_disjoint_crops_have_no_match():
    left, right = torch.tensor([[0.0, 0.0, 1.0, 0.5, 0.0]]), torch.tensor([[0.0, 0.5, 1.0, 0.5, 1.0]])
    match = geometric_match(left, right, 5)
    assert not match.valid.any() and (match.index == -1).all()


def test_it_is_what_the_loss_takes():
    crop_q, crop_k = random_crops(4, seed=3), random_crops(4, seed=4)
    match = geometric_match(crop_q, crop_k, 3)
    q, k, queue = torch.randn(4, 5, 3, 3), torch.randn(4, 5, 3, 3), torch.randn(7, 5)
    rows = dense_contrastive(q, k, queue, match, reduction="none").flatten(1)
    assert torch.equal(rows > 0, match.valid) and 0 < match.valid.sum() < match.valid.numel()


def test_random_matches_are_uniform():
    generator = torch.Generator().manual_seed(0)
    for index, valid in (
        random_match(4000, (2, 3), generator=generator),
        random_match(4000, (2, 3), keys=torch.arange(-2000, 2000)),
    ):
        assert index.shape == (4000, 6) and valid.all()
        counts = index.flatten().bincount(minlength=6)
        assert len(counts) == 6 and (counts - 4000).abs().max() < 5 * math.sqrt(4000)


def test_random_matches_of_keys_are_those_of_the_samples():
    keys = torch.tensor([3, -8, 2**63 - 1, 3])
    index = random_match(4, 5, keys=keys).index
    assert torch.equal(random_match(2, 5, keys=keys[1:3]).index, index[1:3])
    assert torch.equal(index[0], index[3]) and not torch.equal(index[0], index[1])
    for wrong in (keys[:3], keys.int(), keys[None]):
        with pytest.raises((ValueError, TypeError), match=r"random_match: keys: expected int64 \[4\]"):
            random_match(4, 5, keys=wrong)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(2, 4), torch.zeros(2, 5), 3), ValueError, r"crop_q: expected shape \[B, 5\], got \(2, 4\)"),
        ((torch.zeros(2, 5), torch.zeros(3, 5), 3), ValueError, "crop_k: expected"),
        ((torch.zeros(2, 5).half(), torch.zeros(2, 5).half(), 3), TypeError, "crop_q: expected float32 or float64"),
        ((torch.zeros(2, 5), torch.zeros(2, 5), 0), ValueError, "grid: expected a positive integer"),
        ((torch.zeros(2, 5), torch.zeros(2, 5), (3, 3, 3)), ValueError, "grid: expected a positive integer"),
    ],
)
def test_mistakes_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        geometric_match(*arguments)
