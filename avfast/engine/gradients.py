"""The norm of a gradient, for the log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avfast.engine.parallel import whole


def clip_and_measure(accelerator: Any, model: torch.nn.Module, largest: float, *, wanted: bool) -> Tensor | None:
    """Clip the gradient of `model` to norm `largest` (0 does not clip) and return what the norm was, on its device.

    Without clipping the norm costs a pass over the gradient: it is taken only where it is `wanted`, and nothing is
    changed. None where it was not. Where processes hold parts of the gradient (FSDP), all of them must call it.
    """
    if largest > 0:
        return whole(accelerator.clip_grad_norm_(model.parameters(), largest))
    if not wanted:
        return None
    found = [p.grad for p in model.parameters() if p.grad is not None]
    if not found:
        return None
    norm = whole(torch.nn.utils.get_total_norm(found))
    scaler = accelerator.scaler  # of fp16: gradients are still multiplied by its scale
    return norm if scaler is None else norm / scaler.get_scale()
