"""What tests of Triton kernels under its interpreter share: the marker, poisoned memory, and errors.

TRITON_INTERPRET must be set before a kernel is defined, so tests marked `interpreter` run in a pytest process of
their own, started by tests/test_triton_interpreter.py. By hand: TRITON_INTERPRET=1 pytest tests/test_triton_*.py
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from avfast.testing import relative_error

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
try:
    import triton  # noqa: F401

    WHY_NOT = "" if INTERPRETING else "needs TRITON_INTERPRET=1; test_in_a_process_of_its_own runs it"
except ImportError as error:
    WHY_NOT = f"Triton does not import: {error}"

# Of sums that are rounded once, and of results whose products take weights rounded to the type. Where a GPU rounds to
# bfloat16 the interpreter cuts off, a whole unit of 2^-7 at worst, of weights and of results.
WIDE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.float16: 1e-6, torch.bfloat16: 1e-6}
ROUNDED = {torch.float32: 2e-6, torch.float64: 1e-13, torch.float16: 6e-4, torch.bfloat16: 2**-6}


_repeated: set[tuple[Callable, torch.dtype | None]] = set()


def interpreted(test):
    return pytest.mark.interpreter(pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)(test))


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every torch.empty is full of NaN, so that what a kernel forgets to write is seen."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def launched(launch: Callable, *args) -> list[Tensor]:
    """What a launcher returns, computed on poisoned memory; its inputs must be as they were.

    The first time that a launcher gets a type it runs twice, and the same bits must come. Not every time, because the
    interpreter runs programs one after the other: what was changed in the inputs could alone make a difference.
    """
    before = [x.clone() if isinstance(x, Tensor) else None for x in args]
    with np.errstate(all="ignore"), poisoned_memory():
        first = _outputs(launch, args)
        if (kind := (launch, next((x.dtype for x in before if x is not None and x.numel()), None))) not in _repeated:
            _repeated.add(kind)
            for i, (a, b) in enumerate(zip(first, _outputs(launch, args), strict=True)):
                assert a.dtype == b.dtype and a.shape == b.shape
                assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)), f"two runs differ in output {i}"
    for i, (was, now) in enumerate(zip(before, args, strict=True)):
        assert was is None or torch.equal(was.nan_to_num(7.0), now.nan_to_num(7.0)), f"argument {i} was written to"
    return first


def _outputs(launch: Callable, args: tuple) -> list[Tensor]:
    out = launch(*args)
    return list(out) if isinstance(out, tuple) else [out]


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    """In float64, what is floating."""
    return [x.double() if x is not None and x.is_floating_point() else x for x in tensors]


def assert_close(got: list[Tensor], exact: tuple[Tensor, ...], limits: list[float]) -> None:
    for i, (a, b, limit) in enumerate(zip(got, exact, limits, strict=True)):
        assert a.shape == b.shape, f"output {i}: {tuple(a.shape)}, expected {tuple(b.shape)}"
        b = b.detach()
        assert torch.equal(a.isinf(), b.isinf()), f"output {i}: infinite elsewhere"
        error = relative_error(torch.where(b.isinf(), 0.0, a.double()), torch.where(b.isinf(), 0.0, b.double()))
        assert error <= limit, f"output {i}: relative error {error:.1e}, allowed {limit:.1e}"
