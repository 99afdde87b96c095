"""Patches of pictures hidden by random draw, in plain PyTorch: the same patches on every device, in any batch."""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def mix64(z: Tensor) -> Tensor:
    """The splitmix64 finaliser of int64 taken as 64 bits, as :func:`avfast.ops._counter.mix64`: one to one."""
    z = z + GOLDEN
    for shift, factor in _FACTORS:
        z = (z ^ _right(z, shift)) * factor
    return z ^ _right(z, 31)


def _right(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def patch_keys(seed: int, sample_ids: Tensor, step: int, frames: int) -> Tensor:
    """int64 ``[B * frames]``: one key of every picture's draw, a function of seed, sample, step and frame."""
    state = mix64(mix64(torch.zeros_like(sample_ids) ^ _signed(seed % 2**64)) ^ sample_ids)
    state = mix64(state ^ _signed(step % 2**64))
    return mix64(state[:, None] ^ torch.arange(frames, device=state.device)).flatten()


def masked_patches(keys: Tensor, counts: Tensor, patches: int) -> Tensor:
    """bool ``[N, patches]``: the ``counts[n]`` patches whose hashed numbers are smallest, as signed integers.

    ``mix64(key + GOLDEN * patch)`` takes a value once only, so there are no ties.
    """
    if not patches:
        return torch.zeros(len(keys), 0, dtype=torch.bool, device=keys.device)
    scores = mix64(keys[:, None] + GOLDEN * torch.arange(patches, device=keys.device))
    counts = counts.clamp(0, patches)[:, None]
    last = scores.sort(dim=1).values.gather(1, (counts - 1).clamp_min(0))
    return (scores <= last) & (counts > 0)


def masked_pixels(patches: Tensor, patch_h: int, patch_w: int, height: int, width: int) -> Tensor:
    """bool ``[N, H, W]`` of patches ``[N, gh, gw]``; what is left of a side that no patch fills is not masked."""
    gh, gw = patches.shape[1:]
    full = patches.repeat_interleave(patch_h, 1).repeat_interleave(patch_w, 2)
    return torch.nn.functional.pad(full, (0, width - gw * patch_w, 0, height - gh * patch_h))


def patch_mask_forward(
    x: Tensor, keys: Tensor, counts: Tensor, patch_h: int, patch_w: int, value: float, scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:  # fmt: skip
    """``[N, C, H, W]``: ``x * scale + shift`` by channel, and ``value`` where a patch is masked. Computed in float32,
    float64 for float64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    result = x
    if scale is not None:
        result = result.to(wide) * scale.to(wide)[:, None, None]
    if shift is not None:
        result = result.to(wide) + shift.to(wide)[:, None, None]
    hidden = _hidden(x, keys, counts, patch_h, patch_w)
    return result.to(x.dtype).masked_fill(hidden, value).contiguous()


def patch_mask_in_place(x: Tensor, keys: Tensor, counts: Tensor, patch_h: int, patch_w: int, value: float) -> None:
    x.masked_fill_(_hidden(x, keys, counts, patch_h, patch_w), value)


def _hidden(x: Tensor, keys: Tensor, counts: Tensor, patch_h: int, patch_w: int) -> Tensor:
    grid = x.shape[2] // patch_h, x.shape[3] // patch_w
    patches = masked_patches(keys, counts, grid[0] * grid[1]).unflatten(1, grid)
    return masked_pixels(patches, patch_h, patch_w, *x.shape[2:])[:, None]
