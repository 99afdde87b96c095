"""Convolutions and linear layers of spectral norm one, and what is left of them at inference."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-12


class _SpectralNorm:
    r"""Divides the weight :math:`W`, seen as ``[out, rest]``, by its largest singular value :math:`\sigma`.

    ``u`` ``[out]``, a buffer, follows the first left singular vector. With :math:`v = W^\top u / \|W^\top u\|`,

    .. math:: \sigma = \|W v\| \qquad u \leftarrow W v / \sigma

    Every forward in training takes that step of the power iteration; in eval ``u`` stays. Only its direction counts, so
    a copy that averages ``u`` along with the weight (:func:`avfast.nn.momentum_update` with ``buffers=True``) is in
    order. Weights start orthogonal, biases at zero.
    """

    def _start(self) -> None:
        nn.init.orthogonal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.register_buffer("u", F.normalize(torch.randn(len(self.weight)), dim=0))

    def normed_weight(self) -> Tensor:
        r""":math:`W / \sigma`, with the gradient of both."""
        matrix = self.weight.flatten(1)
        # Singular vectors in half precision would wander; autocast would take these products to it.
        with torch.autocast(matrix.device.type, enabled=False):
            with torch.no_grad():
                v = F.normalize(matrix.mT @ self.u, dim=0, eps=TINY)
                u = F.normalize(matrix @ v, dim=0, eps=TINY)
                if self.training:
                    self.u.copy_(u)
            sigma = torch.dot(u, matrix @ v)
            return self.weight / sigma.clamp_min(TINY)


class SNLinear(_SpectralNorm, nn.Linear):
    """``nn.Linear`` of spectral norm one (Miyato et al. 2018, section 2.1 and algorithm 1).

    >>> layer = SNLinear(4, 3)
    >>> _ = layer.weight.data.mul_(5), layer(torch.randn(2, 4))
    >>> round(torch.linalg.matrix_norm(layer.normed_weight(), 2).item(), 4)
    1.0
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self._start()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normed_weight(), self.bias)

    def folded(self) -> nn.Linear:
        """A plain layer with the weight of this moment."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return _filled(layer, self)


class SNConv2d(_SpectralNorm, nn.Conv2d):
    """``nn.Conv2d`` of stride 1 that keeps the size, its kernel ``[out, in * k * k]`` of spectral norm one.

    >>> SNConv2d(3, 8, 3)(torch.randn(2, 3, 16, 16)).shape
    torch.Size([2, 8, 16, 16])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self._start()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.normed_weight(), self.bias, padding=self.padding)

    def folded(self) -> nn.Conv2d:
        """A plain layer with the weight of this moment."""
        size, bias = self.kernel_size, self.bias is not None
        layer = nn.Conv2d(self.in_channels, self.out_channels, size, padding=self.padding, bias=bias, device="meta")
        return _filled(layer, self)


def _filled(layer: nn.Module, source: SNLinear | SNConv2d) -> nn.Module:
    layer.weight = nn.Parameter(source.normed_weight().detach())
    if source.bias is not None:
        layer.bias = source.bias
    return layer


@torch.no_grad()
def fold_spectral_norm(module: nn.Module) -> nn.Module:
    r"""A frozen copy for inference whose layers hold :math:`W / \sigma`.

    The copy is in eval, answers exactly as `module` does in eval, and computes no singular values.

    >>> network = nn.Sequential(SNConv2d(3, 8, 3), nn.ReLU(), SNConv2d(8, 3, 1)).eval()
    >>> folded = fold_spectral_norm(network)
    >>> x = torch.randn(2, 3, 8, 8)
    >>> torch.equal(folded(x), network(x)), [*folded.state_dict()]
    (True, ['0.weight', '0.bias', '2.weight', '2.bias'])
    """
    module = copy.deepcopy(module).eval()
    holder = nn.ModuleList([module])  # so that the module itself may be such a layer
    for parent in list(holder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _SpectralNorm):
                setattr(parent, name, child.folded())
    return holder[0].eval().requires_grad_(False)
