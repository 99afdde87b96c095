"""The linear layer over two modalities: every mask pattern against the concatenation, gradients, refusals."""

from __future__ import annotations

import pytest
import torch
from conftest import device_of
from torch.nn.functional import linear

import avfast
from avfast import masked_concat_linear
from avfast.testing import LAYOUTS, in_layout

PATTERNS = ("none", "all present", "all absent", "mixed", "first half", "tokens")
SIZES = [(1, 1, 1, 1), (7, 3, 5, 2), (130, 17, 33, 71), (300, 64, 64, 130)]  # rows, Da, Dv, C


@pytest.fixture
def device(way):
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: this op has no kernel there")
    return device_of(way)


def inputs(rows, depth_a, depth_v, classes, dtype=torch.float64, tokens=1):
    shapes = ((rows, tokens, depth_a), (rows, tokens, depth_v), (classes, depth_a + depth_v), (classes,))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def mask_of(pattern, rows, tokens=1):
    if pattern == "none":
        return None
    if pattern == "tokens":
        return torch.rand(rows, tokens) < 0.5
    return {
        "all present": torch.ones(rows, dtype=torch.bool),
        "all absent": torch.zeros(rows, dtype=torch.bool),
        "mixed": torch.rand(rows) < 0.5,
        "first half": torch.arange(rows) < rows // 2,
    }[pattern]


def concatenated(a, v, weight, bias, mask_a, mask_v):
    a, v = (
        x if m is None else torch.where(m.view(*m.shape, *(1,) * (x.dim() - m.dim())), x, 0)
        for x, m in ((a, mask_a), (v, mask_v))
    )
    return linear(torch.cat([a, v], -1), weight, bias)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("pattern_v", PATTERNS)
@pytest.mark.parametrize("pattern_a", PATTERNS)
def test_every_pattern_is_the_concatenation_with_gradients(pattern_a, pattern_v, sizes, device):
    torch.manual_seed(0)
    given = [x.to(device) for x in inputs(*sizes, tokens=2)]
    masks = [m if m is None else m.to(device) for m in (mask_of(p, sizes[0], 2) for p in (pattern_a, pattern_v))]
    grad = torch.randn(sizes[0], 2, sizes[3], dtype=torch.float64, device=device)
    results = []
    for function in (
        lambda a, v, w, b: masked_concat_linear(a, v, w, b, mask_a=masks[0], mask_v=masks[1]),
        lambda a, v, w, b: concatenated(a, v, w, b, *masks),
    ):
        leaves = [x.clone().requires_grad_() for x in given]
        out = function(*leaves)
        out.backward(grad)
        results.append([out.detach(), *(x.grad for x in leaves)])
    for found, want in zip(*results, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-11)
    for x_grad, mask in zip(results[0][1:3], masks, strict=True):
        if mask is not None:
            assert (x_grad[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_in_what_is_absent_reaches_nothing(dtype, device):
    a, v, weight, bias = (x.to(device) for x in inputs(130, 17, 33, 71, dtype))
    masks = [torch.rand(130).to(device) < 0.5 for _ in range(2)]
    dirty = [torch.where(m[:, None, None], x, torch.nan).requires_grad_() for x, m in zip((a, v), masks, strict=True)]
    weight.requires_grad_()
    out = masked_concat_linear(*dirty, weight, bias, mask_a=masks[0], mask_v=masks[1])
    out.sum().backward()
    assert out.isfinite().all() and all(x.grad.isfinite().all() for x in (*dirty, weight))
    neither = ~masks[0] & ~masks[1]
    assert neither.any() and torch.equal(out[neither][:, 0], bias.expand(int(neither.sum()), -1))


def test_only_wanted_gradients(device):
    a, v, weight, bias = (x.to(device) for x in inputs(40, 9, 12, 20))
    for wanted in ((0,), (1,), (2,), (3,), (0, 2)):
        leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate((a, v, weight, bias))]
        masked_concat_linear(*leaves).square().sum().backward()
        assert [x.grad is not None for x in leaves] == [i in wanted for i in range(4)]


def test_gradcheck_twice_and_without_bias():
    a, v, weight, bias = (x.requires_grad_() for x in inputs(6, 3, 4, 5))
    mask_a, mask_v = mask_of("mixed", 6), mask_of("tokens", 6)

    def function(a, v, weight, bias=None):
        return masked_concat_linear(a, v, weight, bias, mask_a=mask_a, mask_v=mask_v)

    for args in ((a, v, weight, bias), (a, v, weight)):
        assert torch.autograd.gradcheck(function, args)
        assert torch.autograd.gradgradcheck(function, args)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, device):
    a, v, weight, bias = (x.to(device) for x in inputs(50, 9, 12, 20, tokens=4))
    mask = mask_of("tokens", 50, 4).to(device)
    want = concatenated(a, v, weight, bias, mask, None)
    found = masked_concat_linear(in_layout(a, layout), in_layout(v, layout), weight.T.contiguous().T, bias, mask_a=mask)
    torch.testing.assert_close(found, want)


