"""Hinge losses of a generator and a discriminator that learn in the same step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from avfast.ops import _check

__all__ = ["gan_losses", "hinge_discriminator", "hinge_generator"]


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""Mean of :math:`\max(0, 1 - D(x))` plus mean of :math:`\max(0, 1 + D(G(z)))`: Lim and Ye 2017, Geometric GAN.

    Args:
        real, fake: logits of any shape.

    >>> hinge_discriminator(torch.tensor([2.0, 0.0]), torch.tensor([-0.5])).item()
    1.0
    """
    _check.floating("hinge_discriminator", "real", real)
    _check.floating("hinge_discriminator", "fake", fake)
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """Mean of minus the logits of generated pictures.

    >>> hinge_generator(torch.tensor([1.0, 3.0])).item()
    -2.0
    """
    _check.floating("hinge_generator", "fake", fake)
    return -fake.mean()


def gan_losses(
    generator: nn.Module,
    discriminator: nn.Module,
    real: Tensor,
    condition: Tensor,
    noise: Tensor,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both losses of one step, for a single backward pass of their sum and a single optimiser.

    The first has gradients for the discriminator only, the second for the generator only; the condition gets none. The
    generator runs once. The discriminator runs once on real and generated pictures together, and once more on the
    generated ones with its parameters held fixed and its buffers set aside, so that a power iteration of spectral norm
    takes one step, as with any other layer.

    Args:
        generator: noise and condition to pictures.
        discriminator: pictures and condition to logits ``[B]``; it may not mix the pictures of a batch.
        real: ``[B, 3, S, S]`` in [-1, 1].
        condition: features ``[B, D]`` of the real pictures.
        noise: ``[B, noise_dim]``.
        augment: what the discriminator sees everything through, such as :func:`avfast.diff_augment.diff_augment`.

    Returns:
        Loss of the discriminator, loss of the generator, and the generated pictures without a graph and as they were
        before `augment`.

    Raises:
        ValueError: generated and real pictures differ in shape.

    >>> from avfast.discriminator import build_discriminator
    >>> from avfast.generator import build_generator
    >>> networks = build_generator("scene-32", condition=8), build_discriminator("scene-32", condition=8)
    >>> real, condition = torch.rand(2, 3, 32, 32), torch.randn(2, 8)
    >>> d_loss, g_loss, fake = gan_losses(*networks, real, condition, networks[0].sample_noise(2))
    >>> (d_loss + g_loss).backward()
    """
    condition = condition.detach()
    fake = generator(noise, condition)
    if fake.shape != real.shape:
        _check.fail("gan_losses", "real", f"shape {tuple(fake.shape)}, that of generated pictures", tuple(real.shape))
    seen, shown = (real, fake) if augment is None else (augment(real), augment(fake))
    both = torch.cat([seen.detach(), shown.detach()])
    logits = discriminator(both, torch.cat([condition, condition]))
    d_loss = hinge_discriminator(*logits.chunk(2))
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    aside = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    g_loss = hinge_generator(functional_call(discriminator, {**fixed, **aside}, (shown, condition)))
    return d_loss, g_loss, fake.detach()
