"""Scanning batch norms: planted channels, plans that follow their tensors, and checkpoint files."""

from __future__ import annotations

import gc
import json
import math

import pytest
import torch
from torch import nn

import avfast
from avfast.errors import CheckpointError, ConfigError
from avfast.nn.bn_scan_command import bn_scan_command


def network(*widths: int) -> nn.Sequential:
    net = nn.Sequential(*[nn.BatchNorm2d(w) for w in widths])
    for layer in net:
        nn.init.normal_(layer.weight, 1.0, 0.2)
        nn.init.normal_(layer.bias, 0.1, 0.2)
    return net


@torch.no_grad()
def plant(layer: nn.BatchNorm2d, channels: list[int], gamma: float, beta: float) -> None:
    layer.weight[channels], layer.bias[channels] = gamma, beta


def test_finds_exactly_the_planted_channels(way):
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: this network is on the CPU")
    net = network(7, 64, 33)
    plant(net[0], [0, 6], 1e-11, -1e-11)
    plant(net[1], [5, 17, 63], 0.0, 0.0)
    plant(net[2], [1], 1e-11, 0.5)  # gamma alone is not enough
    plant(net[2], [2], 0.5, 1e-11)  # nor is beta
    report = avfast.scan_batchnorm(net)
    found = {layer.name: layer.abnormal.nonzero().flatten().tolist() for layer in report.layers}
    assert found == {"0": [0, 6], "1": [5, 17, 63], "2": []}
    assert report.abnormal == 5 and report.counts["1"] == (3, 0, 0)
    for layer, module in zip(report.layers, net, strict=True):
        gamma, beta = module.weight.detach(), module.bias.detach()
        assert torch.equal(layer.score, torch.maximum(gamma.abs(), beta.abs()))
        live = torch.where(gamma == 0, (beta > 0).double(), torch.special.ndtr(beta.double() / gamma.double().abs()))
        torch.testing.assert_close(layer.live.double(), live, rtol=0, atol=2e-7)


@pytest.mark.parametrize("flush", (False, True))
def test_denormal_thresholds(flush, compiled):
    net = network(8)
    plant(net[0], [1], 9e-41, -5e-41)
    plant(net[0], [2], 2e-40, 0.0)
    plant(net[0], [3], 0.0, 0.0)
    torch.set_flush_denormal(flush)
    try:
        report = avfast.scan_batchnorm(net, threshold=1e-40)
        assert report.layers[0].abnormal.nonzero().flatten().tolist() == [1, 3]
    finally:
        torch.set_flush_denormal(False)


def test_normal_cdf_is_accurate_over_its_range(compiled):
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    layer = nn.BatchNorm2d(len(z))
    with torch.no_grad():
        layer.bias.copy_(z)
    live = avfast.scan_batchnorm(layer).layers[0].live.double()
    assert (live - torch.special.ndtr(layer.bias.detach().double())).abs().max() < 2e-7
    assert live.min() >= 0 and live.max() <= 1


@pytest.mark.parametrize("flush", (False, True))
def test_live_probability_of_tiny_parameters(flush, compiled):
    """Ratios of denormals, and of denormals to everything else, are as exact as any."""
    sizes = torch.tensor([0.0, 1e-45, 3e-42, 1e-40, 1e-38, 2e-38, 1e-31, 7e-31, 1e-29, 1e-12, 1.0, 3e7, 3e9, 1e38])
    gamma, beta = torch.meshgrid(sizes, torch.cat([-sizes, sizes]), indexing="ij")
    layer = nn.BatchNorm2d(gamma.numel())
    with torch.no_grad():
        layer.weight.copy_(gamma.flatten())
        layer.bias.copy_(beta.flatten())
    wide = gamma.flatten().double(), beta.flatten().double()
    exact = torch.where(wide[0] == 0, (wide[1] > 0).double(), torch.special.ndtr(wide[1] / wide[0]))
    torch.set_flush_denormal(flush)
    try:
        scan = avfast.ScanPlan(layer).scan(1e-10)
    finally:
        torch.set_flush_denormal(False)
    assert (scan.live.double() - exact).abs().max() < 2e-7


