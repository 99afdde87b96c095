"""Heads of two modalities: against their formulas, alone and together, and with torch's state dict."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avfast.nn import FusionHead
from avfast.nn.fusion_head import MODES

A, V = (torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2))
HAS_A, HAS_V = torch.tensor([1, 1, 1, 0, 0, 1]).bool(), torch.tensor([1, 0, 1, 1, 0, 0]).bool()


def formula(head: FusionHead, a, v, has_a, has_v):
    if head.mode == "concat":
        return head.weight @ torch.cat([a * has_a, v * has_v]) + head.bias
    if head.mode == "sum":
        return has_a * head.out_a(a) + has_v * head.out_v(v)
    if head.mode == "gated":
        x, y = head.project_a(a).tanh() * has_a, head.project_v(v).tanh() * has_v
        z = torch.sigmoid(head.join.gate(torch.cat([x, y])))
        z_a, z_v = (z if has_v else 1.0), (1 - z if has_a else 1.0)
        return head.out(z_a * x + z_v * y)
    gamma, beta = head.join.modulation(v).chunk(2)
    return head.out((gamma if has_v else 1.0) * a * has_a + (beta if has_v else 0.0))


def built(mode: str) -> FusionHead:
    torch.manual_seed(0)
    head = FusionHead(8, 8, 5, mode, hidden=7, dtype=torch.float64)
    with torch.no_grad():
        for p in head.parameters():
            p.normal_()
    return head


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_their_formulas_with_gradients(mode):
    head = built(mode)
    grad, results = torch.randn(6, 5, dtype=torch.float64), []
    for run in (
        lambda a, v: head(a, v, mask_a=HAS_A, mask_v=HAS_V),
        lambda a, v: torch.stack([formula(head, a[i], v[i], int(HAS_A[i]), int(HAS_V[i])) for i in range(6)]),
    ):
        leaves = [x.clone().requires_grad_() for x in (A, V)]
        head.zero_grad()
        out = run(*leaves)
        out.backward(grad)
        results.append([out.detach(), *(x.grad for x in leaves), *(p.grad.clone() for p in head.parameters())])
    for found, want in zip(*results, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_alone_is_the_other_masked_and_nan_does_not_spread(mode):
    head = built(mode)
    never = torch.zeros(6, dtype=torch.bool)
    assert torch.equal(head.alone(A, V, "a"), head(A, V, mask_v=never))
    assert torch.equal(head.alone(A, V, "v"), head(A, V, mask_a=never))
    nothing = head.alone(A, V, "")
    assert torch.equal(nothing, nothing[:1].expand_as(nothing)), "what is said of nothing is the same for all"
    dirty = torch.where(HAS_A[:, None], A, torch.nan), torch.where(HAS_V[:, None], V, torch.nan)
    head.zero_grad()
    out = head(*dirty, mask_a=HAS_A, mask_v=HAS_V)
    out.sum().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in head.parameters())


def test_state_dict_of_a_linear_layer_fits():
    linear, head = nn.Linear(20, 5), FusionHead(8, 12, 5)
    head.load_state_dict(linear.state_dict())
    a, v = torch.randn(3, 2, 8), torch.randn(3, 2, 12)
    torch.testing.assert_close(head(a, v), linear(torch.cat([a, v], -1)))
    tokens = torch.tensor([[True, False], [False, True], [True, True]])
    want = linear(torch.cat([a * tokens[..., None], v], -1))
    torch.testing.assert_close(head(a, v, mask_a=tokens), want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"mode": "max"}, "mode: expected one of"), ({"classes": 0}, "classes: expected a positive number"),
     ({"hidden": 0}, "hidden: expected a positive number")],
)  # fmt: skip
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=f"avfast.FusionHead: {message}"):
        FusionHead(**{"dim_a": 8, "dim_v": 8, "classes": 5, **arguments})
    with pytest.raises(ValueError, match="mask_a: expected a mask of samples or tokens"):
        FusionHead(8, 8, 5)(A.float(), V.float(), mask_a=torch.ones(6, 8, dtype=torch.bool))
