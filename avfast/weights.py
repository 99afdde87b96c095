"""Weights from files, without running anything that is in them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, load

from avfast.errors import ConfigError, MissingDependency

WRAPPERS = ("state_dict", "model")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a folder with ``model.safetensors``, of a ``.safetensors`` file, or of a ``.pt``/``.pth`` file.

    A ``.pt`` file holds a state dict, by itself or under ``state_dict`` or ``model``; the prefix ``module.`` that
    data-parallel training leaves is dropped. Pickled code is refused, not run.

    Raises:
        ConfigError: no such file, or one that holds something else.
        MissingDependency: safetensors is not installed.
    """
    file = Path(path)
    file = file / "model.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(f"weights '{path}': no such file (a folder needs model.safetensors)")
    try:
        state = (
            _safetensors(file) if file.suffix == ".safetensors" else load(file, map_location="cpu", weights_only=True)
        )
    except MissingDependency:
        raise
    except Exception as error:  # whatever a broken file makes its library raise
        raise ConfigError(f"weights '{file}' cannot be read: {str(error).strip().splitlines()[0]}") from error
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise ConfigError(f"weights '{file}': expected tensors by name, got {type(state).__name__}")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("safetensors", extra="train", purpose="reading weights") from error
    return load_file(file)
