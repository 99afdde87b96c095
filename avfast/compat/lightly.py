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
        rows, *width = (memory_bank_size,) if isinstance(memory_bank_size, int) else memory_bank_size
        if rows < 0 or len(width) > 1:
            expected = "rows >= 0, or (rows, width)"
            _check.fail("compat.lightly.NTXentLoss", "memory_bank_size", expected, memory_bank_size)
        self.temperature, self.gather_distributed, self.rows = temperature, gather_distributed, rows
        self.memory_bank = FeatureQueue(rows, width[0], share=gather_distributed) if rows and width else None

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Loss of two outputs ``[N, D]``."""
        if not self.rows:
            return nt_xent(out0, out1, temperature=self.temperature, gather=self.gather_distributed)
        if self.memory_bank is None:
            bank = FeatureQueue(self.rows, out1.shape[1], share=self.gather_distributed)
            self.memory_bank = bank.to(out1.device)
        negatives = self.memory_bank.negatives()
        loss = queue_info_nce(out0, out1, negatives, temperature=self.temperature)
        if out0.requires_grad:
            self.memory_bank.push(normalize(out1.detach().float(), dim=1))
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"
