"""Random patches of spectrograms and frames hidden, the same ones wherever and in whatever batch they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference import patch_mask as reference
from . import _check, _layout, _registry


@dataclass(frozen=True)
class PatchMask:
    """What was masked, as the numbers it can be made of again.

    Attributes:
        keys: int64 ``[N]``, N pictures: samples, or samples times frames.
        counts: int64 ``[N]``, masked patches of each.
        shape: of the leading dimensions, ``[B]`` or ``[B, T]``.
        patch, size: sides of a patch and of a picture, (height, width).

    >>> mask_patches(torch.ones(1, 3, 4, 4), 0.25, 2, seed=0)[1].patches().sum().item()
    1
    """

    keys: Tensor
    counts: Tensor
    shape: torch.Size
    patch: tuple[int, int]
    size: tuple[int, int]

    def patches(self) -> Tensor:
        """bool ``[B, H // ph, W // pw]`` (or ``[B, T, ...]``), True where masked."""
        grid = self.size[0] // self.patch[0], self.size[1] // self.patch[1]
        return reference.masked_patches(self.keys, self.counts, grid[0] * grid[1]).view(*self.shape, *grid)

    def pixels(self) -> Tensor:
        """bool ``[B, H, W]`` (or ``[B, T, H, W]``), True where masked."""
        patches = self.patches().flatten(0, len(self.shape) - 1)
        return reference.masked_pixels(patches, *self.patch, *self.size).unflatten(0, self.shape)


def mask_patches(
    x: Tensor,
    ratio: float | Tensor,
    patch: int | tuple[int, int],
    *,
    seed: int,
    sample_ids: Tensor | None = None,
    step: int = 0,
    value: float = 0.0,
    normalize: tuple[float | Sequence[float] | Tensor, float | Sequence[float] | Tensor] | None = None,
    inplace: bool = False,
) -> tuple[Tensor, PatchMask]:
    r"""Set ``floor(n * ratio)`` of a picture's n patches, drawn without replacement, to ``value``.

    Which ones is a function of seed, ``sample_ids[b]``, ``step`` and the number of the frame, and of nothing else: not
    of the other samples of the batch, their order, the number of processes, or where it is computed. Patches lie on a
    grid from the top left; pixels that fill no patch are never masked. All channels of a picture share its patches,
    every frame has its own.

    .. math:: y = (x - \mathrm{mean}) / \mathrm{std} \text{ where not masked, and value where masked}

    Source: Xia, Wei et al. 2023, "Revisiting Pre-training in Audio-Visual Learning", section 4: 32 x 8 patches of a
    spectrogram of 1024 x 128, 10 x 10 of a frame of 224 x 224, set to 0 after normalisation.

    Args:
        x: ``[B, C, H, W]`` or ``[B, T, C, H, W]``, float32, float64, float16 or bfloat16. Any strides.
        ratio: share of patches in [0, 1], or a floating ``[B]`` tensor of them; those of a tensor are held in [0, 1]
            and its NaN (refused on the CPU) counts as 0. :func:`mask_ratio` gives such.
        patch: side of a patch in pixels, or (height, width).
        seed: of the run.
        sample_ids: int64 ``[B]``, numbers that belong to the samples; 0, 1, ... if left out.
        step: epoch or iteration.
        value: what masked pixels become.
        normalize: mean and std, numbers or one for each channel, applied before masking (in float32; float64 for it).
        inplace: write masked pixels into ``x`` itself, and nothing else; ``x`` is contiguous, needs no gradient and
            is not normalised.

    Returns:
        ``(masked, mask)``: the pictures, contiguous, of the dtype of ``x``, with gradient where nothing is masked; and
        a :class:`PatchMask`, computed when asked.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    >>> pictures = torch.ones(2, 3, 8, 8)
    >>> masked, mask = mask_patches(pictures, torch.tensor([0.5, 0.25]), 2, seed=7)
    >>> mask.patches().sum((1, 2)).tolist(), mask.pixels().shape, masked[0, 0].sum().item()
    ([8, 4], torch.Size([2, 8, 8]), 32.0)
    >>> alone, _ = mask_patches(pictures[1:], 0.25, 2, seed=7, sample_ids=torch.tensor([1]))
    >>> torch.equal(alone[0], masked[1])
    True
    """
    name = "mask_patches"
    _check.floating(name, "x", x)
    if x.dim() not in (4, 5):
        _check.fail(name, "x", "shape [B, C, H, W] or [B, T, C, H, W]", tuple(x.shape))
    patch_h, patch_w = _patch(name, patch)
    for argument, number in (("seed", seed), ("step", step)):
        if isinstance(number, bool) or not isinstance(number, int):
            _check.fail(name, argument, "an integer", type(number).__name__, TypeError)
    _check.number(name, "value", value)
    batch, frames = x.shape[0], x.shape[1] if x.dim() == 5 else 1
    ids = _ids(name, sample_ids, x)
    patches = (x.shape[-2] // patch_h) * (x.shape[-1] // patch_w)
    counts = _counts(name, ratio, patches, x)
    keys = reference.patch_keys(seed, ids, step, frames)
    counts = counts[:, None].expand(batch, frames).flatten()
    mask = PatchMask(keys, counts, x.shape[:-3], (patch_h, patch_w), (x.shape[-2], x.shape[-1]))
    scale, shift = (None, None) if normalize is None else _affine(name, normalize, x)
    if inplace:
        if normalize is not None or not x.is_contiguous() or _check.differentiated(x):
            _check.fail(name, "inplace", "a contiguous x without gradient and without normalize", "another")
        _write(x.view(-1, *x.shape[-3:]), keys, counts, patch_h, patch_w, float(value))
        return x, mask
    flat = x.flatten(0, 1) if x.dim() == 5 else x
    arguments = (keys, counts, patch_h, patch_w, float(value), scale, shift)
    if _check.differentiated(x):
        return _MaskPatches.apply(flat, *arguments).view(x.shape), mask
    return _forward(flat, *arguments).view(x.shape), mask


def _patch(name: str, patch: object) -> tuple[int, int]:
    sides = tuple(patch) if isinstance(patch, (tuple, list)) else (patch, patch)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int) for s in sides):
        _check.fail(name, "patch", "an integer or (height, width)", patch, TypeError)
    if min(sides) < 1:
        _check.fail(name, "patch", "positive sides", patch)
    return sides


