"""Random state: everything outside the model that decides what the next step computes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from avfast import __version__
from avfast.nn import FeatureQueue


def seed_everything(seed: int) -> None:
    """Seed torch (every device), NumPy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """All generators as tensors and plain values, so that a weights-only load accepts them."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(words), gauss],
        "numpy": [
            name,
            torch.from_numpy(keys.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Undo :func:`rng_state`. CUDA generators are restored where as many devices are present."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))


def local_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies on the CPU of what a model holds for this process alone, by the names of its state dict: queues that are
    not shared, where there are several processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {}
    if torch.distributed.get_world_size() == 1:
        return {}
    own = [(name, m) for name, m in model.named_modules() if isinstance(m, FeatureQueue) and not m.share]
    return {
        f"{name}.{key}" if name else key: value.detach().cpu().clone()
        for name, queue in own
        for key, value in queue.state_dict().items()
    }


def versions(device: torch.device) -> dict[str, str]:
    """What decides the last bits of a sum, beside the state itself."""
    return {
        "torch": str(torch.__version__), "avfast": __version__, "device": device.type,
        "threads": str(torch.get_num_threads()),
    }  # fmt: skip
