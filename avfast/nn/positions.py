"""Fixed sine-cosine positions of a grid of patches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..ops import _check


def sin_cos_positions(dim: int, rows: int, columns: int) -> Tensor:
    r"""Positions of a grid, row by row: a quarter of the width each for the sine and cosine of column and row.

    .. math:: (\sin x\omega, \cos x\omega, \sin y\omega, \cos y\omega), \quad \omega_i = 10000^{-4i/D}, \; i < D/4

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.5, along both sides of a picture as in Chen et
    al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers".

    Args:
        dim: D, a multiple of 4.
        rows, columns: sides of the grid.

    Returns:
        float32 ``[rows * columns, D]`` in [-1, 1].

    Raises:
        ValueError: ``dim`` is no multiple of 4.

    >>> sin_cos_positions(8, 2, 3).shape
    torch.Size([6, 8])
    """
    if dim < 4 or dim % 4:
        _check.fail("nn.sin_cos_positions", "dim", "a positive multiple of 4", dim)
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    angles = [side.flatten()[:, None] * omega for side in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def resize_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """A square table of positions ``[n * n, D]`` at another grid, ``[rows * columns, D]``, by bicubic interpolation.

    Coordinates are scaled by ``(rows + 0.1) / n``, as DINO and the released code of CIM do, where the exact ratio would
    be ``rows / n``. The table itself comes back for its own grid.

    >>> table = sin_cos_positions(8, 14, 14)
    >>> resize_positions(table, 14, 14) is table, resize_positions(table, 10, 4).shape
    (True, torch.Size([40, 8]))
    """
    side = round(len(table) ** 0.5)
    if (rows, columns) == (side, side):
        return table
    grid = table.view(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / side, (columns + 0.1) / side)
    return interpolate(grid, scale_factor=scale, mode="bicubic")[0].flatten(1).mT
