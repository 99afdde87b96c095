"""``lightly.loss.NTXentLoss``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import normalize

from ..nn.feature_queue import FeatureQueue
from ..ops import _check
from ..ops.nt_xent import nt_xent
from ..ops.queue_info_nce import queue_info_nce


class NTXentLoss(nn.Module):
    """Constructor and call of lightly's ``NTXentLoss``: SimCLR's loss, or MoCo's with a memory bank.

    Without a bank: :func:`avfast.nt_xent` of both views, mean over the 2 N rows. With one: row i of ``out0`` against
    row i of ``out1`` and the bank (:func:`avfast.queue_info_nce`), after which ``out1`` joins the bank if ``out0``
    requires a gradient.

    Otherwise than there: a batch that does not fit the end of the bank goes on at its start, where lightly drops the
    rest; bank and loss are those of one process unless ``gather_distributed``.

    Args:
        temperature: positive number.
        memory_bank_size: rows of the bank, 0 for none, or ``(rows, width)`` to make it at once.
        gather_distributed: negatives from all processes; with a bank, one bank of all processes' keys.

    Raises:
        TypeError, ValueError: a temperature that is not positive, a negative size, outputs that are not ``[N, D]``.

    >>> import torch
    >>> round(NTXentLoss(temperature=1.0)(torch.eye(2), torch.eye(2)).item(), 4)
    0.5514
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        _check.number("compat.lightly.NTXentLoss", "temperature", temperature, above=0.0)
        sizes = tuple(memory_bank_size) if isinstance(memory_bank_size, (tuple, list)) else (memory_bank_size,)
        counts = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes)
        if not counts or len(sizes) not in (1, 2):
            expected = "rows >= 0, or (rows, width)"
            _check.fail("compat.lightly.NTXentLoss", "memory_bank_size", expected, repr(memory_bank_size))
        rows, *width = sizes
        self.temperature, self.gather_distributed, self.rows = temperature, gather_distributed, rows
        self.memory_bank = FeatureQueue(rows, width[0], share=gather_distributed) if rows and width else None

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Loss of two outputs ``[N, D]``."""
        if not self.rows:
            return nt_xent(out0, out1, temperature=self.temperature, gather=self.gather_distributed)
        if self.memory_bank is None:
            self.memory_bank = FeatureQueue(self.rows, out1.shape[1], share=self.gather_distributed)
        if self.memory_bank.rows.device != out1.device:  # there a loss need not be moved by hand
            self.memory_bank.to(out1.device)
        negatives = self.memory_bank.negatives()
        loss = queue_info_nce(out0, out1, negatives, temperature=self.temperature)
        if out0.requires_grad:
            self.memory_bank.push(normalize(out1.detach().float(), dim=1))
        return loss

    def _load_from_state_dict(self, state: dict, prefix: str, *rest) -> None:
        """A bank of which only the rows were told is made as wide as the saved one."""
        saved = state.get(f"{prefix}memory_bank.rows")
        if self.rows and self.memory_bank is None and saved is not None:
            self.memory_bank = FeatureQueue(self.rows, saved.shape[1], share=self.gather_distributed)
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"
