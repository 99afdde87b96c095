"""How the Triton kernels of this family take rows of features: types, tile sizes, and one tile of products.

Rows are [N, D] given by an offset per row and a stride per feature, so maps [B, D, S] and transposed queues are
read where they lie. Two ways to multiply a tile of rows with another:

* whole: rows of up to 256 features stay on chip as one tile, and the other side is read once for both of its
  uses. Tensor cores only.
* by chunks of features, for longer rows, and for float32 and float64 proper, whose products unroll into so many
  instructions that a whole tile would not fit the registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_math import product

# Programs that run at once on an H100 or H200, one per multiprocessor; a constant, so that sums are cut, and come out,
# the same on every card.
WAVE = 132
# What 2^x of a float may span with room to add up a queue: a fixed shift holds while 2 log2(e) / temperature is less.
FIXED_SHIFT_RANGE = 100.0
# The exponent that a running maximum is raised to before weights are rounded to float16: 2^15 of 65504.
HALF_HEADROOM = 15.0

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@triton.jit
def load_tile(base, rows, row_mask, columns, D, stride_d, TYPE: tl.constexpr):
    """Features `columns` of rows at offsets `rows`; 0 where masked or past the last feature."""
    pointers = base + rows[:, None] + (columns.to(tl.int64) * stride_d)[None, :]
    return tl.load(pointers, mask=row_mask[:, None] & (columns < D)[None, :], other=0.0).to(TYPE)


@triton.jit
def products_by_chunks(
    a, a_rows, a_mask, a_d, b, b_rows, b_mask, b_d, D,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Products of BLOCK_A rows of a with BLOCK_B rows of b."""
    total = tl.zeros([BLOCK_A, BLOCK_B], WIDE)
    for first in range(0, D, CHUNK):
        d = first + tl.arange(0, CHUNK)
        x = load_tile(a, a_rows, a_mask, d, D, a_d, OPERAND)
        y = load_tile(b, b_rows, b_mask, d, D, b_d, OPERAND)
        total = product(x, tl.trans(y), total, PRECISION)
    return total


@dataclass(frozen=True)
class Tiles:
    """`rows` that a program owns, `walked` rows per step, `width` features it adds up, `chunk` features per product.

    `registers` is a limit per thread. Where none is told, ptxas now and then spills a word to fit one more block.
    """

    rows: int
    walked: int
    width: int
    chunk: int
    whole: bool
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


def wide_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def precision_of(operand: torch.dtype) -> str:
    """Float32 products are float32, unless torch was told that matrix products may be TF32."""
    if operand is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def operand_type(q: Tensor, queue: Tensor) -> torch.dtype:
    """What both are read as. A float16 query has more digits than a bfloat16 queue, but not its exponents."""
    return torch.bfloat16 if q.dtype is torch.float16 and queue.dtype is torch.bfloat16 else q.dtype


def weight_type(operand: torch.dtype) -> tuple[torch.dtype, str]:
    """Type and precision of products of softmax weights with rows, where weights carry a gradient of any size.

    Float16 has not the exponents; it fits TF32, which has its digits and float32's exponents.
    """
    return (torch.float32, "tf32") if operand is torch.float16 else (operand, precision_of(operand))


def pointer(dtype: torch.dtype) -> str:
    """Triton's name of a pointer to that type."""
    return f"*{TYPES[dtype]}"


def padded(features: int) -> int:
    return max(triton.next_power_of_2(features), 16)


def parts(owned: int, walked: int) -> int:
    """Into how many parts a walk over `walked` tiles is cut, with `owned` tiles that walk: the fewest that keep all
    multiprocessors busy up to a twentieth of the time, or come closest to that."""

    def idle(count: int) -> float:
        programs = owned * count
        return triton.cdiv(programs, WAVE) * WAVE / programs - 1

    most = max(min(walked // 4, max(WAVE // owned, 8)), 1)
    return min(range(1, most + 1), key=lambda count: (max(idle(count), 0.05), count))


def walk_tiles(operand: torch.dtype, precision: str, features: int) -> Tiles:
    """For a program that owns rows and walks over all others, adding them up."""
    width = padded(features)
    if operand is torch.float64:
        return Tiles(32, 16, min(width, 64), 16, False, 4, 2, registers=255)
    if operand is torch.float32 and precision == "ieee":
        return Tiles(64, 16, min(width, 128), 16, False, 8, 2, registers=255)
    if operand is torch.float32:
        return Tiles(64, 64, width, width, True, 4, 2) if width <= 128 else Tiles(64, 32, 128, 32, False, 4, 2)
    if width <= 128:
        return Tiles(128, 128, width, width, True, 8, 3)
    return Tiles(64, 64, 256, 256, True, 8, 3) if width <= 256 else Tiles(64, 64, 256, 64, False, 8, 3)


def score_tiles(operand: torch.dtype, precision: str, features: int, labels: bool) -> Tiles:
    """For a program that makes tiles of scores and adds up no features; as many rows as walked ones."""
    width = padded(features)
    if operand is torch.float64:
        return Tiles(32, 32, 16, 16, False, 4, 2, registers=255)
    if operand is torch.float32 and precision == "ieee":
        return Tiles(64, 64, 16, 16, False, 8 if labels else 4, 2, registers=255)
    if operand is torch.float32:
        return Tiles(64, 64, 32, 32, False, 4, 3)
    whole, rows = width <= 128, 64 if labels else 128
    return Tiles(rows, rows, width, width if whole else 64, whole, 8, 3)


def packed(x: Tensor) -> Tensor:
    """Rows [N, D] whose reads can be 16 bytes wide: as they are, or a copy with features of zero at the end."""
    n, features = x.shape
    aligned = x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0
    if features % 16 == 0 and aligned and x.stride(1) == 1:
        return x
    rows = x.new_zeros(n, triton.cdiv(features, 16) * 16)
    rows[:, :features] = x
    return rows