def test_flags_broken_statistics(way):
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: this network is on the CPU")
    net = network(20)
    with torch.no_grad():
        net[0].weight[0] = float("nan")
        net[0].bias[1] = float("inf")
        net[0].running_mean[2] = float("-inf")
        net[0].running_var[3] = 0.0
        net[0].running_var[4] = float("nan")
    layer = avfast.scan_batchnorm(net).layers[0]
    assert layer.non_finite.nonzero().flatten().tolist() == [0, 1, 2, 4]
    assert layer.collapsed.nonzero().flatten().tolist() == [3]
    assert not layer.abnormal.any()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_other_dtypes(dtype, way):
    if way in ("cuda", "triton"):
        pytest.skip(f"{way}: this network is on the CPU")
    net = network(40, 3).to(dtype)
    plant(net[0], [4, 39], 0.0, 0.0)
    assert avfast.scan_batchnorm(net).layers[0].abnormal.nonzero().flatten().tolist() == [4, 39]


def test_every_kind_of_layer_and_lazy_ones_skipped():
    net = nn.ModuleDict(
        {
            "one": nn.BatchNorm1d(2),
            "two": nn.BatchNorm2d(3),
            "three": nn.BatchNorm3d(4),
            "sync": nn.SyncBatchNorm(5),
            "abri": avfast.nn.AdaptiveBatchNorm2d(6),
            "bare": nn.BatchNorm2d(7, affine=False),
            "untracked": nn.BatchNorm2d(8, track_running_stats=False),
            "lazy": nn.LazyBatchNorm2d(),
            "group": nn.GroupNorm(1, 9),
        }
    )
    report = avfast.scan_batchnorm(net)
    assert report.names == ("one", "two", "three", "sync", "abri", "bare", "untracked")
    assert report.channels == 2 + 3 + 4 + 5 + 6 + 7 + 8 and report.abnormal == 0
    assert torch.equal(report["bare"].score, torch.ones(7))
    net["lazy"](torch.randn(2, 11, 3, 3))
    assert "lazy" in avfast.scan_batchnorm(net).names


class TestPlan:
    def test_follows_moved_replaced_pruned_and_converted_tensors(self):
        net = network(6, 9)
        plan = avfast.ScanPlan(net)

        def found():
            return avfast.scan_batchnorm(net, plan=plan).abnormal

        assert found() == 0
        plant(net[0], [1], 0.0, 0.0)
        assert found() == 1  # in place
        net[1].weight.data, net[1].bias.data = torch.zeros(9), torch.zeros(9)
        assert found() == 10  # storage replaced under the same parameter
        net[0].weight = nn.Parameter(torch.ones(6))
        assert found() == 9  # parameter replaced
        net.half()
        assert found() == 9  # dtype changed in place, buffers replaced
        net.double()
        for name in ("weight", "bias"):
            parameter = getattr(net[1], name)
            parameter.data = parameter.data[:4].clone()
        for name in ("running_mean", "running_var"):
            setattr(net[1], name, getattr(net[1], name)[:4].clone())
        net[1].num_features = 4
        assert found() == 4  # pruned to fewer channels
        assert avfast.scan_batchnorm(net, plan=plan).layers[1].channels == 4

    def test_result_outlives_later_changes(self):
        net = network(5)
        plan = avfast.ScanPlan(net)
        before = avfast.scan_batchnorm(net, plan=plan)
        plant(net[0], [0], 0.0, 0.0)
        after = avfast.scan_batchnorm(net, plan=plan)
        assert (before.abnormal, after.abnormal) == (0, 1)

    def test_is_released_with_its_object(self):
        net = network(5)
        plan = avfast.ScanPlan(net)
        number = plan._number
        if number is None:
            pytest.skip("no compiled library on this machine: a plan holds nothing")
        del plan
        gc.collect()
        from avfast.ops import bn_scan

        with pytest.raises(RuntimeError, match="expected a live plan"):
            bn_scan.scan_planned(torch.empty(0), number, 1e-10)

    def test_strided_parameter_is_refused_by_a_plan_in_words(self):
        net = network(5)
        plan = avfast.ScanPlan(net)
        if plan._number is None:
            pytest.skip("no compiled library on this machine: the reference reads any stride")
        net[0].weight.data = torch.ones(10)[::2]
        with pytest.raises(RuntimeError, match="weight: expected 5 contiguous, aligned values"):
            avfast.scan_batchnorm(net, plan=plan)


@pytest.mark.parametrize("threshold", (-1.0, float("nan"), float("inf")))
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match="threshold: expected a finite number >= 0"):
        avfast.scan_batchnorm(network(3), threshold=threshold)


def test_no_batch_norm():
    with pytest.raises(ValueError, match="at least one batch-norm layer, got Linear"):
        avfast.scan_batchnorm(nn.Linear(2, 2))


