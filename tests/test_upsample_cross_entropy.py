"""Cross-entropy of upsampled logits: against interpolate and cross_entropy in float64, with every option of theirs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import computing, why_not

from avfast import testing, upsample_cross_entropy
from avfast.testing import relative_error

TARGETS = (torch.uint8, torch.int16, torch.int32, torch.int64)
SIZES = [
    ((10, 10), (40, 160)),
    ((1, 1), (7, 5)),
    ((3, 5), (1, 1)),
    ((7, 9), (23, 61)),
    ((40, 37), (11, 13)),
    ((12, 1), (5, 40)),
    ((9, 20), (9, 20)),
    ((2, 130), (30, 51)),
]


def published(logits, target, *, align_corners, **options):
    up = F.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(up, target.long(), **options)


def inputs(classes, small=(4, 5), size=(19, 23), batch=3, ignored=0.2, ignore_index=-100):
    logits = torch.randn(batch, classes, *small).mul(2)
    target = torch.randint(classes, (batch, *size))
    target[torch.rand(target.shape) < ignored] = ignore_index
    return logits, target


def compare(logits, target, align_corners, limit=3e-6, **options):
    results = []
    for f, dtype in ((published, torch.float64), (upsample_cross_entropy, logits.dtype)):
        leaf = logits.detach().to(dtype).requires_grad_()
        given = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        loss = f(leaf, target, align_corners=align_corners, **given)
        upstream = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
        results.append((loss, *torch.autograd.grad(loss, leaf, upstream)))
    (exact, exact_grad), (loss, grad) = results
    assert loss.shape == exact.shape and grad.dtype == logits.dtype
    assert relative_error(loss, exact) < limit, options
    half = torch.finfo(grad.dtype).eps if grad.dtype in (torch.float16, torch.bfloat16) else 0
    assert relative_error(grad, exact_grad) < max(2 * limit, half), options


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("classes", [1, 2, 3, 19, 40])
def test_sizes_up_and_down(classes, align_corners, way):
    for (small, size), reduction in zip(SIZES, itertools.cycle(("mean", "none", "sum"))):
        logits, target = inputs(classes, small, size, ignored=0.2 if size != (1, 1) else 0)
        compare(logits, target, align_corners, reduction=reduction, limit=3e-6 if classes > 1 else 1e-6)
        compare(logits.double(), target, align_corners, reduction=reduction, limit=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_options_of_cross_entropy(reduction, smoothing, weighted, way):
    for classes, ignore_index in ((2, -100), (5, 255), (7, 3), (2, 1)):
        logits, target = inputs(classes, ignore_index=ignore_index)
        weight = torch.rand(classes) + 0.2 if weighted else None
        options = {"weight": weight} if weighted else {}
        compare(
            logits, target, True, label_smoothing=smoothing, reduction=reduction, ignore_index=ignore_index, **options
        )


@pytest.mark.parametrize("kind", TARGETS, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_every_type(kind, dtype, way):
    for classes in (2, 11):
        logits, target = inputs(classes, ignore_index=200)
        compare(logits.to(dtype), target.to(kind), False, ignore_index=200)


def test_strided_logits_and_targets(way):
    logits, target = inputs(4)
    expected = upsample_cross_entropy(logits, target, align_corners=True)
    for z, t in (
        (logits.to(memory_format=torch.channels_last), target),
        (logits.repeat_interleave(2, 3)[..., ::2], target.transpose(1, 2).contiguous().transpose(1, 2)),
        (logits, target.repeat(1, 1, 2)[..., :23]),
        (logits, target.repeat_interleave(3, 2)[..., ::3]),
    ):
        leaf = z.detach().requires_grad_()
        loss = upsample_cross_entropy(leaf, t, align_corners=True)
        loss.backward()
        assert torch.equal(loss, expected) and leaf.grad.shape == logits.shape


@pytest.mark.parametrize("classes", [2, 5])
def test_all_ignored(classes, way):
    logits, target = inputs(classes, ignored=1.1)
    leaf = logits.requires_grad_()
    assert math.isnan(upsample_cross_entropy(leaf, target, align_corners=True).item())
    for reduction in ("sum", "none"):
        loss = upsample_cross_entropy(leaf, target, align_corners=True, reduction=reduction)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        assert not loss.any() and not grad.any()


def test_no_samples(way):
    empty, target = torch.empty(0, 3, 4, 4, requires_grad=True), torch.empty(0, 9, 9, dtype=torch.int64)
    loss = upsample_cross_entropy(empty, target, align_corners=True, reduction="sum")
    loss.backward()
    assert loss.item() == 0 and empty.grad.shape == empty.shape
    assert math.isnan(upsample_cross_entropy(empty, target, align_corners=True).item())


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("wrong", [-1, 5, 1000, -(2**40)])
def test_a_class_out_of_range_is_refused(classes, wrong, way):
    logits, target = inputs(classes)
    target[1, 2, 3] = wrong
    with pytest.raises(
        (ValueError, RuntimeError),
        match=rf"avfast.upsample_cross_entropy: target: expected classes 0 to {classes - 1} or -100, got others",
    ):
        upsample_cross_entropy(logits, target, align_corners=True)


def test_large_logits_and_confident_pixels(way):
    """As far off as float32 log-softmax, no overflow."""
    for scale in (1e-3, 30.0, 1e4):
        logits, target = inputs(6)
        compare(logits * scale, target, True, limit=1e-5)
        compare(logits[:, :2] * scale, target % 2, True, limit=1e-5)


def test_gradcheck_first_and_second_order(way):
    for classes, reduction in ((2, "mean"), (3, "none"), (3, "sum")):
        logits, target = inputs(classes, (3, 2), (5, 7), batch=2)
        leaf = logits.double().requires_grad_()
        weight = torch.rand(classes, dtype=torch.float64) + 0.5 if classes == 3 else None

        def loss(z, target=target, weight=weight, reduction=reduction):
            return upsample_cross_entropy(
                z, target, align_corners=False, weight=weight, label_smoothing=0.1 * (z.shape[1] - 2),
                reduction=reduction,
            )  # fmt: skip

        assert torch.autograd.gradcheck(loss, leaf)
        assert torch.autograd.gradgradcheck(loss, leaf)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_a_graph_break(reduction):
    compiled = torch.compile(upsample_cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (4, 3):
        logits, target = inputs(5, batch=batch)
        a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        expected, result = (
            f(x, target, align_corners=True, reduction=reduction)
            for f, x in ((upsample_cross_entropy, a), (compiled, b))
        )
        expected.sum().backward()
        result.sum().backward()
        assert torch.equal(expected, result) and torch.equal(a.grad, b.grad)


def test_under_autocast():
    head, (_, target) = torch.nn.Conv2d(8, 4, 1), inputs(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = upsample_cross_entropy(head(torch.randn(3, 8, 4, 5)), target, align_corners=False)
    loss.backward()
    assert loss.dtype == torch.float32 and head.weight.grad.any()


def test_bands_and_threads_change_no_bit():
    """An image tall enough to be cut into bands: the same on any number of threads, and as right."""
    if reason := why_not("cpp"):
        pytest.skip(reason)
    logits, target = inputs(19, (33, 40), (260, 330), batch=1)
    before, results = torch.get_num_threads(), []
    try:
        with computing("cpp"):
            compare(logits, target, False)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                leaf = logits.clone().requires_grad_()
                loss = upsample_cross_entropy(leaf, target, align_corners=True)
                loss.backward()
                results.append(torch.cat([loss.detach().view(1), leaf.grad.flatten()]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": torch.ones(3, 4, 5)},
        {"logits": torch.ones(3, 0, 5, 5)},
        {"logits": torch.ones(3, 4, 5, 5, dtype=torch.int64)},
        {"target": torch.ones(3, 9, 9)},
        {"target": torch.ones(3, 9, 9, dtype=torch.bool)},
        {"target": torch.ones(2, 9, 9, dtype=torch.int64)},
        {"target": torch.ones(3, 9, 0, dtype=torch.int64)},
        {"target": torch.ones(3, 9, 9, dtype=torch.int64, device="meta")},
        {"weight": torch.ones(3)},
        {"weight": torch.ones(4, dtype=torch.int64)},
        {"ignore_index": 1.0},
        {"ignore_index": True},
        {"label_smoothing": 1.5},
        {"label_smoothing": -0.1},
        {"label_smoothing": None},
        {"reduction": "max"},
    ],
    ids=lambda change: f"{next(iter(change))}",
)
def test_mistakes_are_named(change):
    given = {"logits": torch.ones(3, 4, 5, 5), "target": torch.zeros(3, 9, 9, dtype=torch.int64)} | change
    with pytest.raises(
        (TypeError, ValueError), match=rf"^avfast.upsample_cross_entropy: {next(iter(change))}: expected"
    ):
        upsample_cross_entropy(given.pop("logits"), given.pop("target"), align_corners=True, **given)
