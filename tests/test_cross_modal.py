"""Weights of one modality in an encoder of another: every tensor has its place, or an error names it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avfast.encoders import build_encoder
from avfast.nn import CrossModalInit, cross_modal_init
from avfast.nn.adaptive_batch_norm import AdaptiveBatchNorm2d
from avfast.nn.bn_layers import batchnorm_layers
from avfast.nn.cross_modal import VARIANTS
from avfast.nn.resnet_names import to_transformers

pytest.importorskip("transformers")


def encoder(channels: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_encoder("resnet18", in_channels=channels).backbone


def trained(channels: int = 3, seed: int = 0) -> nn.Module:
    """A network with statistics, of which two channels in five are abnormal."""
    model = encoder(channels, seed)
    with torch.no_grad():
        for _, layer in batchnorm_layers(model):
            dead = torch.arange(layer.num_features) % 5 < 2
            layer.weight.copy_(torch.where(dead, 1e-12, torch.rand(layer.num_features) + 0.5))
            layer.bias.copy_(torch.where(dead, 1e-12, torch.randn(layer.num_features)))
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model


def torchvision_names(state: dict) -> dict:
    """The same tensors as torchvision calls them, and a classifier."""
    names = ["conv1.weight", *(f"bn1.{x}" for x in ("weight", "bias", "running_mean", "running_var"))]
    for stage in range(1, 5):
        for block in range(2):
            for n in (1, 2):
                names += [f"layer{stage}.{block}.conv{n}.weight"]
                names += [f"layer{stage}.{block}.bn{n}.{x}" for x in ("weight", "bias", "running_mean", "running_var")]
        if stage > 1:
            names += [f"layer{stage}.0.downsample.0.weight"]
            names += [f"layer{stage}.0.downsample.1.{x}" for x in ("weight", "bias", "running_mean", "running_var")]
    return {n: state[to_transformers(n)] for n in names} | {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_every_variant_accounts_for_every_tensor(variant):
    source, model = trained(), encoder(1, 1)
    names = set(model.state_dict())
    found = cross_modal_init(model, source, variant)
    assert set(found.copied) == names and not found.fresh and not found.unused
    assert found.adapted == ("embedder.embedder.convolution.weight",)
    share = found.before.abnormal / found.before.channels
    assert 0.35 < share < 0.45
    assert found.after.abnormal == (found.before.abnormal if variant == "naive" else 0)
    assert found.variant in str(found) and "before" in str(found)
    stem = model.embedder.embedder.convolution.weight
    assert torch.equal(stem, source.embedder.embedder.convolution.weight.sum(1, keepdim=True))


def test_variants_treat_batch_norms_as_they_say():
    source = trained()
    given = dict(batchnorm_layers(source))
    made = {}
    for variant in VARIANTS:
        made[variant] = encoder(1, 1)
        cross_modal_init(made[variant], source, variant, alpha=0.3)
    layers = {variant: dict(batchnorm_layers(model)) for variant, model in made.items()}
    for name, want in given.items():
        dead = want.weight.abs() < 1e-10
        naive, every, some = (layers[v][name] for v in ("naive", "reset_all", "reset_abnormal"))
        assert torch.equal(naive.weight, want.weight) and torch.equal(naive.running_var, want.running_var)
        assert (every.weight == 1).all() and (every.bias == 0).all()
        assert (every.running_mean == 0).all() and (every.running_var == 1).all()
        assert torch.equal(some.weight[~dead], want.weight[~dead]) and (some.weight[dead] == 1).all()
        assert torch.equal(some.running_mean, want.running_mean)
        for variant, size in (("abri_scalar", 1), ("abri_channel", want.num_features)):
            layer = layers[variant][name]
            assert isinstance(layer, AdaptiveBatchNorm2d) and layer.alpha.numel() == size
            assert torch.equal(layer.weight, want.weight) and (layer.new_weight == 1).all()
            torch.testing.assert_close(layer.alpha, torch.full_like(layer.alpha, 0.3))
    fresh = dict(batchnorm_layers(encoder(1, 1)))
    assert all(torch.equal(layers["random"][n].weight, layer.weight) for n, layer in fresh.items())


@pytest.mark.parametrize(("reads", "gives"), [(1, 3), (3, 1), (3, 3)])
def test_response_to_equal_channels_stays(reads, gives):
    source, model = trained(reads).eval(), encoder(gives, 1).eval()
    cross_modal_init(model, source, "naive")
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        want, found = (m(x.expand(-1, n, -1, -1)).last_hidden_state for m, n in ((source, reads), (model, gives)))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("released", [False, True])
def test_torchvision_names_find_their_place(released):
    source, model = trained(), encoder(3, 1)
    state = torchvision_names(source.state_dict())
    if released:  # ABRi's release calls the shortcut's parts conv and bn; non-strict loading lost 18 of them
        state = {k.replace("downsample.0", "downsample.conv").replace("downsample.1", "downsample.bn"): v
                 for k, v in state.items()}  # fmt: skip
    found = cross_modal_init(model, state, "naive")
    assert set(found.unused) == {"fc.weight", "fc.bias"} and not found.adapted
    assert all(name.endswith("num_batches_tracked") for name in found.fresh)
    for key, value in source.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(model.state_dict()[key], value), key


def test_what_does_not_fit_is_named_and_nothing_changes():
    source, model = trained().state_dict(), encoder(1, 1)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    lost, wide, extra = ("encoder.stages.3.layers.1.layer.1.convolution.weight",
                         "encoder.stages.0.layers.0.layer.0.convolution.weight", "projector.weight")  # fmt: skip
    del source[lost]
    source[wide] = torch.zeros(64, 65, 3, 3)
    source[extra] = torch.zeros(2)
    with pytest.raises(ValueError, match="cross_modal_init: source: expected a place for every tensor") as error:
        cross_modal_init(model, source)
    for name in (lost, wide, extra, "(64, 65, 3, 3)"):
        assert name in str(error.value)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    source = trained().state_dict() | {"projector.weight": torch.zeros(2)}
    assert cross_modal_init(model, source, "naive", heads=["projector.*"]).unused == ("projector.weight",)


def test_mistakes():
    with pytest.raises(ValueError, match="variant: expected one of"):
        cross_modal_init(encoder(1, 1), trained(), "abri")
    with pytest.raises(ValueError, match="in the source"):
        cross_modal_init(encoder(2, 1), trained(3), "naive")  # three colours do not become two channels


def test_random_loads_nothing_and_still_reports():
    model = encoder(1, 1)
    found = cross_modal_init(model, {}, "random")
    assert isinstance(found, CrossModalInit) and found.before is None and found.after.abnormal == 0
    assert not found.copied
