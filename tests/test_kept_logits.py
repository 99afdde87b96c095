"""Logits that the forward pass of an in-batch loss keeps for its backward pass: the operators' contract with them, and
when the losses ask for them."""

from __future__ import annotations

import pytest
import test_contract
import test_isa
import torch

import avfast
from avfast import testing
from avfast.ops import _in_batch
from avfast.reference import contrastive
from avfast.testing import Case


def make_forward(shape, dtype, generator):
    return (*testing._make_pairs(shape, dtype, generator), True)


def make_backward(shape, dtype, generator):
    """What the reference keeps, whoever computes; the gradient of b is not asked for when D is odd."""
    args = testing._make_pairs_gradient(shape, dtype, generator)
    *_, logits, lengths = contrastive.pair_nce_forward(*args[2:5], *args[7:9], *args[10:], True)
    return (*args, logits, lengths, True, shape[1] % 2 == 0)


def named(name: str) -> Case:
    return next(case for case in testing.CASES if case.name == name)


def with_kept(name: str, make) -> Case:
    case = named(name)
    return Case(name, case.op, make, case.exact, case.eager, case.factor)


FORWARD, BACKWARD = with_kept("pair_nce_fwd", make_forward), with_kept("pair_nce_bwd", make_backward)
both = pytest.mark.parametrize("case", [FORWARD, BACKWARD], ids=lambda case: case.name)


# ------------------------------------------------------------------------------------------------ contract


@both
@test_contract.dtypes
@test_contract.layouts
def test_close_to_float64(case, dtype, layout):
    for shape in test_contract.SHAPES:
        for i, (error, allowed) in enumerate(case.errors(*test_contract.arguments(case, shape, dtype, layout))):
            assert error <= allowed, f"{case.name} {shape} output {i}: error {error:.1e}, allowed {allowed:.1e}"


