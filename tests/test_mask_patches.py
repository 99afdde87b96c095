"""Masks of patches: counts, what they depend on, values, gradients, and that only masked pixels are written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import device_of

import avfast
from avfast import _library, mask_patches
from avfast.ops._counter import combine, mix64
from avfast.reference import patch_mask
from avfast.testing import DTYPES, LAYOUTS, in_layout


@pytest.fixture
def device(way):
    if way == "cuda":
        pytest.skip(f"{way}: this op has no kernel there")
    return device_of(way)


def by_slices(x, mask: torch.Tensor, patch, value=0.0):
    """One slice assignment for each masked patch, as published."""
    out = x.clone()
    for *where, y, column in mask.nonzero().tolist():
        out[tuple(where)][..., y * patch[0] : (y + 1) * patch[0], column * patch[1] : (column + 1) * patch[1]] = value
    return out


def test_hashes_are_those_of_the_samplers():
    numbers = np.array([0, 1, 2**63, 2**64 - 1, 12345678901234567890], dtype=np.uint64)
    found = patch_mask.mix64(torch.from_numpy(numbers.view(np.int64)))
    assert (found.numpy().view(np.uint64) == mix64(numbers)).all()
    keys = patch_mask.patch_keys(7, torch.tensor([3, -1]), 5, 2)
    expected = combine(7, np.array([[3], [2**64 - 1]], dtype=np.uint64), 5, np.arange(2)[None])
    assert (keys.view(2, 2).numpy().view(np.uint64) == expected).all()


@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("patch", [(10, 10), (32, 8), (1, 3), (7, 64)], ids=str)
def test_it_is_slice_assignment_of_the_patches_it_names(frames, patch, device):
    x = torch.randn(*((2,) if frames is None else (2, frames)), 3, 64, 50, device=device)
    if patch[1] > 50:
        x = torch.randn(*x.shape[:-1], 130, device=device)
    masked, mask = mask_patches(x, torch.tensor([0.3, 0.85]), patch, seed=3, value=-2.0)
    assert torch.equal(masked, by_slices(x, mask.patches(), patch, -2.0))
    assert torch.equal((masked == -2.0).all(-3), mask.pixels())


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.29, 0.5, 2 / 3, 0.999, 1.0])
def test_counts_are_exact(ratio, device):
    x = torch.ones(4, 2, 1, 224, 224, device=device)
    masked, mask = mask_patches(x, ratio, 10, seed=0)
    assert (mask.patches().sum((2, 3)) == math.floor(484 * ratio)).all()
    assert ((masked == 0).sum((2, 3, 4)) == 100 * math.floor(484 * ratio)).all()
    assert (masked[..., 220:, :] == 1).all() and (masked[..., 220:] == 1).all(), "no patch fills the last rows"
    same = mask_patches(x, torch.full((4,), ratio, dtype=torch.float64), 10, seed=0)[0]
    assert torch.equal(masked, same)


def test_a_sample_is_masked_alike_in_every_batch(device):
    ids = torch.tensor([5, 900, 2**40, 17])
    x, ratio = torch.randn(4, 2, 3, 40, 40, device=device), torch.rand(4)
    options = {"seed": 11, "step": 6}
    whole = mask_patches(x, ratio, 4, sample_ids=ids, **options)[0]
    order = torch.tensor([2, 0, 3, 1])
    shuffled = mask_patches(x[order], ratio[order], 4, sample_ids=ids[order], **options)[0]
    parts = [mask_patches(x[i::2], ratio[i::2], 4, sample_ids=ids[i::2], **options)[0] for i in range(2)]
    assert torch.equal(shuffled, whole[order])
    assert torch.equal(parts[0], whole[::2]) and torch.equal(parts[1], whole[1::2])


def test_seed_step_sample_and_frame_each_change_the_draw(device):
    x = torch.ones(2, 2, 1, 32, 32, device=device)
    draws = [mask_patches(x, 0.5, 2, seed=seed, step=step)[1].patches() for seed, step in ((0, 0), (1, 0), (0, 1))]
    pictures = torch.cat(draws).flatten(0, 1)
    assert len({tuple(p.flatten().tolist()) for p in pictures}) == len(pictures)


def test_backends_draw_alike():
    x = torch.randn(3, 2, 3, 50, 41)
    results = []
    for name in ("torch", "cpp"):
        if name == "cpp" and not _library.native:
            pytest.skip("no compiled library")
        with avfast.use_backend(name):
            results.append(mask_patches(x, 0.4, (5, 4), seed=2**63 + 5, normalize=(0.5, 2.0))[0])
    torch.testing.assert_close(*results)
    assert torch.equal(results[0] == 0, results[1] == 0)


def test_every_patch_is_as_likely():
    x = torch.ones(4000, 1, 8, 8)
    share = mask_patches(x, 0.25, 2, seed=1)[1].patches().float().mean(0)
    assert (share - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 4000)
    together = mask_patches(x, 2 / 16, 2, seed=1)[1].patches().flatten(1).float()
    pairs = together.T @ together / 4000
    expected = 2 * 1 / (16 * 15)
    off = pairs[~torch.eye(16, dtype=torch.bool)]
    assert (off - expected).abs().max() < 5 * math.sqrt(expected / 4000)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_normalisation_comes_first(dtype, layout, device):
    x = in_layout((torch.rand(2, 3, 33, 21) * 4).to(device, dtype), layout)
    mean, std = (0.4, 0.5, 0.6), torch.tensor([0.2, 0.3, 0.4])
    masked, mask = mask_patches(x, 0.5, 3, seed=0, normalize=(mean, std))
    exact = (x.double() - torch.tensor(mean, dtype=torch.float64)[:, None, None]) / std.double()[:, None, None]
    exact = exact.masked_fill(mask.pixels()[:, None], 0.0)
    assert masked.dtype == dtype and masked.is_contiguous()
    torch.testing.assert_close(masked.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


def test_in_place_writes_masked_pixels_and_nothing_else(device):
    x = torch.randn(2, 3, 2, 30, 30, device=device)
    expected, mask = mask_patches(x, 0.3, 4, seed=5)
    kept = x.clone()
    masked, same = mask_patches(x, 0.3, 4, seed=5, inplace=True)
    assert masked is x and torch.equal(x, expected) and torch.equal(same.patches(), mask.patches())
    hidden = mask.pixels().unsqueeze(2).expand_as(x)
    assert torch.equal(x[~hidden], kept[~hidden])


@pytest.mark.parametrize("normalize", [None, (0.5, 2.0)])
def test_first_and_second_derivatives(normalize, device):
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    function = lambda x: mask_patches(x, 0.4, 2, seed=0, normalize=normalize)[0]  # noqa: E731
    assert torch.autograd.gradcheck(function, (x,)) and torch.autograd.gradgradcheck(function, (x,))
    with torch.no_grad():
        assert not function(x).requires_grad


def test_nan_and_infinity_are_hidden_like_numbers(device):
    x = torch.full((1, 1, 4, 4), float("nan"), device=device)
    masked, mask = mask_patches(x, 0.5, 1, seed=0)
    assert torch.equal(masked.isnan()[:, 0], ~mask.pixels())


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 1), (2, 0, 3, 8, 8)], ids=str)
def test_zero_sizes_and_pictures_smaller_than_a_patch(shape, device):
    x = torch.randn(shape, device=device)
    masked, mask = mask_patches(x, 1.0, 2, seed=0)
    assert masked.shape == x.shape and mask.pixels().shape == (*shape[:-3], *shape[-2:])
    assert torch.equal(masked, x.masked_fill(mask.pixels().unsqueeze(-3), 0.0))


def test_compiles():
    x, ratio = torch.randn(2, 3, 16, 16, requires_grad=True), torch.tensor([0.2, 0.7])

    def function(x):
        masked, mask = mask_patches(x, ratio, 4, seed=1)
        return masked * 2, mask.patches()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (a, m), (b, n) = compiled(x), function(x)
    assert torch.equal(a, b) and torch.equal(m, n)
    assert torch.equal(torch.autograd.grad(a.sum(), x)[0], torch.autograd.grad(b.sum(), x)[0])


X = torch.ones(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"x: expected shape \[B, C, H, W\] or \[B, T, C, H, W\], got \(3, 8, 8\)"),
        ({"x": X.byte()}, "x: expected a floating-point tensor, got torch.uint8"),
        ({"ratio": 1.5}, r"ratio: expected a share in \[0, 1\], got 1.5"),
        ({"ratio": -0.1}, "ratio: expected a finite number >= 0, got -0.1"),
        ({"ratio": torch.ones(3)}, r"ratio: expected a number or shape \(2,\), got \(3,\)"),
        ({"ratio": torch.tensor([0.5, float("nan")])}, r"ratio: expected shares in \[0, 1\], got nan"),
        ({"patch": 0}, "patch: expected positive sides, got 0"),
        ({"patch": (2, 2, 2)}, r"patch: expected an integer or \(height, width\)"),
        ({"patch": 2.5}, "patch: expected an integer"),
        ({"seed": 1.0}, "seed: expected an integer, got float"),
        ({"sample_ids": torch.ones(2)}, "sample_ids: expected an int64 tensor, got torch.float32"),
        ({"sample_ids": torch.arange(3)}, r"sample_ids: expected shape \(2,\), got \(3,\)"),
        ({"value": float("inf")}, "value: expected a finite number, got inf"),
        ({"normalize": 0.5}, "normalize: expected a mean and a std, got 0.5"),
        ({"normalize": ((0.5, 0.5), 1.0)}, r"normalize \(mean\): expected a number or 3 of them, got \(2,\)"),
        ({"normalize": (0.5, 0.0)}, "normalize: expected finite means and positive stds"),
        ({"inplace": True, "normalize": (0.0, 1.0)}, "inplace: expected a contiguous x without gradient"),
        ({"inplace": True, "x": X.transpose(2, 3)}, "inplace: expected a contiguous x without gradient"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"x": X, "ratio": 0.5, "patch": 2, "seed": 0} | change
    with pytest.raises((TypeError, ValueError), match=f"avfast.mask_patches: {message}"):
        mask_patches(arguments.pop("x"), arguments.pop("ratio"), arguments.pop("patch"), **arguments)
