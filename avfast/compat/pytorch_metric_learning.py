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
    :func:`avfast.sup_con` and runs its kernel. Otherwise, with ``ref_emb`` and with the pairs of a miner, it is plain
    PyTorch over the ``N x M`` similarities, which needs less memory than there (no list of pairs times negatives) but
    more than a kernel.

    Distances, reducers and regularisers of that library are not taken.

    Args:
        temperature: positive number.

    Raises:
        TypeError, ValueError: a temperature that is not positive, embeddings that are not ``[N, D]``, labels that are
            not a tensor ``[N]``, ``ref_emb`` without ``ref_labels``, an ``indices_tuple`` of another length.

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
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of embeddings ``[N, D]``, against ``ref_emb`` ``[M, D]`` if it is given.

        Pairs are those of ``labels`` ``[N]``, or what a miner found: ``(anchor, positive, anchor, negative)`` or
        ``(anchor, positive, negative)``, each a tensor of rows; then no labels are needed.
        """
        _check.floating(self.name, "embeddings", embeddings)
        if embeddings.dim() != 2:
            _check.fail(self.name, "embeddings", "shape [N, D]", tuple(embeddings.shape))
        columns = embeddings if ref_emb is None else ref_emb
        if columns.dim() != 2 or columns.shape[1] != embeddings.shape[1]:
            _check.fail(self.name, "ref_emb", f"shape [M, {embeddings.shape[1]}]", tuple(columns.shape))
        if indices_tuple is not None:
            logits = _logits(embeddings, columns, self.temperature)
            return self._pairs(logits, *_of_miner(self.name, indices_tuple, logits))
        if (ref_emb is None) != (ref_labels is None):
            _check.fail(self.name, "ref_emb, ref_labels", "both or neither", "one of them")
        _check_labels(self.name, "labels", labels, embeddings)
        if ref_emb is None and len(labels) and _one_positive_each(labels):
            return sup_con(embeddings, labels, temperature=self.temperature)
        other = labels
        if ref_emb is not None:
            _check_labels(self.name, "ref_labels", ref_labels, ref_emb)
            other = ref_labels
        same = labels[:, None] == other[None, :]
        negative = ~same
        if ref_emb is None:
            same.fill_diagonal_(False)
        anchor, positive = same.nonzero(as_tuple=True)
        return self._pairs(_logits(embeddings, columns, self.temperature), anchor, positive, negative.float())

    def _pairs(self, logits: Tensor, anchor: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
        """Mean over pairs; ``negatives`` ``[N, M]`` says how often a row is a negative of an anchor."""
        weighed = logits + negatives.to(logits.dtype).clamp(min=1).log()
        sums = weighed.masked_fill(negatives == 0, -torch.inf).logsumexp(1)  # masked: an anchor may have no negative
        losses = F.softplus(sums[anchor] - logits[anchor, positive])
        return losses.mean() if len(losses) else logits.sum() * 0.0

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _logits(z: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """Cosines over the temperature, in float32 at least whatever autocast says."""
    with torch.autocast(z.device.type, enabled=False):
        wide = torch.promote_types(z.dtype, torch.float32)
        rows, others = (F.normalize(x.to(wide), dim=1) for x in (z, columns))
        return rows @ others.T / temperature


def _of_miner(name: str, found: tuple[Tensor, ...], logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors and positives of the pairs, and for every pair of rows how often it is a negative one."""
    if not isinstance(found, (tuple, list)) or len(found) not in (3, 4):
        got = f"{type(found).__name__} of {len(found)}" if isinstance(found, (tuple, list)) else type(found).__name__
        _check.fail(name, "indices_tuple", "(anchor, positive, anchor, negative) or (anchor, positive, negative)", got)
    anchor, positive, *of_negative, negative = found
    times = torch.ones(len(negative), device=logits.device)
    at = (of_negative[0] if of_negative else anchor, negative)
    return anchor, positive, times.new_zeros(logits.shape).index_put(at, times, accumulate=True)


def _check_labels(name: str, argument: str, labels: object, z: Tensor) -> None:
    if not isinstance(labels, Tensor):
        _check.fail(name, argument, "a tensor", type(labels).__name__, TypeError)
    if labels.shape != z.shape[:1]:
        _check.fail(name, argument, f"shape [{len(z)}]", tuple(labels.shape))


def _one_positive_each(labels: Tensor) -> bool:
    return bool((torch.unique(labels, return_counts=True)[1] == 2).all())
