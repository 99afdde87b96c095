"""Fusion of two modalities: every mode, mask and weight against the definition, row by row and number by number."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import device_of

import avfast
from avfast import masked_fusion
from avfast.testing import DTYPES, LAYOUTS, in_layout

MODES = ("sum", "gated", "film", "concat")
MASKS = ("none", "sample", "token", "element", "all absent")


@pytest.fixture
def device(way):
    if way == "cuda":
        pytest.skip(f"{way}: this op has no kernel there")
    return device_of(way)


def by_definition(a, v, m_a, m_v, mode, w_a, w_v, renormalize):
    """One number at a time, in Python's own arithmetic. Everything is ``[B, T, D]``, masks and weights too."""
    b, t, depth = a.shape
    out = torch.zeros(b, t, depth + v.shape[2] if mode == "concat" else depth, dtype=torch.float64)
    for i, j, d in itertools.product(range(b), range(t), range(out.shape[2])):
        if mode == "concat":
            x, m, w, k = (a, m_a, w_a, d) if d < depth else (v, m_v, w_v, d - depth)
            out[i, j, d] = w[i, j, k].item() * x[i, j, k].item() if m[i, j, k] else 0.0
            continue
        here_a, here_v, x = bool(m_a[i, j, d]), bool(m_v[i, j, d]), a[i, j, d].item() if m_a[i, j, d] else 0.0
        if mode == "film":
            gamma, beta = (v[i, j, d].item(), v[i, j, depth + d].item()) if here_v else (float(renormalize), 0.0)
            out[i, j, d] = gamma * x + beta
            continue
        y = v[i, j, d].item() if here_v else 0.0
        alpha, beta = w_a[i, j, d].item(), w_v[i, j, d].item()
        if mode == "gated":
            alpha = 1 / (1 + math.exp(-alpha))
            beta = 1 - alpha
        if renormalize and here_a != here_v:
            alpha = beta = alpha + beta
        out[i, j, d] = alpha * x + beta * y
    return out


def in_torch(a, v, m_a, m_v, mode, w_a, w_v, renormalize):
    """The same with multiplied masks, differentiable."""
    m_a, m_v = m_a.to(a.dtype), m_v.to(a.dtype)
    if mode == "concat":
        return torch.cat([w_a * m_a * a, w_v * m_v * v], dim=-1)
    if mode == "film":
        gamma, beta = v.chunk(2, -1)
        return (gamma * m_v + (1 - m_v) * renormalize) * m_a * a + beta * m_v
    if mode == "gated":
        w_a = torch.sigmoid(w_a)
        w_v = 1 - w_a
    total = w_a + w_v
    alone_a, alone_v = (total, total) if renormalize else (w_a, w_v)
    return m_a * (m_v * w_a + (1 - m_v) * alone_a) * a + m_v * (m_a * w_v + (1 - m_a) * alone_v) * v


def inputs(mode, b=3, t=4, depth=21, dtype=torch.float32, device="cpu"):
    a = torch.randn(b, t, depth)
    v = torch.randn(b, t, {"film": 2 * depth, "concat": depth + 5}.get(mode, depth))
    return a.to(device, dtype), v.to(device, dtype)


def mask_of(kind, x, depth):
    if kind == "none":
        return None
    if kind == "all absent":
        return torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
    shape = {"sample": x.shape[:1], "token": x.shape[:2], "element": (*x.shape[:2], depth)}[kind]
    return (torch.rand(shape) < 0.5).to(x.device)


def spread(mask, x, depth):
    """As ``[B, T, D]``."""
    if mask is None:
        return torch.ones(*x.shape[:2], depth, dtype=torch.bool, device=x.device)
    return mask.view(*mask.shape, *(1,) * (3 - mask.dim())).expand(*x.shape[:2], depth)


def weight_of(kind, x):
    shape = {"channel": x.shape[2:], "sample": (x.shape[0], 1, 1), "token": (*x.shape[:2], 1), "full": x.shape}
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.randn(shape.get(kind, ()), dtype=wide, device=x.device)


def weights(mode, kind, a, v):
    if mode == "film" or kind is None:
        return (weight_of("full", a) if mode == "gated" else None), None
    return weight_of(kind, a), None if mode == "gated" else weight_of(kind, v)


def every_case(mode, mask_a, mask_v, kind, dtype=torch.float32, device="cpu", **sizes):
    a, v = inputs(mode, dtype=dtype, device=device, **sizes)
    depth_v = a.shape[2] if mode == "film" else v.shape[2]
    m_a, m_v = mask_of(mask_a, a, a.shape[2]), mask_of(mask_v, v, depth_v)
    w_a, w_v = weights(mode, kind, a, v)
    plain = (spread(m_a, a, a.shape[2]), spread(m_v, v, depth_v))
    return a, v, m_a, m_v, w_a, w_v, plain


