"""The negatives of momentum contrast: a ring of the most recent keys."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..ops import _check
from ..ops._distributed import gather_with_gradient, require_even


class FeatureQueue(nn.Module):
    """First-in first-out memory of ``size`` feature rows, kept on the device.

    It starts with Gaussian directions of unit length, so early negatives are noise: a contrastive loss against it
    *rises* until ``filled`` is 1, and only then means something. Source: He et al. 2020, MoCo, section 3.2.

    Rows are stored as given: normalise them first. Batches need not divide ``size``. :meth:`push` never waits for a
    GPU; the write position lives on the device.

    Args:
        size: K, rows kept.
        dim: D, width of a row.
        shadow_dtype: also keep the rows in this dtype (``torch.bfloat16``) and give those to the loss. Half the memory
            traffic; the state dict does not hold them, since they follow from the rows.
        share: push the rows of every process of ``process_group``, by rank, so that all processes hold one queue. Each
            must push as many rows. Left off, each process has its own.
        seed: of the initial rows, which depend on nothing else: processes agree, and other random draws stay put.

    The buffers are per-process state that ``DistributedDataParallel`` must not broadcast from rank 0 at every forward
    (wasted when shared, wrong when not): before wrapping, give it the names of :meth:`local_buffers`.

    >>> queue = FeatureQueue(4, 2)
    >>> queue.push(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> queue.negatives()[:2].tolist(), queue.filled.item()
    ([[1.0, 0.0], [0.0, 1.0]], 0.5)
    """

    rows: Tensor
    shadow: Tensor | None
    pointer: Tensor
    count: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        shadow_dtype: torch.dtype | None = None,
        share: bool = False,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for argument, value in (("size", size), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                _check.fail("FeatureQueue", argument, "a positive integer", repr(value))
        for argument, value in (("shadow_dtype", shadow_dtype), ("dtype", dtype)):
            _check.one_of("FeatureQueue", argument, value, (None, *_check.FLOATS))
        self.size, self.dim, self.shadow_dtype = size, dim, shadow_dtype
        self.share, self.process_group = share, process_group
        rows = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("rows", normalize(rows, dim=1).to(device, dtype or torch.get_default_dtype()))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("shadow", None, persistent=False)
        self._refresh()

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replace the oldest rows by ``rows`` ``[N, D]``, any float dtype; of more than K, the last K stay.

        Call it once per step, after the loss: :meth:`negatives` changes with it. The losses of this package know their
        gradient by then, so it may come before ``backward``.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device; processes that share a queue but push unequal batches
                (looked for on the CPU only: a GPU would have to wait).
        """
        _check.floating("FeatureQueue.push", "rows", rows)
        if rows.dim() != 2 or rows.shape[1] != self.dim:
            _check.fail("FeatureQueue.push", "rows", f"shape [N, {self.dim}]", tuple(rows.shape))
        if rows.device != self.rows.device:
            _check.fail("FeatureQueue.push", "rows", f"a tensor on {self.rows.device}", rows.device)
        rows = rows.detach().to(self.rows.dtype)
        if self.share:
            if _check.readable(rows):
                require_even("FeatureQueue.push", "rows", rows, self.process_group, option="share=True")
            rows = gather_with_gradient(rows, self.process_group)[1]
        pushed = rows.shape[0]
        kept = rows[-self.size :]
        skipped = pushed - kept.shape[0]
        # Positions repeat nowhere, so the order of the copies does not matter on any device.
        at = (self.pointer + torch.arange(skipped, pushed, device=rows.device)) % self.size
        self.rows.index_copy_(0, at, kept)
        if self.shadow is not None:
            self.shadow.index_copy_(0, at, kept.to(self.shadow.dtype))
        self.pointer.add_(pushed).remainder_(self.size)
        self.count.add_(pushed).clamp_(max=self.size)

    def negatives(self) -> Tensor:
        """The live rows ``[K, D]``, in ``shadow_dtype`` if one was asked for. Not a copy."""
        return self.rows if self.shadow is None else self.shadow

    @property
    def filled(self) -> Tensor:
        """Share of the rows that were pushed rather than drawn at the start, 0-d float32 in [0, 1] on the device."""
        return self.count.to(torch.float32) / self.size

    @staticmethod
    def local_buffers(model: nn.Module) -> list[str]:
        """Names in ``model`` of the buffers of every queue, for DDP to leave alone."""
        return [
            f"{name}.{buffer}" if name else buffer
            for name, module in model.named_modules()
            if isinstance(module, FeatureQueue)
            for buffer, _ in module.named_buffers()
        ]

    def extra_repr(self) -> str:
        return f"{self.size}, {self.dim}, shadow_dtype={self.shadow_dtype}, share={self.share}"

    def _refresh(self) -> None:
        self.shadow = None if self.shadow_dtype is None else self.rows.to(self.shadow_dtype)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self._refresh()  # a change of dtype is meant for the rows
        return self

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._refresh()
