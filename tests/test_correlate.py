"""Cross-attention to exemplars: values, maps and gradients, keys that may not be attended, its shapes and mistakes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import device_of

import avfast
from avfast.testing import DTYPES, LAYOUTS, in_layout

MAPS = (None, "lse", "max", "mean_prob")


def as_published(q, k, v, key_mask=None, correlation=None, scale=None):
    """One exemplar and one head at a time, in float64. Rows without a key are left out of the question."""
    q, k, v = (x.double() for x in (q, k, v))
    heads, width = q.shape[2:]
    scale = width**-0.5 if scale is None else scale
    outs, maps = [], []
    for b, e in itertools.product(range(len(q)), range(k.shape[1])):
        keep = slice(None) if key_mask is None else key_mask[b, e]
        out, rows = [], []
        for h in range(heads):
            s = scale * q[b, :, h] @ k[b, e, keep, h].T
            p = s.softmax(1)
            out.append(p @ v[b, e, keep, h])
            full = p.new_zeros(len(p), k.shape[2])
            full[:, keep] = p
            rows.append({None: s, "lse": s.logsumexp(1), "max": s.amax(1), "mean_prob": full}[correlation])
        outs.append(torch.cat(out, dim=1))
        maps.append(torch.stack(rows).mean(0))
    shape = (len(q), k.shape[1])
    out = torch.stack(outs).unflatten(0, shape)
    return out if correlation is None else (out, torch.stack(maps).unflatten(0, shape))


def inputs(b=2, e=3, nq=21, nk=17, heads=2, width=8, dtype=torch.float32, device="cpu"):
    q = torch.randn(b, nq, heads, width)
    k, v = torch.randn(2, b, e, nk, heads, width).unbind()
    return tuple(x.to(device, dtype) for x in (q, k, v))


def some_mask(k):
    mask = torch.rand(k.shape[:3]) < 0.6
    mask[:, :, -1] = True
    return mask.to(k.device)


def pair(result):
    return result if isinstance(result, tuple) else (result,)


def gradients(function, tensors):
    """Gradients of a sum of everything with fixed weights."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    total = 0.0
    for i, x in enumerate(pair(function(*leaves))):
        weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        total = total + (x.double() * weight.to(x.device)).sum()
    return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)


@pytest.fixture
def device(way):
    if way == "cuda":
        pytest.skip(f"{way}: this op has no kernel there")
    return device_of(way)


@pytest.mark.parametrize("correlation", MAPS)
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "some keys"])
def test_values_and_gradients_agree_with_the_published_form(correlation, masked, device):
    for sizes in ((2, 3, 21, 17, 2, 8), (1, 6, 101, 17, 16, 32), (3, 1, 1, 1, 1, 1), (1, 2, 70, 5, 3, 33)):
        q, k, v = inputs(*sizes, device=device)
        mask = some_mask(k) if masked else None
        result = pair(avfast.correlate(q, k, v, key_mask=mask, correlation=correlation))
        expected = pair(as_published(q, k, v, mask, correlation))
        for a, b in zip(result, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=5e-6)
        found = gradients(lambda *x: avfast.correlate(*x, key_mask=mask, correlation=correlation), (q, k, v))  # noqa: B023
        exact = gradients(lambda *x: as_published(*x, mask, correlation), [x.double() for x in (q, k, v)])  # noqa: B023
        for a, b in zip(found, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dtype_in_every_layout(dtype, layout, device):
    q, k, v = (in_layout(x, layout) for x in inputs(dtype=dtype, device=device))
    eps = torch.finfo(dtype).eps
    out, heat = avfast.correlate(q, k, v, correlation="lse")
    exact, exact_heat = as_published(q, k, v, correlation="lse")
    assert out.dtype == dtype and heat.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), exact, rtol=4 * eps, atol=8 * eps)
    torch.testing.assert_close(heat.double(), exact_heat, rtol=2e-6, atol=2e-6)
    found = gradients(lambda *x: avfast.correlate(*x, correlation="lse"), (q, k, v))
    expected = gradients(lambda *x: as_published(*x, correlation="lse"), [x.double() for x in (q, k, v)])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        # The gradient of a half-precision output arrives rounded.
        torch.testing.assert_close(a.double(), b, rtol=16 * eps, atol=32 * eps)


def test_random_shapes_agree_with_the_published_form(device):
    chance = random.Random(0)
    for _ in range(60):
        q, k, v = inputs(*(chance.randint(1, n) for n in (3, 4, 140, 70, 5, 70)))
        mask, correlation = some_mask(k) if chance.random() < 0.5 else None, chance.choice(MAPS[1:])
        scale = chance.choice([None, 0.3, -0.2, 0.0])
        out, heat = avfast.correlate(q, k, v, key_mask=mask, correlation=correlation, scale=scale)
        exact, exact_heat = as_published(q, k, v, mask, correlation, scale)
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(heat.double(), exact_heat, rtol=1e-5, atol=1e-5)
        found = gradients(lambda *x: avfast.correlate(*x, key_mask=mask, correlation=correlation), (q, k, v))  # noqa: B023
        expected = gradients(lambda *x: as_published(*x, mask, correlation), [x.double() for x in (q, k, v)])  # noqa: B023
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=5e-5)


