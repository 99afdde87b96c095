"""Statistics of groups, shuffling, and the leak that shuffling closes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import avfast
from avfast.nn import GroupShuffleBN


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3))


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in module.named_buffers()}


@pytest.mark.parametrize(("batch", "sizes"), [(12, [4, 4, 4]), (4, [4]), (3, [3]), (10, [4, 3, 3]), (5, [3, 2])])
def test_groups_are_separate_forwards(batch, sizes):
    """Outputs, gradients and running statistics of G small batches through G copies."""
    net = network()
    wrapped = GroupShuffleBN(copy.deepcopy(net), 4, shuffle=False)
    x = torch.randn(batch, 2, 8, 8)
    weight = torch.randn(batch, 3, 5, 5)
    copies = [copy.deepcopy(net) for _ in sizes]
    expected = torch.cat([twin(part) for twin, part in zip(copies, x.split(sizes), strict=True)])
    (expected * weight).sum().backward()
    out = wrapped(x)
    (out * weight).sum().backward()
    torch.testing.assert_close(out, expected)
    for name, parameter in wrapped.module.named_parameters():
        torch.testing.assert_close(parameter.grad, sum(t.get_parameter(name).grad for t in copies))
    for name, buffer in wrapped.module.named_buffers():
        of_copies = [t.get_buffer(name) for t in copies]
        if buffer.is_floating_point():
            torch.testing.assert_close(buffer, sum(of_copies) / len(copies))
        else:
            assert buffer.item() == 1, "one batch was seen, not one per group"


def test_running_statistics_of_a_cumulative_average():
    """momentum=None: after three calls, the mean over all groups of all calls."""
    layer = GroupShuffleBN(nn.BatchNorm1d(2, momentum=None), 4, shuffle=False)
    x = torch.randn(3, 8, 2)
    for batch in x:
        layer(batch)
    torch.testing.assert_close(layer.module.running_mean, x.mean(dim=(0, 1)))
    torch.testing.assert_close(layer.module.running_var, x.view(6, 4, 2).var(dim=1).mean(dim=0))


def test_shuffled_output_is_in_the_order_of_the_input():
    net, x = network(), torch.randn(12, 2, 8, 8)
    shuffled = GroupShuffleBN(copy.deepcopy(net), 4, seed=5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    expected = torch.empty(12, 3, 5, 5)
    for group in order.split(4):
        expected[group] = copy.deepcopy(net)(x[group])
    torch.testing.assert_close(shuffled(x), expected)
    assert not torch.allclose(shuffled(x), expected), "each call has a permutation of its own"


def test_every_output_of_a_nest_is_put_back():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x):
            return {"rows": x, "pair": (self.norm(x), 2 * x)}

    x = torch.arange(6.0)[:, None]
    out = GroupShuffleBN(Two(), 2)(x)
    assert torch.equal(out["rows"], x) and torch.equal(out["pair"][1], 2 * x)


def test_group_statistics_betray_the_group_and_the_shuffle_hides_it():
    """Where an image is black, batch norm writes minus mean over deviation of the group: its signature.

    A query that reads it finds the keys of its own group without looking at any content, unless keys were normalised
    among others. This is the leak that He et al. describe.
    """
    torch.manual_seed(0)
    groups, size = 8, 16
    images = nn.functional.pad(torch.randn(groups * size, 64, 2, 2), (1, 1, 1, 1))  # a black margin
    group = torch.arange(groups * size) // size

    def found(shuffle: bool) -> float:
        """How often the key with the most similar corner pixel is of the query's own group."""
        corners = [
            GroupShuffleBN(nn.BatchNorm2d(64, affine=False), size, shuffle=s)(images)[:, :, 0, 0]
            for s in (False, shuffle)
        ]
        q, k = (nn.functional.normalize(corner, dim=1) for corner in corners)
        return (group[(q @ k.T).argmax(dim=1)] == group).float().mean().item()

    assert found(False) == 1.0
    assert found(True) < 0.4  # an eighth by chance; a shuffled group holds a few images of each group


def test_without_a_shuffle_the_output_depends_on_the_partners_of_the_batch_order():
    x = torch.randn(8, 2, 8, 8)
    order = torch.tensor([0, 4, 2, 6, 1, 5, 3, 7])  # other partners in each group of four
    net = GroupShuffleBN(network(), 4, shuffle=False)
    assert not torch.allclose(net(x)[order], net(x[order]), atol=1e-3)
    together = GroupShuffleBN(network(), 8, shuffle=False)
    torch.testing.assert_close(together(x)[order], together(x[order]))


@pytest.mark.parametrize("shuffle", [True, False])
def test_evaluation_and_networks_without_batch_norm_are_called_as_they_are(shuffle):
    x = torch.randn(6, 2, 8, 8)
    net = network()
    wrapped = GroupShuffleBN(net, 2, shuffle=shuffle).eval()
    assert torch.equal(wrapped(x), net(x))
    linear = nn.Conv2d(2, 1, 1)
    assert torch.equal(GroupShuffleBN(linear, 2, shuffle=shuffle)(x), linear(x))


def test_frozen_layers_keep_their_statistics():
    net = network()
    net[1].eval()
    before = statistics(net[1])
    wrapped = GroupShuffleBN(net, 2, shuffle=False)
    x = torch.randn(6, 2, 8, 8)
    wrapped(x).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in statistics(net[1]).items())


def test_permutations_continue_after_a_checkpoint():
    first = GroupShuffleBN(network(), 2)
    x = torch.randn(6, 2, 8, 8)
    first(x)
    second = GroupShuffleBN(network(), 2, seed=9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(second(x), first(x))
    twin = copy.deepcopy(first)
    assert torch.equal(twin(x), first(x))


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    GroupShuffleBN(nn.BatchNorm1d(2), 2)(torch.ones(4, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_group_is_warned_of():
    with pytest.warns(UserWarning, match="a batch of 4 is one group of up to 4: shuffling it changes nothing"):
        GroupShuffleBN(network(), 4)(torch.randn(4, 2, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GroupShuffleBN(network(), 4, shuffle=False)(torch.randn(4, 2, 8, 8))


def test_a_compiled_network_is_compiled_once():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()  # what other tests compiled would count
    x = torch.randn(6, 2, 8, 8)
    plain = GroupShuffleBN(network(), 2, shuffle=False)
    compiled = GroupShuffleBN(torch.compile(network(), backend=backend), 2, shuffle=False)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), plain(x))
    assert len(graphs) == 1
    assert torch.equal(compiled.module._orig_mod[1].num_batches_tracked, plain.module[1].num_batches_tracked)


def test_adaptive_batch_norm_is_batch_norm_too():
    layer = avfast.nn.AdaptiveBatchNorm1d(3)
    wrapped = GroupShuffleBN(layer, 4, shuffle=False)
    x = torch.randn(8, 3)
    expected = [copy.deepcopy(layer)(part) for part in x.split(4)]
    torch.testing.assert_close(wrapped(x), torch.cat(expected))


@pytest.mark.parametrize("size", [1, 0, 2.0, True])
def test_group_sizes_without_statistics(size):
    with pytest.raises(ValueError, match="group_size: expected an integer of at least 2"):
        GroupShuffleBN(nn.Identity(), size)
