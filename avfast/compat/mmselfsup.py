"""The losses and queues of mmselfsup's ``DenseCL``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import normalize

from ..nn.feature_queue import FeatureQueue
from ..nn.momentum import momentum_update
from ..ops import _check
from ..ops.dense_contrastive import dense_contrastive
from ..ops.queue_info_nce import queue_info_nce

NAME = "compat.mmselfsup.DenseCL"


class DenseCL(nn.Module):
    """Arguments, queues and losses of mmselfsup's ``DenseCL`` algorithm and its ``ContrastiveHead``.

    ``momentum`` is the share of *new* weights, 0.001, as in mmselfsup 1.x. In 0.x it was the share of old ones, 0.999:
    a value above one half is refused, since it would be the other convention.

    Args:
        queue_len: rows of each queue; batches need not divide it.
        feat_dim: width of the neck's outputs.
        momentum: share of new weights that :meth:`update` takes, in [0, 0.5].
        loss_lambda: weight of the dense loss, in [0, 1]; the global one has the rest.
        temperature: of the head.

    Raises:
        TypeError, ValueError: a value out of range, maps that do not fit.

    >>> loss = DenseCL(queue_len=8, feat_dim=2)
    >>> feature, neck = torch.ones(1, 3, 4), (torch.ones(1, 2), torch.ones(1, 2, 4), torch.ones(1, 2))
    >>> sorted(loss(feature, neck, feature, neck)), loss.queue2.filled.item()
    (['loss_dense', 'loss_single'], 0.125)
    """

    def __init__(
        self,
        queue_len: int = 65536,
        feat_dim: int = 128,
        momentum: float = 0.001,
        loss_lambda: float = 0.5,
        temperature: float = 0.2,
    ) -> None:
        super().__init__()
        for argument, value, most in (("momentum", momentum, 0.5), ("loss_lambda", loss_lambda, 1.0)):
            _check.number(NAME, argument, value, at_least=0.0)
            if value > most:
                hint = ", the share of new weights" if argument == "momentum" else ""
                _check.fail(NAME, argument, f"a number in [0, {most:g}]{hint}", value)
        _check.number(NAME, "temperature", temperature, above=0.0)
        self.momentum, self.loss_lambda, self.temperature = momentum, loss_lambda, temperature
        self.queue, self.queue2 = (FeatureQueue(queue_len, feat_dim, seed=seed) for seed in (0, 1))

    def forward(
        self, feature_q: Tensor, neck_q: Sequence[Tensor], feature_k: Tensor, neck_k: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Both weighted losses; then the keys join the queues.

        Args:
            feature_q, feature_k: maps of the backbone ``[N, C, *S]``, from which the correspondence is taken.
            neck_q, neck_k: what ``DenseCLNeck`` gives: a vector ``[N, D]``, a grid ``[N, D, *S]`` and its mean
                ``[N, D]``.
        """
        q, q_grid, _ = neck_q
        k, k_grid, k2 = (x.detach() for x in neck_k)
        single = queue_info_nce(q, k, self.queue.negatives(), temperature=self.temperature)
        dense = dense_contrastive(
            q_grid, k_grid, self.queue2.negatives(), "feature", feat_q=feature_q, feat_k=feature_k,
            temperature=self.temperature,
        )  # fmt: skip
        for queue, keys in ((self.queue, k), (self.queue2, k2)):
            queue.push(normalize(keys, dim=1))
        return {"loss_single": (1 - self.loss_lambda) * single, "loss_dense": self.loss_lambda * dense}

    def update(self, encoder_q: nn.Module, encoder_k: nn.Module) -> None:
        """``encoder_k = (1 - momentum) encoder_k + momentum encoder_q``."""
        momentum_update(encoder_q, encoder_k, 1.0 - self.momentum)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, loss_lambda={self.loss_lambda}, temperature={self.temperature}"
