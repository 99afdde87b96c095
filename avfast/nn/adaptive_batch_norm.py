"""ABRi layers: a pre-trained batch norm mixed with a fresh one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..ops import _check
from ..ops.blended_batch_norm import blended_batch_norm
from ..ops.channel_affine import ACTIVATIONS


class _AdaptiveBatchNorm(_NormBase):
    # _NormBase, not _BatchNorm: convert_sync_batchnorm replaces every _BatchNorm and would drop the fresh half.
    _dims: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        alpha: float = 0.5,
        alpha_shape: str = "channel",
        activation: str | None = None,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        sync: bool = False,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        _check.number(name, "alpha", alpha)
        _check.one_of(name, "alpha_shape", alpha_shape, ("channel", "scalar"))
        _check.one_of(name, "activation", activation, ACTIVATIONS)
        super().__init__(num_features, eps, momentum, affine=True, track_running_stats=True, device=device, dtype=dtype)
        self.activation, self.sync, self.process_group = activation, sync, process_group
        factory = {"device": device, "dtype": dtype}
        self.new_weight = torch.nn.Parameter(torch.ones(num_features, **factory))
        self.new_bias = torch.nn.Parameter(torch.zeros(num_features, **factory))
        shape = (num_features,) if alpha_shape == "channel" else ()
        self.alpha = torch.nn.Parameter(torch.full(shape, float(alpha), **factory))
        self.register_buffer("new_running_mean", torch.zeros(num_features, **factory))
        self.register_buffer("new_running_var", torch.ones(num_features, **factory))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in self._dims:
            _check.fail(type(self).__name__, "x", " or ".join(f"{d} dimensions" for d in self._dims), tuple(x.shape))
        momentum = self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # cumulative average, as torch's batch norm defines it
                momentum = 1.0 / float(self.num_batches_tracked)
        return blended_batch_norm(
            x,
            self.weight,
            self.bias,
            self.new_weight,
            self.new_bias,
            self.alpha,
            running_mean=self.running_mean,
            running_var=self.running_var,
            new_running_mean=self.new_running_mean,
            new_running_var=self.new_running_var,
            training=self.training,
            momentum=momentum,
            eps=self.eps,
            activation=self.activation,
            sync=self.sync,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        shape = "channel" if self.alpha.dim() else "scalar"
        return f"{self.num_features}, alpha_shape={shape!r}, activation={self.activation!r}, eps={self.eps}"


class AdaptiveBatchNorm1d(_AdaptiveBatchNorm):
    """:class:`AdaptiveBatchNorm2d` for ``[N, C]`` and ``[N, C, L]``."""

    _dims = (2, 3)


class AdaptiveBatchNorm2d(_AdaptiveBatchNorm):
    r"""Adaptive batch norm with re-initialisation (ABRi) over ``[N, C, H, W]``.

    .. math:: y = \mathrm{act}(\alpha\,\mathrm{BN}_\text{pre-trained}(x) + (1-\alpha)\,\mathrm{BN}_\text{fresh}(x))

    ``weight``, ``bias``, ``running_mean`` and ``running_var`` are the pre-trained half, under the names of torch's
    batch norm, so its state dict loads into them; ``new_*`` are the fresh half, and ``alpha`` mixes them. Computed as
    one batch norm (:func:`avfast.blended_batch_norm`). ``avfast.fold_abri`` turns a trained layer back into a plain
    one. In evaluation mode (also while the rest of a model trains: frozen statistics) gradients reach every parameter.
    Source: Wang et al. 2023, "Revisiting Pre-training in Audio-Visual Learning", section 4, figure 3.

    Args:
        num_features: channels.
        alpha: initial share of the pre-trained half; trained, unconstrained.
        alpha_shape: ``"channel"`` (the paper's method) or ``"scalar"`` (its ablation).
        activation: ``None`` or ``"relu"``, fused.
        sync: statistics over all processes of ``process_group``.

    Raises:
        ValueError: unknown option, wrong number of dimensions.

    >>> layer = AdaptiveBatchNorm2d(3, activation="relu")
    >>> layer(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    _dims = (4,)


class AdaptiveBatchNorm3d(_AdaptiveBatchNorm):
    """:class:`AdaptiveBatchNorm2d` for ``[N, C, T, H, W]``."""

    _dims = (5,)
