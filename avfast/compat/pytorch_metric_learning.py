"""``pytorch_metric_learning.losses.NTXentLoss``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import _check
from ..ops.sup_con import sup_con


class NTXentLoss(nn.Module):
    r"""Constructor and call of pytorch-metric-learning's ``NTXentLoss``.

    .. math:: -\frac{1}{|P|} \sum_{(a, p) \in P} \log \frac{\exp(s_{ap} / \tau)}
              {\exp(s_{ap} / \tau) + \sum_{n \in N(a)} \exp(s_{an} / \tau)}

    over all pairs P of equal labels, with the rows of other labels as N(a): other positives of an anchor are *not* in
    the denominator. Where every anchor has one positive, as with two views of each image, that is
    :func:`avfast.sup_con` and runs its kernel. Otherwise, and with ``ref_emb``, it is plain PyTorch over the ``N x M``
    similarities, which needs less memory than there (no list of pairs times negatives) but more than a kernel.

    The other options of that library (distances, reducers, miners' ``indices_tuple``) are not taken.

    Args:
        temperature: positive number.

    Raises:
        TypeError, ValueError: a temperature that is not positive, an ``indices_tuple``, ``ref_emb`` without
            ``ref_labels``.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(NTXentLoss(1.0)(z, torch.tensor([0, 1, 0, 1])).item(), 4)  # log(1 + 2 / e)
    0.5514
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        _check.number(self.name, "temperature", temperature, above=0.0)
        self.temperature = temperature

    name = "compat.pytorch_metric_learning.NTXentLoss"

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of embeddings ``[N, D]`` with integer labels ``[N]``, against ``ref_emb`` ``[M, D]`` if it is given."""
        if indices_tuple is not None:
            _check.fail(self.name, "indices_tuple", "None: pairs are those of the labels", type(indices_tuple).__name__)
        if (ref_emb is None) != (ref_labels is None):
            _check.fail(self.name, "ref_emb, ref_labels", "both or neither", "one of them")
        if ref_emb is None and _one_positive_each(labels):
            return sup_con(embeddings, labels, temperature=self.temperature)
        return self._all_pairs(embeddings, labels, ref_emb, ref_labels)

    def _all_pairs(self, z: Tensor, labels: Tensor, other: Tensor | None, other_labels: Tensor | None) -> Tensor:
        unit = F.normalize(z.float() if z.dtype in (torch.float16, torch.bfloat16) else z, dim=1)
        columns = unit if other is None else F.normalize(other.to(unit.dtype), dim=1)
        logits = unit @ columns.T / self.temperature
        positive = labels[:, None] == (labels if other_labels is None else other_labels)[None, :]
        negatives = logits.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)
        if other is None:
            positive = positive & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        losses = F.softplus(negatives - logits)[positive]
        return losses.mean() if len(losses) else logits.sum() * 0.0

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _one_positive_each(labels: Tensor) -> bool:
    return bool((torch.unique(labels, return_counts=True)[1] == 2).all())
