"""InfoNCE against its definition, written out pair by pair in float64."""

from __future__ import annotations

import math

import pytest
import torch

import avfast

N, D = 7, 5
distances = pytest.mark.parametrize("distance", ["cosine", "l2"])
symmetries = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "one-way"])
normalizes = pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])


def features(dtype=torch.float64, n=N, d=D, grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pair = [torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    return [z.requires_grad_(grad) for z in pair]


def defined(z_a, z_b, temperature, distance, normalize, symmetric):
    """Loss of each row, straight from the definition: no matrix product, no cross entropy, no avfast."""
    a, b = ([[float(x) for x in row] for row in z.double()] for z in (z_a, z_b))

    def unit(row):
        norm = math.sqrt(sum(x * x for x in row))
        return [x / norm for x in row]

    def similarity(u, v):
        if distance == "cosine":
            return sum(x * y for x, y in zip(u, v, strict=True))
        return -math.sqrt(sum((x - y) ** 2 for x, y in zip(u, v, strict=True)))

    def minus_log_share(i, scores):
        top = max(scores)
        return top + math.log(sum(math.exp(s - top) for s in scores)) - scores[i]

    if normalize:
        a, b = [unit(row) for row in a], [unit(row) for row in b]
    rows = []
    for i in range(len(a)):
        forward = minus_log_share(i, [similarity(a[i], v) / temperature for v in b])
        backward = minus_log_share(i, [similarity(u, b[i]) / temperature for u in a])
        rows.append((forward + backward) / 2 if symmetric else forward)
    return torch.tensor(rows, dtype=torch.float64)


# -------------------------------------------------------------------------------------------------- value


@distances
@symmetries
@normalizes
@pytest.mark.parametrize("temperature", [0.07, 1.0, 30.0])
def test_value_is_the_definition(distance, symmetric, normalize, temperature):
    z_a, z_b = features()
    options = {"distance": distance, "symmetric": symmetric, "normalize": normalize}
    expected = defined(z_a, z_b, temperature, **options)
    rows = avfast.info_nce(z_a, z_b, temperature=temperature, reduction="none", **options)
    assert rows.shape == (N,) and rows.dtype == torch.float64
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-13)
    for reduction in ("mean", "sum"):
        loss = avfast.info_nce(z_a, z_b, temperature=temperature, reduction=reduction, **options)
        torch.testing.assert_close(loss, getattr(expected, reduction)(), rtol=1e-12, atol=1e-13)


@distances
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_half_precision_features_are_computed_in_float32(distance, dtype):
    """Exact to float32 for the features as they were rounded, with gradients in the features' own type."""
    z_a, z_b = features(dtype, grad=True)
    loss = avfast.info_nce(z_a, z_b, distance=distance)
    assert loss.dtype == torch.float32
    expected = defined(z_a.detach(), z_b.detach(), 0.1, distance, True, True).mean()
    assert abs(loss.item() - expected.item()) < 2e-5 * expected.item()
    loss.backward()
    wide = [z.detach().double().requires_grad_() for z in (z_a, z_b)]
    avfast.info_nce(*wide, distance=distance).backward()
    for z, exact in zip((z_a, z_b), wide, strict=True):
        assert z.grad.dtype == dtype
        error = (z.grad.double() - exact.grad).norm() / exact.grad.norm()
        assert error < max(torch.finfo(dtype).eps, 5e-6)


@distances
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_autocast_changes_nothing(distance, dtype):
    """Autocast would run the product in half precision; the loss keeps float32."""
    results = []
    for enabled in (False, True):
        z_a, z_b = features(torch.float32, grad=True)
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = avfast.info_nce(z_a, z_b, distance=distance)
        loss.backward()
        results.append((loss.detach(), z_a.grad, z_b.grad))
    for plain, autocast in zip(*results, strict=True):
        assert torch.equal(plain, autocast)


@distances
def test_extreme_logits_stay_finite(distance):
    z_a, z_b = features(torch.float32, grad=True)
    loss = avfast.info_nce(z_a, z_b, temperature=1e-4, distance=distance)
    loss.backward()
    expected = defined(z_a.detach(), z_b.detach(), 1e-4, distance, True, True).mean()
    assert abs(loss.item() / expected.item() - 1) < 1e-5
    assert z_a.grad.isfinite().all() and z_b.grad.isfinite().all()


@distances
def test_one_pair_has_no_negatives(distance):
    z_a, z_b = features(n=1, grad=True)
    loss = avfast.info_nce(z_a, z_b, distance=distance)
    loss.backward()
    assert loss.item() == 0
    assert not z_a.grad.any() and not z_b.grad.any()


@distances
def test_memory_order_does_not_matter(distance):
    z_a, z_b = features()
    expected = avfast.info_nce(z_a, z_b, distance=distance)
    wider = torch.zeros(2 * N, D + 3, dtype=z_a.dtype)
    wider[::2, 1 : D + 1] = z_b
    strided = avfast.info_nce(z_a.T.contiguous().T, wider[::2, 1 : D + 1], distance=distance)
    torch.testing.assert_close(strided, expected, rtol=1e-14, atol=0)


def test_inputs_are_not_changed():
    z_a, z_b = features()
    before = z_a.clone(), z_b.clone()
    avfast.info_nce(z_a, z_b)
    assert torch.equal(z_a, before[0]) and torch.equal(z_b, before[1])


@distances
def test_same_value_without_gradients(distance):
    z_a, z_b = features(torch.float32, grad=True)
    expected = avfast.info_nce(z_a, z_b, distance=distance)
    with torch.no_grad():
        value = avfast.info_nce(z_a, z_b, distance=distance)
        assert torch.equal(value, expected) and not value.requires_grad
    with torch.inference_mode():
        value = avfast.info_nce(z_a, z_b, distance=distance)
        assert torch.equal(value, expected) and value.is_inference()


# ----------------------------------------------------------------------------------------------- gradient


@distances
@symmetries
@normalizes
def test_first_and_second_gradients(distance, symmetric, normalize):
    """In float64, of both features and of a learned temperature."""
    z_a, z_b = features(n=4, d=3, grad=True)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(a, b, t):
        options = {"distance": distance, "symmetric": symmetric, "normalize": normalize}
        return avfast.info_nce(a, b, temperature=t, **options)

    assert torch.autograd.gradcheck(loss, (z_a, z_b, temperature))
    assert torch.autograd.gradgradcheck(loss, (z_a, z_b, temperature))


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_learned_temperature(shape):
    """A tensor gives the value of the number, and its gradient has its own shape and type."""
    z_a, z_b = features(torch.bfloat16)
    temperature = torch.full(shape, 0.25, requires_grad=True)
    loss = avfast.info_nce(z_a, z_b, temperature=temperature)
    assert loss.shape == () and torch.equal(loss.detach(), avfast.info_nce(z_a, z_b, temperature=0.25))
    loss.backward()
    assert temperature.grad.shape == shape and temperature.grad.dtype == torch.float32
    step = 1e-4
    up, down = (defined(z_a, z_b, 0.25 + s, "cosine", True, True).mean() for s in (step, -step))
    assert temperature.grad.item() == pytest.approx((up - down).item() / (2 * step), rel=1e-4)


def test_closed_form_gradient_of_the_l2_loss():
    """W = (2I - P - R) / (2 B d); dz_i = -(I - u_i u_i^T) (W V)_i / |z_i|: Sound2Scene's loss by hand."""
    z_a, z_b = features(n=9, grad=True)
    avfast.info_nce(z_a, z_b, temperature=1.0, distance="l2").backward()
    with torch.no_grad():
        u, v = (z / z.norm(dim=1, keepdim=True) for z in (z_a, z_b))
        d = (2 - 2 * u @ v.T).sqrt()
        p, r = (-d).softmax(1), (-d).softmax(0)
        w = (2 * torch.eye(9, dtype=d.dtype) - p - r) / (2 * 9 * d)
        wv = w @ v
        expected = -(wv - u * (u * wv).sum(1, keepdim=True)) / z_a.norm(dim=1, keepdim=True)
    torch.testing.assert_close(z_a.grad, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("batch", "floor", "chance"), [(64, 2.79, 4.16), (256, 4.14, 5.55), (1024, 5.52, 6.93)])
def test_floor_and_chance_of_the_l2_loss(batch, floor, chance):
    """Non-negative features are at most sqrt 2 apart: perfect pairs give log(1 + (B-1) e^-sqrt2), collapse log B."""
    options = {"temperature": 1.0, "distance": "l2"}
    perfect = torch.eye(batch)
    best = avfast.info_nce(perfect, perfect, **options).item()
    assert best == pytest.approx(math.log(1 + (batch - 1) * math.exp(-math.sqrt(2))), abs=2e-5)
    assert best == pytest.approx(floor, abs=6e-3)
    collapsed = avfast.info_nce(perfect, torch.ones(batch, batch), **options).item()
    assert collapsed == pytest.approx(math.log(batch), abs=1e-4) and collapsed == pytest.approx(chance, abs=6e-3)
    z_a, z_b = (z.relu() for z in features(torch.float32, batch, 16))
    assert best < avfast.info_nce(z_a, z_b, **options).item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@normalizes
def test_identical_rows_under_l2(dtype, normalize):
    """The slope of a square root at zero is infinite; ours is defined as zero, so gradients stay finite."""
    z = features(dtype)[0]
    z_a, z_b = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = avfast.info_nce(z_a, z_b, temperature=1.0, distance="l2", normalize=normalize)
    loss.backward()
    assert z_a.grad.isfinite().all() and z_b.grad.isfinite().all()
    expected = defined(z, z, 1.0, "l2", normalize, True).mean().item()
    # In float32 |u|^2 + |v|^2 - 2 u.v rounds to about 1e-7, so a distance of zero reads as 5e-4 or less.
    assert loss.item() == pytest.approx(expected, abs=2e-6 if dtype == torch.float64 else 1e-3)


@normalizes
def test_gradient_is_zero_at_distance_zero(normalize):
    """All rows alike: every distance is zero, so nothing may move."""
    z_a = torch.tensor([[3.0, 4.0]] * 3, dtype=torch.float64, requires_grad=True)
    z_b = z_a.detach().clone().requires_grad_()
    loss = avfast.info_nce(z_a, z_b, distance="l2", normalize=normalize)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), abs=1e-12)
    assert not z_a.grad.any() and not z_b.grad.any()


