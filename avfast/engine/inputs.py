"""From a loader's batch to a method's batch, on the training device.

Frames leave the loader as bytes and become floats only here, so that a quarter of the data crosses to the
device; the audio front-end runs here too, on the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avfast.errors import ConfigError
from avfast.methods import Inputs
from avfast.methods.base import ImageInputs
from avfast.nn.pictures import IMAGENET_MEAN, IMAGENET_STD
from avfast.ops._counter import content_key

FRONTENDS = {"log-mel": "LogMel", "kaldi-fbank": "KaldiFbank", "log-psd": "LogPSD"}


def build_pipeline(inputs: Inputs | ImageInputs) -> nn.Module:
    """The pipeline of a method's kind of input."""
    if isinstance(inputs, ImageInputs):
        from avfast.engine.image_inputs import ImagePipeline

        return ImagePipeline(inputs)
    return InputPipeline(inputs)


class InputPipeline(nn.Module):
    """Normalise frames and compute spectrograms.

    Input (a batch of :func:`avfast.data.build_loader`): ``frames`` uint8 ``[B, T, 3, H, W]``, ``waveform``
    float32 ``[B, S]``, ``label``, ``index``. Output: the method's batch, see
    :data:`avfast.methods.base.Batch`.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.frontend = _frontend(inputs)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self.mean.device
        moved = {k: v.to(device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
        if self.inputs.frames:
            frames = moved["frames"]  # uint8 [B, T, 3, H, W]
            moved["frames"] = (frames.to(torch.float32) / 255.0 - self.mean) / self.std
        if self.frontend is not None:
            spectrogram = self.frontend(moved["waveform"])  # [B, bins, time] or [B, time, bins]
            moved["spectrogram"] = spectrogram.unsqueeze(1) if spectrogram.ndim == 3 else spectrogram
        if "id" in batch:
            moved["key"] = torch.tensor([content_key(id) for id in batch["id"]], dtype=torch.int64, device=device)
        return moved

    def plain(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch for evaluation: of clips, the same."""
        return self(batch)

    def example(self, batch_size: int) -> dict[str, Tensor]:
        """A random batch as a loader would give it, for plans."""
        i = self.inputs
        generator = torch.Generator().manual_seed(0)
        found = {}
        if i.frames:
            shape = (batch_size, i.frames, 3, i.size, i.size)
            found["frames"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        if i.sound:
            found["waveform"] = torch.rand(batch_size, round(i.duration * i.sample_rate), generator=generator) - 0.5
        return found | {
            "label": torch.zeros(batch_size, dtype=torch.int64),
            "index": torch.arange(batch_size),
        }


def _frontend(inputs: Inputs) -> nn.Module | None:
    if inputs.frontend is None:
        return None
    if inputs.frontend not in FRONTENDS:
        raise ConfigError(f"audio front-end '{inputs.frontend}': expected one of {', '.join(FRONTENDS)}")
    from avfast.data import frontends

    cls = getattr(frontends, FRONTENDS[inputs.frontend])
    return cls(sample_rate=inputs.sample_rate, **inputs.frontend_options)
