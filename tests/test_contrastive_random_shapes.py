"""200 seeded shapes, temperatures and types over all contrastive losses: value and every gradient, against float64.

The budget is the project's: at most twice (value) or three times (gradient) as far from float64 as plain PyTorch in the
same type, plus a few last places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import contrastive_formulas as plain
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import avfast
from avfast.testing import BACKWARD_FACTOR, DTYPES, FORWARD_FACTOR

CASES = 200
OPS = ("queue", "dense", "info_nce", "l2", "nt_xent", "sup_con", "sigmoid")


@dataclass
class Draw:
    """One case: how to compute it ours and theirs from leaves."""

    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    leaves: list[Tensor]
    scalars: list[float]


def draw(i: int) -> tuple[str, torch.dtype, Draw]:
    g = torch.Generator().manual_seed(i)
    op, dtype = OPS[i % len(OPS)], DTYPES[i // len(OPS) % len(DTYPES)]

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    def rows(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    temperature = 0.01 ** torch.rand((), generator=g).item()  # 0.01 to 1, evenly in its logarithm
    n, d = integer(2, 70), integer(2, 140)
    if op in ("queue", "dense"):
        queue = F.normalize(rows(integer(1, 700), d).double(), dim=1).to(dtype)
        if op == "queue":
            return op, dtype, Draw(
                lambda q, k, t: avfast.queue_info_nce(q, k, queue, temperature=temperature),
                lambda q, k, t: plain.queue_info_nce(q, k, queue, t), [rows(n, d), rows(n, d)], [temperature],
            )  # fmt: skip
        b, s, keys = integer(1, 4), integer(1, 20), integer(1, 20)
        match = torch.randint(-1, keys, (b, s), generator=g)
        match[0, 0] = 0
        return op, dtype, Draw(
            lambda q, k, t: avfast.dense_contrastive(q, k, queue, match, temperature=temperature),
            lambda q, k, t: plain.dense_contrastive(q, k, queue, match, t),
            [rows(b, d, s), rows(b, d, keys)], [temperature],
        )  # fmt: skip
    a, b = rows(n, d), rows(n, d)
    b = (b + a) / 2 if i % 2 else b  # pairs that know each other, and pairs that do not
    if op in ("info_nce", "l2"):
        options = {"distance": "l2" if op == "l2" else "cosine", "symmetric": bool(i % 3)}
        return op, dtype, Draw(
            lambda a, b, t: avfast.info_nce(a, b, temperature=t, **options),
            lambda a, b, t: plain.info_nce(a, b, t, **options), [a, b], [temperature],
        )  # fmt: skip
    if op == "nt_xent":
        return (
            op,
            dtype,
            Draw(lambda a, b, t: avfast.nt_xent(a, b, temperature=t), plain.nt_xent, [a, b], [temperature]),
        )
    if op == "sup_con":
        labels = torch.randint(0, max(1, n // 3), (n,), generator=g)
        labels[1] = labels[0]
        return op, dtype, Draw(
            lambda z, t: avfast.sup_con(z, labels, temperature=t),
            lambda z, t: plain.sup_con(z, labels, t), [a], [temperature],
        )  # fmt: skip
    return op, dtype, Draw(
        lambda a, b, s, c: avfast.sigmoid_contrastive(a, b, scale=s, bias=c),
        plain.sigmoid_contrastive, [a, b], [1 / temperature, math.log(temperature)],
    )  # fmt: skip


def computed(function, leaves: list[Tensor], scalars: list[float], dtype: torch.dtype) -> list[Tensor]:
    """Loss, then the gradient of every leaf and of every scalar that has one."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in leaves]
    wide = dtype if dtype == torch.float64 else torch.float32
    scalars = [torch.tensor(x, dtype=wide, requires_grad=True) for x in scalars]
    loss = function(*leaves, *scalars)
    grads = torch.autograd.grad(loss, [*leaves, *scalars], allow_unused=True)
    return [loss.detach(), *grads]


@pytest.mark.parametrize("i", range(CASES))
def test_value_and_gradients(i):
    op, dtype, case = draw(i)
    ours = computed(case.ours, case.leaves, case.scalars, dtype)
    eager = computed(case.theirs, case.leaves, case.scalars, dtype)
    exact = computed(case.theirs, case.leaves, case.scalars, torch.float64)
    for j, (found, usual, true) in enumerate(zip(ours, eager, exact, strict=True)):
        if found is None:  # the queue's losses take a number, which has no gradient
            assert j == 3 and op in ("queue", "dense")
            continue
        # Loss and weights are differences of numbers of the size of a logit, computed in float32 at least; a scalar's
        # gradient is a sum of weights times logits.
        scale = max(case.scalars[0], 1 / case.scalars[0])
        parts = scale**2 if j > len(case.leaves) else scale
        wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        last_places = 64 if dtype == torch.float64 else 4
        factor = BACKWARD_FACTOR if j else FORWARD_FACTOR
        error, usual_error = ((x.double() - true).norm().item() for x in (found, usual))
        rounding = last_places * (torch.finfo(found.dtype).eps * true.norm().item() + wide * parts)
        allowed = factor * usual_error + rounding
        assert error <= allowed, f"{op} {dtype} output {j}: {error:.1e}, allowed {allowed:.1e}, plain {usual_error:.1e}"


@pytest.mark.parametrize("i", range(len(OPS)), ids=OPS)
def test_torch_may_ask_for_determinism(i):
    """Every loss adds in one order anyway: the same bits, and nothing is refused."""
    _, dtype, case = draw(i)
    usual = computed(case.ours, case.leaves, case.scalars, dtype)
    torch.use_deterministic_algorithms(True)
    try:
        asked = computed(case.ours, case.leaves, case.scalars, dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(usual, asked, strict=True):
        assert (a is b is None) or torch.equal(a, b)


@pytest.mark.parametrize("i", range(len(OPS)), ids=OPS)
def test_forward_mode_derivatives_are_refused_and_not_zero(i):
    _, _, case = draw(i)
    first, *others = (x.float() for x in case.leaves)
    scalars = [torch.tensor(x) for x in case.scalars]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(first, torch.ones_like(first))
        with pytest.raises((RuntimeError, NotImplementedError)):
            case.ours(dual, *others, *scalars)


def test_every_loss_is_drawn_in_every_type():
    drawn = {draw(i)[:2] for i in range(CASES)}
    assert len(drawn) == len(OPS) * len(DTYPES)
