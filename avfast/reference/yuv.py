"""Planes of y, u and v to resized RGB, in plain PyTorch.

All of it is arithmetic on whole numbers, so that every backend gives the same bytes. They are kept in float64, which
holds each exactly: none reaches 2^53.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

WEIGHT_BITS, ROW_BITS, MATRIX_BITS = 14, 7, 13
BOX_BITS = 16


def yuv_to_rgb(
    y: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    box: Sequence[int],
    height: int,
    width: int,
    centred: bool,
    matrix: Sequence[int],
    table: Tensor,
) -> Tensor:
    """Planes [H, W] of each frame as [T, 3, height, width].

    ``box`` is top, left, bottom and right in 2^-16 pixels of y; ``matrix`` the y of black, then what y, v in red, u and
    v in green, and u in blue count, in 2^-13; ``table`` [3, 256] what bytes become, or [3, 0] for bytes.
    """
    if not len(y):
        return table.new_empty(0, 3, height, width)
    top, left, bottom, right = box
    sides = y[0].shape, u[0].shape
    down, across = [], []
    for rows, columns in sides:
        ratio = 1 if rows == sides[0][0] else 2
        down.append(resize_weights(rows, ratio, False, top, bottom, height).to(y[0].device))
        ratio = 1 if columns == sides[0][1] else 2
        across.append(resize_weights(columns, ratio, not centred, left, right, width).to(y[0].device))
    luma, *chroma = (
        _shrunk(torch.stack([*planes]), down[k], across[k]) for planes, k in ((y, 0), (u, 1), (v, 1))
    )  # [T, height, width] each
    black, scale, red_v, green_u, green_v, blue_u = matrix
    grey = scale * (luma - (black << ROW_BITS))
    blueish, reddish = (plane - (128 << ROW_BITS) for plane in chroma)
    colours = grey + red_v * reddish, grey + green_u * blueish + green_v * reddish, grey + blue_u * blueish
    rgb = _rounded(torch.stack(colours, 1), MATRIX_BITS + ROW_BITS).clamp(0, 255)
    if not table.numel():
        return rgb.to(table.dtype)
    return torch.stack([table[c][rgb[:, c].long()] for c in range(3)], 1)


def _shrunk(planes: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Planes [T, H, W] resized: bytes with ROW_BITS bits behind the point."""
    rows = _rounded(down @ planes.double(), WEIGHT_BITS - ROW_BITS)
    return _rounded(rows @ across.T, WEIGHT_BITS)


def _rounded(x: Tensor, bits: int) -> Tensor:
    """Divided by 2^bits; halves go up."""
    return ((x + 2 ** (bits - 1)) / 2**bits).floor()


@functools.lru_cache(maxsize=32)
def resize_weights(pixels: int, ratio: int, left: bool, start: int, end: int, out: int) -> Tensor:
    """Weights [out, pixels] of whole numbers, rows of which sum to 2^14, as float64.

    A pixel stands for ``ratio`` pixels of y and lies on the first of them (``left``) or in their middle; outputs are
    equal parts of [start, end), in 2^-16 pixels of y. Where an output is as large as a pixel or larger, pixels count by
    the area of it that they cover; else the two around its middle do, linearly. Beyond its border a plane goes on as
    its border.

    Positions are counted in 1 / (2^17 * ratio * out) of a pixel: all of them are whole.
    """
    pixel, step = (ratio * out) << 17, 2 * (end - start)
    weights = torch.zeros(out, pixels, dtype=torch.float64)
    for i in range(out):
        begin = out * (2 * start + (((ratio - 1) << 16) if left else 0)) + i * step
        if step < pixel:
            first, part = divmod(2 * begin + step - pixel, 2 * pixel)
            right = _share(part, 2 * pixel)
            shares = {first: (1 << WEIGHT_BITS) - right, first + 1: right}
        else:
            ends = range(begin // pixel, (begin + step - 1) // pixel + 1)
            upto = [_share(min(max(k * pixel - begin, 0), step), step) for k in (*ends, ends[-1] + 1)]
            shares = {k: b - a for k, a, b in zip(ends, upto, upto[1:], strict=False)}
        for k, share in shares.items():
            weights[i, min(max(k, 0), pixels - 1)] += share
    return weights


def _share(part: int, whole: int) -> int:
    return ((part << WEIGHT_BITS) + whole // 2) // whole
