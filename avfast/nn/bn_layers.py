"""The batch-norm layers of a model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from .adaptive_batch_norm import _AdaptiveBatchNorm


def batchnorm_layers(model: nn.Module) -> Iterator[tuple[str, _BatchNorm | _AdaptiveBatchNorm]]:
    """(name, layer) in the model's order: 1d, 2d, 3d, Sync and ABRi. Lazy layers that have no shape yet are skipped."""
    for name, module in model.named_modules():
        if isinstance(module, (_BatchNorm, _AdaptiveBatchNorm)):
            if not any(is_lazy(t) for t in (module.weight, module.running_mean) if t is not None):
                yield name, module
