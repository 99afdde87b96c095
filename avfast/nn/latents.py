"""Arithmetic of unit latents that a generator is conditioned on: two mixed into one, one moved along a difference.

Source: Sung-Bin et al., "Sound to Visual Scene Generation by Audio-to-Visual Latent Alignment" (CVPR 2023), project
page, manipulations in the latent space. The page shows pictures and no formulas; these are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import _check


def mix_latents(z_a: Tensor, z_b: Tensor, t: float | Tensor) -> Tensor:
    r"""Latents on the arc between two others: of a picture and a sound, the scene of both.

    .. math:: z = \frac{t z_a + (1 - t) z_b}{\lVert t z_a + (1 - t) z_b \rVert_2}

    Args:
        z_a, z_b: floating ``[..., D]``, of one shape, dtype and device; unit rows, as encoders of latents give them.
        t: share of ``z_a`` in [0, 1], a number or a tensor that broadcasts with ``[..., 1]``.

    Returns:
        Unit rows of the same shape. Differentiable in everything that requires it.

    Raises:
        TypeError: no floating tensors.
        ValueError: shapes that differ, a share outside [0, 1], or (on the CPU) rows that cancel or are not finite.

    >>> mix_latents(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
    tensor([[0.7071, 0.7071]])
    """
    op = "nn.mix_latents"
    _check_latents(op, z_a=z_a, z_b=z_b)
    if isinstance(t, Tensor):
        if _check.readable(t) and not bool(((t >= 0) & (t <= 1)).all()):
            _check.fail(op, "t", "shares in [0, 1]", f"{t.min().item():g} to {t.max().item():g}")
    else:
        _check.number(op, "t", t, at_least=0.0)
        if t > 1:
            _check.fail(op, "t", "a share in [0, 1]", t)
    return _unit(op, t * z_a + (1 - t) * z_b)


def edit_latent(z: Tensor, quiet: Tensor, loud: Tensor, strength: float | Tensor) -> Tensor:
    r"""A latent moved the way a sound's latent moves as the sound changes, for instance from quiet to loud.

    .. math:: z' = \frac{z + s (z_\mathrm{loud} - z_\mathrm{quiet})}{\lVert z + s (z_\mathrm{loud} - z_\mathrm{quiet})
        \rVert_2}

    Args:
        z: what to edit, often of a picture; floating ``[..., D]``, unit rows.
        quiet, loud: latents of the sound before and after its change, of the shape, dtype and device of ``z``.
        strength: s, a finite number (negative to go the other way) or a tensor that broadcasts with ``[..., 1]``.

    Returns:
        Unit rows of the same shape; ``z`` itself, made unit, where ``quiet`` and ``loud`` agree.

    Raises:
        TypeError: no floating tensors.
        ValueError: shapes that differ, a strength that is not finite, or (on the CPU) rows that cancel or are not
            finite.

    >>> z, quiet, loud = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]), torch.tensor([[0.8, 0.6]])
    >>> edit_latent(z, quiet, loud, 2.0)
    tensor([[ 0.9615, -0.2747]])
    """
    op = "nn.edit_latent"
    _check_latents(op, z=z, quiet=quiet, loud=loud)
    if not isinstance(strength, Tensor):
        _check.number(op, "strength", strength)
    return _unit(op, z + strength * (loud - quiet))


def _check_latents(op: str, **latents: Tensor) -> None:
    """Floating tensors of one shape with rows of at least one number."""
    (name, first), *others = latents.items()
    _check.floating(op, name, first)
    if first.ndim < 1 or first.shape[-1] < 1:
        _check.fail(op, name, "shape [..., D]", tuple(first.shape))
    for other, x in others:
        _check.like(op, other, x, first, name)


def _unit(op: str, z: Tensor) -> Tensor:
    """Rows divided by their lengths, which are taken in float32 at least."""
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    # Rows of rounding errors have a direction too, but it means nothing.
    if _check.readable(length) and not bool((length > 1e-6).all() & length.isfinite().all()):
        _check.fail(op, "latents", "finite rows that do not cancel", f"a row of length {_worst(length):g}")
    return (wide / length).to(z.dtype)


def _worst(length: Tensor) -> float:
    flat = length.detach().flatten()
    odd = flat[~flat.isfinite()]
    return (odd[0] if len(odd) else flat.min()).item()
