"""The contract of every registered operator, written once and fed from ``avfast.testing.CASES``."""

from __future__ import annotations

import pytest
import torch
from conftest import device_of

from avfast import _library, testing
from avfast.ops import _registry
from avfast.testing import CASES, DTYPES, LAYOUTS, as_tuple

# Odd sizes, ones, primes, long rows (over one run of sums), channels over one register, 1x1 maps, five dimensions.
SHAPES = (
    (4, 5, 7, 7),
    (1, 3, 1, 5),
    (16, 33),
    (131, 40, 2, 2),
    (2, 64, 9, 9),
    (1, 2, 70, 71),
    (5, 17, 3, 2, 3),
    (3, 130, 1, 1),
    (2, 1, 23),
)
EMPTY = ((0, 3, 4, 4), (3, 4, 0), (2, 0, 5), (0, 7))
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def arguments(case, shape, dtype, layout="contiguous", device="cpu", seed=0):
    made = case.make(shape, dtype, torch.Generator().manual_seed(seed))
    return tuple(testing._to(a, device) for a in testing.laid_out(made, layout))


def identical(a, b):
    """Same values, NaN equal to NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_every_operator_has_a_case():
    """But those that write to an argument, whose own tests do what is done here."""
    assert {case.name for case in CASES} == {b.name for b in _registry.BOUNDARIES.values() if not b.mutates}


@cases
@dtypes
@layouts
def test_close_to_float64(case, dtype, layout, way):
    if _registry.BOUNDARIES[case.name].triton is None and way == "triton":
        pytest.skip("triton: this op has no Triton kernel")
    for shape in SHAPES:
        for i, (error, allowed) in enumerate(case.errors(*arguments(case, shape, dtype, layout, device_of(way)))):
            assert error <= allowed, f"{case.name} {shape} output {i}: error {error:.1e}, allowed {allowed:.1e}"


@cases
@dtypes
def test_misaligned_storage(case, dtype, compiled):
    def shifted(a):
        if isinstance(a, list):
            return [shifted(x) for x in a]
        if not isinstance(a, torch.Tensor):
            return a
        return torch.empty(a.numel() + 1, dtype=a.dtype)[1:].view(a.shape).copy_(a)

    for shape in SHAPES[:4]:
        args = arguments(case, shape, dtype)
        for result, expected in zip(case.run(*map(shifted, args)), case.run(*args), strict=True):
            assert identical(result, expected)


@cases
@layouts
def test_outputs_fully_written_and_nothing_else(case, layout, compiled):
    """Outputs start as NaN between guards; inputs must not change."""
    for shape in SHAPES + EMPTY:
        args = arguments(case, shape, torch.float32, layout)
        before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        with testing.poisoned():
            outputs = case.run(*args)
        for out, expected in zip(outputs, case.run(*args), strict=True):
            assert testing.guards_intact(out), f"{case.name} {shape}: wrote outside an output"
            assert identical(out, expected)
            assert out.is_floating_point() or (out.long() != (255 if out.dtype == torch.uint8 else -1)).all()
        for a, b in zip(args, before, strict=True):
            if isinstance(a, torch.Tensor):
                assert identical(a, b), f"{case.name} {shape}: changed an input"


@cases
def test_poison_is_seen(case, compiled):
    """The two tests above can fail: an output nobody writes is NaN, and a write past it is noticed."""
    with testing.poisoned():
        out = case.run(*arguments(case, (2, 3, 4), torch.float32))[0]
    base = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())
    assert testing.guards_intact(out)
    base[-1] = 0
    assert not testing.guards_intact(out)


@cases
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_zero_sizes(case, shape, way):
    if _registry.BOUNDARIES[case.name].triton is None and way == "triton":
        pytest.skip("triton: this op has no Triton kernel")
    args = arguments(case, shape, torch.float32)
    results = case.run(*(testing._to(a, device_of(way)) for a in args))
    for result, expected in zip(results, as_tuple(case.exact(*args)), strict=True):
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
        assert testing.relative_error(result.cpu(), expected) < 1e-6


@cases
@dtypes
def test_same_bits_again_and_with_any_number_of_threads(case, dtype, compiled):
    before = torch.get_num_threads()
    args = arguments(case, (3, 37, 41, 29), dtype)
    channels_last = arguments(case, (3, 37, 41, 29), dtype, "channels_last")
    try:
        for given in (args, channels_last):
            torch.set_num_threads(1)
            first = case.run(*given)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert all(identical(a, b) for a, b in zip(first, case.run(*given), strict=True))
    finally:
        torch.set_num_threads(before)


@cases
@layouts
def test_opcheck(case, layout):
    """Schema, fake kernel, strides and autograd registration, on contiguous and permuted inputs."""
    for shape in ((3, 5, 4, 6), (4, 7), (2, 3, 5, 1)):
        op = getattr(torch.ops.avfast, case.name).default
        torch.library.opcheck(op, arguments(case, shape, torch.float32, layout))


@cases
def test_fake_follows_dynamic_shapes(case):
    """Strides and dtypes of the fake equal the kernel's, also where the layout is neither dense order."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for layout in LAYOUTS:
        args = arguments(case, (3, 5, 4, 6), torch.bfloat16, layout)
        real = case.run(*args)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:

            def fake(a, mode=mode):
                if isinstance(a, list):
                    return [fake(x) for x in a]
                return mode.from_tensor(a) if isinstance(a, torch.Tensor) else a

            imagined = case.run(*map(fake, args))
        for r, f in zip(real, imagined, strict=True):
            assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype), layout


@pytest.mark.skipif(not _library.loaded, reason="no compiled library on this machine")
@cases
def test_denormal_flushing_host_changes_nothing(case):
    """A host that flushes denormals to zero must get the same flags, masks and counts."""
    args = arguments(case, (4, 5, 7, 7), torch.float32)
    expected = case.run(*args)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        result = case.run(*args)
    finally:
        torch.set_flush_denormal(False)
    for r, e in zip(result, expected, strict=True):
        assert identical(r, e)
