"""queue_info_nce: values and every gradient against float64, at odd shapes, temperatures and types."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import computing, device_of, why_not

from avfast import queue_info_nce, testing
from avfast.reference import queue as reference
from avfast.testing import BACKWARD_FACTOR, FORWARD_FACTOR, budget, relative_error


def published(q, k, queue, temperature):
    """The loss as MoCo writes it: normalise, concatenate, divide, cross-entropy."""
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.clone().T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device), reduction="none")


def inputs(n, d, size, dtype=torch.float32, device="cpu"):
    q, k, queue = torch.randn(n, d), torch.randn(n, d), F.normalize(torch.randn(size, d), dim=1)
    return tuple(x.to(dtype).to(device) for x in (q, k, queue))


def value_and_gradients(loss, tensors, dtype=None):
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]
    value = loss(*leaves)
    upstream = torch.linspace(0.5, 2.0, len(value), dtype=value.dtype, device=value.device)
    return value, *torch.autograd.grad((value * upstream).sum(), leaves)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_random_shapes_and_temperatures(dtype, way):
    """200 shapes over every way this machine computes: value, and gradients of queries, keys and queue."""
    draw = random.Random(0)
    eager = testing.autocast(lambda q, k, queue, t: published(q, k, queue, t))
    for _ in range(50):
        n, d, size = draw.choice((1, 2, 7, 33, 65)), draw.randrange(2, 140), draw.choice((1, 5, 251, 253, 509))
        temperature = draw.choice((0.05, 0.07, 0.2, 1.0))
        tensors = inputs(n, d, size, dtype, device_of(way))
        got = value_and_gradients(
            lambda *x, t=temperature: queue_info_nce(*x, temperature=t, reduction="none"), tensors
        )
        exact = value_and_gradients(lambda *x, t=temperature: published(*x, t), tensors, torch.float64)
        plain = value_and_gradients(lambda *x, t=temperature: eager(*x, t)[0], tensors)
        for name, a, x, p in zip(("loss", "dq", "dk", "dqueue"), got, exact, plain, strict=True):
            allowed = budget(p, x, FORWARD_FACTOR if name == "loss" else BACKWARD_FACTOR)
            where = f"{name} N={n} D={d} K={size} temperature={temperature}"
            assert relative_error(a, x) <= allowed, where


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.03, 0.05])
def test_low_temperatures_where_a_fixed_shift_underflows(temperature, way):
    """At 0.01 exp(-2 / temperature) is 1e-87: the running maximum must take over."""
    q, k, queue = inputs(37, 96, 700, device=device_of(way))
    queue[3] = F.normalize(q[5], dim=0)  # one negative that coincides with a query
    got = value_and_gradients(lambda *x: queue_info_nce(*x, temperature=temperature, reduction="none"), (q, k, queue))
    exact = value_and_gradients(lambda *x: published(*x, temperature), (q, k, queue), torch.float64)
    for a, x in zip(got, exact, strict=True):
        assert a.isfinite().all()
        assert relative_error(a, x) < 5e-5  # logits of 100 carry 100 float32 roundings


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_rows_of_any_length(scale, way):
    """Without normalisation, and with negatives far from unit length, the fixed shift is wrong: still exact."""
    if way in ("triton", "cuda"):
        pytest.skip("documented limit: on a GPU the queue's rows are of unit length")
    q, k, queue = inputs(20, 24, 300)
    queue = queue * scale
    for normalize in (True, False):
        loss = queue_info_nce(q, k, queue, temperature=0.2, normalize=normalize, reduction="none")
        rows, keys = (F.normalize(x.double(), dim=1) if normalize else x.double() for x in (q, k))
        positive, negatives = (rows * keys).sum(1) / 0.2, rows @ queue.double().T / 0.2
        exact = torch.logsumexp(torch.cat([positive[:, None], negatives], 1), 1) - positive
        assert relative_error(loss, exact) < 1e-5


def test_spec_shape_in_every_type(way):
    """The global loss of DenseCL's spec (section A.8): N=32, D=128, K=65,536."""
    if way in ("torch", "cpp[base]"):
        pytest.skip(f"{way}: covered at smaller shapes; this one takes seconds")
    q, k, queue = inputs(32, 128, 65536, device=device_of(way))
    for dtype, loss_error, grad_error in ((torch.float32, 1e-6, 1e-5), (torch.bfloat16, 2e-3, 1e-2)):
        tensors = [x.to(dtype) for x in (q, k, queue)]
        leaf = tensors[0].clone().requires_grad_()
        loss = queue_info_nce(leaf, *tensors[1:], reduction="none")
        exact, _, _, dq = reference.queue_nce_forward(
            *(x.double()[..., None] for x in tensors[:2]), tensors[2].double(), None, 0.2, True, True
        )
        loss.sum().backward()
        assert (loss - exact[:, 0]).abs().max() < loss_error * exact.mean()
        assert relative_error(leaf.grad, dq[..., 0]) < grad_error