@pytest.mark.parametrize("distance", [0, 1])
@pytest.mark.parametrize("n, m", [(5, 9), (64, 66), (150, 307)])
def test_what_is_kept(n, m, distance):
    """The logits themselves in powers of two, transposed and in blocks, and a hole wherever there is none to count."""
    a, b = torch.randn(n, 20), torch.randn(m, 20)
    t = torch.tensor([0.3])
    *_, kept, lengths = torch.ops.avfast.pair_nce_fwd(a, b, t, None, None, 2, 0, distance, True, True, True)
    assert kept.shape == (-(-m // 128), -(-n // 128), 128, 128)
    rows = kept.transpose(1, 2).reshape(kept.shape[0] * 128, -1).T
    u, v = (torch.nn.functional.normalize(x.double(), dim=1) for x in (a, b))
    expected = (-torch.cdist(u, v) if distance else u @ v.T) / 0.3 / torch.tensor(2.0).log()
    counted = torch.zeros(rows.shape, dtype=torch.bool)
    counted[:n, :m] = True
    for i in range(n):
        counted[i, i] = counted[i, i + 2] = False
    assert torch.equal(rows > -1e29, counted)
    inside = counted[:n, :m]
    torch.testing.assert_close(rows[:n, :m][inside].double(), expected[inside], atol=1e-5, rtol=1e-5)
    partners = v[2 : 2 + n]
    own = (u - partners).norm(dim=1) if distance else (u * partners).sum(1)
    torch.testing.assert_close(lengths, torch.cat([a.double().norm(dim=1), b.double().norm(dim=1), own]))


@both
@test_contract.layouts
def test_outputs_fully_written(case, layout, compiled):
    test_contract.test_outputs_fully_written_and_nothing_else(case, layout, compiled)


@both
@test_contract.dtypes
def test_same_bits_with_any_number_of_threads(case, dtype, compiled):
    test_contract.test_same_bits_again_and_with_any_number_of_threads(case, dtype, compiled)


@both
@test_contract.layouts
def test_opcheck(case, layout):
    test_contract.test_opcheck(case, layout)


@both
def test_fake_follows_dynamic_shapes(case):
    test_contract.test_fake_follows_dynamic_shapes(case)


@both
@test_contract.dtypes
@test_isa.pytestmark
def test_instruction_sets_agree(case, dtype):
    test_isa.test_sets_agree_with_each_other(case, dtype, "contiguous")


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("distance", [0, 1])
def test_gradients_are_those_without(distance, columns):
    """Also of a batch against more columns than it has rows, and with labels."""
    a, b = torch.randn(140, 33), torch.randn(170, 33)
    t, rows = torch.tensor([0.5]), torch.rand(140)
    labels = (None, None) if columns else (torch.arange(140) % 9, torch.arange(170) % 9)
    options = (30, -1, distance, True, columns)
    row, column, _, count, *kept = torch.ops.avfast.pair_nce_fwd(a, b, t, *labels, *options, True)
    args = (rows, torch.rand(170 if columns else 0), a, b, t, row, column, *labels, count, *options)
    again, found = (torch.ops.avfast.pair_nce_bwd(*args, *known) for known in ((None, None), kept))
    for x, y in zip(found, again, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    only_a, none, _ = torch.ops.avfast.pair_nce_bwd(*args, *kept, True, False)
    assert torch.equal(only_a, found[0]) and none.shape == (0,)
    none, only_b, _ = torch.ops.avfast.pair_nce_bwd(*args, None, None, False, True)
    assert torch.equal(only_b, again[1]) and none.shape == (0,)


def test_what_was_not_kept_is_refused(compiled):
    a, t = torch.randn(4, 3), torch.ones(1)
    row, column, _, count, kept, lengths = torch.ops.avfast.pair_nce_fwd(
        a, a, t, None, None, 0, -1, 0, True, True, True
    )
    args = (torch.ones(4), torch.ones(4), a, a, t, row, column, None, None, count, 0, -1, 0, True, True)
    wrong = [(x, lengths) for x in (kept[:, :, :4, :4], kept.double(), kept[0])]
    wrong += [(kept, x) for x in (lengths[1:], lengths.float(), lengths[None])]
    for given in wrong:
        with pytest.raises(RuntimeError, match="avfast.pair_nce: logits, lengths: expected those pair_nce_fwd kept"):
            torch.ops.avfast.pair_nce_bwd(*args, *given)
    with pytest.raises(RuntimeError, match="avfast.pair_nce: lengths: expected where logits are"):
        torch.ops.avfast.pair_nce_bwd(*args, kept, None)


# ------------------------------------------------------------------------------------------------- choice


def saved_elements(loss) -> int:
    return sum(x.numel() for x in loss.grad_fn.next_functions[0][0].saved_tensors if x is not None)


@pytest.mark.parametrize(
    "n, dtype, distance, kept",
    [
        (64, torch.float32, "l2", 128 * 128),
        (64, torch.bfloat16, "l2", 128 * 128),
        (64, torch.bfloat16, "cosine", 0),
        (130, torch.float64, "cosine", 256 * 256),
        (2176, torch.float32, "cosine", 0),
    ],
)
def test_kept_where_it_pays(n, dtype, distance, kept):
    a, b = (torch.randn(n, 4, dtype=dtype, requires_grad=True) for _ in range(2))
    loss = avfast.info_nce(a, b, distance=distance)
    assert saved_elements(loss) == 2 * n * 4 + 1 + 3 * n + (kept + 3 * n if kept else 0)


def test_nothing_is_kept_without_a_gradient(monkeypatch):
    asked = []
    monkeypatch.setattr(_in_batch, "_pair_forward", lambda *args: asked.append(args[-1]) or forward(*args))
    forward = torch.ops.avfast.pair_nce_fwd.default
    a, b = torch.randn(8, 4), torch.randn(8, 4)
    avfast.info_nce(a, b)
    with torch.no_grad():
        avfast.info_nce(a.requires_grad_(), b)
    avfast.info_nce(a, b)
    assert asked == [False, False, True]


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_costs_and_changes_nothing(distance, frozen, monkeypatch):
    """Sound2Scene trains the audio encoder alone."""
    z = [torch.randn(70, 12, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    avfast.info_nce(*z, distance=distance).backward()
    expected = z[1 - frozen].grad.clone()
    z[1 - frozen].grad = None
    asked = []
    monkeypatch.setattr(_in_batch, "_pair_backward", lambda *args: asked.append(args[-2:]) or backward(*args))
    backward = torch.ops.avfast.pair_nce_bwd.default
    z[frozen] = z[frozen].detach()
    avfast.info_nce(*z, distance=distance).backward()
    assert torch.equal(z[1 - frozen].grad, expected)
    assert asked == [(frozen == 1, frozen == 0)]


def test_backward_twice():
    """The kept logits are read, not used up."""
    a, b = (torch.randn(30, 6, requires_grad=True) for _ in range(2))
    loss = avfast.info_nce(a, b, distance="l2")
    first = torch.autograd.grad(loss, (a, b), retain_graph=True)
    second = torch.autograd.grad(loss, (a, b))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
