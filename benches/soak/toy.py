"""The smallest training on real files that has everything a run has: for checks of many steps or many runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from avfast.data import ClipDataset, ClipSource
from avfast.data.demo.encode import write_clip
from avfast.engine import build
from avfast.engine.build import build_accelerator
from avfast.engine.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from avfast.engine.loop import Trainer
from avfast.engine.signals import StopRequest
from avfast.engine.sources import evaluation_loader
from avfast.engine.validate import Validator
from avfast.methods import Inputs, Method, MethodCard, StepOutput
from avfast.nn.feature_queue import FeatureQueue

RATE, FPS, BATCH = 8000, 8, 4


@dataclass(frozen=True)
class ToyConfig:
    """Attributes:
    width: hidden units.
    """

    width: int = 8


def tower(inputs: int, width: int) -> nn.Sequential:
    """From ``[B, inputs]`` to ``[B, 4]``; dropout and batch norm are what a checkpoint must not forget."""
    return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 4))


class ToyClips(Method):
    """Two towers and a queue."""

    card = MethodCard("soak-toy", "t", "a", "v", "0", "s", "n")
    Config = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.audio, self.video = tower(16, config.width), tower(12, config.width)
        self.queue = FeatureQueue(32, 4)
        self.last: torch.Tensor | None = None

    @property
    def inputs(self) -> Inputs:
        return Inputs(frames=1, size=2, duration=1.0, sample_rate=RATE)

    def features(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"audio": batch["waveform"][:, :: RATE // 16], "video": batch["frames"].flatten(1)}

    def project(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"audio": self.audio(features["audio"]), "video": self.video(features["video"])}

    def training_step(self, batch: dict[str, Any]) -> StepOutput:
        z = self.embed(batch)
        logits = z["audio"] @ torch.cat([z["video"], self.queue.negatives()]).T
        loss = nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        self.last = z["video"].detach()
        return StepOutput(loss, {"top": logits.detach().max()}, {k: v.detach() for k, v in z.items()})

    def after_optimizer_step(self, step: int) -> None:
        self.queue.push(self.last)

    def forget_step(self) -> None:
        self.last = None


@contextmanager
def toy_recipe() -> Iterator[None]:
    """Inside, every recipe is the toy, on one thread."""
    real, threads = build.get_method, torch.get_num_threads()
    build.get_method = lambda name: ToyClips
    torch.set_num_threads(1)
    try:
        yield
    finally:
        build.get_method = real
        torch.set_num_threads(threads)


def make_clips(folder: Path, count: int) -> Path:
    """Clips of 1.5 s with pictures of 32 x 32 and a tone, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    length = round(1.5 * FPS)
    for i in range(count):
        ramp = (np.arange(32)[None] * 5 + np.arange(length)[:, None] * 4 + 11 * i) % 256
        pictures = np.broadcast_to(ramp[:, None, :, None], (length, 32, 32, 3)).astype(np.uint8)
        tone = 0.4 * np.sin(2 * np.pi * (200 + 20 * i) * np.arange(round(1.5 * RATE)) / RATE)
        write_clip(folder / f"{i:03d}.mp4", pictures, FPS, tone.astype(np.float32), RATE)
    return folder


def clip_set(source: ClipSource, *, train: bool = True, on_error: str = "skip", timeout: float = 20.0) -> ClipDataset:
    return ClipDataset(
        source, frames=1, size=2, duration=1.0, sample_rate=RATE, seed=0, train=train, on_error=on_error,
        timeout=timeout,
    )  # fmt: skip


def make_trainer(
    out: Path, dataset: Any, *, steps: int, resume: bool = False, workers: int = 0, looks: ClipSource | None = None,
    **run: Any,
) -> Trainer:  # fmt: skip
    """A trainer of the toy; ``looks`` is what it validates on."""
    config = TrainConfig(
        "soak-toy", DataConfig(batch_size=BATCH, workers=workers), OptimConfig(), RunConfig(steps=steps, **run),
        ToyConfig(),
    )  # fmt: skip
    validator = None if looks is None else Validator(evaluation_loader(clip_set(looks, train=False), BATCH))
    last = out / "checkpoints" / "last.pt"
    return Trainer(
        config, dataset, validator, out, build_accelerator("cpu", "no"), fingerprint="toy", steps=steps,
        resume=last if resume and last.is_file() else None,
    )  # fmt: skip


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.method.state_dict().items()}


def differences(trainer: Trainer, expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not bit for bit as expected."""
    found = weights(trainer)
    return [name for name, value in expected.items() if not torch.equal(found[name], value)]


class StopAt(StopRequest):
    """A signal that comes in a step of a trainer."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        super().__init__()
        self.trainer, self.at = trainer, step

    @property
    def signal_name(self) -> str | None:
        return "SIGTERM" if self.trainer.step >= self.at else None

    @signal_name.setter
    def signal_name(self, value: str | None) -> None:
        pass


def in_step(trainer: Trainer, action: Callable[[int], None]) -> None:
    """Calls ``action(step)`` in the forward pass of every training step."""

    def hook(module: nn.Module, args: Any) -> None:
        if module.training:
            action(trainer.step + 1)

    trainer.method.register_forward_pre_hook(hook)
