"""ABRi over a whole model: convert batch norms, fold them back, or reset them (the paper's baselines)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops import _check
from ..reference.batch_norm import evaluation_affine
from .adaptive_batch_norm import AdaptiveBatchNorm1d, AdaptiveBatchNorm2d, AdaptiveBatchNorm3d, _AdaptiveBatchNorm
from .bn_layers import batchnorm_layers

_ADAPTIVE = {
    nn.BatchNorm1d: AdaptiveBatchNorm1d,
    nn.BatchNorm2d: AdaptiveBatchNorm2d,
    nn.BatchNorm3d: AdaptiveBatchNorm3d,
}
_PLAIN = {adaptive: plain for plain, adaptive in _ADAPTIVE.items()}


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _abnormal(layer: _BatchNorm | _AdaptiveBatchNorm, threshold: float) -> torch.Tensor:
    """Bool [C]: gamma and beta both at most the threshold in magnitude."""
    return torch.maximum(layer.weight.detach().abs(), layer.bias.detach().abs()).float() <= threshold


def _check_which(op: str, which: str, threshold: float) -> None:
    _check.one_of(op, "which", which, ("all", "abnormal"))
    _check.number(op, "threshold", threshold, at_least=0.0)


def convert_abri(
    model: nn.Module,
    which: str = "all",
    *,
    alpha: float = 0.5,
    alpha_shape: str = "channel",
    threshold: float = 1e-10,
) -> nn.Module:
    """Replace batch norms by :class:`~avfast.nn.AdaptiveBatchNorm2d` and its kin, in place.

    Each new layer keeps the tensors it replaces as its pre-trained half, so existing references and optimiser entries
    stay valid; the fresh half starts at gamma 1, beta 0, mean 0, variance 1.

    Args:
        model: any module; a lone batch norm is returned converted.
        which: ``"all"``, or ``"abnormal"`` for the layers with at least one abnormal channel.
        alpha, alpha_shape: see :class:`~avfast.nn.AdaptiveBatchNorm2d`.
        threshold: a channel is abnormal if |gamma| and |beta| are at most this.

    Returns:
        ``model``.

    Raises:
        ValueError: unknown option, or a batch norm without affine parameters or running statistics (named).

    >>> net = convert_abri(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    >>> type(net[1]).__name__
    'AdaptiveBatchNorm2d'
    """
    _check_which("convert_abri", which, threshold)
    for name, layer in list(batchnorm_layers(model)):
        if isinstance(layer, _AdaptiveBatchNorm):
            continue
        if layer.weight is None or layer.running_mean is None:
            lack = "affine parameters" if layer.weight is None else "running statistics"
            _check.fail(
                "convert_abri",
                f"model.{name}",
                "a batch norm with affine parameters and running statistics",
                f"no {lack}",
            )
        if which == "abnormal" and not _abnormal(layer, threshold).any():
            continue
        adaptive = _adaptive_from(layer, alpha, alpha_shape)
        if not name:
            return adaptive
        _replace(model, name, adaptive)
    return model


def _adaptive_from(layer: _BatchNorm, alpha: float, alpha_shape: str) -> _AdaptiveBatchNorm:
    sync = isinstance(layer, nn.SyncBatchNorm)
    kind = AdaptiveBatchNorm2d if sync else next(a for p, a in _ADAPTIVE.items() if isinstance(layer, p))
    adaptive = kind(
        layer.num_features,
        alpha,
        alpha_shape,
        eps=layer.eps,
        momentum=layer.momentum,
        sync=sync,
        process_group=layer.process_group if sync else None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    adaptive.weight, adaptive.bias = layer.weight, layer.bias
    adaptive.running_mean, adaptive.running_var = layer.running_mean, layer.running_var
    adaptive.num_batches_tracked = layer.num_batches_tracked
    return adaptive.train(layer.training)


@torch.no_grad()
def fold_abri(model: nn.Module) -> nn.Module:
    """Turn every ABRi layer back into one plain batch norm with the same evaluation output, in place.

    In evaluation both halves are affine, so their mix is: ``A_c x + B_c`` (kernels/batch_norm/NOTES.md). The plain
    layer keeps the pre-trained half's statistics and carries A and B in gamma and beta, computed in float64. A fused
    ReLU becomes a module of its own. Nothing but the evaluation output is preserved: training on is another model.

    Returns:
        ``model`` (or the folded layer, if ``model`` is one).

    >>> layer = AdaptiveBatchNorm2d(4).eval()
    >>> x = torch.randn(2, 4, 3, 3)
    >>> torch.allclose(fold_abri(nn.Sequential(layer))(x), layer(x), atol=1e-6)
    True
    """
    for name, layer in list(batchnorm_layers(model)):
        if not isinstance(layer, _AdaptiveBatchNorm):
            continue
        plain: nn.Module = _folded(layer)
        if layer.activation == "relu":
            plain = nn.Sequential(plain, nn.ReLU()).train(layer.training)
        if not name:
            return plain
        _replace(model, name, plain)
    return model


def _folded(layer: _AdaptiveBatchNorm) -> _BatchNorm:
    wide = [
        t.double()
        for t in (
            layer.weight, layer.bias, layer.new_weight, layer.new_bias, layer.alpha,
            layer.running_mean, layer.running_var, layer.new_running_mean, layer.new_running_var,
        )
    ]  # fmt: skip
    mean, var = wide[5:7]
    scale, shift = evaluation_affine(*wide, layer.eps)
    plain = _PLAIN[type(layer)](
        layer.num_features, layer.eps, layer.momentum, device=layer.weight.device, dtype=layer.weight.dtype
    )
    plain.weight.copy_(scale * (var + layer.eps).sqrt())
    plain.bias.copy_(shift + scale * mean)
    plain.running_mean.copy_(layer.running_mean)
    plain.running_var.copy_(layer.running_var)
    plain.num_batches_tracked.copy_(layer.num_batches_tracked)
    return plain.train(layer.training)


@torch.no_grad()
def reset_batchnorm(
    model: nn.Module, which: str = "all", *, threshold: float = 1e-10, compat: str | None = None
) -> int:
    """Reset batch norms to gamma 1, beta 0, in place: the two baselines ABRi is compared with.

    Args:
        which: ``"all"`` resets every layer, its running mean to 0 and variance to 1 as well; ``"abnormal"`` resets only
            channels with |gamma| and |beta| at most ``threshold`` and leaves their running statistics alone.
        threshold: for ``"abnormal"``.
        compat: ``"released"`` follows the authors' code instead: ``"abnormal"`` means |gamma| < 1e-6, whatever beta is.

    Returns:
        The number of channels that were reset.

    >>> net = nn.Sequential(nn.BatchNorm2d(3))
    >>> _ = net[0].weight.data[1].zero_()
    >>> reset_batchnorm(net, "abnormal"), net[0].weight.tolist()
    (1, [1.0, 1.0, 1.0])
    """
    _check_which("reset_batchnorm", which, threshold)
    _check.one_of("reset_batchnorm", "compat", compat, (None, "released"))
    total = 0
    for _, layer in batchnorm_layers(model):
        if layer.weight is None:
            continue
        if which == "all":
            layer.weight.fill_(1)
            layer.bias.zero_()
            if layer.running_mean is not None:
                layer.running_mean.zero_()
                layer.running_var.fill_(1)
            total += layer.num_features
            continue
        channels = layer.weight.abs() < 1e-6 if compat == "released" else _abnormal(layer, threshold)
        layer.weight[channels] = 1
        layer.bias[channels] = 0
        total += int(channels.sum())
    return total