def test_many_keys_agree_with_sdpa(device):
    q, k, v = inputs(2, 2, 40, 300, 3, 16, device=device)
    flat = q.unsqueeze(1).expand(-1, 2, -1, -1, -1).transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3)
    expected = F.scaled_dot_product_attention(*flat).transpose(2, 3).flatten(3)
    torch.testing.assert_close(avfast.correlate(q, k, v), expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("correlation", MAPS)
def test_nan_in_a_masked_key_changes_nothing(correlation, device):
    q, k, v = inputs(device=device)
    mask = some_mask(k)
    mask[0, 1] = False  # and a row without any key
    poisoned = [x.masked_fill(~mask[..., None, None], float("nan")) for x in (k, v)]
    poisoned[0][0, 1, 3] = float("inf")
    plain = pair(avfast.correlate(q, k, v, key_mask=mask, correlation=correlation))
    result = pair(avfast.correlate(q, *poisoned, key_mask=mask, correlation=correlation))
    assert all(torch.equal(a, b) for a, b in zip(result, plain, strict=True))
    q, k, v = (x.clone().requires_grad_() for x in (q, *poisoned))
    result = pair(avfast.correlate(q, k, v, key_mask=mask, correlation=correlation))
    found = torch.autograd.grad([x for x in result], (q, k, v), [torch.ones_like(x) for x in result])
    assert all(x.isfinite().all() for x in found)
    assert all(not x[~mask].any() for x in found[1:])


@pytest.mark.parametrize("correlation", MAPS)
def test_a_row_without_a_key_is_zero_and_has_no_gradient(correlation, device):
    q, k, v = (x.requires_grad_() for x in inputs(device=device))
    mask = torch.ones(k.shape[:3], dtype=torch.bool, device=device)
    mask[0] = False
    result = pair(avfast.correlate(q, k, v, key_mask=mask, correlation=correlation))
    assert not result[0][0].any() and result[0][1].any()
    if correlation:
        assert (result[1][0] == (0.0 if correlation == "mean_prob" else float("-inf"))).all()
    found = torch.autograd.grad([x for x in result], (q, k, v), [torch.ones_like(x) for x in result])
    assert all(not x[0].any() and x[1].any() and x.isfinite().all() for x in found)


def test_nan_in_a_query_stays_in_its_row(device):
    q, k, v = inputs(device=device)
    clean, clean_heat = avfast.correlate(q, k, v, correlation="max")
    q[0, 3, 1, 2] = float("nan")
    out, heat = avfast.correlate(q, k, v, correlation="max")
    hit = torch.zeros(out.shape, dtype=torch.bool, device=device)
    hit[0, :, 3, 8:] = True
    assert torch.equal(out.isnan(), hit) and torch.equal(out[~hit], clean[~hit])
    rows = hit.any(-1)
    assert torch.equal(heat.isnan(), rows) and torch.equal(heat[~rows], clean_heat[~rows])


def test_gradients_of_max_go_to_the_first_of_equal_keys(device):
    q, k = torch.ones(1, 2, 1, 4, device=device), torch.ones(1, 1, 3, 1, 4, device=device).requires_grad_()
    _, heat = avfast.correlate(q, k, k.detach(), correlation="max", scale=0.5)
    (grad,) = torch.autograd.grad(heat.sum(), k)
    assert grad[0, 0, :, 0].tolist() == [[1.0] * 4, [0.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("scores", [1e3, 1e-30], ids=str)
def test_scores_of_any_size(scores, device):
    q, k, v = inputs(device=device)
    out, heat = avfast.correlate(q, k, v, correlation="lse", scale=scores)
    exact, exact_heat = as_published(q, k, v, correlation="lse", scale=scores)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=2e-3 if scores > 1 else 1e-6)
    torch.testing.assert_close(heat.double(), exact_heat, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("correlation", MAPS)
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "some keys"])
def test_first_and_second_derivatives(correlation, masked, device):
    q, k, v = (x.requires_grad_() for x in inputs(2, 2, 3, 4, 2, 3, torch.float64, device))
    mask = some_mask(k) if masked else None
    if masked and correlation in (None, "mean_prob"):
        mask[0, 0] = False

    def function(q, k, v):
        return avfast.correlate(q, k, v, key_mask=mask, correlation=correlation)

    assert torch.autograd.gradcheck(function, (q, k, v))
    assert torch.autograd.gradgradcheck(function, (q, k, v))
    assert torch.autograd.gradgradcheck(lambda q: function(q, k.detach(), v.detach()), (q,))


def test_a_second_derivative_counts_shared_inputs_once():
    q = torch.randn(1, 4, 1, 3, dtype=torch.float64, requires_grad=True)
    function = lambda q: avfast.correlate(q, 2 * q.unsqueeze(1), q.unsqueeze(1), correlation="lse")  # noqa: E731
    assert torch.autograd.gradcheck(function, (q,)) and torch.autograd.gradgradcheck(function, (q,))


@pytest.mark.parametrize("unused", [0, 1])
def test_either_result_may_be_left_unused(unused, device):
    q, k, v = inputs(device=device)
    found = gradients(lambda *x: avfast.correlate(*x, correlation="mean_prob")[1 - unused], (q, k, v))
    exact = gradients(lambda *x: as_published(*x, correlation="mean_prob")[1 - unused], [x.double() for x in (q, k, v)])
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=str)
@pytest.mark.parametrize("correlation", MAPS)
def test_zero_sizes(sizes, correlation, device):
    q, k, v = (x.requires_grad_() for x in inputs(*sizes, device=device))
    result = pair(avfast.correlate(q, k, v, correlation=correlation))
    b, e, nq, nk = sizes
    assert result[0].shape == (b, e, nq, 16) and not result[0].any()
    if correlation:
        assert result[1].shape == ((b, e, nq, nk) if correlation == "mean_prob" else (b, e, nq))
        assert correlation == "mean_prob" or (result[1] == float("-inf")).all()
    found = torch.autograd.grad([x for x in result], (q, k, v), [torch.ones_like(x) for x in result])
    assert all(a.shape == x.shape and not a.any() for a, x in zip(found, (q, k, v), strict=True))


