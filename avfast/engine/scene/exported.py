"""The exported networks of a finished run, read strictly: every file is there, fits, and runs nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avfast.data.identity import file_sha256
from avfast.encoders import Encoder, build_encoder
from avfast.errors import AvfastError, CheckpointError
from avfast.generator import Generator, GeneratorConfig, fold_spectral_norm
from avfast.methods.base import Inputs
from avfast.weights import read_weights

RECIPE = "sound2scene"
MODULES = ("audio_encoder", "audio_head", "generator", "visual_encoder")
CARD = "avfast.json"


@dataclasses.dataclass(frozen=True)
class Exported:
    """The parts of a run on the CPU. ``mean`` and ``std`` are of the visual encoder's pictures; ``fingerprint`` is a
    SHA-256 over the files that pictures depend on."""

    root: Path
    inputs: Inputs
    mean: tuple[float, ...]
    std: tuple[float, ...]
    audio: Encoder
    head: nn.Linear
    generator: Generator
    visual: Encoder
    fingerprint: str


def read_export(folder: str | Path) -> Exported:
    """Read a finished run: its folder, or the ``export`` folder in it.

    Nothing is downloaded and no pickle is read: weights are ``model.safetensors``.

    Raises:
        CheckpointError: no such folder, a run of another recipe, one that is not finished, or files that do not fit;
            the message names the file.
        ConfigError: weights that are missing or cannot be read.
        MissingDependency: transformers or safetensors is not installed.

    >>> read_export("/no/such/run")
    Traceback (most recent call last):
    ...
    avfast.errors.CheckpointError: checkpoint '/no/such/run': no such folder
    """
    root = _root(Path(folder))
    card = _card(root)
    try:
        inputs, mean, std = Inputs(**card["inputs"]), tuple(card["frame_mean"]), tuple(card["frame_std"])
        if not len(mean) == len(std) == 3:
            raise ValueError(f"expected 3 numbers of frame_mean and frame_std, got {mean} and {std}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint '{root / CARD}' does not describe its inputs ({error})") from error
    return Exported(
        root, inputs, mean, std,
        audio=_encoder(root / "audio_encoder", 1), head=_head(root / "audio_head"),
        generator=_generator(root / "generator"), visual=_encoder(root / "visual_encoder", 3),
        fingerprint=_fingerprint(root),
    )  # fmt: skip


def _root(folder: Path) -> Path:
    """The folder with the card of a whole run."""
    if folder.is_file():
        raise CheckpointError(f"checkpoint '{folder}' is a file; expected the folder of a finished {RECIPE} run")
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint '{folder}': no such folder")
    for root in (folder, folder / "export"):
        if (root / CARD).is_file():
            return root
    begun = any(folder.glob("checkpoints/*.pt")) or any(folder.glob("*/checkpoints/*.pt"))
    why = "is a run that is not finished; continue it with --resume auto" if begun else "is not the folder of a run"
    raise CheckpointError(f"checkpoint '{folder}' {why} (no {CARD} in it or in its export)")


def _card(root: Path) -> dict[str, Any]:
    try:
        card = json.loads((root / CARD).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint '{root / CARD}' cannot be read as JSON ({error})") from error
    recipe = card.get("recipe") if isinstance(card, dict) else None
    if recipe != RECIPE:
        raise CheckpointError(f"checkpoint '{root}' is of recipe '{recipe}'; expected a finished run of {RECIPE}")
    if lacking := [name for name in MODULES if not (root / name).is_dir()]:
        stage = ", ".join(name for name in MODULES if name not in lacking) or "nothing"
        raise CheckpointError(
            f"checkpoint '{root}' is not finished, or one stage of a run: it has {stage}, but no {', '.join(lacking)}"
        )
    return card


def _encoder(folder: Path, channels: int) -> Encoder:
    weights = read_weights(folder)  # before transformers, whose reader would accept a pickle in its place
    try:
        with _unreported():
            encoder = build_encoder(str(folder), in_channels=channels)
    except AvfastError:
        raise
    except Exception as error:  # whatever a wrong config.json makes transformers raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"checkpoint '{folder}' cannot be read as an encoder: {reason[0]}") from error
    # transformers draws weights that a file lacks at random; here that is a mistake.
    _fill(encoder.backbone, weights, folder)
    return encoder


@contextmanager
def _unreported() -> Iterator[None]:
    """Keep transformers from printing what it found missing: that is an error here, said in one line."""
    try:
        from transformers.utils import logging
    except (ImportError, RuntimeError, OSError):
        yield  # said better by who needs it
        return
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _head(folder: Path) -> nn.Linear:
    weights = read_weights(folder)
    weight = weights.get("weight")
    if weight is None or weight.ndim != 2:
        got = ", ".join(f"{name} {list(value.shape)}" for name, value in weights.items())
        raise CheckpointError(f"checkpoint '{folder}': expected a linear layer with weight [D, C], got {got}")
    head = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    _fill(head, weights, folder)
    return head


def _generator(folder: Path) -> Generator:
    weights, file = read_weights(folder), folder / "config.json"
    names = [field.name for field in dataclasses.fields(GeneratorConfig)]
    try:
        values = json.loads(file.read_text())
        config = GeneratorConfig(**{name: values[name] for name in names if name in values})
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint '{file}' does not describe a generator ({error})") from error
    # Drawing orthogonal weights for 77 million parameters takes minutes, and they would be overwritten.
    with torch.device("meta"):
        generator = Generator(config)
    generator = fold_spectral_norm(generator.to_empty(device="cpu"))
    _fill(generator, weights, folder)
    return generator


def _fill(module: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Put in weights by name, all of them and no others."""
    try:
        module.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint '{folder}': weights do not fit config.json: {reason[:300]}") from error
    if odd := [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise CheckpointError(f"checkpoint '{folder}': weights hold NaN or infinity: {', '.join(odd[:3])}")


def _fingerprint(root: Path) -> str:
    """SHA-256 over the files that pictures depend on."""
    files = [root / CARD, *(root / name / "model.safetensors" for name in MODULES)]
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()
