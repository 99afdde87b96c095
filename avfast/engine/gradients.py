"""The norm of a gradient, for the log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def clip_and_measure(accelerator: Any, model: torch.nn.Module, largest: float, *, wanted: bool) -> Tensor | None:
    """Clip the gradient of `model` to norm `largest` (0 does not clip) and return what the norm was, on its device.

    Without clipping the norm costs a pass over the gradient: it is taken only where it is `wanted`, and nothing is
    changed. None where it was not, or where processes hold parts of the gradient (FSDP) and nothing is clipped.
    """
    if largest > 0:
        return accelerator.clip_grad_norm_(model.parameters(), largest)
    if not wanted or "FSDP" in str(accelerator.distributed_type):
        return None
    found = [p.grad for p in model.parameters() if p.grad is not None]
    if not found:
        return None
    norm = torch.nn.utils.get_total_norm(found)
    scaler = accelerator.scaler  # of fp16: gradients are still multiplied by its scale
    return norm if scaler is None else norm / scaler.get_scale()