def test_without_gradients_nothing_is_recorded(device):
    q, k, v = (x.requires_grad_() for x in inputs(device=device))
    with torch.no_grad():
        plain = avfast.correlate(q, k, v)
    assert not plain.requires_grad and torch.equal(plain, avfast.correlate(q, k, v))


def test_projections_that_share_memory(device):
    """Keys and values as halves of one projection: neither is copied, and gradients return to the whole."""
    b, e, n, h, d = 2, 3, 17, 2, 8
    q, both = torch.randn(b, 11, h, d, device=device), torch.randn(b, e, n, 2, h, d, device=device)
    both.requires_grad_()
    (grad,) = torch.autograd.grad(avfast.correlate(q, *both.unbind(3)).square().sum(), both)
    double = both.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(as_published(q, *double.unbind(3)).square().sum(), double)
    torch.testing.assert_close(grad.double(), exact, rtol=1e-4, atol=1e-5)


def test_autocast_changes_nothing(device):
    q, k, v = inputs(device=device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = avfast.correlate(q, k, v)
    assert torch.equal(inside, avfast.correlate(q, k, v))


@pytest.mark.parametrize("correlation", MAPS)
def test_compiles(correlation):
    q, k, v = (x.requires_grad_() for x in inputs())
    mask = some_mask(k)

    def function(q, k, v):
        result = pair(avfast.correlate(q, k, v, key_mask=mask, correlation=correlation))
        return sum(x.square().sum() for x in result)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), function(q, k, v))
    found = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    for a, b in zip(found, torch.autograd.grad(function(q, k, v), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_where_values_are_the_keys(dynamic):
    q, k, _ = (x.requires_grad_() for x in inputs())

    def function(q, k):
        return sum(x.square().sum() for x in avfast.correlate(q, k, k, correlation="lse"))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for a, b in zip(
        torch.autograd.grad(compiled(q, k), (q, k)), torch.autograd.grad(function(q, k), (q, k)), strict=True
    ):
        torch.testing.assert_close(a, b)


Q, K = torch.ones(2, 3, 4, 5), torch.ones(2, 6, 7, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Q[0], K, K), {}, r"q: expected shape \[B, Nq, H, d\] with at least one head and channel, got \(3, 4, 5\)"),
        ((Q[..., :0], K, K), {}, r"q: expected shape \[B, Nq, H, d\] with at least one head"),
        ((Q.long(), K, K), {}, "q: expected a floating-point tensor, got torch.int64"),
        ((Q, K[:, 0], K), {}, r"k: expected shape \(2, E, Nk, 4, 5\), got \(2, 7, 4, 5\)"),
        ((Q, K[..., :3], K), {}, r"k: expected shape \(2, E, Nk, 4, 5\), got \(2, 6, 7, 4, 3\)"),
        ((Q, K.double(), K), {}, "k: expected the dtype of q, torch.float32, got torch.float64"),
        ((Q, K, K[:, :2]), {}, r"v: expected \(2, 6, 7, 4, 5\) torch.float32 on cpu, like k"),
        ((Q, K, K), {"key_mask": K[..., 0, 0]}, "key_mask: expected a bool tensor, got torch.float32"),
        ((Q, K, K), {"key_mask": torch.ones(2, 7) > 0}, r"key_mask: expected shape \(2, 6, 7\), got \(2, 7\)"),
        ((Q, K, K), {"key_mask": [True]}, "key_mask: expected a tensor, got list"),
        ((Q, K, K), {"scale": float("nan")}, "scale: expected a finite number, got nan"),
        ((Q, K, K), {"scale": "1"}, "scale: expected a number, got str"),
        ((Q, K, K), {"correlation": "sum"}, "correlation: expected one of None, 'lse', 'max', 'mean_prob', got 'sum'"),
    ],
)
def test_errors_name_the_argument(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=r"^avfast\.correlate: " + message):
        avfast.correlate(*arguments, **options)
