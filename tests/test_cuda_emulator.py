"""The CUDA kernels of the batch-norm family, executed: compiled for the host and run thread by thread.

tests/cuda_emulator/cuda_runtime.h says what such a run shows: index arithmetic, masks, merges, barriers,
workspace sizes; nothing about speed. Each launch runs twice, with the threads of a block in opposite orders,
and must give the same bits. The oracle is avfast.reference in float64.
"""

from __future__ import annotations

import ctypes
import math
import sys
from pathlib import Path

import pytest
import torch

from avfast.reference import batch_norm as reference

sys.path.insert(0, str(Path(__file__).resolve().parent))

from emulated import (  # noqa: E402
    CODES,
    Layer,
    Params,
    Workspace,
    both_orders,
    build,
    cut,
    pointer,
    restored,
    shape_of,
    stored,
)


@pytest.fixture(scope="session")
def lib(tmp_path_factory):
    return build(tmp_path_factory.mktemp("emulator"))


def accumulation(x):
    return reference.accumulation_dtype(x)


def activation(shape, dtype, seed=0):
    """Correlated maps with zeros, dead samples and a channel far from the origin."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    n, c, s = shape
    if x.numel():
        x[:, 0] += 100
        x[:, c // 2] = x[:, c // 2].relu()
        x[:: max(n // 2, 1), c - 1] = 0
        x[-1, c - 1, : s * 3 // 4] = 0  # where maps are cut, some segments are dead and the sample is not
        x[-1, c - 1, s * 3 // 4 :] = 1
    return x.to(dtype)


# [N, C, S]: what they are for is asserted in test_cuts_cover_every_case.
STATS_SHAPES = {
    "small maps": (6, 3, 49),
    "packed maps": (3, 5, 64),
    "many tiny maps": (2100, 1, 4),
    "one segment each": (2, 2, 5000),
    "cut maps": (2, 1, 20000),
    "cut ragged maps": (3, 2, 9001),
    "one position": (700, 5, 1),
    "one channel, one position": (9000, 1, 1),
    "wide": (3, 300, 9),
    "single": (1, 1, 1),
    "prime": (5, 7, 11),
}
DTYPES = list(CODES)


def run_stats(lib, x, order, threshold=0.0, offset=0):
    c = x.shape[1]
    flat, shape = stored(x, order, offset), shape_of(x, order)
    before = flat.clone()
    mean, var = torch.empty(c, dtype=torch.float64), torch.empty(c, dtype=torch.float64)
    zeros, dead = torch.empty(c, dtype=torch.int64), torch.empty(c, dtype=torch.int64)
    work = Workspace(lib.stats_workspace(ctypes.byref(shape)))

    def run():
        return lib.stats(
            ctypes.byref(shape), pointer(flat), ctypes.c_double(threshold), pointer(mean), pointer(var),
            pointer(zeros), pointer(dead), pointer(work.data),
        )  # fmt: skip

    out = both_orders(lib, run, [mean, var, zeros, dead])
    work.check()
    assert torch.equal(flat.view(torch.uint8), before.view(torch.uint8)), "the input was written to"
    return out


@pytest.mark.parametrize("order", ["rows", "lanes"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", STATS_SHAPES)
def test_channel_stats(lib, case, dtype, order):
    x = activation(STATS_SHAPES[case], dtype)
    mean, var, zeros, dead = run_stats(lib, x, order)
    want = reference.channel_stats(x.double(), 0.0)
    tight = 1e-12 if dtype is torch.float64 else 3e-6
    torch.testing.assert_close(mean, want[0], rtol=tight / 10, atol=tight / 10)
    torch.testing.assert_close(var, want[1], rtol=tight, atol=tight * 1e-3)
    assert torch.equal(zeros, want[2]) and torch.equal(dead, want[3])


def test_cuts_cover_every_case(lib):
    """The shapes above reach each branch of the cut; a change of constants that leaves one untested fails
    here."""
    seen = set()
    for shape in STATS_SHAPES.values():
        for dtype in DTYPES:
            for order in ("rows", "lanes"):
                x = torch.zeros(shape, dtype=dtype)
                facts = cut(lib, x, order, stored(x, order))
                seen.add((order, "segments" if facts["segments"] > 1 else "samples"))
                seen.add((order, "packed" if facts["width"] > 1 else "single"))
                seen.add((order, "slices" if facts["count"] > 1 else "one slice"))
                if order == "lanes":
                    seen.add(("tile", min(facts["tile_packs"], 32)))
    for order in ("rows", "lanes"):
        for fact in ("segments", "samples", "packed", "single", "slices", "one slice"):
            assert (order, fact) in seen, f"no shape tests {order} with {fact}"
    assert ("tile", 32) in seen and ("tile", 1) in seen


@pytest.mark.parametrize("order", ["rows", "lanes"])
@pytest.mark.parametrize("offset", [1, 4])
def test_misaligned(lib, order, offset):
    x = activation((3, 8, 64), torch.float16)
    flat = stored(x, order, offset)
    assert cut(lib, x, order, flat)["width"] == 1
    mean, var, zeros, dead = run_stats(lib, x, order, offset=offset)
    want = reference.channel_stats(x.double(), 0.0)
    torch.testing.assert_close(var, want[1], rtol=3e-6, atol=1e-9)
    assert torch.equal(zeros, want[2]) and torch.equal(dead, want[3])


@pytest.mark.parametrize("order", ["rows", "lanes"])
def test_threshold_is_rounded_as_torch_rounds_it(lib, order):
    tenth = torch.tensor(0.1)  # float32(0.1) > 0.1
    x = torch.stack([tenth, -tenth, torch.nextafter(tenth, torch.tensor(0.0)), torch.tensor(1e-40)]).reshape(1, 1, 4)
    for threshold, count in ((0.1, 4), (float(tenth), 4), (1e-40, 1), (9e-41, 0), (-1.0, 0), (math.inf, 4)):
        assert run_stats(lib, x, order, threshold)[2].item() == count, threshold


@pytest.mark.parametrize("order", ["rows", "lanes"])
def test_shift_and_non_finite(lib, order):
    """A distant mean, an outlier in the first place, NaN and infinity: what eager gives in float64."""
    x = torch.randn(4, 8, 1500, generator=torch.Generator().manual_seed(1))
    x[:, 0] += 1e4
    x[0, 1, 0] = 1e6
    x[1, 2, 3] = math.nan
    x[0, 3, 0] = math.inf
    x[2, 4, 7] = -math.inf
    x[0, 5, 0], x[3, 5, 1] = math.inf, math.inf
    mean, var, zeros, dead = run_stats(lib, x, order, threshold=0.5)
    want = reference.channel_stats(x.double(), 0.5)
    torch.testing.assert_close(mean, want[0], rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(var, want[1], rtol=1e-5, atol=0, equal_nan=True)
    assert torch.equal(zeros, want[2]) and torch.equal(dead, want[3])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("order", ["rows", "lanes"])
def test_empty(lib, shape, order):
    x = torch.zeros(shape)
    mean, var, zeros, dead = run_stats(lib, x, order)
    assert mean.isnan().all() and var.isnan().all() and not zeros.any() and not dead.any()
    y, mean, var = run_forward(lib, x, order, parameters(x), True)
    assert y.shape == shape and mean.isnan().all() and var.isnan().all()
    gradients = run_backward(lib, x, x, order, parameters(x), mean, var, True)
    assert all(not g.any() for g in gradients[1:5])


# --------------------------------------------------------------------------- blended_bn, channel_affine


def parameters(x, per_channel=True):
    g = torch.Generator().manual_seed(7)
    c, dtype = x.shape[1], accumulation(x)
    vectors = [torch.randn(c, generator=g, dtype=torch.float64).to(dtype) for _ in range(4)]
    return (*vectors, torch.rand(c if per_channel else 1, generator=g, dtype=torch.float64).to(dtype))


def as_struct(params):
    return Params(*[t.data_ptr() for t in params], params[4].numel() > 1)


def run_forward(lib, x, order, params, relu, eps=1e-5):
    flat, shape = stored(x, order), shape_of(x, order)
    out = stored(torch.zeros_like(x), order)
    mean, var = torch.empty(x.shape[1], dtype=accumulation(x)), torch.empty(x.shape[1], dtype=accumulation(x))
    work, struct = Workspace(lib.blended_fwd_workspace(ctypes.byref(shape))), as_struct(params)

    def run():
        return lib.blended_fwd(
            ctypes.byref(shape), ctypes.byref(struct), ctypes.c_double(eps), ctypes.c_bool(relu),
            pointer(flat), pointer(out), pointer(mean), pointer(var), pointer(work.data),
        )  # fmt: skip

    y, mean, var = both_orders(lib, run, [out, mean, var])
    work.check()
    return restored(y, x, order), mean, var


def run_backward(lib, grad, x, order, params, mean, var, relu, eps=1e-5):
    flat, up, shape = stored(x, order), stored(grad, order), shape_of(x, order)
    dx = stored(torch.zeros_like(x), order)
    small = [torch.empty(x.shape[1], dtype=accumulation(x)) for _ in range(5)]
    work, struct = Workspace(lib.blended_bwd_workspace(ctypes.byref(shape))), as_struct(params)
    pointers = (ctypes.c_void_p * 5)(*[t.data_ptr() for t in small])

    def run():
        return lib.blended_bwd(
            ctypes.byref(shape), ctypes.byref(struct), ctypes.c_double(eps), ctypes.c_bool(relu), pointer(up),
            pointer(flat), pointer(mean), pointer(var), pointer(dx), pointers, pointer(work.data),
        )  # fmt: skip

    out = both_orders(lib, run, [dx, *small])
    work.check()
    return [restored(out[0], x, order), *out[1:]]


def close(got, want, scale):
    """Absolute error in units of the largest expected value: what a budget against float64 measures."""
    error = (got.double() - want).abs().max().item() if want.numel() else 0.0
    assert error <= scale * max(want.abs().max().item() if want.numel() else 0.0, 1e-3), error


UNIT = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}
BN_SHAPES = [(6, 3, 49), (3, 8, 64), (2, 40, 36), (700, 5, 1), (2, 1, 9000), (2, 2, 5001)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("order", ["rows", "lanes"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", BN_SHAPES, ids=str)
def test_blended_bn(lib, shape, dtype, order, relu):
    x = activation(shape, dtype)
    x = x if dtype in (torch.float32, torch.float64) else x.clamp(-8, 8)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    params = parameters(x, per_channel=relu)  # both forms of alpha
    wide = [t.double() for t in params]
    y, mean, var = run_forward(lib, x, order, params, relu)
    want_y, want_mean, want_var = reference.blended_bn_forward(x.double(), *wide, 1e-5, relu)
    unit = UNIT[dtype]
    narrow = min(unit, UNIT[torch.float32])
    close(mean, want_mean, narrow)
    close(var, want_var, narrow * 10)
    close(y, want_y, unit * 20 if dtype in (torch.float32, torch.float64) else unit)

    # The sign of a value that rounds to zero is the kernel's to choose, so the oracle gets the kernel's mask.
    got = run_backward(lib, grad, x, order, params, mean, var, relu)
    masked = grad.double() * (y > 0 if relu else 1)
    want = reference.blended_bn_backward(masked, x.double(), mean.double(), var.double(), *wide, 1e-5, False)
    for name, g, w in zip(("dx", "dweight", "dbias", "dnew_weight", "dnew_bias", "dalpha"), got, want, strict=True):
        assert g.shape == w.shape, name
        close(g, w, unit if name == "dx" and unit > 1e-4 else narrow * 10)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("order", ["rows", "lanes"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", BN_SHAPES[:3], ids=str)
def test_channel_affine(lib, shape, dtype, order, relu):
    x = activation(shape, dtype).clamp(-8, 8)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    scale, shift = parameters(x)[:2]
    flat, up, dims = stored(x, order), stored(grad, order), shape_of(x, order)
    out, dx = stored(torch.zeros_like(x), order), stored(torch.zeros_like(x), order)
    dscale, dshift = torch.empty_like(scale), torch.empty_like(shift)
    work = Workspace(lib.affine_bwd_workspace(ctypes.byref(dims)))

    def forward():
        return lib.affine_fwd(
            ctypes.byref(dims),
            ctypes.c_bool(relu),
            pointer(flat),
            pointer(scale),
            pointer(shift),
            pointer(out),
        )

    def backward():
        return lib.affine_bwd(
            ctypes.byref(dims), ctypes.c_bool(relu), pointer(up), pointer(flat), pointer(scale),
            pointer(shift), pointer(dx), pointer(dscale), pointer(dshift), pointer(work.data),
        )  # fmt: skip

    (y,) = both_orders(lib, forward, [out])
    y = restored(y, x, order)
    close(y, reference.channel_affine_forward(x.double(), scale.double(), shift.double(), relu), UNIT[dtype])
    got = both_orders(lib, backward, [dx, dscale, dshift])
    work.check()
    masked = grad.double() * (y > 0 if relu else 1)
    want = reference.channel_affine_backward(masked, x.double(), scale.double(), shift.double(), False)
    close(restored(got[0], x, order), want[0], UNIT[dtype])
    for g, w in zip(got[1:], want[1:], strict=True):
        close(g, w, min(UNIT[dtype], UNIT[torch.float32]))


def test_relu_keeps_nan_and_affine_keeps_gradients_finite(lib):
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0]).reshape(1, 1, 4)
    y = torch.empty(4)
    scale, shift, shape = torch.ones(1), torch.zeros(1), shape_of(x, "rows")
    lib.affine_fwd(ctypes.byref(shape), ctypes.c_bool(True), pointer(x), pointer(scale), pointer(shift), pointer(y))
    torch.testing.assert_close(y, x.reshape(-1).relu(), equal_nan=True)
    dx, small = torch.empty(4), torch.empty(2)
    work = Workspace(lib.affine_bwd_workspace(ctypes.byref(shape)))
    grad = torch.ones(4)
    lib.affine_bwd(
        ctypes.byref(shape), ctypes.c_bool(True), pointer(grad), pointer(x), pointer(scale), pointer(shift),
        pointer(dx), pointer(small), pointer(small[1:]), pointer(work.data),
    )  # fmt: skip
    assert dx.tolist() == [0.0, 1.0, 0.0, 1.0]


# ---------------------------------------------------------------------------------------------- bn_scan


@pytest.mark.parametrize("threshold", [0.0, 1e-40, 1e-10, 2e-5])
def test_bn_scan(lib, threshold):
    g = torch.Generator().manual_seed(5)
    kinds = [
        (torch.float32, 7),
        (torch.float16, 64),
        (torch.bfloat16, 300),
        (torch.float64, 1030),
        (torch.float32, 0),
    ]
    layers = []
    for dtype, channels in kinds:
        weight, bias, mean = (torch.randn(channels, generator=g).to(dtype) for _ in range(3))
        var = torch.rand(channels, generator=g).to(dtype)
        dead = torch.rand(channels, generator=g) < 0.3
        tiny = 1e-11 if dtype is not torch.float16 else 6e-8
        weight[dead], bias[dead] = torch.tensor(tiny, dtype=dtype), torch.tensor(-tiny, dtype=dtype)
        special = [0.0, 1e-41, -1e-41, math.nan, math.inf, -math.inf, -0.0]
        for i, v in enumerate(special[:channels]):
            (weight, bias, mean, var)[i % 4][i] = v
        if channels > 20:
            weight[10], bias[10] = 0.0, 0.5
            weight[11], bias[11] = 1e-40, -1e-40
            weight[12], bias[12] = 0.0, 0.0
            var[13], var[14] = 0.0, -1.0
        layers.append([weight, bias, mean, var])
    empty = torch.empty(0)
    layers.append([empty, empty, torch.randn(9, generator=g), torch.rand(9, generator=g)])
    layers.append([torch.randn(5, generator=g), empty, empty, empty])

    table, offset = (Layer * len(layers))(), 0
    for slot, tensors in zip(table, layers, strict=True):
        channels = max(t.numel() for t in tensors)
        slot.weight, slot.bias, slot.running_mean, slot.running_var = [t.data_ptr() or None for t in tensors]
        slot.channels, slot.offset = channels, offset
        slot.affine_dtype, slot.stats_dtype = CODES[tensors[0].dtype], CODES[tensors[3].dtype]
        offset += channels
    flags = torch.empty(offset, dtype=torch.uint8)
    score, live = torch.empty(offset), torch.empty(offset)
    counts = torch.empty(len(layers), 3, dtype=torch.int32)

    def run():
        return lib.scan(
            table, ctypes.c_int64(len(layers)), ctypes.c_int64(1030), ctypes.c_float(threshold),
            pointer(flags), pointer(score), pointer(live), pointer(counts),
        )  # fmt: skip

    launches = lib.emulator_launches()
    both_orders(lib, run, [flags, score, live, counts])
    assert lib.emulator_launches() - launches == 2, "one launch per scan"
    full = [layer for layer in layers if max(t.numel() for t in layer)]
    want = reference.bn_scan(*map(list, zip(*full, strict=True)), threshold)
    kept = [i for i, layer in enumerate(layers) if max(t.numel() for t in layer)]
    assert torch.equal(flags, want[0])
    torch.testing.assert_close(score, want[1], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(live, want[2], rtol=1e-6, atol=1e-7, equal_nan=True)
    assert torch.equal(counts[kept], want[3])
    assert not counts[4].any(), "a layer without channels"


def test_no_layers(lib):
    nothing = torch.empty(0)
    arguments = [ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_float(0), *[pointer(nothing)] * 4]
    assert lib.scan(None, *arguments) == 0
