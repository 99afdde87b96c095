"""Which cell of one crop shows what a cell of another crop shows, from the crops alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import _check
from ..ops.dense_contrastive import Correspondence
from .sample_draws import SampleDraws


def geometric_match(crop_q: Tensor, crop_k: Tensor, grid: int | tuple[int, int]) -> Correspondence:
    """For each cell of the query view, the cell of the key view that shows the same place of the image.

    A cell's centre goes through the query's box and flip into the image and from there into the key's crop; the cell
    that holds it there is the match, and a centre outside the key's crop has none. The geometric alternative to
    matching by features (Wang et al. 2021, DenseCL, section 3.4).

    Args:
        crop_q, crop_k: boxes ``[B, 5]``: top, left, height, width as fractions of the source image, and 1 where the
            crop was flipped left to right afterwards (else 0).
        grid: cells per side of both maps, or ``(rows, columns)``.

    Returns:
        :class:`~avfast.Correspondence`: index int64 ``[B, rows * columns]``, row by row, -1 where there is no match,
        and valid bool of the same shape.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or grid.

    >>> whole, right_half = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.5, 1.0, 0.5, 0.0]])
    >>> geometric_match(whole, right_half, (1, 4)).index.tolist()
    [[-1, -1, 1, 3]]
    """
    name = "geometric_match"
    rows, columns = _sides(name, grid)
    _check.floating(name, "crop_q", crop_q)
    if crop_q.dim() != 2 or crop_q.shape[1] != 5:
        _check.fail(name, "crop_q", "shape [B, 5]", tuple(crop_q.shape))
    _check.like(name, "crop_k", crop_k, crop_q, "crop_q")
    if crop_q.dtype in (torch.float16, torch.bfloat16):
        _check.fail(name, "crop_q", "float32 or float64, since halves are coarse", crop_q.dtype, TypeError)
    options = {"device": crop_q.device, "dtype": crop_q.dtype}
    y = ((torch.arange(rows, **options) + 0.5) / rows).repeat_interleave(columns)  # [S], the cells' centres
    x = ((torch.arange(columns, **options) + 0.5) / columns).repeat(rows)
    top, left, height, width, flip = (v.unsqueeze(1) for v in crop_q.unbind(1))  # [B, 1] each
    y = top + y * height
    x = left + torch.where(flip > 0.5, 1 - x, x) * width
    top, left, height, width, flip = (v.unsqueeze(1) for v in crop_k.unbind(1))
    y = (y - top) / height
    x = (x - left) / width
    x = torch.where(flip > 0.5, 1 - x, x)
    valid = (y >= 0) & (y < 1) & (x >= 0) & (x < 1)
    # Just below 1, a product may round up to the number of cells.
    row, column = (v.mul(n).floor().clamp(0, n - 1).to(torch.int64) for v, n in ((y, rows), (x, columns)))
    return Correspondence(torch.where(valid, row * columns + column, -1), valid)


def random_match(
    batch: int,
    grid: int | tuple[int, int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    keys: Tensor | None = None,
) -> Correspondence:
    """A uniformly random cell of the key view for each cell of the query view: the control of DenseCL's ablation.

    Args:
        keys: int64 ``[B]``, one for each sample (``seed`` of a batch of pictures): the draw depends on them and nothing
            else, so that several processes draw for their shares what one draws for the whole batch. Instead of
            `generator` and `device`.

    >>> random_match(2, 3).index.shape
    torch.Size([2, 9])
    """
    rows, columns = _sides("random_match", grid)
    cells = rows * columns
    if keys is None:
        index = torch.randint(cells, (batch, cells), generator=generator, device=device)
    else:
        if keys.shape != (batch,) or keys.dtype != torch.int64:
            _check.fail("random_match", "keys", f"int64 [{batch}]", f"{keys.dtype} {list(keys.shape)}")
        index = (SampleDraws(keys, salt=2).uniform(cells) * cells).long().clamp(max=cells - 1)
    return Correspondence(index, torch.ones_like(index, dtype=torch.bool))


def _sides(name: str, grid: object) -> tuple[int, int]:
    sides = grid if isinstance(grid, tuple) else (grid, grid)
    if len(sides) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in sides):
        _check.fail(name, "grid", "a positive integer or (rows, columns)", repr(grid))
    return sides
