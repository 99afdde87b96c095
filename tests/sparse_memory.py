"""Tensors of billions of elements without the memory: in a file with holes, or in pages never written."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor

LARGEST_STRIDE = 2**32 + 64


class Sparse:
    """Tensors one dimension of which has a stride of billions of elements, in a file of which a few pages exist."""

    def __init__(self, path, bytes_: int) -> None:
        with open(path, "wb") as file:
            os.truncate(file.fileno(), bytes_)
        self.path, self.bytes = path, bytes_

    def far(self, x: Tensor, stride: int, dim: int = 0) -> Tensor:
        """``x`` with ``stride`` elements between neighbours along ``dim``."""
        count = self.bytes // x.element_size()
        assert (x.shape[dim] - 1) * stride + x.numel() <= count
        memory = torch.from_file(str(self.path), shared=False, size=count, dtype=x.dtype)
        inner = list(torch.empty_like(x.select(dim, 0), memory_format=torch.contiguous_format).stride())
        view = memory.as_strided(x.shape, [*inner[:dim], stride, *inner[dim:]])
        view.copy_(x)
        return view


@pytest.fixture
def sparse(tmp_path):
    """Room for three rows of half numbers at the largest stride."""
    file = tmp_path / "holes"
    try:
        return Sparse(file, 2 * (2 * LARGEST_STRIDE + 4096))
    except OSError as error:
        pytest.skip(f"no sparse file of 17 GB here: {error}")


def unwritten(*shape: int) -> Tensor:
    """Zeros of two bytes of which no page exists until it is written; reading gives the one page of zeros."""
    return torch.from_numpy(np.zeros(shape, np.float16))
