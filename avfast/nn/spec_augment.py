"""A band of frequencies and a stretch of time of every spectrogram hidden by random draw."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import _check
from ..reference.patch_mask import patch_keys


def spec_augment(
    x: Tensor, bands: int, frames: int, *, seed: int, sample_ids: Tensor, step: int = 0, value: float = 0.0
) -> Tensor:
    """One band and one stretch of every spectrogram set to ``value``, at a place and of a width drawn at random.

    A width is uniform in ``[0, bands)`` (or ``frames``), its place uniform among those that fit. Both are functions of
    seed, ``sample_ids[b]`` and ``step``, as the masks of :func:`avfast.mask_patches`.

    Source: Park et al. 2019, "SpecAugment", without warping.

    Args:
        x: ``[B, C, T, F]``, time first, as ABRi's encoders take it.
        bands: largest width in mel bands, at most F; 0 for none.
        frames: largest width in frames, at most T; 0 for none.
        seed: of the run.
        sample_ids: int64 ``[B]``, numbers that belong to the samples.
        step: epoch or iteration.
        value: what hidden cells become; ``-mean / std`` is 0 before normalisation.

    Raises:
        TypeError, ValueError: wrong dtype, shape or option.

    >>> x = spec_augment(torch.ones(1, 1, 8, 6), 3, 4, seed=1, sample_ids=torch.tensor([5]))
    >>> x.shape, x.sum().item() < 48
    (torch.Size([1, 1, 8, 6]), True)
    """
    name = "nn.spec_augment"
    _check.floating(name, "x", x)
    if x.dim() != 4:
        _check.fail(name, "x", "shape [B, C, T, F]", tuple(x.shape))
    if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64 or sample_ids.shape != x.shape[:1]:
        _check.fail(name, "sample_ids", f"an int64 tensor of shape ({x.shape[0]},)", sample_ids)
    for argument, width, size in (("bands", bands, x.shape[3]), ("frames", frames, x.shape[2])):
        if not isinstance(width, int) or not 0 <= width <= size:
            _check.fail(name, argument, f"an integer from 0 to {size}", width)
    keys = patch_keys(seed, sample_ids.to(x.device), step, 4).view(-1, 4)
    draws = ((keys >> 11) & (2**53 - 1)).double() * 2.0**-53  # [B, 4] in [0, 1)
    hidden_bands = _stretch(draws[:, 0], draws[:, 1], bands, x.shape[3])[:, None, None, :]
    hidden_frames = _stretch(draws[:, 2], draws[:, 3], frames, x.shape[2])[:, None, :, None]
    return x.masked_fill(hidden_bands | hidden_frames, value)


def _stretch(wide: Tensor, place: Tensor, widest: int, size: int) -> Tensor:
    """bool ``[B, size]``."""
    width = (wide * widest).floor()
    first = (place * (size - width + 1)).floor()
    at = torch.arange(size, device=wide.device)
    return (at >= first[:, None]) & (at < (first + width)[:, None])
