"""Trained modules as safetensors with a JSON config: loadable with plain torch or transformers, without
avfast.

A network of `transformers` becomes a folder that ``AutoModel.from_pretrained(folder)`` reads. Any other
module becomes ``model.safetensors`` and a ``config.json`` that names its layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from avfast.engine.checkpoint import write_atomic
from avfast.errors import MissingDependency


def export_modules(folder: Path, modules: dict[str, nn.Module], facts: dict[str, Any]) -> list[Path]:
    """Write each module to ``folder/name/`` and what a user must know about its input to
    ``folder/avfast.json``.

    Returns:
        The written files.
    """
    try:
        from safetensors.torch import save_file
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("safetensors", extra="train", purpose="exporting encoders") from error

    written = []
    for name, module in modules.items():
        # Cloned: a safetensors file refuses tensors that share memory with each other.
        tensors = {key: value.detach().cpu().clone().contiguous() for key, value in module.state_dict().items()}
        weights, config = folder / name / "model.safetensors", folder / name / "config.json"
        write_atomic(weights, lambda path, t=tensors: save_file(t, path, metadata={"format": "pt"}))
        text = json.dumps(_config_of(module), indent=2, sort_keys=True) + "\n"
        write_atomic(config, lambda path, t=text: path.write_text(t))
        written += [weights, config]
    card = folder / "avfast.json"
    text = json.dumps({"modules": sorted(modules), **facts}, indent=2) + "\n"
    write_atomic(card, lambda path: path.write_text(text))
    return [*written, card]


def _config_of(module: nn.Module) -> dict[str, Any]:
    config = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        return {**config.to_dict(), "architectures": [type(module).__name__]}
    layers = {name or "0": repr(child) for name, child in module.named_modules() if not list(child.children())}
    return {"class": f"torch.nn.{type(module).__name__}", "layers": layers}
