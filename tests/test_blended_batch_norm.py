"""Blended batch norm: its identity with two layers, its gradients, and every mode users run it in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import avfast
from avfast.nn import AdaptiveBatchNorm1d, AdaptiveBatchNorm2d, AdaptiveBatchNorm3d


def parameters(c, dtype=torch.float64, scalar=False):
    p = [torch.randn(c, dtype=dtype) for _ in range(4)] + [torch.rand(() if scalar else c, dtype=dtype)]
    return [t.requires_grad_() for t in p]


def statistics(c, dtype=torch.float64):
    return {
        "running_mean": torch.randn(c, dtype=dtype),
        "running_var": torch.rand(c, dtype=dtype) + 0.1,
        "new_running_mean": torch.randn(c, dtype=dtype),
        "new_running_var": torch.rand(c, dtype=dtype) + 0.1,
    }


def published(x, weight, bias, new_weight, new_bias, alpha, stats, *, training, relu, momentum=0.1, eps=1e-5):
    """The layer as the paper draws it: two batch norms, a mix, a ReLU."""
    a = alpha.reshape(-1, *[1] * (x.dim() - 2))
    first = F.batch_norm(x, stats["running_mean"], stats["running_var"], weight, bias, training, momentum, eps)
    second = F.batch_norm(
        x, stats["new_running_mean"], stats["new_running_var"], new_weight, new_bias, training, momentum, eps
    )
    y = a * first + (1 - a) * second
    return y.relu() if relu else y


@pytest.mark.parametrize("relu", (False, True))
@pytest.mark.parametrize("scalar", (False, True))
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("shape", ((6, 5, 4, 3), (9, 4), (2, 3, 7), (3, 2, 2, 3, 4), (5, 3, 1, 1)), ids=str)
def test_equals_two_layers_in_float64(shape, training, scalar, relu, way):
    """Output, running statistics and all six gradients, to 1e-11."""
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: compared on the CPU in test_contract")
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    p, stats = parameters(shape[1], scalar=scalar), statistics(shape[1])
    expected_stats = {k: v.clone() for k, v in stats.items()}
    expected = published(x, *p, expected_stats, training=training, relu=relu)
    y = avfast.blended_batch_norm(x, *p, **stats, training=training, activation="relu" if relu else None)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    for name, value in stats.items():
        torch.testing.assert_close(value, expected_stats[name], rtol=1e-11, atol=1e-11)
    g = torch.randn_like(y)
    for ours, theirs in zip(torch.autograd.grad(y, [x, *p], g), torch.autograd.grad(expected, [x, *p], g), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("activation", (None, "relu"))
@pytest.mark.parametrize("training", (True, False))
def test_gradcheck_and_second_gradient(activation, training):
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    p, stats = parameters(2), statistics(2)

    def f(x, *p):
        fresh = {k: v.clone() for k, v in stats.items()}
        return avfast.blended_batch_norm(x, *p, **fresh, training=training, activation=activation)

    assert torch.autograd.gradcheck(f, (x, *p))
    assert torch.autograd.gradgradcheck(f, (x, *p))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_mixed_precision_keeps_float32_parameters(dtype):
    layer = AdaptiveBatchNorm2d(8, activation="relu")
    x = torch.randn(4, 8, 5, 5).to(dtype).requires_grad_()
    y = layer(x)
    y.float().square().sum().backward()
    assert y.dtype == dtype == x.grad.dtype
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


def test_autocast_runs_in_the_dtype_of_its_input():
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), AdaptiveBatchNorm2d(8, activation="relu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(2, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer[1].alpha.grad.isfinite().all()


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last))
def test_no_grad_and_inference_mode_agree_and_keep_layout(memory_format):
    layer = AdaptiveBatchNorm2d(8, activation="relu")
    x = torch.randn(4, 8, 5, 5).contiguous(memory_format=memory_format)
    expected = layer(x)
    assert expected.is_contiguous(memory_format=memory_format)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("train", (True, False))
def test_compiles_into_one_graph_and_agrees(train):
    layer = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), AdaptiveBatchNorm2d(8, activation="relu")).train(train)
    twin = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), AdaptiveBatchNorm2d(8, activation="relu")).train(train)
    twin.load_state_dict(layer.state_dict())
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 9, 9)
    a, b = layer(x), compiled(x)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    for p, q in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(p, q)


def test_other_batch_sizes_do_not_recompile():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    layer = AdaptiveBatchNorm2d(4)
    layer.train(False)
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for n in (3, 5, 8):
        compiled(torch.randn(n, 4, 6, 6))
    assert counter.frame_count == 1


def test_vmap_equals_a_loop():
    x, p = torch.randn(3, 4, 5, 2, 2), [t.detach() for t in parameters(5, torch.float32)]

    def f(x):
        return avfast.blended_batch_norm(x, *p)

    torch.testing.assert_close(torch.func.vmap(f)(x), torch.stack([f(one) for one in x]))


def test_saves_one_activation():
    """What backward keeps: the input and vectors, where the published form keeps three activations and more."""

    def kept(f, x, ours):
        seen = {}

        def pack(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            f(x)
        return sum(seen.values())

    x = torch.randn(8, 16, 20, 20, requires_grad=True)
    layer = AdaptiveBatchNorm2d(16, activation="relu")
    p = parameters(16, torch.float32)
    stats = statistics(16, torch.float32)
    ours = kept(layer, x, True)
    theirs = kept(lambda x: published(x, *p, stats, training=True, relu=True), x, False)
    assert ours < x.numel() * 4 * 1.01
    assert ours < theirs / 3


def test_relu_passes_nan_and_its_gradient_stays_put():
    x = torch.randn(2, 3, 4, 4)
    x[0, 1, 0, 0] = float("nan")
    y = avfast.blended_batch_norm(x, *[t.detach() for t in parameters(3, torch.float32)], activation="relu")
    assert y[:, 1].isnan().all() and not y[:, [0, 2]].isnan().any()


def test_momentum_none_is_the_cumulative_average():
    layer, twin = AdaptiveBatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    for _ in range(3):
        x = torch.randn(4, 3, 2, 2)
        layer(x)
        twin(x)
    torch.testing.assert_close(layer.running_mean, twin.running_mean)
    torch.testing.assert_close(layer.running_var, twin.running_var)
    assert int(layer.num_batches_tracked) == 3


def test_frozen_statistics_still_train_the_parameters():
    layer = AdaptiveBatchNorm2d(3).eval()
    before = layer.running_mean.clone()
    layer(torch.randn(2, 3, 4, 4)).square().sum().backward()
    assert torch.equal(layer.running_mean, before)
    assert all(p.grad is not None for p in layer.parameters())


def test_state_dict_of_a_plain_batch_norm_loads_into_the_pretrained_half():
    plain, layer = nn.BatchNorm2d(4), AdaptiveBatchNorm2d(4)
    nn.init.normal_(plain.weight)
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("new_") or name == "alpha" for name in missing)
    assert torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize("kind, shape", ((AdaptiveBatchNorm1d, (4, 3)), (AdaptiveBatchNorm3d, (2, 3, 2, 4, 4))))
def test_other_dimensions(kind, shape):
    assert kind(3)(torch.randn(shape)).shape == shape


X = torch.randn(2, 3, 4, 4)
ONES = [torch.ones(3)] * 4 + [torch.tensor(0.5)]


@pytest.mark.parametrize(
    "call, message",
    (
        (lambda: avfast.blended_batch_norm(X.long(), *ONES), "x: expected a floating-point tensor, got torch.int64"),
        (lambda: avfast.blended_batch_norm(X[0, 0, 0], *ONES), r"x: expected shape \[N, C, \*\], got \(4,\)"),
        (lambda: avfast.blended_batch_norm(X, torch.ones(2), *ONES[1:]), r"weight: expected shape \(3,\), got \(2,\)"),
        (lambda: avfast.blended_batch_norm(X, *ONES[:4], torch.ones(2)), "alpha: expected shape"),
        (lambda: avfast.blended_batch_norm(X, *ONES, activation="gelu"), "activation: expected one of None, 'relu'"),
        (lambda: avfast.blended_batch_norm(X, *ONES, eps=0.0), "eps: expected a finite number > 0"),
        (lambda: avfast.blended_batch_norm(X, *ONES, eps=float("nan")), "eps: expected a finite number > 0, got nan"),
        (
            lambda: avfast.blended_batch_norm(X, *ONES, training=False),
            "running_mean: expected a tensor when training=False",
        ),
        (lambda: avfast.blended_batch_norm(X[:1, :, :1, :1], *ONES), "more than 1 value per channel"),
        (lambda: AdaptiveBatchNorm2d(3)(X[0]), "AdaptiveBatchNorm2d: x: expected 4 dimensions"),
        (lambda: AdaptiveBatchNorm2d(3, alpha_shape="row"), "alpha_shape: expected one of 'channel', 'scalar'"),
    ),
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_empty_batch_gives_an_empty_output_and_leaves_statistics_alone():
    layer = AdaptiveBatchNorm2d(3)
    x = torch.empty(0, 3, 4, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape and torch.equal(layer.running_mean, torch.zeros(3))
    assert all(p.grad is not None and (p.grad == 0).all() for p in layer.parameters())