def full(weight, x):
    return (torch.ones((), dtype=torch.float64) if weight is None else weight.double()).expand(x.shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masks", list(itertools.product(MASKS, MASKS)), ids="-".join)
def test_every_mask_gives_what_the_definition_says(mode, masks, device):
    for renormalize in (True, False):
        a, v, m_a, m_v, w_a, w_v, plain = every_case(mode, *masks, "token", device=device, b=2, t=3, depth=5)
        out = masked_fusion(
            a, v, mask_a=m_a, mask_v=m_v, mode=mode, weight_a=w_a, weight_v=w_v, renormalize=renormalize
        )
        exact = by_definition(a, v, *plain, mode, full(w_a, a), full(w_v, v), renormalize)
        torch.testing.assert_close(out.double().cpu(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [None, "number", "channel", "sample", "token", "full"])
@pytest.mark.parametrize(
    "masks", [("none", "none"), ("sample", "token"), ("element", "sample"), ("all absent", "element")]
)
def test_gradients_of_values_weights_and_gates(mode, kind, masks, device):
    for sizes in ({}, {"b": 5, "t": 30, "depth": 64}, {"b": 1, "t": 1, "depth": 1}):
        a, v, m_a, m_v, w_a, w_v, plain = every_case(mode, *masks, kind, device=device, **sizes)
        weight = torch.randn(masked_fusion(a, v, mode=mode, weight_a=w_a).shape, dtype=torch.float64).to(device)
        for renormalize in (True, False):
            leaves = [None if x is None else x.detach().clone().requires_grad_() for x in (a, v, w_a, w_v)]
            given = [x for x in leaves if x is not None]
            out = masked_fusion(
                *leaves[:2],
                mask_a=m_a,
                mask_v=m_v,
                mode=mode,
                weight_a=leaves[2],
                weight_v=leaves[3],
                renormalize=renormalize,
            )
            found = torch.autograd.grad((out.double() * weight).sum(), given)
            doubles = [None if x is None else x.detach().double().requires_grad_() for x in leaves]
            exact = in_torch(
                *doubles[:2], *plain, mode, full(None, a) if doubles[2] is None else doubles[2],
                full(None, v) if doubles[3] is None else doubles[3], renormalize,
            )  # fmt: skip
            torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
            expected = torch.autograd.grad(
                (exact * weight).sum(), [x for x in doubles if x is not None], allow_unused=True, materialize_grads=True
            )
            for x, y in zip(found, expected, strict=True):
                torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_every_dtype_in_every_layout(dtype, layout, mode, device):
    a, v, m_a, m_v, w_a, w_v, plain = every_case(mode, "token", "element", "channel", dtype=dtype, device=device)
    a, v = (in_layout(x, layout).requires_grad_() for x in (a, v))
    out = masked_fusion(a, v, mask_a=m_a, mask_v=m_v, mode=mode, weight_a=w_a, weight_v=w_v)
    exact = in_torch(a.double(), v.double(), *plain, mode, full(w_a, a), full(w_v, v), True)
    assert out.dtype == dtype and out.is_contiguous()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=4 * eps, atol=8 * eps)
    for x in torch.autograd.grad(out.sum(), (a, v)):
        assert x.dtype == dtype and x.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["sample", "element"])
def test_nan_in_what_is_absent_reaches_nothing(mode, kind, device):
    a, v, m_a, m_v, w_a, w_v, plain = every_case(mode, kind, kind, "channel", device=device)
    arguments = {"mask_a": m_a, "mask_v": m_v, "mode": mode, "weight_a": w_a, "weight_v": w_v}
    clean = masked_fusion(a, v, **arguments)
    hidden_v = plain[1].repeat(1, 1, 2) if mode == "film" else plain[1]
    leaves = [x.masked_fill(~m, float("nan")).requires_grad_() for x, m in ((a, plain[0]), (v, hidden_v))]
    given = [w.requires_grad_() for w in (w_a, w_v) if w is not None]
    out = masked_fusion(*leaves, **arguments)
    assert torch.equal(out, clean)
    found = torch.autograd.grad(out.square().sum(), leaves + given)
    assert all(x.isfinite().all() for x in found)
    assert not found[0][~plain[0]].any() and not found[1][~hidden_v].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["number", "channel", "token"])
def test_first_and_second_derivatives(mode, kind, device):
    a, v, m_a, m_v, w_a, w_v, _ = every_case(mode, "token", "sample", kind, torch.float64, device, b=2, t=2, depth=3)
    leaves = [x.requires_grad_() for x in (a, v, w_a, w_v) if x is not None]

    def function(a, v, *w):
        w = dict(zip(("weight_a", "weight_v"), w, strict=False))
        return masked_fusion(a, v, mask_a=m_a, mask_v=m_v, mode=mode, **w)

    assert torch.autograd.gradcheck(function, leaves) and torch.autograd.gradgradcheck(function, leaves)


