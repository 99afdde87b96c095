"""Generator, its layers of spectral norm, and what inference folds."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from avfast.errors import ConfigError
from avfast.generator import GENERATORS, Generator, GeneratorConfig, build_generator, fold_spectral_norm
from avfast.nn import momentum_update
from avfast.nn.conditional_batch_norm import ConditionalBatchNorm2d
from avfast.nn.map_attention import MapAttention
from avfast.nn.spectral_norm import SNConv2d, SNLinear
from avfast.nn.up_block import UpBlock, doubled

SMALL = GeneratorConfig(16, 4, (4, 2, 1), condition=6, noise_chunk=3, shared=8, attention=8)

pytestmark = pytest.mark.usefixtures("one_thread")


def small(*, trained: bool = True) -> Generator:
    """With statistics, singular vectors and attention as after some training."""
    generator = Generator(SMALL)
    if trained:
        for parameter in generator.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        generator.attention.gamma.data.fill_(0.7)
        with torch.no_grad():
            for _ in range(3):
                generator(generator.sample_noise(8), torch.randn(8, 6))
    return generator.eval()


def test_the_published_generator_has_the_published_size():
    with torch.device("meta"):
        generator = build_generator("icgan-128")
    assert sum(p.numel() for p in generator.parameters()) == 77_160_132
    assert sum(p.numel() for p in generator.parameters() if p.requires_grad) == 77_160_132 - 1000 * 128
    assert sum(isinstance(m, (SNConv2d, SNLinear)) for m in generator.modules()) == 42
    assert generator.noise_dim == 120
    assert generator.blocks[3].conv2.out_channels == generator.attention.out.out_channels == 192
    assert generator.attended == 3 and generator.blocks[0].norm1.gain.in_features == 532


@pytest.mark.parametrize(("name", "size"), [("scene-32", 32), ("scene-64", 64)])
def test_pictures_of_the_presets(name, size):
    generator = build_generator(name, condition=24)
    image = generator(generator.sample_noise(2), torch.randn(2, 24))
    assert image.shape == (2, 3, size, size) and image.abs().max() <= 1
    assert image.std() > 0.05


def test_the_tanh_keeps_the_range():
    generator = small()
    generator.to_rgb.bias.data.copy_(torch.tensor([50.0, -50.0, 0.0]))
    image = generator(generator.sample_noise(2), torch.randn(2, 6))
    assert (image[:, 0] == 1).all() and (image[:, 1] == -1).all()


def test_config_survives_json():
    for config in (SMALL, *GENERATORS.values()):
        assert GeneratorConfig(**json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.size = 32


def test_gradient_reaches_every_parameter():
    """In eval: in training a batch norm takes the biases before it away."""
    generator = small()
    image = generator(generator.sample_noise(4), torch.randn(4, 6))
    (image * torch.randn_like(image)).sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


def test_only_the_direction_of_the_condition_counts():
    generator = small().double()
    noise, condition = generator.sample_noise(3), torch.randn(3, 6, dtype=torch.float64)
    one, ten = generator(noise, condition), generator(noise, 10 * condition)
    assert torch.allclose(one, ten, atol=1e-12)
    assert not torch.allclose(one, generator(noise, -condition), atol=1e-2)


def test_each_chunk_of_noise_acts_and_the_same_noise_gives_the_same_picture():
    generator, rng = small(), torch.Generator()
    condition = torch.randn(1, 6).expand(2, 6)
    noise = generator.sample_noise(2, generator=rng.manual_seed(5))
    assert noise.shape == (2, 9) and torch.equal(noise, generator.sample_noise(2, generator=rng.manual_seed(5)))
    image = generator(noise, condition)
    assert torch.equal(image, generator(noise, condition))
    for chunk in range(3):
        other = noise.clone()
        other[:, 3 * chunk : 3 * chunk + 3] += 1
        assert not torch.allclose(generator(other, condition), image, atol=1e-3), chunk


def test_samples_do_not_meet_in_eval():
    generator = small()
    noise, condition = generator.sample_noise(4), torch.randn(4, 6)
    together = generator(noise, condition)
    assert torch.allclose(together[2:3], generator(noise[2:3], condition[2:3]), atol=1e-5)


@pytest.mark.parametrize("layer", [SNLinear(7, 5), SNConv2d(3, 5, 3)])
def test_spectral_norm_against_singular_values(layer):
    layer.weight.data = torch.randn_like(layer.weight)
    x = torch.randn(2, 7) if isinstance(layer, SNLinear) else torch.randn(2, 3, 4, 4)
    for _ in range(200):
        layer(x)
    matrix = layer.weight.detach().double().flatten(1)
    sigma = torch.linalg.svdvals(matrix)[0]
    assert torch.allclose(layer.normed_weight().double().flatten(1), matrix / sigma, atol=1e-5)
    # d <M, W / sigma> / dW = (M - <M, W / sigma> u v^T) / sigma
    direction = torch.randn_like(layer.weight)
    (layer.normed_weight() * direction).sum().backward()
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    m = direction.double().flatten(1)
    expected = (m - (m * matrix).sum() / sigma * torch.outer(u[:, 0], vh[0])) / sigma
    assert torch.allclose(layer.weight.grad.double().flatten(1), expected, atol=1e-4)


def test_power_iteration_moves_in_training_only():
    layer = SNLinear(6, 4)
    layer.weight.data = torch.randn(4, 6)
    before = layer.u.clone()
    layer.eval()(torch.randn(2, 6))
    assert torch.equal(layer.u, before)
    layer.train()(torch.randn(2, 6))
    u = layer.weight.detach().double() @ (layer.weight.detach().double().T @ before.double())
    assert torch.allclose(layer.u.double(), u / u.norm(), atol=1e-6)


def test_a_weight_of_zeros_stays_zeros():
    layer = SNLinear(6, 4)
    layer.weight.data.zero_()
    assert torch.equal(layer(torch.randn(2, 6)), torch.zeros(2, 4))


@pytest.mark.parametrize("training", [True, False])
def test_conditional_batch_norm_by_formula(training):
    norm = ConditionalBatchNorm2d(5, condition=3).train(training)
    norm.running_mean.copy_(torch.randn(5))
    norm.running_var.copy_(torch.rand(5) + 0.5)
    x, c = torch.randn(4, 5, 3, 3), torch.randn(4, 3)
    mean, var = norm.running_mean.double(), norm.running_var.double()
    old = mean.clone(), var.clone()
    if training:
        mean, var = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
    y = norm(x, c)
    gain = 1 + c.double() @ norm.gain.normed_weight().double().T
    bias = c.double() @ norm.bias.normed_weight().double().T
    hat = (x.double() - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    assert torch.allclose(y.double(), gain[..., None, None] * hat + bias[..., None, None], atol=1e-5)
    if training:
        var = x.double().var((0, 2, 3))
        assert torch.allclose(norm.running_mean.double(), 0.9 * old[0] + 0.1 * mean, atol=1e-6)
        assert torch.allclose(norm.running_var.double(), 0.9 * old[1] + 0.1 * var, atol=1e-6)


def test_attention_by_formula():
    attention = MapAttention(16).double().eval()
    attention.gamma.data.fill_(0.6)
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    q, k, v, o = (getattr(attention, n).normed_weight().flatten(1) for n in ("query", "key", "value", "out"))
    flat = x.flatten(2)
    keys, values = (F.max_pool2d((w @ flat).view(2, -1, 4, 6), 2).flatten(2) for w in (k, v))
    weights = torch.softmax((q @ flat).mT @ keys, dim=-1)  # [B, 24, 6]
    expected = x + 0.6 * (o @ (values @ weights.mT)).view_as(x)
    assert torch.allclose(attention(x), expected, atol=1e-12)


def test_the_shortcut_may_precede_the_doubling():
    block = UpBlock(4, 6, condition=3).double().eval()
    x, c = torch.randn(2, 4, 4, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    h = block.conv1(doubled(F.relu(block.norm1(x, c))))
    h = block.conv2(F.relu(block.norm2(h, c)))
    assert torch.allclose(block(x, c), h + block.shortcut(doubled(x)), atol=1e-12)


def test_folding_is_exact_and_leaves_no_singular_vectors():
    generator = small()
    noise, condition = generator.sample_noise(3), torch.randn(3, 6)
    before = copy.deepcopy(generator.state_dict())
    folded = fold_spectral_norm(generator.train())
    assert generator.training and not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    assert torch.equal(folded(noise, condition), generator.eval()(noise, condition))
    assert not any(isinstance(m, (SNConv2d, SNLinear)) for m in folded.modules())
    assert not any(name.endswith(".u") for name in folded.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in generator.state_dict().items())

    def count(module):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
            module(noise, condition)
        return sum(e.count for e in profile.key_averages() if e.key.startswith("aten::"))

    assert count(folded) < 0.6 * count(generator)


def test_folding_a_single_layer():
    layer = SNLinear(3, 2).eval()
    folded = fold_spectral_norm(layer)
    x = torch.randn(4, 3)
    assert type(folded) is torch.nn.Linear and torch.equal(folded(x), layer(x))
    assert folded.bias.data_ptr() != layer.bias.data_ptr()


def test_an_averaged_copy_has_spectral_norm_one_too():
    generator = small().train()
    average = copy.deepcopy(generator).requires_grad_(False).eval()
    optimiser = torch.optim.Adam(generator.parameters(), lr=1e-2, betas=(0.0, 0.99))
    for _ in range(20):
        image = generator(generator.sample_noise(8), torch.randn(8, 6))
        optimiser.zero_grad()
        image.mean().backward()
        optimiser.step()
        momentum_update(generator, average, 0.8, buffers=True)
    noise, condition = generator.sample_noise(8), torch.randn(8, 6)
    assert torch.equal(average(noise, condition), average(noise, condition))
    layers = [m for m in average.modules() if isinstance(m, (SNConv2d, SNLinear))]
    norms = torch.stack([torch.linalg.matrix_norm(m.normed_weight().flatten(1), 2) for m in layers])
    assert ((norms > 0.999) & (norms < 1.1)).all()
    assert average(noise, condition).mean() < -0.2  # it follows the generator, whose pictures went dark


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 48}, "size: expected 4 times a power of two, at least 8, got 48"),
        ({"size": 4, "multipliers": (1,)}, "size: expected 4 times"),
        ({"multipliers": (4, 2)}, "multipliers: expected 3 positive numbers, one for each side from 4 to 16"),
        ({"multipliers": (4, 2, 0)}, "multipliers: expected 3 positive"),
        ({"attention": 4}, "attention: expected 0 or one of 8, 16, got 4"),
        ({"noise_chunk": 0}, "noise_chunk: expected a positive number, got 0"),
        ({"condition": -1}, "condition: expected a positive number, got -1"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **change)


def test_no_attention():
    generator = Generator(dataclasses.replace(SMALL, attention=0))
    assert generator.attention is None
    assert generator(generator.sample_noise(2), torch.randn(2, 6)).shape == (2, 3, 16, 16)


def test_bad_inputs():
    generator = small()
    noise, condition = generator.sample_noise(2), torch.randn(2, 6)
    for bad, message in (
        ((noise[:, 1:], condition), r"Generator: noise: expected shape \(B, 9\), got \(2, 8\)"),
        ((noise, condition[:1]), r"Generator: condition: expected shape \(2, 6\), got \(1, 6\)"),
        ((noise[:0], condition[:0]), "noise: expected shape"),
        ((noise, condition * float("nan")), "condition: expected finite values"),
        ((noise.long(), condition), "noise: expected a floating-point tensor"),
        ((None, condition), "noise: expected a tensor, got NoneType"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            generator(*bad)
    with pytest.raises(ConfigError, match="generator 'biggan' is not one of scene-32, scene-64, icgan-128"):
        build_generator("biggan")
    with pytest.raises(ConfigError, match="condition: expected a positive number, got 0"):
        build_generator("scene-32", condition=0)
