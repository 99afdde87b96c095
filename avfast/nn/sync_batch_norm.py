"""Batch norm over the batches of all processes, on any device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops import _check
from ..ops._distributed import world
from ..ops._synchronised import synchronised_statistics
from ..reference.batch_norm import per_channel
from .adaptive_batch_norm import _AdaptiveBatchNorm
from .conditional_batch_norm import ConditionalBatchNorm2d
from .group_shuffle_bn import GroupShuffleBN


class SyncBatchNorm(_BatchNorm):
    """``torch.nn.SyncBatchNorm`` for processes without a GPU, which that one refuses: gloo is enough.

    In training the statistics are those of the batches of all processes of ``process_group`` together, which may differ
    in size; two sums travel forward and two back. In evaluation, and in a single process, it is torch's batch norm,
    whose state dict it has.

    >>> layer = SyncBatchNorm(3)
    >>> layer(torch.randn(2, 3, 4, 4)).shape, [*layer.state_dict()] == [*nn.BatchNorm2d(3).state_dict()]
    (torch.Size([2, 3, 4, 4]), True)
    """

    def __init__(self, *args, process_group: dist.ProcessGroup | None = None, **options) -> None:
        super().__init__(*args, **options)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            _check.fail("SyncBatchNorm", "x", "shape [N, C, *]", tuple(input.shape))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world(self.process_group)[1] == 1:
            return super().forward(x)
        self._check_input_dim(x)
        centred, mean, var, count = synchronised_statistics(x, self.process_group)
        if count < 2:
            _check.fail("SyncBatchNorm", "x", "more than 1 value per channel on all processes together", count)
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * (count / (count - 1)))
        scale = (var + self.eps).rsqrt()
        if self.affine:
            y = torch.addcmul(per_channel(self.bias, x), centred, per_channel(scale * self.weight, x))
        else:
            y = centred * per_channel(scale, x)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        for running, found in ((self.running_mean, mean), (self.running_var, var)):
            running.lerp_(found.to(running.dtype), share)


def synchronise_batch_norms(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Make the batch norms of a model use the statistics of all processes; its state dict stays what it is.

    Layers inside a :class:`avfast.nn.GroupShuffleBN` keep their groups. ABRi layers and
    :class:`avfast.nn.ConditionalBatchNorm2d` are told to synchronise, torch's layers are replaced: by
    ``torch.nn.SyncBatchNorm`` on a GPU, elsewhere by :class:`SyncBatchNorm`.

    Returns:
        ``model``, or its replacement where it is a batch norm itself.

    >>> model = synchronise_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    >>> type(model[1]).__name__
    'SyncBatchNorm'
    """
    if isinstance(model, GroupShuffleBN):
        return model
    if isinstance(model, (_AdaptiveBatchNorm, ConditionalBatchNorm2d)):
        model.sync, model.process_group = True, process_group
    elif isinstance(model, _BatchNorm) and not isinstance(model, (SyncBatchNorm, nn.SyncBatchNorm)):
        return _replaced(model, process_group)
    for name, child in model.named_children():
        setattr(model, name, synchronise_batch_norms(child, process_group))
    return model


def _replaced(layer: _BatchNorm, group: dist.ProcessGroup | None) -> _BatchNorm:
    weight = next((t for t in (layer.weight, layer.running_mean) if t is not None), None)
    kind = nn.SyncBatchNorm if weight is not None and weight.is_cuda else SyncBatchNorm
    new = kind(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, process_group=group
    )  # fmt: skip
    new.weight, new.bias = layer.weight, layer.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(layer, name))
    return new.train(layer.training)
