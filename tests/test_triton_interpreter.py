"""Triton kernels run by Triton's interpreter on the CPU, against float64.

The first test starts a pytest process of their own for all files of this kind; see tests/interpreted.py. Problems are
tiny: an iteration costs milliseconds whatever the tile's size (programs x iterations <= 200 per test).
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from interpreted import INTERPRETING, interpreted

from avfast.ops import _registry


@pytest.mark.skipif(INTERPRETING, reason="this is the process of its own")
def test_in_a_process_of_its_own():
    pytest.importorskip("triton", reason="Triton is not installed, so there is nothing to interpret")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    files = sorted(map(str, Path(__file__).parent.glob("test_triton_*.py")))
    command = [sys.executable, "-m", "pytest", *files, "-m", "interpreter", "-p", "no:cacheprovider"]
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    assert "passed" in child.stdout and "skipped" not in child.stdout, child.stdout[-2000:]


@pytest.mark.parametrize("boundary", [b for b in _registry.BOUNDARIES.values() if b.triton], ids=lambda b: b.name)
def test_launchers_take_what_the_schema_says(boundary):
    pytest.importorskip("triton", reason="Triton is not installed")
    module, name = boundary.triton.split(":")
    launcher = getattr(importlib.import_module(module), name)
    schema = getattr(torch.ops.avfast, boundary.name).default._schema
    assert list(inspect.signature(launcher).parameters) == [argument.name for argument in schema.arguments]


@pytest.fixture
def kernel():
    return importlib.import_module("avfast.kernels.batch_norm.channel_stats_triton")


def oracle(x: torch.Tensor, threshold: float):
    """Independent of avfast.reference: NumPy, float64, channel by channel."""
    a = x.double().numpy()
    a = a.reshape(*a.shape[:2], -1)
    mean = np.array([a[:, c].mean() for c in range(a.shape[1])])
    var = np.array([((a[:, c] - mean[c]) ** 2).mean() for c in range(a.shape[1])])
    with np.errstate(invalid="ignore"):
        zero = np.abs(a) <= threshold
    return mean, var, zero.sum((0, 2)), zero.all(2).sum(0)


def check(kernel, x, threshold=0.0, tight=2e-6):
    how = kernel.cut(*x.shape[:2], x[0, 0].numel(), x.movedim(1, -1).is_contiguous())
    samples = -(-how.samples_per_slice // how.block_n)
    programs = how.slices * -(-x.shape[1] // how.block_c)
    assert programs * samples * -(-how.segment // how.block_s) <= 200, "too long for the interpreter"
    before = x.clone()
    with np.errstate(invalid="ignore"):
        got = [t.numpy() for t in kernel.channel_stats_triton(x, threshold)]
        again = [t.numpy() for t in kernel.channel_stats_triton(x, threshold)]
        want = oracle(x, threshold)
    assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0)), "the input was written to"
    assert [t.dtype for t in got] == [np.float64, np.float64, np.int64, np.int64]
    np.testing.assert_allclose(got[0], want[0], rtol=tight / 10, atol=tight / 10)
    np.testing.assert_allclose(got[1], want[1], rtol=tight, atol=tight * 1e-3)
    np.testing.assert_array_equal(got[2], want[2])
    np.testing.assert_array_equal(got[3], want[3])
    for a, b in zip(got, again, strict=True):
        assert a.tobytes() == b.tobytes(), "two runs differ"
    return how


def activation(shape, dtype, channels_last=False):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = shape[1]
    flat = x.view(*shape[:2], -1)
    flat[:, 0] += 30
    flat[:, c // 2] = flat[:, c // 2].relu()
    flat[:: max(shape[0] // 2, 1), c - 1] = 0
    flat[-1, c - 1, : flat.shape[2] * 3 // 4] = 0
    flat[-1, c - 1, flat.shape[2] * 3 // 4 :] = 1
    x = x.to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


SHAPES = [(6, 3, 7, 7), (3, 5, 64), (37, 70), (2, 2, 5003), (1, 1, 1), (5, 3, 3, 3, 3), (40, 2, 4)]


@interpreted
@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "lanes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(kernel, shape, dtype, channels_last):
    check(kernel, activation(shape, dtype, channels_last))


@interpreted
@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "lanes"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(kernel, dtype, channels_last):
    """bfloat16 is widened as it is loaded: the interpreter is right about that and about nothing else of
    it."""
    check(
        kernel,
        activation((6, 3, 7, 7), dtype, channels_last),
        tight=1e-12 if dtype is torch.float64 else 2e-6,
    )


@interpreted
@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "lanes"])
def test_maps_cut_into_segments(kernel, channels_last):
    """One segment of a live sample is all zero; the sample is not dead."""
    how = check(
        kernel,
        activation((2, 1, 16000) if not channels_last else (1, 2, 16000), torch.float32, channels_last),
    )
    assert how.segments > 1


@interpreted
@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "lanes"])
def test_non_finite_and_outliers(kernel, channels_last):
    x = activation((4, 6, 9, 11), torch.float32, channels_last)
    x[0, 1, 0, 0] = 1e6
    x[1, 2, 3, 4] = math.nan
    x[0, 3, 0, 0] = math.inf
    x[2, 4, 1, 1] = -math.inf
    check(kernel, x, threshold=0.5, tight=2e-5)


@interpreted
def test_threshold_is_rounded_as_torch_rounds_it(kernel):
    tenth = torch.tensor(0.1)
    below = torch.nextafter(tenth, torch.tensor(0.0))
    x = torch.stack([tenth, -tenth, below, torch.tensor(1e-40), torch.tensor(math.nan)]).reshape(1, 1, 5)
    for threshold, count in (
        (0.1, 4),
        (float(tenth), 4),
        (1e-40, 1),
        (9e-41, 0),
        (-1.0, 0),
        (math.inf, 4),
        (1e300, 4),
        (math.nan, 0),
    ):
        assert kernel.channel_stats_triton(x, threshold)[2].item() == count, threshold


@interpreted
def test_any_strides(kernel):
    x = activation((4, 6, 8, 8), torch.float32)
    check(kernel, x[:, ::2, 1:, ::3])
    check(kernel, x.transpose(0, 1))


@interpreted
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 3), (2, 3, 0)], ids=str)
def test_empty(kernel, shape):
    mean, var, zeros, dead = kernel.channel_stats_triton(torch.zeros(shape), 0.0)
    assert len(mean) == len(var) == shape[1] and mean.isnan().all() and var.isnan().all()
    assert not zeros.any() and not dead.any()