def test_the_negatives_gradient_survives_bf16_where_a_vocabulary_filter_drops_it():
    """Issue 3: K=65,536 random unit vectors at temperature 0.2 have no probability above 2^-12, so kernels that skip
    tiles below that threshold return no negative gradient at all."""
    if reason := why_not("cpp[avx512]"):
        pytest.skip(reason)
    q, k, queue = (F.normalize(x, dim=1).to(torch.bfloat16) for x in inputs(49, 128, 65536))
    rows, keys, negatives = (x.double() for x in (q, k, queue))
    *_, dq = torch.ops.avfast.queue_nce_fwd(q[..., None], k[..., None], queue, None, 0.2, False, True)
    positive = (rows * keys).sum(1, keepdim=True)
    p = torch.softmax(torch.cat([positive, rows @ negatives.T], 1) / 0.2, 1)[:, 1:]
    exact = p @ negatives / 0.2
    negative = dq[..., 0].double() + p.sum(1, keepdim=True) * keys / 0.2
    assert relative_error(negative, exact) < 0.01

    tiles = F.max_pool2d(p[None, None], (49, 128), stride=(49, 128))[0, 0]
    assert (tiles < 2**-12).all(), "the filter would have kept something: the comparison shows nothing"


def test_transposed_queue_and_strided_rows(way):
    q, k, queue = inputs(30, 40, 520, device=device_of(way))
    expected = queue_info_nce(q, k, queue, reduction="none")
    transposed = queue.t().contiguous().t()
    assert transposed.stride() == (1, 520)
    wide = torch.stack([q, k], 2)
    result = queue_info_nce(wide[..., 0], wide[..., 1], transposed, reduction="none")
    assert relative_error(result, expected.double()) < 1e-6


def test_a_bf16_shadow_of_the_queue(way):
    q, k, queue = inputs(30, 40, 520, device=device_of(way))
    shadow = queue.bfloat16()
    assert relative_error(
        queue_info_nce(q, k, shadow, reduction="none"), published(q, k, shadow.float(), 0.2).double()
    ) < (1e-2 if way == "triton" else 1e-5)


def test_keys_may_be_pushed_before_the_backward_pass(way):
    q, k, queue = inputs(8, 16, 64, device=device_of(way))
    first = q.clone().requires_grad_()
    queue_info_nce(first, k, queue).backward()
    second = q.clone().requires_grad_()
    loss = queue_info_nce(second, k, queue)
    queue[:8] = k
    loss.backward()
    assert torch.equal(first.grad, second.grad)


def test_second_derivative_after_a_push_is_refused():
    q, k, queue = inputs(4, 8, 16)
    q.requires_grad_()
    loss = queue_info_nce(q, k, queue)
    queue.zero_()
    with pytest.raises(RuntimeError, match="^avfast.queue_info_nce: queue was changed before a second derivative"):
        torch.autograd.grad(loss, q, create_graph=True)


def test_gradcheck_first_and_second_order(way):
    if way == "triton":
        pytest.skip("float64 runs the reference there")
    tensors = [x.double().requires_grad_() for x in inputs(3, 4, 5)]
    for normalize in (True, False):

        def loss(q, k, queue, normalize=normalize):
            return queue_info_nce(q, k, queue, temperature=0.5, normalize=normalize, reduction="none")

        assert torch.autograd.gradcheck(loss, tensors)
        assert torch.autograd.gradgradcheck(loss, tensors)


def test_backward_twice_gives_the_same(way):
    q, k, queue = inputs(5, 12, 40, device=device_of(way))
    q.requires_grad_()
    loss = queue_info_nce(q, k, queue)
    (first,) = torch.autograd.grad(loss, q, retain_graph=True)
    (second,) = torch.autograd.grad(loss, q)
    assert torch.equal(first, second)


