"""Peak extra memory of a call, and the memory autograd holds between forward and backward."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

#: The kernel counts resident pages in per-thread batches: that figure is off by some hundred KiB either way.
EXACT_BELOW = 4 * 2**20


@dataclass(frozen=True)
class Peak:
    """Bytes above what was held before the call, outputs included.

    ``resident`` is the high-water mark of the process (CPU, None where Linux does not let us reset it) or of
    torch's caching allocator (CUDA); it sees everything. ``allocated`` is the exact peak of tensor storage,
    which sees only tensors; it is measured where the resident figure is too coarse, and None elsewhere.
    """

    resident: int | None
    allocated: int | None

    @property
    def bytes(self) -> int:
        """The figure to report."""
        return self.resident if self.allocated is None else self.allocated


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> Peak:
    """Peak extra memory of ``call()`` in a warmed process (it is called before it is measured)."""
    call()
    if torch.device(device).type == "cuda":
        return _cuda_peak(call)
    resident = _resident_peak(call)
    coarse = resident is None or resident < EXACT_BELOW
    return Peak(resident, _allocated_peak(call) if coarse else None)


def _cuda_peak(call: Callable[[], Any]) -> Peak:
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return Peak(peak, None)


def _resident_peak(call: Callable[[], Any]) -> int | None:
    """High-water mark of the process around one call, or None where Linux does not let us reset it."""
    gc.collect()
    _return_free_pages()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
    except OSError:
        return None
    result = call()
    after = _status_bytes("VmHWM")
    del result
    return max(0, after - before)


def _return_free_pages() -> None:
    """Without this, a call that reuses freed heap pages seems to need no memory at all."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc: the figure is then a lower bound
        return


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _allocated_peak(call: Callable[[], Any]) -> int:
    """Exact peak of tensor storage, from the allocator's own events."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler greets us on stderr at every call
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = call()
    del result
    events = [
        (event.start_ns(), event.nbytes())
        for event in record.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, nbytes in sorted(events, key=lambda event: event[0]):
        held += nbytes
        peak = max(peak, held)
    return peak


@dataclass(frozen=True)
class Saved:
    """Bytes held for backward, every storage once; ``beyond_inputs`` leaves out the op's inputs."""

    total: int
    beyond_inputs: int


def saved_for_backward(
    forward: Callable[[], Any],
    *,
    parameters: Iterable[torch.Tensor] = (),
    inputs: Iterable[torch.Tensor] = (),
) -> Saved:
    """Memory autograd keeps after ``forward()``.

    ``parameters`` (weights, buffers) are never counted. ``inputs`` count in ``total``, because the activation
    is alive only for this op's backward, and are left out of ``beyond_inputs``.
    Tensors that a Function hides on its context instead of ``save_for_backward`` are not seen.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # holding it keeps the address from being given out twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    for tensor in parameters:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    total = sum(storage.nbytes() for storage in kept.values())
    for tensor in inputs:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    beyond = sum(storage.nbytes() for storage in kept.values())
    del result
    return Saved(total, beyond)
