"""A finished run as something to ask for pictures: sounds and pictures to latents, latents to pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.data.images import NormalizeFrames
from avfast.encoders import Encoder
from avfast.engine.inputs import build_pipeline
from avfast.engine.scene.exported import read_export
from avfast.errors import AvfastError, CheckpointError
from avfast.generator import Generator
from avfast.methods.base import Inputs
from avfast.nn.pictures import IMAGENET_MEAN, IMAGENET_STD
from avfast.ops import _check

AT_ONCE = 16
"""Pictures drawn, or sounds and pictures read, in one pass: bounds memory whatever is asked for."""


class Synthesiser:
    """The networks of a run in eval mode.

    Args:
        inputs: what the audio encoder was trained on.
        audio: encoder of spectrograms.
        head: from its C channels to the D of latents.
        generator: a :class:`avfast.generator.Generator` conditioned on D values, folded or not.
        visual: the frozen encoder of pictures, D channels.
        mean, std: of its pictures.
        fingerprint: which weights these are, in hex.

    Attributes:
        inputs, fingerprint: as given.
        frontend: the module from waveforms ``[B, S]`` to the audio encoder's input ``[B, 1, F, T]``.
        duration, sample_rate: seconds of sound and their rate in Hz.
        size: side of the drawn pictures.

    Raises:
        CheckpointError: parts that do not fit each other.
    """

    def __init__(
        self,
        inputs: Inputs,
        audio: Encoder,
        head: nn.Linear,
        generator: Generator,
        visual: Encoder,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        fingerprint: str = "",
        device: str | torch.device = "cpu",
    ) -> None:
        wanted = generator.config.condition
        widths = {"audio head": head.out_features, "visual encoder": visual.channels}
        for name, width in widths.items():
            if width != wanted:
                raise CheckpointError(f"the {name} gives {width} values, the generator reads {wanted}")
        if head.in_features != audio.channels:
            raise CheckpointError(
                f"the audio head reads {head.in_features} values, the audio encoder gives {audio.channels}"
            )
        frontend = build_pipeline(inputs).frontend
        if frontend is None:
            raise CheckpointError("inputs.frontend: expected the name of a front-end, got None")
        self.inputs, self.fingerprint, self.device = inputs, fingerprint, torch.device(device)
        parts = nn.ModuleList([audio, head, generator, visual, frontend, NormalizeFrames(tuple(mean), tuple(std))])
        # Copies would cost memory, so the modules given are the ones that move and turn to eval.
        self._audio, self._head, self._generator, self._visual, self.frontend, self._normalise = parts.to(
            self.device
        ).eval()

    @property
    def duration(self) -> float:
        return self.inputs.duration

    @property
    def sample_rate(self) -> int:
        return self.inputs.sample_rate

    @property
    def size(self) -> int:
        return self._generator.config.size

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Synthesiser:
        """Read a finished run: its folder, or the ``export`` folder in it.

        Raises:
            AvfastError: see :func:`avfast.engine.scene.exported.read_export`.
            CheckpointError: parts that do not fit each other.
        """
        parts = read_export(folder)
        try:
            return cls(
                parts.inputs, parts.audio, parts.head, parts.generator, parts.visual,
                mean=parts.mean, std=parts.std, fingerprint=parts.fingerprint, device=device,
            )  # fmt: skip
        except (AvfastError, TypeError, ValueError) as error:  # parts or options of the front-end that do not fit
            raise CheckpointError(f"checkpoint '{parts.root}': {error}") from error

    def spectrogram(self, waveforms: Tensor) -> Tensor:
        """What the audio encoder gets of waveforms ``[B, S]``: ``[B, 1, F, T]``."""
        with torch.no_grad():
            return self.frontend(waveforms.to(self.device))

    @torch.no_grad()
    def embed(self, waveforms: Tensor) -> Tensor:
        r"""Latents of sounds, :math:`z / \|z\|` with :math:`z = \mathrm{relu}(W h + b)` and h the encoder's mean.

        Args:
            waveforms: floating ``[B, S]`` in [-1, 1] at ``sample_rate``. Do not normalise: loudness is heard.

        Returns:
            float32 ``[B, D]``, unit rows without negative numbers; zeros for a sound that no unit answers to.

        Raises:
            TypeError, ValueError: not floating, not ``[B, S]``, no sound, or samples that are not finite.
        """
        _check.floating("Synthesiser.embed", "waveforms", waveforms)
        if waveforms.ndim != 2 or not waveforms.numel():
            _check.fail("Synthesiser.embed", "waveforms", "shape [B, S]", list(waveforms.shape))
        if not bool(waveforms.isfinite().all()):
            _check.fail("Synthesiser.embed", "waveforms", "finite samples", "NaN or infinity")
        read = [self._head(self._audio.pooled(self.spectrogram(part))) for part in waveforms.float().split(AT_ONCE)]
        return F.normalize(torch.cat(read).relu(), dim=1)

    @torch.no_grad()
    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Latents of pictures uint8 ``[B, 3, H, W]``, resized to the side the encoder was trained on: float32 ``[B,
        D]``, unit rows.

        Raises:
            TypeError, ValueError: not uint8, or not ``[B, 3, H, W]``.
        """
        if pictures.ndim != 4 or not pictures.numel():
            _check.fail("Synthesiser.embed_pictures", "pictures", "shape [B, 3, H, W]", list(pictures.shape))
        side = (self.inputs.size, self.inputs.size)
        read = []
        for part in pictures.split(AT_ONCE):
            x = self._normalise(part.to(self.device))
            if x.shape[2:] != side:
                x = F.interpolate(x, side, mode="bilinear", antialias=True)
            read.append(self._visual.pooled(x))
        return F.normalize(torch.cat(read), dim=1)

    @torch.no_grad()
    def images(self, z: Tensor, *, seed: int = 0, count: int = 1) -> Tensor:
        """Pictures of latents, all rows with the same noise, so that what differs between rows comes from the latents.

        Args:
            z: ``[B, D]`` of any length.
            seed: of the noise; picture k of a seed is the same whatever `count` is.
            count: pictures of each row, each with noise of its own.

        Returns:
            uint8 ``[B, count, 3, S, S]`` on the CPU.

        Raises:
            TypeError, ValueError: a latent that the generator does not read, or no picture asked for.
            CheckpointError: the generator's answer is not finite.
        """
        if count < 1:
            _check.fail("Synthesiser.images", "count", "a positive number", count)
        _check.floating("Synthesiser.images", "z", z)
        if z.ndim != 2 or not len(z):
            _check.fail("Synthesiser.images", "z", f"shape [B, {self._generator.config.condition}]", list(z.shape))
        noise = self.noise(seed, count)
        rows, latents = noise.repeat(len(z), 1), z.to(self.device, torch.float32).repeat_interleave(count, dim=0)
        drawn = []
        for some, conditions in zip(rows.split(AT_ONCE), latents.split(AT_ONCE), strict=True):
            pictures = self._generator(some, conditions)
            if not bool(pictures.isfinite().all()):
                raise CheckpointError("the generator draws NaN or infinity: its training diverged")
            drawn.append(((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        return torch.cat(drawn).unflatten(0, (len(z), count))

    def noise(self, seed: int, count: int) -> Tensor:
        """The noise of pictures 0 to `count` - 1 of a seed, ``[count, noise_dim]``."""
        fixed = torch.Generator().manual_seed(seed)
        return torch.cat([self._generator.sample_noise(1, generator=fixed) for _ in range(count)])
