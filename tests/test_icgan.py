"""Weights of BigGAN-PyTorch's layout: names, a round trip, and what the published forward pass makes of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avfast.errors import DataError
from avfast.generator import Generator, GeneratorConfig, build_generator
from avfast.icgan import icgan_names, load_icgan

SMALL = GeneratorConfig(16, 8, (4, 2, 1), condition=12, noise_chunk=5, shared=6, attention=16, class_table=(7, 3))

THERE = [
    (r"^shared\.", "shared_feat."), (r"^class_table$", "shared.weight"), (r"^start\.", "linear."),
    (r"^blocks\.(\d+)\.", r"blocks.\1.0."), (r"^attention\.", "blocks.1.1."), (r"shortcut", "conv_sc"),
    (r"norm([12])\.", r"bn\1."), (r"query", "theta"), (r"key", "phi"), (r"value", "g"), (r"1\.1\.out", "1.1.o"),
    (r"^norm\.weight", "output_layer.0.gain"), (r"^norm\.", "output_layer.0."), (r"^to_rgb", "output_layer.2"),
    (r"running_", "stored_"), (r"\.u$", ".u0"),
]  # fmt: skip


def published(config: GeneratorConfig = SMALL) -> dict[str, Tensor]:
    """A state dict as training writes it, of random values, its names made from ours by substitution."""
    state = {}
    for own, tensor in Generator(config).state_dict().items():
        if own == "norm.num_batches_tracked":
            continue
        name = own
        for pattern, there in THERE:
            name = re.sub(pattern, there, name)
        value = torch.randn(tensor.shape)
        if name.endswith("stored_var"):
            value = value.abs() + 0.5
        if name.endswith(".u0"):
            state[name.replace("u0", "sv0")] = torch.rand(1)
            value = F.normalize(value, dim=0)[None]
        state[name] = value
    return state


def biggan(state: dict[str, Tensor], noise: Tensor, feature: Tensor, *, chunk: int, blocks: int, attended: int):
    """The published forward pass in eval, straight from the tensors: float64, every layer in the published order."""
    state = {name: value.double() for name, value in state.items()}

    def weight(name):
        w, u = state[f"{name}.weight"], state[f"{name}.u0"]
        matrix = w.flatten(1)
        v = F.normalize(u @ matrix, dim=1)
        u = F.normalize(v @ matrix.T, dim=1)
        return w / (v @ matrix.T @ u.T).squeeze()

    def conv(name, x, padding=0):
        return F.conv2d(x, weight(name), state.get(f"{name}.bias"), padding=padding)

    def linear(name, x):
        return F.linear(x, weight(name), state.get(f"{name}.bias"))

    def norm(name, x, gain, bias):
        x = F.batch_norm(x, state[f"{name}.stored_mean"], state[f"{name}.stored_var"], eps=1e-5)
        return x * gain[..., None, None] + bias[..., None, None]

    def up(x):
        return F.interpolate(x, scale_factor=2)

    shared = linear("shared_feat", feature / feature.norm(dim=1, keepdim=True))
    zs = noise.split(chunk, 1)
    h = linear("linear", zs[0])
    h = h.view(len(h), -1, 4, 4)
    for i in range(blocks):
        at, y = f"blocks.{i}.0", torch.cat([shared, zs[i + 1]], 1)
        r = norm(f"{at}.bn1", h, 1 + linear(f"{at}.bn1.gain", y), linear(f"{at}.bn1.bias", y)).relu()
        r = conv(f"{at}.conv1", up(r), 1)
        r = norm(f"{at}.bn2", r, 1 + linear(f"{at}.bn2.gain", y), linear(f"{at}.bn2.bias", y)).relu()
        h = conv(f"{at}.conv2", r, 1) + conv(f"{at}.conv_sc", up(h))
        if i == attended:
            at, (b, c, rows, columns) = f"blocks.{i}.1", h.shape
            theta = conv(f"{at}.theta", h).view(b, c // 8, rows * columns)
            phi = F.max_pool2d(conv(f"{at}.phi", h), 2).view(b, c // 8, rows * columns // 4)
            g = F.max_pool2d(conv(f"{at}.g", h), 2).view(b, c // 2, rows * columns // 4)
            beta = F.softmax(torch.bmm(theta.transpose(1, 2), phi), -1)
            read = torch.bmm(g, beta.transpose(1, 2)).view(b, c // 2, rows, columns)
            h = state[f"{at}.gamma"] * conv(f"{at}.o", read) + h
    at = "output_layer.0"
    return torch.tanh(conv("output_layer.2", norm(at, h, state[f"{at}.gain"], state[f"{at}.bias"]).relu(), 1))


def test_the_loaded_generator_answers_as_the_published_code():
    state, generator = published(), Generator(SMALL).eval()
    load_icgan(generator, state)
    noise, feature = generator.sample_noise(3), torch.randn(3, 12)
    expected = biggan(state, noise.double(), feature.double(), chunk=5, blocks=2, attended=1)
    assert expected.std() > 0.1
    assert torch.allclose(generator(noise, feature).double(), expected, atol=2e-4)


def test_the_account_holds_every_tensor():
    state, generator = published(), Generator(SMALL)
    account = load_icgan(generator, state)
    assert set(account.used.values()) | set(account.ignored) == set(state)
    assert not set(account.used.values()) & set(account.ignored)
    assert set(account.used) | set(account.kept) == set(generator.state_dict())
    assert account.kept == ("norm.num_batches_tracked",)
    assert set(account.ignored) == {name for name in state if name.endswith("sv0")}
    for own, name in account.used.items():
        assert torch.equal(generator.state_dict()[own].flatten(), state[name].flatten()), own
    said = str(account)
    assert f"{len(account.used)} tensors loaded, {len(account.ignored)} not needed, 1 kept" in said


def test_names_of_the_published_generator():
    with torch.device("meta"):
        names = icgan_names(build_generator("icgan-128"))
    there = set(names.values())
    assert len(there) == len(names)
    for name in (
        "shared.weight", "shared_feat.weight", "shared_feat.bias", "shared_feat.u0", "linear.weight", "linear.u0",
        "blocks.0.0.conv1.weight", "blocks.4.0.conv_sc.bias", "blocks.2.0.bn1.gain.weight", "blocks.2.0.bn2.bias.u0",
        "blocks.0.0.bn1.stored_mean", "blocks.3.1.theta.weight", "blocks.3.1.o.u0", "blocks.3.1.gamma",
        "output_layer.0.gain", "output_layer.0.bias", "output_layer.0.stored_var", "output_layer.2.weight",
    ):  # fmt: skip
        assert name in there, name
    assert sum(name.endswith("u0") for name in there) == 42
    assert not any(name.endswith(("gain.bias", "theta.bias")) for name in there)


def test_layouts_that_vary():
    """Names of several devices, no table of classes, the layer on the feature as ``shared``, gamma as a vector."""
    state = published()
    whole = Generator(SMALL)
    load_icgan(whole, {f"module.{name}": value for name, value in state.items()})
    assert torch.equal(whole.class_table, state["shared.weight"])

    bare = Generator(replace(SMALL, class_table=None))
    assert load_icgan(bare, state).ignored["shared.weight"].startswith("table of classes")

    state.pop("shared.weight")
    renamed = {name.replace("shared_feat", "shared"): value for name, value in state.items()}
    renamed["blocks.1.1.gamma"] = renamed["blocks.1.1.gamma"].view(1)
    renamed["output_layer.0.accumulation_counter"] = torch.zeros(1)
    other = Generator(SMALL)
    account = load_icgan(other, renamed)
    assert account.kept == ("class_table", "norm.num_batches_tracked") and account.used["shared.u"] == "shared.u0"
    assert "output_layer.0.accumulation_counter" in account.ignored
    noise, feature = whole.sample_noise(2), torch.randn(2, 12)
    expected = whole.eval()(noise, feature)
    assert torch.equal(bare.eval()(noise, feature), expected) and torch.equal(other.eval()(noise, feature), expected)


def test_a_generator_without_memory_takes_the_tensors_over():
    state = published()
    with torch.device("meta"):
        generator = Generator(SMALL)
    load_icgan(generator, state)
    usual = Generator(SMALL)
    load_icgan(usual, state)
    noise, feature = usual.sample_noise(2), torch.randn(2, 12)
    assert torch.equal(generator.eval()(noise, feature), usual.eval()(noise, feature))
    assert generator.shared.weight.requires_grad and not generator.class_table.requires_grad
    generator.shared.weight.data.zero_()
    assert state["shared_feat.weight"].abs().sum() > 0


def damaged(change) -> dict[str, Tensor]:
    state = published()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.0.0.conv1.weight"), r"conv1.weight: of the generator \(blocks.0.conv1.weight"),
        (lambda s: s.pop("blocks.1.0.bn2.gain.u0"), "blocks.1.0.bn2.gain.u0: of the generator"),
        (lambda s: s.update({"blocks.9.0.conv1.weight": torch.ones(1)}), "blocks.9.0.conv1.weight: of the state dict"),
        (lambda s: s.update({"linear.weight": torch.ones(3, 3)}), r"linear.weight: \(512, 5\) in the generator, \(3, "),
        (lambda s: s["output_layer.2.bias"].fill_(float("nan")), "output_layer.2.bias: NaN or infinity"),
        (lambda s: s.update({"output_layer.2.bias": None}), "output_layer.2.bias: of the generator"),
        (dict.clear, "and 52 more"),
    ],
    ids=["missing", "missing-u", "extra", "shape", "nan", "no-tensor", "empty"],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_changes_nothing(change, message):
    generator = Generator(SMALL)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    with pytest.raises(DataError, match="load_icgan: state_dict: expected a place for every tensor") as caught:
        load_icgan(generator, damaged(change))
    assert re.search(message, str(caught.value)), caught.value
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())
