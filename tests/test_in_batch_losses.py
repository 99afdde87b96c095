"""NT-Xent, supervised and sigmoid contrastive losses, and gradients that do not count a path twice."""

from __future__ import annotations

import math

import contrastive_formulas as plain
import pytest
import torch
import torch.nn.functional as F
from conftest import device_of

import avfast
from avfast.testing import relative_error

N, D = 6, 5
LABELS = torch.tensor([4, 4, 9, 0, 9, 4])  # one row alone
SCALARS = {
    "nt_xent": {"temperature": 0.3},
    "sup_con": {"temperature": 0.3},
    "sigmoid_contrastive": {"scale": 4.0, "bias": -2.0},
}


def features(dtype=torch.float64, n=N, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]


def ours(op, a, b, **options):
    if op == "sup_con":
        return avfast.sup_con(a, LABELS[: len(a)], **options)
    return getattr(avfast, op)(a, b, **options)


def formula(op, a, b, **options):
    if op == "sup_con":
        return plain.sup_con(a, LABELS[: len(a)], **options)
    return getattr(plain, op)(a, b, **options)


ops = pytest.mark.parametrize("op", SCALARS)


def leaves_of(op, a, b):
    return [a] if op == "sup_con" else [a, b]


# -------------------------------------------------------------------------------------------------- value


@ops
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
def test_value_is_the_formula(op, normalize):
    a, b = features()
    expected = formula(op, a, b, normalize=normalize, **SCALARS[op])
    torch.testing.assert_close(ours(op, a, b, normalize=normalize, **SCALARS[op]), expected, rtol=1e-12, atol=1e-13)


@ops
def test_reductions(op):
    a, b = features()
    rows = ours(op, a, b, reduction="none", **SCALARS[op])
    assert rows.shape == ((2 * N,) if op == "nt_xent" else (N,))
    torch.testing.assert_close(ours(op, a, b, reduction="sum", **SCALARS[op]), rows.sum())
    mean = rows.sum() / 5 if op == "sup_con" else rows.mean()  # of the rows that have a positive
    torch.testing.assert_close(ours(op, a, b, **SCALARS[op]), mean)


def test_nt_xent_rows_are_those_of_the_first_view_first():
    a, b = features()
    rows = avfast.nt_xent(a, b, reduction="none")
    swapped = avfast.nt_xent(b, a, reduction="none")
    torch.testing.assert_close(rows, swapped.roll(N))


@pytest.mark.parametrize("length", [1.0, 100.0], ids=["unit", "long"])
def test_a_row_is_never_its_own_negative(length):
    """With itself among the negatives, a row of length 100 would see e^10000 there."""
    a, b = (length * F.normalize(x, dim=1) for x in features())
    rows = avfast.nt_xent(a, b, temperature=1.0, normalize=False, reduction="none")
    torch.testing.assert_close(rows.mean(), plain.nt_xent(a, b, 1.0, normalize=False), rtol=1e-9, atol=1e-9)
    assert rows.isfinite().all()


def test_sup_con_of_a_row_without_a_positive():
    z = features()[0].requires_grad_()
    rows = avfast.sup_con(z, LABELS, reduction="none")
    assert rows[3] == 0 and (rows[[0, 1, 2, 4, 5]] > 0).all()
    rows[3].backward()
    assert not z.grad.any()
    alone = avfast.sup_con(z, torch.arange(N))
    assert alone.isnan() and avfast.sup_con(z, torch.arange(N), reduction="sum") == 0


def test_sup_con_of_pairs_is_nt_xent():
    a, b = features()
    labels = torch.arange(N).repeat(2)
    torch.testing.assert_close(avfast.sup_con(torch.cat([a, b]), labels), avfast.nt_xent(a, b))


def test_labels_of_any_integer_type():
    z = features()[0]
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        assert torch.equal(avfast.sup_con(z, LABELS.to(dtype)), avfast.sup_con(z, LABELS))
    torch.testing.assert_close(avfast.sup_con(z, LABELS * 2**40), avfast.sup_con(z, LABELS))


def test_siglip_begins_near_log_two():
    """scale 10, bias -10: of orthogonal features nearly every pair is known to be none."""
    z = torch.eye(64)
    assert avfast.sigmoid_contrastive(z, z, scale=10.0, bias=-10.0).item() == pytest.approx(
        math.log(2) + 63 * 4.54e-5, rel=1e-3
    )


