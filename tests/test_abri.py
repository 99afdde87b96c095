"""ABRi over whole models: convert, train, fold, reset."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import avfast
from avfast.benches.bench_train_step import resnet18
from avfast.nn import AdaptiveBatchNorm2d
from avfast.nn.bn_layers import batchnorm_layers


@pytest.mark.parametrize("alpha_shape, extra", (("channel", 14_400), ("scalar", 9_620)))
def test_convert_train_one_step_and_fold_a_resnet18(alpha_shape, extra):
    """Equal evaluation output after folding, and the published count of extra parameters."""
    net = resnet18()
    before = sum(p.numel() for p in net.parameters())
    avfast.convert_abri(net, alpha_shape=alpha_shape)
    assert sum(p.numel() for p in net.parameters()) - before == extra
    x = torch.randn(4, 3, 64, 64)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    loss = nn.functional.cross_entropy(net(x), torch.arange(4))
    loss.backward()
    optimiser.step()
    net.eval()
    expected = net.double()(x.double())
    single = net.float()(x)
    folded = avfast.fold_abri(net)
    assert not any(isinstance(m, AdaptiveBatchNorm2d) for m in folded.modules())
    result = folded(x)
    scale = expected.abs().max()
    assert (single - expected).abs().max() / scale < 1e-5
    # As close to float64 as the unfolded network was, and within 1e-6 of it relative to the output's size.
    assert (result - expected).abs().max() / scale < max(2 * (single - expected).abs().max() / scale, 1e-6)


def test_fold_is_exact_in_float64_with_tiny_variances():
    layer = AdaptiveBatchNorm2d(6, activation="relu").double().eval()
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.uniform_(1e-12, 1e-10) if name.endswith("running_var") else tensor.normal_()
    x = torch.randn(3, 6, 5, 5, dtype=torch.float64)
    folded = avfast.fold_abri(nn.Sequential(layer))
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-11, atol=1e-11)
    assert isinstance(folded[0][1], nn.ReLU)


def test_fold_in_float32_is_equal_to_a_millionth():
    torch.manual_seed(3)
    layer = AdaptiveBatchNorm2d(16)
    for _ in range(5):
        layer(torch.randn(8, 16, 6, 6) * 2 + 1)
    layer.eval()
    x = torch.randn(8, 16, 6, 6)
    y, folded = layer(x), avfast.fold_abri(layer)
    assert type(folded) is nn.BatchNorm2d
    torch.testing.assert_close(folded(x), y, rtol=1e-6, atol=1e-6)


def test_convert_keeps_tensors_modes_and_names():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(5).eval(), nn.SyncBatchNorm(6))
    )
    weight, mean = net[1].weight, net[1].running_mean
    names = [name for name, _ in batchnorm_layers(net)]
    avfast.convert_abri(net, alpha=0.3)
    assert [name for name, _ in batchnorm_layers(net)] == names
    assert net[1].weight is weight and net[1].running_mean is mean
    assert not net[2][0].training and net[1].training
    assert net[2][1].sync and not net[1].sync
    torch.testing.assert_close(net[1].alpha, torch.full((4,), 0.3))
    assert avfast.convert_abri(net)[1].weight is weight  # a second time changes nothing


def test_convert_only_layers_with_abnormal_channels():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    with torch.no_grad():
        net[1].weight[2] = 0
    avfast.convert_abri(net, which="abnormal")
    assert [type(m).__name__ for m in net] == ["BatchNorm2d", "AdaptiveBatchNorm2d"]


@pytest.mark.parametrize(
    "layer, lack",
    ((nn.BatchNorm2d(3, affine=False), "no affine"), (nn.BatchNorm2d(3, track_running_stats=False), "no running")),
)
def test_convert_names_a_layer_it_cannot_convert(layer, lack):
    with pytest.raises(ValueError, match=rf"model\.0: .*{lack}"):
        avfast.convert_abri(nn.Sequential(layer))


def test_unknown_option():
    with pytest.raises(ValueError, match="which: expected one of 'all', 'abnormal', got 'some'"):
        avfast.convert_abri(nn.BatchNorm2d(2), which="some")


def test_sync_conversion_of_torch_leaves_abri_alone():
    net = avfast.convert_abri(nn.Sequential(nn.BatchNorm2d(3)))
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(net)[0], AdaptiveBatchNorm2d)


def test_reset_baselines():
    def net():
        layer = nn.BatchNorm2d(4)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.0, 0.0, 2.0, 1e-7]))
            layer.bias.copy_(torch.tensor([0.0, 0.5, 1.0, 1e-3]))
            layer.running_mean.fill_(3)
            layer.running_var.fill_(5)
        return layer

    layer = net()
    assert avfast.reset_batchnorm(layer) == 4
    assert layer.weight.tolist() == [1] * 4 and layer.running_var.tolist() == [1] * 4 == [
        1 - m for m in layer.running_mean
    ]
    layer = net()
    assert avfast.reset_batchnorm(layer, "abnormal") == 1
    torch.testing.assert_close(layer.weight, torch.tensor([1.0, 0.0, 2.0, 1e-7]))
    assert layer.running_mean.tolist() == [3] * 4
    layer = net()
    assert avfast.reset_batchnorm(layer, "abnormal", compat="released") == 3
    assert layer.bias.tolist() == [0, 0, 1, 0]


def test_training_follows_the_published_form():
    """The fused layer and the two-layer form give the same loss curve on real batches of a small problem."""

    class Published(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.old, self.new, self.alpha = (
                nn.BatchNorm2d(c),
                nn.BatchNorm2d(c),
                nn.Parameter(torch.full((1, c, 1, 1), 0.5)),
            )

        def forward(self, x):
            return (self.alpha * self.old(x) + (1 - self.alpha) * self.new(x)).relu()

    def curve(layer):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )
        optimiser = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        x = torch.randn(32, 1, 8, 8) + torch.arange(4.0).repeat(8)[:, None, None, None]
        losses = []
        for _ in range(25):
            loss = nn.functional.cross_entropy(net(x), torch.arange(4).repeat(8))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return torch.tensor(losses)

    torch.manual_seed(0)
    fused, published = curve(AdaptiveBatchNorm2d(8, activation="relu")), curve(Published(8))
    torch.testing.assert_close(fused, published, rtol=1e-3, atol=1e-4)
    assert fused[-1] < fused[0] / 3