def _ids(name: str, sample_ids: Tensor | None, x: Tensor) -> Tensor:
    if sample_ids is None:
        return torch.arange(x.shape[0], device=x.device)
    if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64:
        got = sample_ids.dtype if isinstance(sample_ids, Tensor) else type(sample_ids).__name__
        _check.fail(name, "sample_ids", "an int64 tensor", got, TypeError)
    if sample_ids.shape != x.shape[:1]:
        _check.fail(name, "sample_ids", f"shape ({x.shape[0]},)", tuple(sample_ids.shape))
    return _beside(name, "sample_ids", sample_ids, x)


def _counts(name: str, ratio: object, patches: int, x: Tensor) -> Tensor:
    """int64 ``[B]``."""
    if not isinstance(ratio, Tensor):
        _check.number(name, "ratio", ratio, at_least=0)
        if ratio > 1:
            _check.fail(name, "ratio", "a share in [0, 1]", ratio)
        return torch.full(x.shape[:1], math.floor(patches * ratio), dtype=torch.int64, device=x.device)
    _check.floating(name, "ratio", ratio)
    if ratio.shape != x.shape[:1]:
        _check.fail(name, "ratio", f"a number or shape ({x.shape[0]},)", tuple(ratio.shape))
    if _check.readable(ratio) and bool(ratio.isnan().any()):
        _check.fail(name, "ratio", "shares in [0, 1]", "nan")
    share = _beside(name, "ratio", ratio.detach(), x).to(torch.float64).nan_to_num(0.0).clamp(0, 1)
    return (share * patches).floor().to(torch.int64)


def _beside(name: str, argument: str, given: Tensor, x: Tensor) -> Tensor:
    """What may lie on any device, on that of ``x``."""
    _check.strided(name, argument, given)
    if given.is_meta and not x.is_meta:
        _check.fail(name, argument, "a tensor with values", f"one on {given.device}")
    return given.to(x.device)


def _affine(name: str, normalize: object, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift, ``[C]`` each."""
    if not isinstance(normalize, (tuple, list)) or len(normalize) != 2:
        _check.fail(name, "normalize", "a mean and a std", normalize, TypeError)
    channels, found = x.shape[-3], []
    for argument, given in zip(("mean", "std"), normalize, strict=True):
        numbers = torch.as_tensor(given, dtype=torch.float64).to(x.device)
        if numbers.dim() > 1 or (numbers.dim() and len(numbers) != channels):
            _check.fail(name, f"normalize ({argument})", f"a number or {channels} of them", tuple(numbers.shape))
        found.append(numbers.expand(channels))
    mean, std = found
    if _check.readable(std) and not bool((std > 0).all() and mean.isfinite().all()):
        _check.fail(name, "normalize", "finite means and positive stds", normalize)
    wide = _layout.accumulation_dtype(x)
    return (1 / std).to(wide), (-mean / std).to(wide)


class _MaskPatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, keys: Tensor, counts: Tensor, patch_h: int, patch_w: int, value: float, scale, shift):
        ctx.save_for_backward(keys, counts, scale)
        ctx.patch = patch_h, patch_w
        return _forward(x, keys, counts, patch_h, patch_w, value, scale, shift)

    @staticmethod
    def backward(ctx, grad: Tensor):
        keys, counts, scale = ctx.saved_tensors
        arguments = (keys, counts, *ctx.patch, 0.0, scale, None)
        # Linear in the gradient, so its derivative is itself.
        again = torch.is_grad_enabled() and grad.requires_grad and not torch.compiler.is_compiling()
        found = _MaskPatches.apply(grad, *arguments) if again else _forward(grad, *arguments)
        return (found, *(None,) * 7)


def _fake(x: Tensor, *_) -> Tensor:
    return x.new_empty(x.shape)


_forward = _registry.define(
    "patch_mask_fwd(Tensor x, Tensor keys, Tensor counts, int patch_h, int patch_w, float value, Tensor? scale,"
    " Tensor? shift) -> Tensor",
    op="mask_patches",
    reference=reference.patch_mask_forward,
    fake=_fake,
    triton="avfast.kernels.fusion.patch_mask_triton:patch_mask_fwd_triton",
)
_write = _registry.define(
    "patch_mask_(Tensor(a!) x, Tensor keys, Tensor counts, int patch_h, int patch_w, float value) -> ()",
    op="mask_patches",
    reference=reference.patch_mask_in_place,
    fake=lambda *_: None,
    mutates=True,
    triton="avfast.kernels.fusion.patch_mask_triton:patch_mask_in_place_triton",
)
