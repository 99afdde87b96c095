"""What the engine's tests share: one small set of real clips, a toy method and in-memory samples."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from avfast.benches.soak.toy import StopAt, tower, weights  # noqa: F401
from avfast.methods import Inputs, Method, MethodCard, StepOutput
from avfast.methods.base import ImageInputs


@functools.cache
def real_clips() -> Path:
    """Eighty mp4 clips of 16 classes: 48 to train on, 16 to validate, 16 to test. Made once per session."""
    from avfast.data.demo import make_demo_clips

    folder = Path(tempfile.mkdtemp(prefix="avfast-clips-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_demo_clips(folder, clips=80, seed=0)
    return folder


@functools.cache
def real_scenes() -> Path:
    """Forty scenes of 32 pixels with masks and 9 labels: 28 to train on, 4 to validate, 8 to test. Once per session."""
    from avfast.data.demo import make_scenes

    folder = Path(tempfile.mkdtemp(prefix="avfast-scenes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_scenes(folder, images=40, size=32)
    return folder


IMAGES = ImageInputs(32)


def scenes_split(split: str = "train", *, seed: int = 0):
    """A split of the scenes as the engine reads it."""
    from avfast.engine.config import DataConfig
    from avfast.engine.sources import build_dataset, open_data

    part = open_data(real_scenes(), IMAGES).splits[split]
    return build_dataset(part, IMAGES, DataConfig(), seed=seed, train=split == "train", cache=False)


@dataclass(frozen=True)
class ToyConfig:
    """Attributes:
    width: hidden units.
    scale: multiplies the loss.
    """

    width: int = 8
    scale: float = 1.0


class Toy(Method):
    """The two towers of the long checks, on numbers, and a count of steps."""

    card = MethodCard("toy", "t", "a", "v", "0", "s", "n")
    Config = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.audio, self.video = tower(16, config.width), tower(12, config.width)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def inputs(self) -> Inputs:
        return Inputs(frames=1, size=2, duration=1.0, sample_rate=16)

    def features(self, batch):
        return {"audio": batch["waveform"], "video": batch["frames"].flatten(1)}

    def project(self, features):
        return {"audio": self.audio(features["audio"]), "video": self.video(features["video"])}

    def training_step(self, batch) -> StepOutput:
        z = self.embed(batch)
        logits = z["audio"] @ z["video"].T * self.config.scale
        loss = nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        return StepOutput(loss, {"top": logits.detach().max()}, {k: v.detach() for k, v in z.items()})

    def after_optimizer_step(self, step: int) -> None:
        self.updates += 1

    def exports(self):
        return {"audio": self.audio}


class ToyClips:
    """Samples by ``(epoch, index)`` made from numbers; those in `broken` cannot be read."""

    def __init__(self, n: int = 20, broken: tuple[int, ...] = ()) -> None:
        self.n, self.broken = n, broken

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, key):
        epoch, index = key
        if index in self.broken:
            error = {"index": index, "path": f"{index}.mp4", "cause": "unreadable", "detail": "is torn"}
            return {"errors": [error]}
        fixed = torch.Generator().manual_seed(index)
        noise = torch.Generator().manual_seed(1000 * epoch + index)
        return {
            "frames": torch.randint(0, 256, (1, 3, 2, 2), dtype=torch.uint8, generator=fixed),
            "waveform": torch.randn(16, generator=fixed) + 0.1 * torch.randn(16, generator=noise),
            "label": index % 4,
            "index": index,
            "id": str(index),
            "errors": [],
        }


def toy_trainer(out, *, clips=None, steps=17, kind="main", resume=None, force=False, board_folder=None, **options):
    """A trainer of the toy method on twenty clips in batches of four, validated on six. `options` go to the sections of
    the configuration that have them. The test replaces ``build.get_method`` so that "toy" is a recipe."""
    from avfast.engine.build import build_accelerator
    from avfast.engine.config import DataConfig, OptimConfig, RunConfig, TrainConfig
    from avfast.engine.loop import Trainer
    from avfast.engine.sources import evaluation_loader
    from avfast.engine.validate import Validator

    options = {"batch_size": 4, "log_every": 4, "eval_every": 6, "save_every": 3, **options}
    sections = [
        cls(**{k: v for k, v in options.items() if k in cls.__dataclass_fields__})
        for cls in (DataConfig, OptimConfig, RunConfig, ToyConfig)
    ]
    config = TrainConfig("toy", *sections)
    validator = Validator(evaluation_loader(ToyClips(6), 4))
    return Trainer(
        config, ToyClips() if clips is None else _Epochs(clips), validator, out, build_accelerator("cpu", "no"),
        fingerprint="abc", steps=steps, kind=kind, resume=resume, force=force, board_folder=board_folder,
    )  # fmt: skip


class _Epochs:
    """Samples of a list, the same in every epoch; data sets stay what they are."""

    def __init__(self, clips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key):
        return self.clips[key[1]] if isinstance(self.clips, list) else self.clips[key]


class Killed(BaseException):
    """A process that was killed, for tests that stay in theirs."""


class DyingCalls:
    """Counts the calls that change a folder (fsync, replace, link, unlink); from number ``fatal`` on, unless it is 0,
    each raises Killed: clean-up, which a killed process does not do, fails as well."""

    def __init__(self, monkeypatch) -> None:
        self.count = self.fatal = 0
        for name in ("fsync", "replace", "link", "unlink"):
            monkeypatch.setattr(os, name, self._dying(getattr(os, name)))

    def _dying(self, function):
        def call(*arguments, **options):
            self.count += 1
            if self.fatal and self.count >= self.fatal:
                raise Killed
            return function(*arguments, **options)

        return call
