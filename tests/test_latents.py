"""Mixing and editing latents: against float64 formulas, at their ends, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from avfast.nn.latents import edit_latent, mix_latents


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    """Unit rows without negative numbers, as rectified encoders give them."""
    z = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    return z / z.pow(2).sum(-1, keepdim=True).sqrt()


def normalised(rows: torch.Tensor) -> torch.Tensor:
    return torch.stack([row / math.sqrt(sum(v * v for v in row.tolist())) for row in rows])


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_mix_is_the_normalised_weighted_sum(t):
    a, b = unit(5, 7, seed=1), unit(5, 7, seed=2)
    torch.testing.assert_close(mix_latents(a, b, t), normalised(t * a + (1 - t) * b), rtol=0, atol=1e-14)


def test_mix_has_its_inputs_at_its_ends_and_is_symmetric():
    a, b = unit(4, 6, seed=1), unit(4, 6, seed=2)
    torch.testing.assert_close(mix_latents(a, b, 1.0), a)
    torch.testing.assert_close(mix_latents(a, b, 0.0), b)
    torch.testing.assert_close(mix_latents(a, b, 0.3), mix_latents(b, a, 0.7))
    # Half and half is as near to one as to the other.
    half = mix_latents(a, b, 0.5)
    torch.testing.assert_close((half * a).sum(-1), (half * b).sum(-1))


def test_a_share_for_each_row():
    a, b = unit(3, 5, seed=1), unit(3, 5, seed=2)
    shares = torch.tensor([[0.0], [0.4], [1.0]], dtype=torch.float64)
    each = torch.stack([mix_latents(a[i], b[i], shares[i].item()) for i in range(3)])
    torch.testing.assert_close(mix_latents(a, b, shares), each)


@pytest.mark.parametrize("strength", [-1.5, 0.0, 1.0, 4.0])
def test_edit_moves_along_the_difference(strength):
    z, quiet, loud = (unit(5, 7, seed=s) for s in (1, 2, 3))
    expected = normalised(z + strength * (loud - quiet))
    torch.testing.assert_close(edit_latent(z, quiet, loud, strength), expected, rtol=0, atol=1e-14)


def test_edit_by_nothing_changes_nothing_and_has_a_direction():
    z, quiet, loud = (unit(4, 6, seed=s) for s in (1, 2, 3))
    torch.testing.assert_close(edit_latent(z, quiet, quiet, 3.0), z)
    torch.testing.assert_close(edit_latent(z, quiet, loud, 0.0), z)
    torch.testing.assert_close(edit_latent(z, quiet, loud, 2.0), edit_latent(z, loud, quiet, -2.0))
    difference = loud - quiet
    more, less = (edit_latent(z, quiet, loud, s) for s in (1.0, -1.0))
    assert ((more * difference).sum(-1) > (less * difference).sum(-1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_stay_unit_and_of_their_dtype(dtype):
    a, b = unit(6, 512, seed=1).to(dtype), unit(6, 512, seed=2).to(dtype)
    for z in (mix_latents(a, b, 0.37), edit_latent(a, b, a, 1.7)):
        assert z.dtype is dtype and z.shape == a.shape
        length = z.double().pow(2).sum(-1).sqrt()
        # Each of the numbers is rounded once, so the length is far nearer to 1 than eps times their count.
        assert (length - 1).abs().max() < torch.finfo(dtype).eps


def test_gradients_agree_with_differences():
    z = [unit(2, 4, seed=s).requires_grad_() for s in range(3)]
    assert torch.autograd.gradcheck(lambda a, b: mix_latents(a, b, 0.3), z[:2])
    assert torch.autograd.gradcheck(lambda a, b, c: edit_latent(a, b, c, 0.8), z)


def test_no_rows_are_no_error():
    assert mix_latents(torch.zeros(0, 4), torch.zeros(0, 4), 0.5).shape == (0, 4)
    assert edit_latent(*[torch.zeros(0, 4)] * 3, 0.5).shape == (0, 4)


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan"), float("inf")])
def test_shares_outside_of_their_range(t):
    a, b = unit(2, 4, seed=1), unit(2, 4, seed=2)
    with pytest.raises(ValueError, match=r"avfast\.nn\.mix_latents: t: expected"):
        mix_latents(a, b, t)
    with pytest.raises(ValueError, match=r"avfast\.nn\.mix_latents: t: expected shares in \[0, 1\]"):
        mix_latents(a, b, torch.tensor([[0.5], [t]]))


def test_bad_latents_are_refused_by_name():
    a = unit(2, 4)
    with pytest.raises(ValueError, match=r"mix_latents: z_b: expected \(2, 4\).*like z_a, got \(2, 5\)"):
        mix_latents(a, unit(2, 5), 0.5)
    with pytest.raises(ValueError, match=r"edit_latent: loud: expected"):
        edit_latent(a, a, a.float(), 1.0)
    with pytest.raises(TypeError, match=r"mix_latents: z_a: expected a floating-point tensor, got torch.int64"):
        mix_latents(torch.ones(2, 4, dtype=torch.int64), a, 0.5)
    with pytest.raises(TypeError, match=r"edit_latent: z: expected a tensor, got list"):
        edit_latent([1.0], a, a, 1.0)
    with pytest.raises(TypeError, match=r"mix_latents: t: expected a number, got str"):
        mix_latents(a, a, "half")
    with pytest.raises(ValueError, match=r"edit_latent: strength: expected a finite number, got nan"):
        edit_latent(a, a, a, float("nan"))
    with pytest.raises(ValueError, match=r"mix_latents: z_a: expected shape \[\.\.\., D\], got \(\)"):
        mix_latents(torch.tensor(1.0), torch.tensor(1.0), 0.5)


def test_rows_without_a_direction_are_refused():
    a = unit(2, 4)
    with pytest.raises(ValueError, match="finite rows that do not cancel, got a row of length 0"):
        mix_latents(a, -a, 0.5)
    with pytest.raises(ValueError, match="a row of length nan"):
        edit_latent(a, a, a * float("nan"), 1.0)
