"""Discriminator, hinge losses, one simultaneous step, augmentation, and a small game played to its end."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.diff_augment import diff_augment
from avfast.discriminator import DISCRIMINATORS, Discriminator, DiscriminatorConfig, build_discriminator
from avfast.errors import ConfigError
from avfast.gan_losses import gan_losses, hinge_discriminator, hinge_generator
from avfast.generator import GENERATORS, Generator, GeneratorConfig, build_generator

SMALL = DiscriminatorConfig(16, 4, (1, 2, 4), condition=6, attention=4)
GENERATOR = GeneratorConfig(16, 4, (4, 2, 1), condition=6, noise_chunk=3, shared=8, attention=8)

pytestmark = pytest.mark.usefixtures("one_thread")


def small() -> Discriminator:
    discriminator = Discriminator(SMALL)
    discriminator.attention.gamma.data.fill_(0.7)
    return discriminator


@pytest.mark.parametrize("name", sorted(DISCRIMINATORS))
def test_every_discriminator_has_its_generator(name):
    generator, discriminator = build_generator(name, condition=24), build_discriminator(name, condition=24)
    condition = torch.randn(2, 24)
    logits = discriminator(generator(generator.sample_noise(2), condition), condition)
    assert logits.shape == (2,) and logits.isfinite().all()
    assert GENERATORS[name].size == DISCRIMINATORS[name].size


def test_config_survives_json():
    assert DiscriminatorConfig(**json.loads(json.dumps(SMALL.to_dict()))) == SMALL


def test_gradient_reaches_every_parameter():
    discriminator = small().eval()
    (discriminator(torch.randn(4, 3, 16, 16), torch.randn(4, 6)) * torch.randn(4)).sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


def test_the_logit_by_formula():
    discriminator = small().double().eval()
    x, c = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    h = x
    for i, block in enumerate(discriminator.blocks):
        r = block.conv2(block.conv1(h if i == 0 else h.relu()).relu()) + block.shortcut(h)
        h = F.avg_pool2d(r, 2) if i < 2 else r  # 16 to 8 to 4, and a last block at 4
        if i == 1:
            h = discriminator.attention(h)
    h = h.relu().sum((2, 3))
    w, e = discriminator.to_logit, discriminator.embed
    unit = c / c.norm(dim=1, keepdim=True)
    expected = h @ w.normed_weight()[0] + w.bias + (h * (unit @ e.normed_weight().T)).sum(1)
    assert torch.allclose(discriminator(x, c), expected, atol=1e-12)
    assert torch.allclose(discriminator(x, 7 * c), expected, atol=1e-12)


def test_pictures_of_a_batch_do_not_meet():
    discriminator = small().eval()
    x, c = torch.randn(4, 3, 16, 16), torch.randn(4, 6)
    assert torch.allclose(discriminator(x, c)[1:2], discriminator(x[1:2], c[1:2]), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 20}, "size: expected 4 times a power of two, at least 8, got 20"),
        ({"multipliers": (1, 2)}, "multipliers: expected 3 positive numbers"),
        ({"attention": 16}, "attention: expected 0 or one of 4, 8, got 16"),
        ({"width": 0}, "width: expected a positive number, got 0"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **change)


def test_bad_inputs():
    discriminator, x, c = small(), torch.randn(2, 3, 16, 16), torch.randn(2, 6)
    for bad, message in (
        ((x[..., :8], c), r"Discriminator: image: expected shape \(B, 3, 16, 16\), got \(2, 3, 16, 8\)"),
        ((x[:, :1], c), "image: expected shape"),
        ((x[:0], c[:0]), "image: expected shape"),
        ((x.byte(), c), "image: expected a floating-point tensor"),
        ((x, c[:1]), r"Discriminator: condition: expected shape \(2, 6\), got \(1, 6\)"),
        ((x, c / 0), "condition: expected finite values"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            discriminator(*bad)
    with pytest.raises(ConfigError, match="discriminator 'biggan' is not one of scene-32, scene-64"):
        build_discriminator("biggan")


def test_hinge_by_hand():
    real, fake = torch.tensor([3.0, 0.5, -1.0], requires_grad=True), torch.tensor([-2.0, 0.25, 1.0], requires_grad=True)
    loss = hinge_discriminator(real, fake)
    assert loss.item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1.25 + 2) / 3)
    loss.backward()
    assert torch.allclose(real.grad * 3, torch.tensor([0.0, -1, -1]))
    assert torch.allclose(fake.grad * 3, torch.tensor([0.0, 1, 1]))
    assert hinge_generator(fake).item() == pytest.approx(0.25)
    with pytest.raises(TypeError, match="hinge_discriminator: fake: expected a floating-point tensor"):
        hinge_discriminator(real, torch.ones(3, dtype=torch.long))
    with pytest.raises(TypeError, match="hinge_generator: fake: expected a tensor"):
        hinge_generator(None)


def game() -> tuple[Generator, Discriminator, Tensor, Tensor, Tensor]:
    generator, discriminator = Generator(GENERATOR), small()
    generator.attention.gamma.data.fill_(0.5)
    return generator, discriminator, torch.rand(4, 3, 16, 16) * 2 - 1, torch.randn(4, 6), generator.sample_noise(4)


def grads(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in module.named_parameters()}


def test_each_loss_has_gradients_for_its_own_network_only():
    generator, discriminator, real, condition, noise = game()
    condition.requires_grad_(True)
    real.requires_grad_(True)
    d_loss, g_loss, fake = gan_losses(generator, discriminator, real, condition, noise)
    d_loss.backward()
    assert all(g is None for g in grads(generator).values())
    assert all(g is not None for g in grads(discriminator).values())
    discriminator.zero_grad()
    g_loss.backward()
    assert all(g is None for g in grads(discriminator).values())
    assert all(g is not None for g in grads(generator).values())
    assert condition.grad is None and real.grad is None and not fake.requires_grad
    assert all(p.requires_grad for p in discriminator.parameters())


def test_gradients_of_the_sum_are_those_of_two_separate_passes():
    generator, discriminator, real, condition, noise = game()
    other_g, other_d = copy.deepcopy(generator), copy.deepcopy(discriminator)
    d_loss, g_loss, fake = gan_losses(generator, discriminator, real, condition, noise)
    (d_loss + g_loss).backward()

    drawn = other_g(noise, condition)
    logits = other_d(torch.cat([real, drawn.detach()]), condition.repeat(2, 1))
    expected_d = F.relu(1 - logits[:4]).mean() + F.relu(1 + logits[4:]).mean()
    expected_d.backward()
    expected = {name: g.clone() for name, g in grads(other_d).items()}
    expected_g = -other_d(drawn, condition).mean()
    expected_g.backward()
    assert torch.equal(fake, drawn)
    assert d_loss.item() == pytest.approx(expected_d.item()) and g_loss.item() == pytest.approx(expected_g.item())
    for name, g in grads(discriminator).items():
        assert torch.allclose(g, expected[name], atol=1e-6), name
    for name, g in grads(generator).items():
        assert torch.allclose(g, grads(other_g)[name], atol=1e-6), name


def test_a_step_is_one_power_iteration_and_one_update_of_statistics():
    generator, discriminator, real, condition, noise = game()
    other_g, other_d = copy.deepcopy(generator), copy.deepcopy(discriminator)
    gan_losses(generator, discriminator, real, condition, noise)
    with torch.no_grad():
        other_d(real, condition)
        other_g(noise, condition)
    for module, other in ((generator, other_g), (discriminator, other_d)):
        for name, buffer in module.named_buffers():
            assert torch.equal(buffer, other.get_buffer(name)), name


def test_both_kinds_of_pictures_are_augmented_and_the_returned_ones_are_not():
    generator, discriminator, real, condition, noise = game()
    seen = []

    def augment(images):
        seen.append(images.detach().clone())
        return images * 0

    d_loss, g_loss, fake = gan_losses(generator, discriminator, real, condition, noise, augment)
    assert len(seen) == 2 and torch.equal(seen[0], real) and torch.equal(seen[1], fake)
    g_loss.backward()
    assert all(g is None or not g.any() for g in grads(generator).values())


def test_pictures_of_different_size_are_refused():
    generator, discriminator, real, condition, noise = game()
    with pytest.raises(ValueError, match=r"gan_losses: real: expected shape \(4, 3, 16, 16\), that of generated"):
        gan_losses(generator, discriminator, real[..., :8], condition, noise)


EACH = [("colour",), ("translation",), ("cutout",), ("colour", "translation", "cutout")]


@pytest.mark.parametrize("policy", EACH, ids="+".join)
def test_augmentation_is_differentiable_and_apart_for_every_picture(policy):
    images = torch.randn(3, 2, 8, 6, dtype=torch.float64, requires_grad=True)

    def augmented(x):
        return diff_augment(x, policy=policy, generator=torch.Generator().manual_seed(3))

    assert torch.autograd.gradcheck(augmented, images)
    out = augmented(images)
    assert out.shape == images.shape and not torch.equal(out, images)
    (grad,) = torch.autograd.grad(out[1].sum(), images)
    assert not grad[0].any() and grad[1].any() and not grad[2].any()
    # Equal pictures meet different chances.
    same = augmented(torch.rand(1, 2, 8, 6).expand(16, 2, 8, 6))
    assert len({tuple(x.flatten().tolist()) for x in same}) > 4


def test_augmentation_repeats_with_its_generator_and_an_empty_policy_does_nothing():
    images = torch.randn(3, 2, 8, 8)
    one, two, three = (diff_augment(images, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert diff_augment(images, policy=()) is images


def test_translations_are_shifts_by_up_to_an_eighth():
    images = torch.rand(400, 1, 16, 8) + 1
    moved = diff_augment(images, policy=["translation"])
    found = set()
    for before, after in zip(images[:, 0], moved[:, 0], strict=True):
        for dy in range(-2, 3):
            for dx in range(-1, 2):
                expected = F.pad(before, (2, 2, 2, 2))[2 - dy : 18 - dy, 2 - dx : 10 - dx]
                if torch.equal(after, expected):
                    found.add((dy, dx))
                    break
            else:
                continue
            break
        else:
            pytest.fail("not a shift by whole pixels")
    assert len(found) == 15


def test_cutouts_are_rectangles_of_half_a_side():
    cut = diff_augment(torch.ones(600, 2, 8, 12), policy=["cutout"])
    hidden = cut == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1]) and torch.equal(cut, (~hidden).float())
    rows, columns = hidden[:, 0].any(2), hidden[:, 0].any(1)
    assert torch.equal(hidden[:, 0], rows[:, :, None] & columns[:, None])
    for sides, length in ((rows, 4), (columns, 6)):
        counts = sides.sum(1)
        assert counts.max() == length and counts.min() == length // 2  # half of it outside at the edge
        assert (sides.int().diff(dim=1).abs().sum(1) <= 2).all()
    assert hidden[:, 0].any(0).all()


def test_colour_by_formula():
    images = torch.rand(5, 3, 4, 4, dtype=torch.float64)
    chance = torch.rand(5, 3, generator=torch.Generator().manual_seed(4)).double()
    for x, (b, s, c), found in zip(
        images,
        chance,
        diff_augment(images, policy=["colour"], generator=torch.Generator().manual_seed(4)),
        strict=True,
    ):
        x = x + b - 0.5
        x = (x - x.mean(0)) * 2 * s + x.mean(0)
        x = (x - x.mean()) * (c + 0.5) + x.mean()
        assert torch.allclose(found, x, atol=1e-12)


def test_bad_augmentations():
    images = torch.rand(2, 3, 8, 8)
    for call, message in (
        (lambda: diff_augment(images, policy=("color",)), "policy: expected one of 'colour', 'translation', 'cutout'"),
        (lambda: diff_augment(images, policy="cutout"), "policy: expected a sequence of names, got 'cutout'"),
        (lambda: diff_augment(images[0]), r"images: expected shape \(B, C, H, W\)"),
        (lambda: diff_augment(images[:0]), r"images: expected shape \(B, C, H, W\)"),
        (lambda: diff_augment(images.byte()), "images: expected a floating-point tensor"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def shapes(condition: Tensor, rng: torch.Generator) -> Tensor:
    """Red squares for the first condition and blue discs for the second, anywhere on dark ground."""
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    centre = torch.randint(4, 12, (len(condition), 2, 1, 1), generator=rng)
    dy, dx = (y - centre[:, 0]).abs(), (x - centre[:, 1]).abs()
    square, disc = torch.maximum(dy, dx) <= 3, dy**2 + dx**2 <= 12
    red, blue = (torch.tensor(c).view(3, 1, 1) for c in ([1.0, -0.6, -0.6], [-0.6, -0.6, 1.0]))
    first = condition[:, 0].bool()[:, None, None, None]
    ground = torch.full((), -0.8)
    return torch.where(first, torch.where(square[:, None], red, ground), torch.where(disc[:, None], blue, ground))


def test_pictures_learn_to_follow_the_condition():
    generator = Generator(GeneratorConfig(16, 8, (4, 4, 2), condition=2, noise_chunk=4, shared=16, attention=8))
    discriminator = Discriminator(DiscriminatorConfig(16, 8, (2, 4, 4), condition=2))
    rng = torch.Generator().manual_seed(0)
    condition = torch.eye(2).repeat(16, 1)

    @torch.no_grad()
    def redness() -> tuple[Tensor, Tensor]:
        """Mean of red minus blue of pictures of either condition, all of the same noise."""
        generator.eval()
        noise = generator.sample_noise(64, generator=torch.Generator().manual_seed(9))
        mean = [generator(noise, row.expand(64, 2)).mean((2, 3)) for row in torch.eye(2)]
        generator.train()
        return tuple(m[:, 0] - m[:, 2] for m in mean)

    real = shapes(condition, rng).mean((2, 3))
    real = (real[::2, 0] - real[::2, 2]).mean() - (real[1::2, 0] - real[1::2, 2]).mean()
    first, second = redness()
    assert (first - second).mean() < 0.2 * real
    networks = nn.ModuleList([generator, discriminator])
    optimiser = torch.optim.Adam(networks.parameters(), lr=1e-3, betas=(0.0, 0.99))
    for _ in range(150):
        d_loss, g_loss, _ = gan_losses(
            generator,
            discriminator,
            shapes(condition, rng),
            condition,
            generator.sample_noise(32, generator=rng),
            lambda images: diff_augment(images, policy=("translation",), generator=rng),
        )
        optimiser.zero_grad()
        (d_loss + g_loss).backward()
        optimiser.step()
    first, second = redness()
    assert 0.4 * real < (first - second).mean() < 2 * real
    assert (first > 0).float().mean() > 0.8 and (second < 0).float().mean() > 0.8
