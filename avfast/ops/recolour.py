"""Colours of whole pictures changed and normalised, each picture with strengths of its own, in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import colours as reference
from . import _check, _registry


def recolour(
    pictures: Tensor,
    *,
    factors: Tensor | None = None,
    order: Tensor | None = None,
    gray: Tensor | None = None,
    sigma: Tensor | None = None,
    solarize: Tensor | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Tensor:
    r"""Change the colours of pictures as torchvision's and Pillow's functions of these names do, then normalise.

    In this order: brightness, contrast, saturation and hue in an order of its own for each picture; grey; a Gaussian
    blur; solarising (what is brighter than half of white is inverted). Colours stay in [0, 1] after every change. At
    last ``(x - mean) / std``. Each picture depends on its own row of the strengths alone. No gradient flows through.

    * brightness ``f``: ``f x``; contrast ``f``: ``f x + (1 - f) m`` with ``m`` the mean of the picture's grey;
      saturation ``f``: ``f x + (1 - f) g`` with ``g`` the pixel's grey, ``0.299 R + 0.587 G + 0.114 B``;
    * hue ``t``: moved on by ``t`` of the circle in HSV (Smith 1978, "Color gamut transform pairs");
    * blur: along rows and columns, cut off at six sigmas; at the border, over the pixels there are.

    Args:
        pictures: uint8 ``[N, 3, H, W]``, or floating-point in [0, 1], where it is held; NaN counts as 0.
        factors: ``[N, 4]``, of brightness, contrast and saturation (1 changes nothing) and the hue (0 changes nothing).
        order: int64 ``[N, 4]``: a permutation of 0, 1, 2, 3, which stand for these four; as named if left out.
        gray: bool ``[N]``: which pictures become grey.
        sigma: ``[N]``: of the blur, in pixels; 0 for none.
        solarize: bool ``[N]``: which pictures are solarised.
        mean, std: of the normalisation, one number or one for each of red, green and blue; 0 and 1 if left out.

    Returns:
        ``[N, 3, H, W]``, new and contiguous; float32 of bytes, else of the pictures' dtype.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    >>> pictures = torch.tensor([0, 51, 255], dtype=torch.uint8)[None, :, None, None]
    >>> recolour(pictures).flatten()
    tensor([0.0000, 0.2000, 1.0000])
    >>> recolour(pictures, factors=torch.tensor([[2.0, 1, 1, 0]]), solarize=torch.tensor([True]), std=0.5).flatten()
    tensor([0.0000, 0.8000, 0.0000])
    """
    name = "recolour"
    if not isinstance(pictures, Tensor) or pictures.dtype != torch.uint8:
        _check.floating(name, "pictures", pictures)
    _check.strided(name, "pictures", pictures)
    if pictures.dim() != 4 or pictures.shape[1] != 3:
        _check.fail(name, "pictures", "shape [N, 3, H, W]", tuple(pictures.shape))
    n, like = len(pictures), {"device": pictures.device, "dtype": torch.float64}
    if factors is not None:
        _check.floating(name, "factors", factors)
        _shaped("factors", factors, (n, 4), pictures)
        factors = factors.detach().to(torch.float64)
    if order is not None:
        if factors is None:
            _check.fail(name, "order", "nothing without factors", "a tensor")
        _typed("order", order, torch.int64)
        _shaped("order", order, (n, 4), pictures)
        if _check.readable(order) and not torch.equal(order.sort(dim=1).values, torch.arange(4).expand(n, 4)):
            _check.fail(name, "order", "permutations of 0, 1, 2, 3", order.tolist() if n < 3 else "other rows")
    elif factors is not None:
        order = torch.arange(4, device=pictures.device).expand(n, 4).contiguous()
    for argument, given in (("gray", gray), ("solarize", solarize)):
        if given is not None:
            _typed(argument, given, torch.bool)
            _shaped(argument, given, (n,), pictures)
    if sigma is not None:
        _check.floating(name, "sigma", sigma)
        _shaped("sigma", sigma, (n,), pictures)
    finish = None
    if not (gray is None and sigma is None and solarize is None):
        parts = [torch.zeros(n, **like) if x is None else x.detach().to(torch.float64) for x in (gray, sigma, solarize)]
        finish = torch.stack(parts, dim=1)
    return _recolour(pictures.detach(), factors, order, finish, _affine(mean, std).to(pictures.device))


def _shaped(argument: str, x: Tensor, shape: tuple[int, ...], pictures: Tensor) -> None:
    if tuple(x.shape) != shape:
        _check.fail("recolour", argument, f"shape {shape}", tuple(x.shape))
    if x.device != pictures.device:
        _check.fail("recolour", argument, f"a tensor on {pictures.device}, like pictures", x.device)


def _typed(argument: str, x: object, dtype: torch.dtype) -> None:
    if not isinstance(x, Tensor):
        _check.fail("recolour", argument, "a tensor", type(x).__name__, TypeError)
    if x.dtype != dtype:
        _check.fail("recolour", argument, f"{dtype}", x.dtype, TypeError)
    _check.strided("recolour", argument, x)


def _affine(mean: float | Sequence[float] | None, std: float | Sequence[float] | None) -> Tensor:
    """What is multiplied and what is added, float64 [2, 3]."""
    mean, std = _check.of_colours("recolour", "mean", mean, 0.0), _check.of_colours("recolour", "std", std, 1.0)
    if not all(s > 0 for s in std):
        _check.fail("recolour", "std", "positive numbers", std)
    return torch.tensor([[1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]], dtype=torch.float64)


def _fake(pictures: Tensor, factors, order, finish, affine: Tensor) -> Tensor:
    dtype = torch.float32 if pictures.dtype == torch.uint8 else pictures.dtype
    return pictures.new_empty(pictures.shape, dtype=dtype)


_recolour = _registry.define(
    "recolour(Tensor pictures, Tensor? factors, Tensor? order, Tensor? finish, Tensor affine) -> Tensor",
    op="recolour",
    reference=reference.recolour,
    fake=_fake,
)
