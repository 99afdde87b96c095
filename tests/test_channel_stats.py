"""Activation statistics: what they mean, that they merge, and watching a whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import avfast


def test_agrees_with_plain_formulas(way):
    if way == "cuda":
        pytest.skip("cuda: compared in test_contract")
    x = torch.randn(6, 5, 9, 7).relu()
    x[:4, 2] = 0
    stats = avfast.channel_stats(x)
    wide = x.double()
    torch.testing.assert_close(stats.mean, wide.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(stats.var, wide.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(stats.zero_fraction, (x == 0).double().mean((0, 2, 3)))
    assert torch.equal(stats.zeros, (x == 0).sum((0, 2, 3)))
    assert stats.dead_fraction.tolist() == [0, 0, 4 / 6, 0, 0]
    assert (stats.count, stats.samples) == (6 * 9 * 7, 6)


@pytest.mark.parametrize("offset", (0.0, 1e3, -3e4))
def test_variance_survives_a_large_mean(offset, compiled):
    """The one-pass formula must not cancel: a mean 30,000 times the deviation."""
    x = (torch.randn(4, 3, 50, 50, dtype=torch.float64) + offset).float()
    for layout in (torch.contiguous_format, torch.channels_last):
        stats = avfast.channel_stats(x.contiguous(memory_format=layout))
        torch.testing.assert_close(stats.var, x.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_variance_survives_an_outlier_in_front(compiled):
    x = torch.randn(2, 3, 60, 60)
    x[0, :, 0, 0] = 1e4
    stats = avfast.channel_stats(x)
    torch.testing.assert_close(stats.var, x.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("cut", (1, 5, 8))
def test_sum_of_parts_is_the_whole(cut):
    x = torch.randn(9, 4, 6, 6).relu() + torch.arange(9.0)[:, None, None, None]
    x[2:5, 1] = 0
    whole, parts = avfast.channel_stats(x), avfast.channel_stats(x[:cut]) + avfast.channel_stats(x[cut:])
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-6, atol=1e-9)
    empty = avfast.channel_stats(x[:0])
    assert (empty + whole).count == (whole + empty).count == whole.count
    assert torch.equal((empty + whole).mean, whole.mean)


def test_other_channels_do_not_add():
    with pytest.raises(ValueError, match="expected 3 channels, got 2"):
        avfast.channel_stats(torch.ones(1, 3, 2)) + avfast.channel_stats(torch.ones(1, 2, 2))


def test_dead_threshold_counts_magnitudes(way):
    if way == "cuda":
        pytest.skip("cuda: compared in test_contract")
    x = torch.tensor([[[0.5, -0.5]], [[0.5, 0.6]]])
    stats = avfast.channel_stats(x, dead_threshold=0.5)
    assert stats.zero_fraction.tolist() == [0.75] and stats.dead_fraction.tolist() == [0.5]


def test_nan_is_neither_zero_nor_hidden(compiled):
    x = torch.zeros(2, 2, 4, 4)
    x[0, 1, 2, 2] = float("nan")
    stats = avfast.channel_stats(x)
    assert stats.mean.isnan().tolist() == [False, True] == stats.var.isnan().tolist()
    assert stats.dead_fraction.tolist() == [1.0, 0.5]


def test_carries_no_gradient_and_compiles():
    x = torch.randn(2, 3, 4, requires_grad=True)
    assert not avfast.channel_stats(x).mean.requires_grad
    compiled = torch.compile(lambda x: avfast.channel_stats(x).mean, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), avfast.channel_stats(x).mean)


@pytest.mark.parametrize(
    "x, options, message",
    (
        ([1.0], {}, "x: expected a tensor, got list"),
        (torch.ones(2, 3).int(), {}, "x: expected a floating-point tensor, got torch.int32"),
        (torch.ones(3), {}, r"x: expected shape \[N, C, \*\], got \(3,\)"),
        (torch.ones(2, 3), {"dead_threshold": -1.0}, "dead_threshold: expected a finite number >= 0, got -1.0"),
        (torch.ones(2, 3), {"dead_threshold": float("nan")}, "dead_threshold: expected a finite number >= 0, got nan"),
        (torch.ones(2, 3).to_sparse(), {}, "x: expected a strided tensor"),
    ),
)
def test_bad_input_is_refused_in_words(x, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        avfast.channel_stats(x, **options)


class Shared(nn.Module):
    """One ReLU used twice, over different channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1), nn.ReLU()

    def forward(self, x):
        return self.relu(self.b(self.relu(self.a(x))))


def test_watch_finds_planted_dead_channels_over_a_loader():
    model = Shared().train()
    with torch.no_grad():
        model.a.bias[1] = -100
        model.b.bias[0] = -100
    batches = [(torch.rand(n, 1, 5, 5), torch.zeros(n)) for n in (4, 3)]
    watch = avfast.watch_channels(model, batches)
    assert list(watch) == ["relu", "relu#2"] and watch["relu"].samples == 7
    dead = watch.dead()
    assert dead["relu"][1] and dead["relu#2"][0]
    assert model.training and not model.relu._forward_hooks
    everything = torch.cat([x for x, _ in batches])
    torch.testing.assert_close(
        watch["relu"].mean, model.a(everything).relu().double().mean((0, 2, 3)), rtol=1e-5, atol=1e-7
    )


def test_watch_refuses_what_it_cannot_do():
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="activation modules, or layers"):
        avfast.watch_channels(model, [torch.rand(1, 1, 2, 2)])
    with pytest.raises(ValueError, match="names of modules, got 'nope'"):
        avfast.watch_channels(model, [torch.rand(1, 1, 2, 2)], layers=["nope"])
    with pytest.raises(ValueError, match="at least one batch"):
        avfast.watch_channels(model, [], layers=["0"])
