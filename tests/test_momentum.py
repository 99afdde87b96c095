"""The momentum update against its formula, and its messages."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from avfast.nn import momentum_update


def network(seed: int, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 2))
    net[1].running_mean.normal_()
    return net


def test_parameters_follow_the_formula_and_buffers_stay():
    encoder, slow = network(0), network(1)
    before = {name: value.clone() for name, value in slow.state_dict().items()}
    momentum_update(encoder, slow, 0.9)
    fast = dict(encoder.named_parameters())
    for name, value in slow.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * fast[name].detach() if name in fast else before[name]
        torch.testing.assert_close(value, expected)
        if name not in fast:
            assert torch.equal(value, before[name])


@pytest.mark.parametrize("m", [0, 1.0])
def test_the_ends_are_exact(m):
    encoder, slow = network(0), network(1)
    expected = copy.deepcopy(encoder if m == 0 else slow)
    momentum_update(encoder, slow, m)
    for a, b in zip(slow.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_buffers_on_request():
    encoder, slow = network(0), network(1)
    encoder[1].num_batches_tracked.fill_(7)
    expected = 0.75 * slow[1].running_mean + 0.25 * encoder[1].running_mean
    momentum_update(encoder, slow, 0.75, buffers=True)
    torch.testing.assert_close(slow[1].running_mean, expected)
    assert slow[1].num_batches_tracked.item() == 7


def test_mixed_dtypes_between_and_within_the_networks():
    encoder, slow = network(0), network(1).double()
    slow[2].bfloat16()
    before = [p.detach().clone() for p in slow.parameters()]
    momentum_update(encoder, slow, 0.5)
    for p, old, new in zip(slow.parameters(), before, encoder.parameters(), strict=True):
        assert p.dtype == old.dtype
        tolerance = 1e-2 if p.dtype == torch.bfloat16 else 1e-7
        torch.testing.assert_close(p.double(), (old.double() + new.double()) / 2, atol=tolerance, rtol=tolerance)


def test_no_gradient_is_recorded_and_memory_layouts_may_differ():
    encoder, slow = network(0).to(memory_format=torch.channels_last), network(1)
    old = slow[0].weight.detach().clone()
    momentum_update(encoder, slow, 0.5)
    assert slow[0].weight.grad_fn is None and slow[0].weight.is_leaf
    torch.testing.assert_close(slow[0].weight, (old + encoder[0].weight) / 2)


@pytest.mark.parametrize(
    ("other", "m", "words"),
    [
        (lambda e: network(1), 1.5, r"m: expected a number in \[0, 1\], got 1.5"),
        (lambda e: network(1), -0.1, "m: expected a finite number >= 0"),
        (lambda e: network(1)[:2], 0.5, "expected the parameters of encoder, got 2.bias, 2.weight in only one"),
        (lambda e: network(1, width=5), 0.5, r"0.weight of shape \(4, 3, 3, 3\), got \(5, 3, 3, 3\)"),
        (lambda e: e, 0.5, "expected a copy of encoder, got the same tensor as 0.weight"),
    ],
)
def test_mistakes_are_named(other, m, words):
    encoder = network(0)
    with pytest.raises(ValueError, match=words):
        momentum_update(encoder, other(encoder), m)