def test_a_second_derivative_counts_shared_inputs_once():
    a = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    function = lambda a: masked_fusion(a, 2 * a, mode="gated", weight_a=a)  # noqa: E731
    assert torch.autograd.gradcheck(function, (a,)) and torch.autograd.gradgradcheck(function, (a,))


def test_sums_over_rows_do_not_depend_on_threads(compiled):
    a, v, m_a, m_v, w_a, w_v, _ = every_case("sum", "token", "sample", "channel", b=7, t=41, depth=37)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [w.detach().clone().requires_grad_() for w in (w_a, w_v)]
            out = masked_fusion(a, v, mask_a=m_a, mask_v=m_v, weight_a=leaves[0], weight_v=leaves[1])
            found.append(torch.autograd.grad(out.square().sum(), leaves))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 0, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_zero_sizes(shape, mode, device):
    a = torch.randn(shape, device=device, requires_grad=True)
    v = torch.randn(*shape[:-1], shape[-1] * (2 if mode == "film" else 1), device=device)
    out = masked_fusion(a, v, mode=mode, weight_a=0.5 if mode == "gated" else None)
    assert out.shape == (*shape[:-1], shape[-1] * (2 if mode == "concat" else 1))
    assert torch.autograd.grad(out.sum(), a)[0].shape == shape


def test_rows_without_tokens_and_a_plain_vector_of_features(device):
    a, v = torch.randn(2, 5, 8, device=device).unbind()
    there = torch.tensor([True, False, True, False, True], device=device)
    out = masked_fusion(a, v, mask_a=there, mask_v=~there, renormalize=False)
    assert torch.equal(out, torch.where(there[:, None], a, v))


def test_autocast_changes_nothing():
    a, v = inputs("sum")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(masked_fusion(a, v), a + v)


@pytest.mark.parametrize("mode", MODES)
def test_compiles(mode):
    a, v, m_a, m_v, w_a, w_v, _ = every_case(mode, "token", "element", "channel")
    leaves = [x.requires_grad_() for x in (a, v, w_a, w_v) if x is not None]

    def function(a, v, *w):
        w = dict(zip(("weight_a", "weight_v"), w, strict=False))
        return masked_fusion(a, v, mask_a=m_a, mask_v=m_v, mode=mode, **w).square().sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), function(*leaves))
    for x, y in zip(*(torch.autograd.grad(f(*leaves), leaves) for f in (compiled, function)), strict=True):
        torch.testing.assert_close(x, y)


def test_compiles_with_every_size_dynamic():
    def function(a, v, there):
        return masked_fusion(a, v, mask_a=there, mode="gated", weight_a=torch.zeros(5))

    given = torch.randn(4, 3, 5), torch.randn(4, 3, 5), torch.rand(4, 3) < 0.5
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), function(*given))


A = torch.ones(2, 3, 4)
ON = torch.ones(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": A.long()}, "a: expected a floating-point tensor, got torch.int64"),
        ({"a": A[0, 0]}, r"a: expected shape \[B, \*, D\], got \(4,\)"),
        ({"v": A[:, :2]}, r"v: expected shape \(2, 3, 4\), got \(2, 2, 4\)"),
        ({"mode": "film"}, r"v: expected shape \(2, 3, 8\), got \(2, 3, 4\)"),
        ({"mode": "concat", "v": A[:1]}, r"v: expected shape \(2, 3, 'Dv'\), got \(1, 3, 4\)"),
        ({"v": A.double()}, "v: expected the dtype of a, torch.float32, got torch.float64"),
        ({"mode": "mean"}, "mode: expected one of 'sum', 'gated', 'film', 'concat', got 'mean'"),
        ({"mask_a": [True]}, "mask_a: expected a bool tensor, got list"),
        ({"mask_a": A[:, 0, 0]}, "mask_a: expected a bool tensor, got torch.float32"),
        ({"mask_v": ON[:1]}, r"mask_v: expected leading dimensions of \(2, 3, 4\), or all, got \(1,\)"),
        (
            {"weight_a": torch.ones(3)},
            r"weight_a: expected a number or a shape that broadcasts to \(2, 3, 4\), got \(3,\)",
        ),
        ({"weight_v": "1"}, "weight_v: expected a number, got str"),
        ({"weight_a": float("nan")}, "weight_a: expected a finite number, got nan"),
        ({"mode": "gated"}, "weight_a: expected the gate before its sigmoid, for mode 'gated', got None"),
        ({"mode": "gated", "weight_a": 0.0, "weight_v": 1.0}, "weight_v: expected None for mode 'gated'"),
        ({"mode": "film", "v": torch.ones(2, 3, 8), "weight_a": 1.0}, "weight_a: expected None for mode 'film'"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"a": A, "v": A} | change
    with pytest.raises((TypeError, ValueError), match=f"avfast.masked_fusion: {message}"):
        avfast.masked_fusion(arguments.pop("a"), arguments.pop("v"), **arguments)
