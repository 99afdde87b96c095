"""The block of a correlation decoder: the published form on one exemplar after another, its gradients and mistakes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import avfast
from avfast.nn import CorrelationBlock


class OneExemplar(nn.Module):
    """As published: context and one exemplar normalised together, an attention with all its scores, a small network."""

    def __init__(self, block: CorrelationBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, context, exemplar):
        block, heads = self.block, self.block.heads
        x, z = block.norm(context), block.norm(exemplar)
        b, n, d = x.shape
        q = block.q(x).reshape(b, n, heads, d // heads).transpose(1, 2)
        k, v = block.kv(z).reshape(b, -1, 2, heads, d // heads).permute(2, 0, 3, 1, 4)
        scores = q.float() @ k.float().transpose(-1, -2) * (d // heads) ** -0.5
        attention = scores.softmax(-1).to(v.dtype)
        x = context + block.proj((attention @ v).transpose(1, 2).reshape(b, n, d))
        return x + block.mlp(block.mlp_norm(x))


def sides(b=2, e=3, n=10, k=5, d=24, dtype=torch.float32):
    return torch.randn(b, n, d, dtype=dtype), torch.randn(b, e, k, d, dtype=dtype)


@pytest.mark.parametrize("sizes", [(2, 3, 10, 5, 24), (1, 6, 101, 17, 512), (3, 1, 1, 1, 8)], ids=str)
def test_it_equals_the_published_form_one_exemplar_after_another(sizes):
    torch.manual_seed(0)
    block = CorrelationBlock(sizes[-1], heads=4)
    single = OneExemplar(block)
    context, exemplars = (x.requires_grad_() for x in sides(*sizes))
    leaves = [context, exemplars, *block.parameters()]
    weight = torch.randn(sizes[0], sizes[1], sizes[2], sizes[4])
    batched = block(context, exemplars)
    looped = torch.stack([single(context, one) for one in exemplars.unbind(1)], dim=1)
    torch.testing.assert_close(batched, looped, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad((batched * weight).sum(), leaves)
    expected = torch.autograd.grad((looped * weight).sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1)


def test_the_context_is_projected_once(monkeypatch):
    block = CorrelationBlock(8, heads=2)
    rows = []
    for layer in (block.q, block.norm):
        layer.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    block(*sides(2, 3, 10, 5, 8))
    assert sorted(rows) == [20, 20, 30]  # the context's norm and queries, the exemplars' norm


def test_masked_tokens_and_the_map():
    block = CorrelationBlock(24, heads=3)
    context, exemplars = sides()
    mask = torch.ones(exemplars.shape[:3], dtype=torch.bool)
    mask[:, 1, 2:] = False
    y, heat = block(context, exemplars, key_mask=mask, correlation="mean_prob")
    assert heat.shape == (2, 3, 10, 5) and not heat[:, 1, :, 2:].any()
    torch.testing.assert_close(y[:, 1], block(context, exemplars[:, 1:2, :2])[:, 0])
    torch.testing.assert_close(heat.sum(-1), torch.ones(2, 3, 10))


def test_first_and_second_derivatives():
    torch.manual_seed(0)
    block = CorrelationBlock(6, heads=2, mlp_ratio=1).double()
    inputs = tuple(x.requires_grad_() for x in sides(1, 2, 3, 2, 6, torch.float64))
    assert torch.autograd.gradcheck(block, inputs) and torch.autograd.gradgradcheck(block, inputs)


def test_autocast_and_compilation_change_it_by_rounding():
    torch.manual_seed(0)
    block = CorrelationBlock(24, heads=4)
    context, exemplars = sides()
    expected = block(context, exemplars)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(block(context, exemplars), expected, rtol=0.05, atol=0.05)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(context, exemplars), expected)


def test_it_learns_which_exemplar_a_token_came_from():
    """Tokens of an exemplar are some of the context's: the block and a linear layer must find these."""

    def losses(backend):
        torch.manual_seed(0)
        block, head = CorrelationBlock(16, heads=2), nn.Linear(16, 1)
        optimizer = torch.optim.Adam([*block.parameters(), *head.parameters()], lr=1e-2)
        curve = []
        with avfast.use_backend(backend):
            for _ in range(150):
                context = torch.randn(32, 12, 16)
                members = torch.rand(32, 3, 12).argsort(-1)[..., :3]
                exemplars = (
                    context.unsqueeze(1).expand(-1, 3, -1, -1).gather(2, members[..., None].expand(-1, -1, -1, 16))
                )
                truth = torch.zeros(32, 3, 12).scatter_(2, members, 1.0)
                loss = F.binary_cross_entropy_with_logits(head(block(context, exemplars)).squeeze(-1), truth)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                curve.append(loss.item())
        return curve

    fused, plain = losses("auto"), losses("torch")
    assert fused == pytest.approx(plain, rel=1e-3)
    assert sum(fused[-5:]) / 5 < 0.8 * 0.5623, "guessing a quarter everywhere costs 0.5623"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CorrelationBlock(10, heads=3), "nn.CorrelationBlock: dim: expected a multiple of the 3 heads, got 10"),
        (lambda: CorrelationBlock(8, heads=0), "nn.CorrelationBlock: dim: expected a multiple of the 0 heads"),
        (lambda: CorrelationBlock(8, heads=2, mlp_ratio=0), "mlp_ratio: expected a positive number, got 0"),
        (lambda: CorrelationBlock(8, heads=2)(*sides()), r"context: expected shape \[B, N, 8\], got \(2, 10, 24\)"),
        (
            lambda: CorrelationBlock(24, heads=2)(sides()[0], sides()[1][:, 0]),
            r"exemplars: expected shape \(2, E, K, 24\), got \(2, 5, 24\)",
        ),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
