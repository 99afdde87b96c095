"""``open_clip.ClipLoss`` and ``open_clip.SigLipLoss``."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from ..ops import _check
from ..ops._distributed import world
from ..ops.info_nce import info_nce
from ..ops.sigmoid_contrastive import sigmoid_contrastive

EXCHANGES = (None, "bidir", "shift", "reduce", "gather")


class _Distributed(nn.Module):
    """What both losses take about processes."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size

    def check_world(self) -> None:
        found = world()
        if self.world_size > 1 and found != (self.rank, self.world_size):
            name = f"compat.open_clip.{type(self).__name__}"
            expected = f"{self.rank}, {self.world_size} as torch.distributed says"
            _check.fail(name, "rank, world_size", expected, f"{found[0]}, {found[1]} there")

    def result(self, loss: Tensor, output_dict: bool) -> Tensor | dict[str, Tensor]:
        return {"contrastive_loss": loss} if output_dict else loss


class ClipLoss(_Distributed):
    """Constructor and call of open_clip's ``ClipLoss``; features come normalised, as there.

    Each process computes its own rows against all columns, never the global matrix. Value and gradient are those of
    open_clip with the same options: the mean of the local loss over processes where ``local_loss`` is off; and with
    ``gather_with_grad`` off, gradients of the features 1 / world_size of the exact ones, as DDP makes them there.

    Args:
        local_loss: give the loss of this process's rows rather than the global mean.
        gather_with_grad: let gradients reach the features of other processes. Turning it off together with
            ``local_loss`` on is refused: that gradient leaves out the columns.
        cache_labels: taken and without effect; no labels are made.
        rank, world_size: as ``torch.distributed`` says.
        use_horovod: must be false.

    Raises:
        ValueError: horovod, ``local_loss`` without ``gather_with_grad`` on several processes, or a rank and world size
            other than those of ``torch.distributed``.

    >>> features = torch.eye(4)
    >>> round(ClipLoss()(features, features, torch.tensor(1.0)).item(), 4)
    0.7437
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__(rank, world_size)
        name = "compat.open_clip.ClipLoss"
        if use_horovod:
            _check.fail(name, "use_horovod", "False", use_horovod)
        if world_size > 1 and local_loss and not gather_with_grad:
            _check.fail(name, "gather_with_grad", "True with local_loss=True", gather_with_grad)
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Loss of features ``[N, D]``; ``logit_scale`` is one over the temperature."""
        self.check_world()
        if not isinstance(logit_scale, Tensor):
            _check.number("compat.open_clip.ClipLoss", "logit_scale", logit_scale, above=0.0)
        several = self.world_size > 1
        if several and not self.gather_with_grad:
            image_features, text_features = (
                _scaled_gradient(x, self.world_size) for x in (image_features, text_features)
            )
        loss = info_nce(
            image_features, text_features, temperature=1.0 / logit_scale, normalize=False, gather=several,
        )  # fmt: skip
        if several and not self.local_loss:
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            loss = loss + (mean / self.world_size - loss.detach())
        if isinstance(logit_bias, Tensor):
            loss = loss + 0.0 * logit_bias.sum()  # the same for every logit: no effect, but DDP wants its gradient
        return self.result(loss, output_dict)


def _scaled_gradient(x: Tensor, by: int) -> Tensor:
    """The same values with 1 / ``by`` of their gradient."""
    part = x / by
    return part + (x - part).detach()


class SigLipLoss(_Distributed):
    """Constructor and call of open_clip's ``SigLipLoss``; features come normalised, as there.

    Args:
        cache_labels: taken and without effect; no labels are made.
        rank, world_size: as ``torch.distributed`` says.
        dist_impl: how features travel there (``"bidir"``, ``"shift"``, ``"reduce"``, ``"gather"``); the loss is the
            same, and here they are always gathered.

    Raises:
        ValueError: another ``dist_impl``, or a rank and world size other than those of ``torch.distributed``.

    >>> features = torch.eye(2)
    >>> round(SigLipLoss()(features, features, torch.tensor(10.0), torch.tensor(-10.0)).item(), 4)
    0.6932
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__(rank, world_size)
        _check.one_of("compat.open_clip.SigLipLoss", "dist_impl", dist_impl, EXCHANGES)
        self.cache_labels, self.dist_impl = cache_labels, dist_impl

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Loss of features ``[N, D]``."""
        self.check_world()
        loss = sigmoid_contrastive(
            image_features, text_features, scale=logit_scale, bias=logit_bias, normalize=False,
            gather=self.world_size > 1,
        )  # fmt: skip
        return self.result(loss, output_dict)