@ops
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_half_precision_is_summed_in_float32(op, dtype):
    a, b = (x.requires_grad_() for x in features(dtype))
    loss = ours(op, a, b, **SCALARS[op])
    assert loss.dtype == torch.float32
    wide = [x.detach().double().requires_grad_() for x in (a, b)]
    exact = formula(op, *wide, **SCALARS[op])
    assert abs(loss.item() / exact.item() - 1) < 1e-5
    loss.backward(), exact.backward()
    for x, y in zip(leaves_of(op, a, b), wide, strict=False):
        assert x.grad.dtype == dtype and relative_error(x.grad, y.grad) < max(torch.finfo(dtype).eps, 5e-6)


@ops
def test_autocast_changes_nothing(op):
    results = []
    for enabled in (False, True):
        a, b = (x.requires_grad_() for x in features(torch.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = ours(op, a, b, **SCALARS[op])
        loss.backward()
        results.append((loss.detach(), a.grad))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@ops
def test_same_value_without_gradients_and_in_any_memory_order(op):
    a, b = (x.requires_grad_() for x in features(torch.float32))
    value = ours(op, a, b, **SCALARS[op]).detach()
    with torch.no_grad():
        torch.testing.assert_close(ours(op, a, b, **SCALARS[op]), value, rtol=1e-6, atol=0)
        strided = [torch.stack([x, x], 2)[..., 1] for x in (a.T.contiguous().T, b)]
        torch.testing.assert_close(ours(op, *strided, **SCALARS[op]), value, rtol=1e-6, atol=0)


# ----------------------------------------------------------------------------------------------- gradient


@ops
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
def test_first_and_second_gradients(op, normalize):
    """Of features and of learned scalars."""
    leaves = leaves_of(op, *features(n=4))
    scalars = [torch.tensor(x, dtype=torch.float64) for x in SCALARS[op].values()]
    inputs = [x.requires_grad_() for x in (*leaves, *scalars)]

    def loss(*inputs):
        z, values = inputs[: len(leaves)], inputs[len(leaves) :]
        options = dict(zip(SCALARS[op], values, strict=True))
        return ours(op, z[0], z[-1], normalize=normalize, **options)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


TANGLED = {
    "info_nce with itself": (lambda z, m: avfast.info_nce(z, z + 0), lambda z, m: plain.info_nce(z, z)),
    "info_nce, the very same": (lambda z, m: avfast.info_nce(z, z), lambda z, m: plain.info_nce(z, z)),
    "info_nce with its image": (lambda z, m: avfast.info_nce(z, z @ m), lambda z, m: plain.info_nce(z, z @ m)),
    "temperature from features": (
        lambda z, m: avfast.info_nce(z, z @ m, temperature=z.square().mean()),
        lambda z, m: plain.info_nce(z, z @ m, z.square().mean()),
    ),
    "nt_xent": (lambda z, m: avfast.nt_xent(z, z @ m), lambda z, m: plain.nt_xent(z, z @ m)),
    "sup_con": (lambda z, m: avfast.sup_con(z @ m, LABELS), lambda z, m: plain.sup_con(z @ m, LABELS)),
    "sigmoid": (
        lambda z, m: avfast.sigmoid_contrastive(z, z @ m, scale=z.norm(), bias=-1.0),
        lambda z, m: plain.sigmoid_contrastive(z, z @ m, z.norm(), -1.0),
    ),
    "sigmoid, row by row": (
        lambda z, m: avfast.sigmoid_contrastive(z, z @ m, scale=2.0, bias=-1.0, reduction="none").mean(),
        lambda z, m: plain.sigmoid_contrastive(z, z @ m, 2.0, -1.0),
    ),
    "queue_info_nce": (
        lambda z, m: avfast.queue_info_nce(z, z @ m, F.normalize(m, dim=1)),
        lambda z, m: plain.queue_info_nce(z, z @ m, F.normalize(m, dim=1)),
    ),
    "dense_contrastive": (
        lambda z, m: avfast.dense_contrastive(z.T[None], (z @ m).T[None], F.normalize(m, dim=1), torch.arange(N)[None]),
        lambda z, m: plain.dense_contrastive(z.T[None], (z @ m).T[None], F.normalize(m, dim=1), torch.arange(N)[None]),
    ),
}
"""Losses of which one argument is computed from another."""


@pytest.mark.parametrize("kind", TANGLED)
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
def test_no_path_is_counted_twice(kind, second):
    """Under create_graph the derivative is an expression of the inputs: it must stop at them."""
    results = []
    for loss in TANGLED[kind]:
        z = features()[0].requires_grad_()
        m = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        found = torch.autograd.grad(loss(z, m), [z, m], create_graph=second, allow_unused=True)
        found = [torch.zeros_like(x) if g is None else g for g, x in zip(found, (z, m), strict=True)]
        if second:
            found = torch.autograd.grad(sum(g.square().sum() for g in found), z)
        results.append(found)
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


# ------------------------------------------------------------------------------------------------ compile


@ops
def test_compiles_whole(op):
    torch.compiler.reset()
    names = list(SCALARS[op])

    def loss(a, b, *scalars):
        return ours(op, a, b, **dict(zip(names, scalars, strict=True)))

    results = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        a, b = (x.requires_grad_() for x in features(torch.float32))
        scalars = [torch.tensor(x, requires_grad=True) for x in SCALARS[op].values()]
        value = run(a, b, *scalars)
        value.backward()
        results.append((value.detach(), a.grad, *(s.grad for s in scalars)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=2e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------- mistakes


Z = torch.ones(3, 4)
MISTAKES = {
    "nt_xent: z_a: expected shape [N, D] with N > 0, got (0, 4)": lambda: avfast.nt_xent(Z[:0], Z[:0]),
    "nt_xent: z_b: expected (3, 4) torch.float32 on cpu, like z_a, got (2, 4) torch.float32 on cpu":
        lambda: avfast.nt_xent(Z, Z[:2]),
    "nt_xent: temperature: expected a finite number > 0, got nan": lambda: avfast.nt_xent(Z, Z, temperature=math.nan),
    "nt_xent: reduction: expected one of 'mean', 'sum', 'none', got 'max'":
        lambda: avfast.nt_xent(Z, Z, reduction="max"),
    "sup_con: labels: expected shape [3] on cpu, got (4,) on cpu": lambda: avfast.sup_con(Z, torch.arange(4)),
    "sup_con: labels: expected a tensor of integers, got torch.float32": lambda: avfast.sup_con(Z, Z[:, 0]),
    "sup_con: labels: expected a tensor of integers, got list": lambda: avfast.sup_con(Z, [0, 0, 1]),
    "sup_con: z: expected shape [N, D] with N > 0, got (3, 4, 1)":
        lambda: avfast.sup_con(Z[..., None], torch.arange(3)),
    "sigmoid_contrastive: scale: expected a finite number > 0, got 0":
        lambda: avfast.sigmoid_contrastive(Z, Z, scale=0, bias=0.0),
    "sigmoid_contrastive: bias: expected a finite number, got inf":
        lambda: avfast.sigmoid_contrastive(Z, Z, scale=1, bias=math.inf),
    "sigmoid_contrastive: z_a: expected a floating-point tensor, got torch.int64":
        lambda: avfast.sigmoid_contrastive(Z.long(), Z.long(), scale=1, bias=0.0),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message):
    with pytest.raises((ValueError, TypeError)) as caught:
        MISTAKES[message]()
    assert str(caught.value) == f"avfast.{message}"


@pytest.mark.parametrize("loss", ["info_nce", "info_nce l2", "nt_xent", "sup_con"])
def test_vmap_equals_a_loop(loss, way):
    device = device_of(way)
    a, b = (torch.randn(3, 6, 8, device=device) for _ in range(2))
    labels = torch.tensor([[0, 0, 1, 1, 2, 2]] * 3, device=device)
    forms = {
        "info_nce": lambda a, b, y: avfast.info_nce(a, b, temperature=0.3),
        "info_nce l2": lambda a, b, y: avfast.info_nce(a, b, distance="l2", symmetric=False),
        "nt_xent": lambda a, b, y: avfast.nt_xent(a, b, temperature=0.3),
        "sup_con": lambda a, b, y: avfast.sup_con(a, y, temperature=0.3),
    }
    expected = torch.stack([forms[loss](*row) for row in zip(a, b, labels, strict=True)])
    torch.testing.assert_close(torch.func.vmap(forms[loss])(a, b, labels), expected)
