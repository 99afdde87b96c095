"""A finished run of small random networks, as `avfast generate` reads it, and sounds to read with it.

Fixtures, for modules that import them: `run` and `synthesiser`.
"""

from __future__ import annotations

import dataclasses
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avfast.encoders import build_encoder
from avfast.engine.export import export_modules
from avfast.generator import Generator, GeneratorConfig, fold_spectral_norm
from avfast.methods.base import Inputs
from avfast.nn.pictures import IMAGENET_MEAN, IMAGENET_STD

WIDTH = 128
INPUTS = Inputs(1, 32, 1.0, 16000, "log-psd", {"preset": "sound2scene", "eps": 1e-7, "seconds": 1.0})
SIZE = 16


@pytest.fixture(scope="module", name="run")
def finished_run(tmp_path_factory):
    """A finished run. Tests must not change it."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module", name="synthesiser")
def loaded_synthesiser(run):
    from avfast.engine.scene.synthesis import Synthesiser

    return Synthesiser.load(run)


def small_modules(seed: int = 0) -> dict[str, nn.Module]:
    """The four modules of an export, before folding, in eval mode."""
    torch.manual_seed(seed)
    generator = Generator(GeneratorConfig(SIZE, 4, (4, 2, 1), condition=WIDTH, shared=32, attention=8))
    head = nn.Linear(WIDTH, WIDTH)
    # Sounds give random networks features that hardly differ: larger weights pull latents apart.
    head.weight.data.mul_(20)
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
        generator.attention.gamma.fill_(0.5)
    modules = {
        "audio_encoder": build_encoder("resnet-tiny", in_channels=1).backbone, "audio_head": head,
        "generator": generator, "visual_encoder": build_encoder("resnet-tiny", in_channels=3).backbone,
    }  # fmt: skip
    return {name: module.eval() for name, module in modules.items()}


def write_run(folder: Path, modules: dict[str, nn.Module] | None = None, **facts: object) -> Path:
    """``folder/export`` of a run; `facts` replace those of the card."""
    modules = dict(small_modules() if modules is None else modules)
    if "generator" in modules:
        modules["generator"] = fold_spectral_norm(modules["generator"])
    card = {
        "recipe": "sound2scene", "step": 1, "inputs": dataclasses.asdict(INPUTS), "frame_mean": IMAGENET_MEAN,
        "frame_std": IMAGENET_STD, "config": {}, **facts,
    }  # fmt: skip
    export_modules(folder / "export", modules, card)
    return folder


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    """16-bit samples ``[S]`` or ``[S, channels]`` in [-1, 1]."""
    samples = samples[:, None] if samples.ndim == 1 else samples
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return path


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def quiet_noise(seconds: float = 10.0, rate: int = 16000, level: float = 0.04) -> torch.Tensor:
    """Noise ``[S]`` whose power falls with frequency, as that of rooms and streets does; `level` is its standard
    deviation."""
    count = round(seconds * rate)
    spectrum = torch.fft.rfft(torch.randn(count, generator=torch.Generator().manual_seed(0)))
    noise = torch.fft.irfft(spectrum / torch.fft.rfftfreq(count, 1 / rate).clamp(min=50).sqrt(), count)
    return level * noise / noise.std()