@pytest.mark.parametrize("learn", ["queries", "all"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_compiles_without_a_graph_break(reduction, learn):
    """With keys that learn too (both views through one network, against a bank), and a queue that learns."""
    torch.compiler.reset()
    tensors = inputs(6, 16, 50)
    compiled = torch.compile(queue_info_nce, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (6, 4):
        gradients = []
        for f in (queue_info_nce, compiled):
            q, k, queue = (x.clone().requires_grad_(i == 0 or learn == "all") for i, x in enumerate(tensors))
            loss = f(q[:n], k[:n], queue, reduction=reduction)
            loss.sum().backward()
            gradients.append([loss, *(x.grad for x in (q, k, queue) if x.requires_grad)])
        for expected, result in zip(*gradients, strict=True):
            assert torch.equal(expected, result)


def test_under_autocast_sums_stay_wide():
    q, k, queue = inputs(6, 16, 50)
    layer = torch.nn.Linear(16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = queue_info_nce(layer(q), layer(k).detach(), queue)
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


def test_no_grad_asks_for_no_gradient(way):
    q, k, queue = inputs(6, 16, 50, device=device_of(way))
    with torch.no_grad():
        loss = queue_info_nce(q.requires_grad_(), k, queue)
    assert not loss.requires_grad
    assert relative_error(loss, published(q, k, queue, 0.2).mean().double()) < 1e-6


def test_parts_explain_the_loss(way):
    q, k, queue = inputs(9, 16, 50, device=device_of(way))
    loss, positive, negative = queue_info_nce(q, k, queue, reduction="none", return_parts=True)
    rows = F.normalize(q, dim=1).double()
    exact = torch.logsumexp(rows @ queue.double().T / 0.2, 1)
    assert relative_error(positive, (rows * F.normalize(k, dim=1)).sum(1) / 0.2) < 1e-6
    assert relative_error(negative, exact) < 1e-5
    assert torch.allclose(loss, F.softplus(negative - positive), atol=1e-5)
    assert not (positive.requires_grad or negative.requires_grad)


def test_empty_queue_and_empty_batch(way):
    device = device_of(way)
    q, k, _ = inputs(4, 8, 1, device=device)
    q.requires_grad_()
    loss = queue_info_nce(q, k, torch.empty(0, 8, device=device))
    loss.backward()
    assert loss.item() == 0 and not q.grad.any()
    none = torch.empty(0, 8, device=device, requires_grad=True)
    assert queue_info_nce(none, none, torch.ones(3, 8, device=device), reduction="sum").item() == 0
    assert math.isnan(queue_info_nce(none, none, torch.ones(3, 8, device=device)).item())


def test_zero_rows_and_nan_rows_stay_in_their_rows(way):
    q, k, queue = inputs(5, 8, 40, device=device_of(way))
    q[1], k[2], q[3, 0] = 0, 0, float("nan")
    q.requires_grad_()
    loss = queue_info_nce(q, k, queue, reduction="none")
    assert loss.isnan().tolist() == [False, False, False, True, False]
    loss[[0, 1, 2, 4]].sum().backward()
    assert q.grad[[0, 1, 2, 4]].isfinite().all()


def test_a_permuted_queue_is_the_same_queue(way):
    q, k, queue = inputs(10, 16, 600, device=device_of(way))
    a = queue_info_nce(q, k, queue, reduction="none")
    b = queue_info_nce(q, k, queue[torch.randperm(600)], reduction="none")
    assert relative_error(a, b.double()) < 1e-6


@pytest.mark.parametrize("name", ["q", "k", "queue"])
@pytest.mark.parametrize(
    "bad",
    [torch.ones(4, 8, dtype=torch.int64), [1.0], torch.ones(4, 9), torch.ones(4), torch.ones(4, 8, device="meta")],
)
def test_wrong_tensors_are_refused_by_name(name, bad):
    arguments = dict(zip(("q", "k", "queue"), inputs(4, 8, 4), strict=True)) | {name: bad}
    blamed = {"q": "q|k|queue"}.get(name, name)
    with pytest.raises((TypeError, ValueError), match=rf"^avfast.queue_info_nce: ({blamed}): expected .*, got "):
        queue_info_nce(**arguments)


@pytest.mark.parametrize("temperature", [0, -0.1, float("nan"), float("inf"), "0.2", None, True])
def test_wrong_temperatures_are_refused(temperature):
    with pytest.raises((TypeError, ValueError), match="^avfast.queue_info_nce: temperature: expected a"):
        queue_info_nce(*inputs(4, 8, 4), temperature=temperature)


def test_wrong_reduction_is_refused():
    with pytest.raises(ValueError, match="^avfast.queue_info_nce: reduction: expected one of 'mean', 'sum', 'none'"):
        queue_info_nce(*inputs(4, 8, 4), reduction="max")


def test_the_same_bits_on_any_number_of_threads():
    if reason := why_not("cpp"):
        pytest.skip(reason)
    q, k, queue = inputs(150, 64, 3000)
    before, results = torch.get_num_threads(), []
    try:
        with computing("cpp"):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                leaf = q.clone().requires_grad_()
                loss = queue_info_nce(leaf, k, queue, reduction="none")
                loss.sum().backward()
                results.append(torch.cat([loss.detach(), leaf.grad.flatten()]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results)
