"""Encoders: residual networks and vision transformers from `transformers` by preset, a local folder in the same format,
or any module.

An encoder maps ``[B, C_in, H, W]`` to a feature map ``[B, channels, h, w]``. The presets carry random
weights; a path to a folder with ``config.json`` and ``model.safetensors`` carries its own. Nothing is
downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from avfast.errors import ConfigError, MissingDependency, first_line
from avfast.nn.encoder import Encoder
from avfast.vit import VIT_PRESETS, build_vit, load_vit

__all__ = ["PRESETS", "Encoder", "build_encoder"]

PRESETS: dict[str, dict[str, Any]] = {
    "resnet-tiny": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1],
                    "layer_type": "basic"},
    "resnet-small": {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1],
                     "layer_type": "basic"},
    "resnet-small16": {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1],
                       "layer_type": "basic"},
    "resnet18": {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2],
                 "layer_type": "basic"},
    "resnet50": {"embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3],
                 "layer_type": "bottleneck"},
}  # fmt: skip
"""Residual networks by name: He et al., Deep Residual Learning for Image Recognition, table 1; tiny and
small are ours. Their maps have a 32nd of the input's side; small16 ends a stage earlier, at a 16th, for dense tasks
on small images."""


def build_encoder(source: str | nn.Module, *, in_channels: int, channels: int | None = None) -> Encoder:
    """An encoder from a preset name, a local folder, or a module.

    Args:
        source: a key of :data:`PRESETS` or of :data:`avfast.vit.VIT_PRESETS`; a folder written by ``save_pretrained``
            or by avfast's export; or a module that follows :class:`Encoder`'s contract (then `channels` is needed).
        in_channels: channels of the input, 3 for frames and 1 for spectrograms. A folder whose stem reads 3
            channels is adapted to 1 by summing its filters, which leaves the response to a grey image
            unchanged.
        channels: width of a module's output.

    Raises:
        ConfigError: unknown preset and no such folder, or a folder that cannot be read as a residual network or
            a vision transformer.
        MissingDependency: `transformers` is not installed.
    """
    if isinstance(source, nn.Module):
        if channels is None:
            raise ConfigError("avfast.build_encoder: channels: a module needs the width of its output, got None")
        return Encoder(source, channels, pretrained=True)
    if source in VIT_PRESETS:
        return build_vit(source, in_channels=in_channels)
    if source in PRESETS:
        config_class, model_class = _transformers()
        config = config_class(num_channels=in_channels, **PRESETS[source])
        return Encoder(model_class(config), config.hidden_sizes[-1])
    folder = Path(source)
    if folder.is_dir():
        _quiet_loading()
        read = load_vit if _model_type(folder) == "vit" else _from_folder
        return read(folder, in_channels=in_channels)
    known = ", ".join([*PRESETS, *VIT_PRESETS])
    raise ConfigError(f"encoder '{source}' is neither a preset ({known}) nor a folder with config.json and weights")


def _model_type(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None  # said better by the library that reads the weights


def _quiet_loading() -> None:
    try:
        from transformers.utils import logging
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("transformers", extra="train", purpose="reading an encoder") from error
    logging.disable_progress_bar()


def _transformers() -> tuple[type, type]:
    try:
        from transformers import ResNetConfig, ResNetModel
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("transformers", extra="train", purpose="building a residual network") from error
    return ResNetConfig, ResNetModel


def _from_folder(folder: Path, *, in_channels: int) -> Encoder:
    _, model_class = _transformers()
    try:
        model = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # a torn file makes each library raise types of its own
        raise ConfigError(f"encoder folder '{folder}' cannot be read: {first_line(error)}") from error
    if model.config.num_channels != in_channels:
        _adapt_stem(model, in_channels, folder)
    return Encoder(model, model.config.hidden_sizes[-1], pretrained=True)


def _adapt_stem(model: nn.Module, in_channels: int, folder: Path) -> None:
    have = model.config.num_channels
    if in_channels != 1:
        raise ConfigError(f"encoder folder '{folder}' reads {have} input channels, {in_channels} are needed")
    stem = model.embedder.embedder
    old = stem.convolution
    new = nn.Conv2d(1, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    new.weight.data.copy_(old.weight.data.sum(dim=1, keepdim=True))
    stem.convolution = new
    # transformers checks the channel count of every input against these two.
    model.config.num_channels = model.embedder.num_channels = 1