# ------------------------------------------------------------------------------------------------ compile


@distances
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_equals_eager(distance, backend):
    """One graph, forward and backward, with a learned temperature."""

    def loss(a, b, t):
        return avfast.info_nce(a, b, temperature=t, distance=distance)

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    results = []
    for run in (loss, compiled):
        z_a, z_b = features(torch.float32, grad=True)
        temperature = torch.tensor(0.2, requires_grad=True)
        value = run(z_a, z_b, temperature)
        value.backward()
        results.append((value.detach(), z_a.grad, z_b.grad, temperature.grad))
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=2e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------- mistakes

ROWS = torch.randn(3, 4)
MISTAKES = {
    "not a tensor": (
        ([[1.0]], ROWS), {}, TypeError, "z_a: expected a tensor, got list"),
    "integers": (
        (ROWS.long(), ROWS), {}, TypeError, "z_a: expected a floating-point tensor, got torch.int64"),
    "complex": (
        (ROWS, ROWS.to(torch.complex64)), {}, TypeError, "z_b: expected a floating-point tensor, got torch.complex64"),
    "sparse": (
        (ROWS.to_sparse(), ROWS), {}, TypeError, "z_a: expected a strided tensor, got torch.sparse_coo"),
    "a vector": (
        (ROWS[0], ROWS[0]), {}, ValueError, "z_a: expected shape [N, D] with N > 0, got (4,)"),
    "empty batch": (
        (ROWS[:0], ROWS[:0]), {}, ValueError, "z_a: expected shape [N, D] with N > 0, got (0, 4)"),
    "other rows": (
        (ROWS, ROWS[:2]), {}, ValueError,
        "z_b: expected (3, 4) torch.float32 on cpu, like z_a, got (2, 4) torch.float32 on cpu"),
    "other dtype": (
        (ROWS, ROWS.half()), {}, ValueError,
        "z_b: expected (3, 4) torch.float32 on cpu, like z_a, got (3, 4) torch.float16 on cpu"),
    "other device": (
        (ROWS, ROWS.to("meta")), {}, ValueError,
        "z_b: expected (3, 4) torch.float32 on cpu, like z_a, got (3, 4) torch.float32 on meta"),
    "zero temperature": (
        (ROWS, ROWS), {"temperature": 0}, ValueError, "temperature: expected a finite number > 0, got 0"),
    "negative temperature": (
        (ROWS, ROWS), {"temperature": -0.1}, ValueError, "temperature: expected a finite number > 0, got -0.1"),
    "NaN temperature": (
        (ROWS, ROWS), {"temperature": math.nan}, ValueError, "temperature: expected a finite number > 0, got nan"),
    "infinite temperature": (
        (ROWS, ROWS), {"temperature": math.inf}, ValueError, "temperature: expected a finite number > 0, got inf"),
    "temperature in words": (
        (ROWS, ROWS), {"temperature": "0.1"}, TypeError, "temperature: expected a number, got str"),
    "temperature per row": (
        (ROWS, ROWS), {"temperature": torch.ones(3)}, ValueError,
        "temperature: expected a number or a 0-d tensor, got shape (3,)"),
    "unknown distance": (
        (ROWS, ROWS), {"distance": "dot"}, ValueError, "distance: expected one of 'cosine', 'l2', got 'dot'"),
    "unknown reduction": (
        (ROWS, ROWS), {"reduction": "batch"}, ValueError,
        "reduction: expected one of 'mean', 'sum', 'none', got 'batch'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    tensors, options, kind, message = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        avfast.info_nce(*tensors, **options)
    assert str(caught.value) == f"avfast.info_nce: {message}"


def test_the_reference_backend_by_name_runs():
    with avfast.use_backend("torch"):
        named = avfast.info_nce(ROWS, ROWS)
    torch.testing.assert_close(named, avfast.info_nce(ROWS, ROWS))