def test_threads_change_no_bit():
    a, v, weight, bias = (x.requires_grad_() for x in inputs(700, 96, 128, 101, torch.float32))
    masks = {"mask_a": mask_of("mixed", 700), "mask_v": mask_of("mixed", 700)}

    def everything():
        out = masked_concat_linear(a, v, weight, bias, **masks)
        return [out, *torch.autograd.grad(out.square().sum(), (a, v, weight, bias))]

    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 1):
            torch.set_num_threads(n)
            found.append(everything())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (3, 0, 4, 5), (3, 4, 0, 5), (3, 4, 5, 0), (0, 0, 0, 0)])
def test_zero_sizes(sizes, device):
    leaves = [x.to(device).requires_grad_() for x in inputs(*sizes)]
    out = masked_concat_linear(*leaves, mask_a=mask_of("mixed", sizes[0]).to(device))
    assert out.shape == (sizes[0], 1, sizes[3])
    out.sum().backward()
    assert all(x.grad.shape == x.shape for x in leaves)


def test_autocast_compile_and_linear():
    a, v, weight, bias = inputs(20, 16, 16, 10, torch.float32)
    mask = mask_of("mixed", 20)
    want = concatenated(a, v, weight, bias, mask, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = masked_concat_linear(a, v, weight, bias, mask_a=mask)
        assert found.dtype == torch.bfloat16 == linear(a, weight[:, :16]).dtype
    torch.testing.assert_close(found.float(), want, rtol=3e-2, atol=6e-2)
    compiled = torch.compile(masked_concat_linear, fullgraph=True)
    torch.testing.assert_close(compiled(a, v, weight, bias, mask_a=mask), want, rtol=1e-5, atol=1e-5)
    leaves = [x.clone().requires_grad_() for x in (a, v, weight, bias)]
    compiled(*leaves, mask_a=mask).sum().backward()
    twins = [x.clone().requires_grad_() for x in (a, v, weight, bias)]
    concatenated(*twins, mask, None).sum().backward()
    for x, y in zip(leaves, twins, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)


A, V, W = torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(6, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": A.int()}, "a: expected a floating-point tensor"),
        ({"a": A[0]}, r"a: expected shape \[B, \*, Da\]"),
        ({"v": V[:3]}, "v: expected shape"),
        ({"v": V.double()}, "v: expected the dtype of a"),
        ({"weight": W[:, :4]}, r"weight: expected shape \('C', 5\), Da \+ Dv columns"),
        ({"weight": W.half()}, "weight: expected the dtype of a"),
        ({"bias": torch.zeros(5)}, r"bias: expected shape \(6,\)"),
        ({"mask_a": torch.ones(4)}, "mask_a: expected a bool tensor"),
        ({"mask_v": torch.ones(3, dtype=torch.bool)}, "mask_v: expected leading dimensions of"),
        ({"mask_v": torch.ones(4, 2, dtype=torch.bool)}, "mask_v: expected leading dimensions of"),
    ],
)
def test_mistakes(arguments, message):
    given = {"a": A, "v": V, "weight": W, **arguments}
    with pytest.raises((TypeError, ValueError), match=f"avfast.masked_concat_linear: {message}"):
        avfast.masked_concat_linear(given.pop("a"), given.pop("v"), given.pop("weight"), **given)
