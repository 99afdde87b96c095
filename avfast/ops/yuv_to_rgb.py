"""Decoded pictures as decoders give them, to resized RGB: colours, crop, size and normalisation in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _library
from ..reference import yuv as reference
from . import _check, _registry

#: Shares of red and blue in y.
MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
SITINGS = ("left", "center")
LONGEST = 1 << 15


def yuv_to_rgb(
    y: Tensor | Sequence[Tensor],
    u: Tensor | Sequence[Tensor],
    v: Tensor | Sequence[Tensor],
    *,
    size: int | tuple[int, int],
    crop_box: tuple[float, float, float, float] | None = None,
    matrix: str = "bt601",
    full_range: bool = False,
    siting: str = "left",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    r"""Make RGB pictures of one size of the planes that video decoders give.

    Each plane is resized once, at its own resolution, and colours are made at the output's: no RGB picture of the
    source's size, and nothing outside of the box, is computed. A smaller picture is the mean over areas, pixels counted
    by how much of an output they cover; a larger one is bilinear. FFmpeg does the same with ``SWS_AREA``,
    ``SWS_ACCURATE_RND`` and ``SWS_FULL_CHR_H_INT``; without the last two its bytes are about two levels too dark.

    All arithmetic is on whole numbers: every backend and instruction set gives the same bytes, at most one level from
    the exact value. With ``mean``, ``std`` or a floating ``dtype`` these bytes are then normalised,

    .. math:: (\mathrm{byte} / 255 - \mathrm{mean}) / \mathrm{std}

    computed in float64 and rounded once. The inputs are integers: no gradient flows.

    Args:
        y: uint8 ``[T, H, W]``, or T planes ``[H, W]`` of one size. Rows may lie apart (the padding of decoders); planes
            whose neighbours along a row are not neighbours in memory are copied. Sides of at most 32768.
        u, v: the same of the colours; each side that of y (4:4:4) or half of it, rounded up (4:2:0, 4:2:2).
        size: ``H = W`` or ``(H, W)`` of the result.
        crop_box: ``(top, left, bottom, right)`` inside of y, in its pixels; fractions count, in steps of 2^-16. All of
            it if left out.
        matrix: ``"bt601"``, ``"bt709"`` or ``"bt2020"``.
        full_range: whether bytes run from 0 to 255 (JPEG) instead of 16 to 235, colours to 240.
        siting: where along a row halved colours lie: on the ``"left"`` one of their two pixels (MPEG-2, H.264 and
            later) or at their ``"center"`` (JPEG, MPEG-1). Along columns they lie in the middle.
        mean, std: of the normalisation, one number or one for each of red, green and blue; 0 and 1 if left out.
        dtype: uint8, float32, float64, float16 or bfloat16.

    Returns:
        ``[T, 3, H, W]``, contiguous.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    >>> y = torch.full((2, 8, 8), 235, dtype=torch.uint8)
    >>> u = v = torch.full((2, 4, 4), 128, dtype=torch.uint8)
    >>> yuv_to_rgb(y, u, v, size=4).shape, yuv_to_rgb(y, u, v, size=4).unique()
    (torch.Size([2, 3, 4, 4]), tensor([255], dtype=torch.uint8))
    >>> yuv_to_rgb(y, u, v, size=4, mean=0.5, std=0.5, dtype=torch.float32).unique()
    tensor([1.])
    """
    name = "yuv_to_rgb"
    planes = [_planes(name, argument, given) for argument, given in (("y", y), ("u", u), ("v", v))]
    if not len(planes[0]) == len(planes[1]) == len(planes[2]):
        _check.fail(name, "u, v", f"{len(planes[0])} planes, as of y", f"{len(planes[1])} and {len(planes[2])}")
    sides = (1, 1)
    if planes[0]:
        whole, halved = planes[0][0].shape, planes[1][0].shape
        if planes[2][0].shape != halved or not all(c in (n, (n + 1) // 2) for n, c in zip(whole, halved, strict=True)):
            got = f"{tuple(halved)} and {tuple(planes[2][0].shape)}"
            _check.fail(name, "u, v", f"the sides of y, {tuple(whole)}, or half of them", got)
        if not planes[0][0].device == planes[1][0].device == planes[2][0].device:
            _check.fail(name, "u, v", f"planes on {planes[0][0].device}, like y", planes[1][0].device)
        sides = whole
    *numbers, table = prepare(
        *sides,
        size=size,
        crop_box=crop_box if planes[0] else None,
        matrix=matrix,
        full_range=full_range,
        siting=siting,
        mean=mean,
        std=std,
        dtype=dtype,
    )
    return convert(*planes, *numbers, table.to(planes[0][0].device) if planes[0] else table)


def prepare(
    height: int,
    width: int,
    *,
    size: int | tuple[int, int],
    crop_box: tuple[float, float, float, float] | None = None,
    matrix: str = "bt601",
    full_range: bool = False,
    siting: str = "left",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    dtype: torch.dtype = torch.uint8,
) -> tuple:
    """The options of :func:`yuv_to_rgb` for planes of y of ``height`` and ``width``, checked: what :data:`convert`
    takes after lists of planes. For callers with many small batches of one kind."""
    name = "yuv_to_rgb"
    rows, columns = _sides(name, size)
    _check.one_of(name, "matrix", matrix, tuple(MATRICES))
    _check.one_of(name, "siting", siting, SITINGS)
    box = _box(name, crop_box, height, width)
    numbers = _numbers(matrix, bool(full_range))
    return box, rows, columns, siting == "center", numbers, _table(name, mean, std, dtype)


def is_compiled() -> bool:
    """Whether this machine has the op as a kernel, not as plain PyTorch alone."""
    return _library.has_kernel("yuv_to_rgb", "cpu")


def _planes(name: str, argument: str, given: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(given, Tensor):
        if given.dim() != 3:
            _check.fail(name, argument, "shape [T, H, W], or a list of [H, W]", tuple(given.shape))
        given = given.unbind()
    elif not isinstance(given, (list, tuple)):
        _check.fail(name, argument, "a tensor, or a list of them", type(given).__name__, TypeError)
    for plane in given:
        if not isinstance(plane, Tensor):
            _check.fail(name, argument, "tensors", type(plane).__name__, TypeError)
        _check.strided(name, argument, plane)
        if plane.dtype is not torch.uint8:
            _check.fail(name, argument, "uint8 (decoded pictures; no gradient flows)", plane.dtype, TypeError)
        if plane.dim() != 2 or plane.shape != given[0].shape or not all(0 < n <= LONGEST for n in plane.shape):
            expected = f"planes [H, W] of one size, with sides of 1 to {LONGEST}"
            _check.fail(name, argument, expected, tuple(plane.shape))
    return list(given)


def _sides(name: str, size: object) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or any(isinstance(n, bool) for n in sides):
        _check.fail(name, "size", "an integer or (height, width)", size, TypeError)
    if not all(isinstance(n, int) and 0 < n <= LONGEST for n in sides):
        _check.fail(name, "size", f"integers from 1 to {LONGEST}", size)
    return tuple(sides)


def _box(name: str, box: object, height: int, width: int) -> tuple[int, int, int, int]:
    """In 2^-16 pixels."""
    if box is None:
        return (0, 0, height << reference.BOX_BITS, width << reference.BOX_BITS)
    if not isinstance(box, (tuple, list)) or len(box) != 4:
        _check.fail(name, "crop_box", "(top, left, bottom, right)", box, TypeError)
    for edge in box:
        _check.number(name, "crop_box", edge)
    top, left, bottom, right = (round(edge * (1 << reference.BOX_BITS)) for edge in box)
    if not (0 <= top < bottom <= height << reference.BOX_BITS and 0 <= left < right <= width << reference.BOX_BITS):
        _check.fail(name, "crop_box", f"top < bottom in [0, {height}] and left < right in [0, {width}]", tuple(box))
    return top, left, bottom, right


def _numbers(matrix: str, full_range: bool) -> list[int]:
    """Black, and what y, v in red, u and v in green, and u in blue count, in 2^-13."""
    red, blue = MATRICES[matrix]
    green, (luma, chroma) = 1 - red - blue, (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    of_v, of_u = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    shares = luma, of_v, -of_u * blue / green, -of_v * red / green, of_u
    return [0 if full_range else 16, *(round(share * (1 << reference.MATRIX_BITS)) for share in shares)]


def _table(name: str, mean: object, std: object, dtype: torch.dtype) -> Tensor:
    """What the 256 bytes of each colour become, ``[3, 256]``; ``[3, 0]`` where they stay."""
    if dtype is torch.uint8:
        if mean is not None or std is not None:
            _check.fail(name, "dtype", "a floating-point dtype beside mean or std", dtype)
        return torch.empty(3, 0, dtype=dtype)
    if dtype not in _check.FLOATS:
        _check.fail(name, "dtype", "uint8 or a floating-point dtype", dtype)
    mean = _check.of_colours(name, "mean", mean, 0.0)
    std = _check.of_colours(name, "std", std, 1.0)
    if not all(s > 0 for s in std):
        _check.fail(name, "std", "positive numbers", std)
    levels = torch.arange(256, dtype=torch.float64) / 255
    return torch.stack([(levels - m) / s for m, s in zip(mean, std, strict=True)]).to(dtype)


def _fake(y, u, v, box, height: int, width: int, centred: bool, matrix, table: Tensor) -> Tensor:
    return table.new_empty(len(y), 3, height, width)


convert = _registry.define(
    "yuv_to_rgb(Tensor[] y, Tensor[] u, Tensor[] v, int[] box, int height, int width, bool centred, int[] matrix,"
    " Tensor table) -> Tensor",
    op="yuv_to_rgb",
    reference=reference.yuv_to_rgb,
    fake=_fake,
)