def test_report_as_dict_text_table_and_picture(tmp_path):
    net = network(4, 6)
    plant(net[1], [2], 0.0, 0.0)
    with torch.no_grad():
        net[0].weight[0] = float("nan")
    report = avfast.scan_batchnorm(net)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["abnormal"] == 1 and values["layers"][1]["abnormal"] == [2]
    assert "1 of 10 channels in 2 batch-norm layers are abnormal" in str(report)
    pytest.importorskip("rich", reason="the table needs rich")
    assert report.table().row_count == 2
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    assert report.plot(tmp_path / "scan.png").stat().st_size > 5_000


# ------------------------------------------------------------------------------------------------ command


def saved(tmp_path, value, name="model.pt"):
    torch.save(value, tmp_path / name)
    return str(tmp_path / name)


@pytest.mark.parametrize("wrap", (lambda s: s, lambda s: {"state_dict": s, "epoch": 3}), ids=("plain", "nested"))
def test_command_reads_a_checkpoint(tmp_path, capsys, wrap):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), network(8, 5))
    plant(net[1][0], [3], 0.0, 0.0)
    out = tmp_path / "scan.json"
    assert bn_scan_command(saved(tmp_path, wrap(net.state_dict())), json_path=out) == 0
    result = json.loads(out.read_text())
    assert result["abnormal"] == 1 and result["channels"] == 13
    assert result["layers"][0]["name"].endswith("1.0")
    assert "1 of 13 channels" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ("40", "200", None), ids=("narrow", "wide", "pipe"))
def test_command_never_cuts_a_layer_name(tmp_path, capsys, monkeypatch, columns):
    pytest.importorskip("rich", reason="the table needs rich")
    name = "model.visual.backbone.encoder.stages.3.layers.0.shortcut.normalization"
    state = {f"{name}.{key}": value for key, value in network(8)[0].state_dict().items()}
    if columns:  # rich takes these two as a terminal of that width
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("FORCE_COLOR", "1")
    assert bn_scan_command(saved(tmp_path, state)) == 0
    text = capsys.readouterr().out
    assert name in text and "non-finite" in text and "…" not in text
    assert ("┃" in text) == (columns == "200")


def test_command_reads_safetensors(tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.torch", reason="reading .safetensors needs safetensors")
    safetensors.save_file(network(8).state_dict(), tmp_path / "m.safetensors")
    assert bn_scan_command(str(tmp_path / "m.safetensors")) == 0
    assert "0 of 8 channels" in capsys.readouterr().out


def test_command_says_what_the_file_lacks(tmp_path, capsys):
    state = network(8, 4).state_dict()
    del state["1.weight"], state["1.running_mean"]
    state["odd.running_mean"], state["odd.running_var"] = torch.zeros(3), torch.zeros(4)
    assert bn_scan_command(saved(tmp_path, state)) == 0
    text = capsys.readouterr().out
    assert "1: has no weight, running_mean; scanned as if gamma were 1 and the mean were 0" in text
    assert "odd: skipped, its tensors do not fit together" in text


def test_command_on_a_file_without_batch_norm(tmp_path, capsys):
    assert bn_scan_command(saved(tmp_path, nn.LayerNorm(4).state_dict())) == 1
    assert "no batch norm to scan" in capsys.readouterr().err


class Payload:
    """A pickle that runs code when loaded."""

    def __reduce__(self):
        return print, ("the payload ran",)


def test_command_never_runs_code_of_a_file(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="weights only"):
        bn_scan_command(saved(tmp_path, {"a": Payload()}))
    assert "the payload ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, content", (("m.pt", b"not a checkpoint"), ("m.safetensors", b"\xff" * 40), ("m.pt", b""))
)
def test_command_on_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        bn_scan_command(str(tmp_path / name))


def test_command_on_a_missing_file():
    with pytest.raises(CheckpointError, match="does not exist"):
        bn_scan_command("nowhere.pt")


def test_command_builds_a_model(capsys):
    assert bn_scan_command("test_bn_scan:make_model") == 0
    assert "0 of 3 channels" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="expected a torch.nn.Module, got float"):
        bn_scan_command("math:pi.__float__")
    with pytest.raises(ConfigError, match="No module named 'nowhere'"):
        bn_scan_command("nowhere:model")
    with pytest.raises(ConfigError, match="has no attribute 'nope'"):
        bn_scan_command("test_bn_scan:nope")


def make_model() -> nn.Module:
    assert math.pi
    return network(3)
