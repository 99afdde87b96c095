"""Audio-visual alignment: an audio encoder learns the visual embedding of the same clip.

The alignment stage of Sound2Scene: symmetric InfoNCE between the embedding of a clip's sound and the
embedding of its frames. The visual encoder is frozen (the paper) or trained beside it (the default here,
since avfast ships no weights).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avfast.encoders import Encoder, build_encoder
from avfast.errors import ConfigError
from avfast.methods.base import (
    Batch,
    Inputs,
    Method,
    MethodCard,
    StepOutput,
    alignment_step,
    contrastive_bounds,
)


@dataclass(frozen=True)
class AvAlignConfig:
    """Options of the recipe `av-align`.

    Attributes:
        visual: visual encoder: a preset of avfast.encoders or a local folder with weights.
        audio: audio encoder, likewise; it reads one channel.
        train_visual: train the visual encoder and a linear head; otherwise it is frozen in eval mode and its
            pooled feature is the target space.
        dim: size of the shared space while the visual side is trained; a frozen encoder's own width
            otherwise.
        rectify: ReLU after the heads, as the published audio encoder has it.
        distance: logits from cosine similarity or from the negative euclidean distance of unit vectors.
        temperature: divides the logits; the published loss is distance "l2" at 1.
        gather: contrast against the batches of all processes.
        frames: frames per clip.
        size: side of a frame in pixels.
        duration: seconds per clip.
        sample_rate: audio samples per second.
        frontend: audio front-end.
    """

    visual: str = "resnet-tiny"
    audio: str = "resnet-tiny"
    train_visual: bool = True
    dim: int = 128
    rectify: bool = False
    distance: Literal["cosine", "l2"] = "cosine"
    temperature: float = 0.1
    gather: bool = True
    frames: int = 2
    size: int = 64
    duration: float = 2.0
    sample_rate: int = 16000
    frontend: Literal["log-mel", "log-psd", "kaldi-fbank"] = "log-mel"


class AvAlign(Method):
    """Two towers and a symmetric InfoNCE; see :class:`AvAlignConfig`."""

    card = MethodCard(
        name="av-align",
        title="Sound to Visual Scene Generation by Audio-to-Visual Latent Alignment (alignment stage)",
        authors="Sung-Bin, Senocak, Ha, Owens, Oh",
        venue="CVPR 2023",
        arxiv="2303.17490",
        summary="an audio encoder learns the frozen or trained visual embedding with symmetric InfoNCE",
        needs="clips with sound; no labels. Optional: a local folder with a trained visual encoder",
    )
    Config = AvAlignConfig
    presets = {
        "sound2scene": {
            "method.visual": "resnet50", "method.audio": "resnet18", "method.train_visual": False,
            "method.rectify": True, "method.distance": "l2", "method.temperature": 1.0, "method.frames": 1,
            "method.size": 224, "method.duration": 10.0, "method.frontend": "log-psd", "optim.name": "adam",
            "optim.lr": 1e-3, "optim.weight_decay": 1e-5, "optim.schedule": "constant",
            "optim.warmup_steps": 0, "data.batch_size": 64, "run.epochs": 100,
        },
    }  # fmt: skip

    def __init__(self, config: AvAlignConfig, *, visual: Encoder | None = None, audio: Encoder | None = None) -> None:
        super().__init__(config)
        if config.temperature <= 0:
            raise ConfigError(f"method.temperature: expected a positive number, got {config.temperature}")
        for name, least in (("frames", 1), ("size", 8), ("dim", 1), ("sample_rate", 1000)):
            if getattr(config, name) < least:
                raise ConfigError(f"method.{name}: expected at least {least}, got {getattr(config, name)}")
        if config.duration <= 0:
            raise ConfigError(f"method.duration: expected a positive number, got {config.duration}")
        self.visual = visual or build_encoder(config.visual, in_channels=3)
        self.audio = audio or build_encoder(config.audio, in_channels=1)
        dim = config.dim if config.train_visual else self.visual.channels
        self.audio_head = _head(self.audio.channels, dim, config.rectify)
        self.visual_head = _head(self.visual.channels, dim, config.rectify) if config.train_visual else nn.Identity()
        self.visual.requires_grad_(config.train_visual)

    def train(self, mode: bool = True) -> AvAlign:
        super().train(mode)
        if not self.config.train_visual:
            self.visual.eval()  # a frozen target must not move through its running statistics either
        return self

    @property
    def inputs(self) -> Inputs:
        c = self.config
        # A log-mel of speech or music in [-1, 1] lies around -7 with a spread of 4.
        options = {"mean": -7.0, "std": 4.0} if c.frontend == "log-mel" else {}
        return Inputs(c.frames, c.size, c.duration, c.sample_rate, frontend=c.frontend, frontend_options=options)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        frames = batch["frames"]  # [B, T, 3, H, W]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_visual):
            video = self.visual.pooled(frames.flatten(0, 1))  # [B * T, C]
        video = video.unflatten(0, frames.shape[:2]).mean(dim=1)  # [B, C]
        return {"audio": self.audio.pooled(batch["spectrogram"]), "video": video}

    def project(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"audio": self.audio_head(features["audio"]), "video": self.visual_head(features["video"])}

    @property
    def compares_samples(self) -> bool:
        return True

    def training_step(self, batch: Batch) -> StepOutput:
        return self._step(batch, gather=self.config.gather)

    def validation_step(self, batch: Batch) -> StepOutput:
        return self._step(batch, gather=False)

    def _step(self, batch: Batch, *, gather: bool) -> StepOutput:
        c = self.config
        return alignment_step(self.embed(batch), temperature=c.temperature, distance=c.distance, gather=gather)

    def exports(self) -> dict[str, nn.Module]:
        modules: dict[str, Any] = {"audio": self.audio.backbone, "audio_head": self.audio_head}
        if self.config.train_visual:
            modules |= {"visual": self.visual.backbone, "visual_head": self.visual_head}
        return modules

    def loss_bounds(self, batch_size: int) -> dict[str, float]:
        c = self.config
        return contrastive_bounds(batch_size, temperature=c.temperature, distance=c.distance, rectified=c.rectify)

    def notes(self) -> list[str]:
        if not self.config.train_visual and not self.visual.pretrained:
            return [
                "the frozen visual encoder has random weights: the audio encoder learns a random embedding; "
                "give a trained one with method.visual=FOLDER or train it with method.train_visual=true"
            ]
        return []


def _head(width: int, dim: int, rectify: bool) -> nn.Module:
    linear = nn.Linear(width, dim)
    return nn.Sequential(linear, nn.ReLU()) if rectify else linear
