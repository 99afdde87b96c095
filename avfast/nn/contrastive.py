"""The contrastive losses as modules: arguments of the functions, and a temperature that may be learned."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops import _check
from ..ops.dense_contrastive import Correspondence, dense_contrastive
from ..ops.dense_match import DenseMatch
from ..ops.info_nce import info_nce
from ..ops.nt_xent import nt_xent
from ..ops.queue_info_nce import QueueLoss, queue_info_nce
from ..ops.sigmoid_contrastive import sigmoid_contrastive
from ..ops.sup_con import sup_con


class _Contrastive(nn.Module):
    """A loss with options, printed as they were given."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if name != "process_group")


class _Tempered(_Contrastive):
    """With ``learnable_temperature`` the logarithm of the temperature is a parameter."""

    def __init__(
        self, temperature: float, learnable_temperature: bool, min_temperature: float | None, **options: Any
    ) -> None:
        name = type(self).__name__
        _check.number(name, "temperature", temperature, above=0.0)
        if min_temperature is not None:
            _check.number(name, "min_temperature", min_temperature, above=0.0)
            if not learnable_temperature or min_temperature > temperature:
                expected = f"None, or a number up to {temperature} with learnable_temperature=True"
                _check.fail(name, "min_temperature", expected, min_temperature)
        super().__init__(**options)
        self.fixed_temperature, self.min_temperature = float(temperature), min_temperature
        start = torch.tensor(math.log(temperature)) if learnable_temperature else None
        self.log_temperature = nn.Parameter(start) if learnable_temperature else None

    @property
    def temperature(self) -> float | Tensor:
        """The number, or a 0-d tensor with a gradient, never below ``min_temperature``."""
        if self.log_temperature is None:
            return self.fixed_temperature
        temperature = self.log_temperature.float().exp()
        if self.min_temperature is None:
            return temperature
        # The bound has no say in the gradient: a temperature below it could else never rise again.
        return temperature + (temperature.clamp_min(self.min_temperature) - temperature).detach()

    def extra_repr(self) -> str:
        learned = self.log_temperature is not None
        value = self.temperature.item() if learned else self.fixed_temperature
        temperature = f"temperature={value:.4g}{' (learned)' if learned else ''}"
        return ", ".join(filter(None, (temperature, super().extra_repr())))


class InfoNCE(_Tempered):
    """:func:`avfast.info_nce` as a module.

    Args:
        temperature: positive number; where it starts if it is learned.
        distance, normalize, symmetric, gather, process_group, reduction: as for the function.
        learnable_temperature: make it a parameter, ``log_temperature``. CLIP starts at 0.07.
        min_temperature: lower bound of a learned one; 0.01 in CLIP (Radford et al. 2021, section 2.5).

    Raises:
        TypeError, ValueError: a temperature or bound that is not positive, a bound without a learned temperature.

    >>> loss = InfoNCE(0.07, learnable_temperature=True, min_temperature=0.01)
    >>> loss(torch.eye(4), torch.eye(4)).backward()
    >>> round(loss.temperature.item(), 4), loss.log_temperature.grad.shape
    (0.07, torch.Size([]))
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        distance: str = "cosine",
        normalize: bool = True,
        symmetric: bool = True,
        gather: bool = False,
        process_group: dist.ProcessGroup | None = None,
        reduction: str = "mean",
        learnable_temperature: bool = False,
        min_temperature: float | None = None,
    ) -> None:
        super().__init__(
            temperature, learnable_temperature, min_temperature, distance=distance, normalize=normalize,
            symmetric=symmetric, gather=gather, process_group=process_group, reduction=reduction,
        )  # fmt: skip

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Loss of features ``[N, D]``."""
        return info_nce(z_a, z_b, temperature=self.temperature, **self.options)


class NTXent(_Tempered):
    """:func:`avfast.nt_xent` as a module.

    Args:
        temperature, learnable_temperature, min_temperature: as for :class:`InfoNCE`.
        normalize, gather, process_group, reduction: as for the function.

    Raises:
        TypeError, ValueError: as :class:`InfoNCE`.

    >>> round(NTXent(1.0)(torch.eye(2), torch.eye(2)).item(), 4)
    0.5514
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        normalize: bool = True,
        gather: bool = False,
        process_group: dist.ProcessGroup | None = None,
        reduction: str = "mean",
        learnable_temperature: bool = False,
        min_temperature: float | None = None,
    ) -> None:
        super().__init__(
            temperature, learnable_temperature, min_temperature, normalize=normalize, gather=gather,
            process_group=process_group, reduction=reduction,
        )  # fmt: skip

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Loss of two views ``[N, D]``."""
        return nt_xent(z_a, z_b, temperature=self.temperature, **self.options)


class SupCon(_Tempered):
    """:func:`avfast.sup_con` as a module.

    Args:
        temperature, learnable_temperature, min_temperature: as for :class:`InfoNCE`.
        normalize, gather, process_group, reduction: as for the function.

    Raises:
        TypeError, ValueError: as :class:`InfoNCE`.

    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> round(SupCon(1.0)(z, torch.tensor([3, 3, 5])).item(), 4)
    0.3133
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        normalize: bool = True,
        gather: bool = False,
        process_group: dist.ProcessGroup | None = None,
        reduction: str = "mean",
        learnable_temperature: bool = False,
        min_temperature: float | None = None,
    ) -> None:
        super().__init__(
            temperature, learnable_temperature, min_temperature, normalize=normalize, gather=gather,
            process_group=process_group, reduction=reduction,
        )  # fmt: skip

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Loss of features ``[N, D]`` with integer labels ``[N]``."""
        return sup_con(z, labels, temperature=self.temperature, **self.options)


class SigmoidContrastive(_Contrastive):
    """:func:`avfast.sigmoid_contrastive` as a module, with scale and bias learned as in SigLIP.

    Args:
        scale: positive number, where the scale starts; its logarithm is the parameter ``log_scale``.
        bias: number, where the parameter ``bias`` starts. 10 and -10 are those of Zhai et al. 2023, section 3.2: at the
            start nearly every pair is a negative, and the loss begins near log 2 per positive rather than N log 2.
        normalize, gather, process_group, reduction: as for the function.
        learnable: whether both are parameters.

    Raises:
        TypeError, ValueError: a scale that is not positive, a bias that is not finite.

    >>> loss = SigmoidContrastive()
    >>> round(loss(torch.eye(2), torch.eye(2)).item(), 4), [name for name, _ in loss.named_parameters()]
    (0.6932, ['log_scale', 'bias'])
    """

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        *,
        normalize: bool = True,
        gather: bool = False,
        process_group: dist.ProcessGroup | None = None,
        reduction: str = "mean",
        learnable: bool = True,
    ) -> None:
        _check.number("SigmoidContrastive", "scale", scale, above=0.0)
        _check.number("SigmoidContrastive", "bias", bias)
        super().__init__(normalize=normalize, gather=gather, process_group=process_group, reduction=reduction)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learnable)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learnable)

    @property
    def scale(self) -> Tensor:
        return self.log_scale.float().exp()

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Loss of features ``[N, D]``."""
        return sigmoid_contrastive(z_a, z_b, scale=self.scale, bias=self.bias.float(), **self.options)

    def extra_repr(self) -> str:
        return f"scale={self.scale.item():.4g}, bias={self.bias.item():.4g}, {super().extra_repr()}"


class QueueInfoNCE(_Contrastive):
    """:func:`avfast.queue_info_nce` as a module; the queue is given with each call, see :class:`FeatureQueue`.

    Args:
        temperature, normalize, reduction, return_parts: as for the function.

    Raises:
        TypeError, ValueError: a temperature that is not positive.

    >>> q = torch.eye(3)
    >>> round(QueueInfoNCE(1.0)(q, q, -q).item(), 4)
    0.6265
    """

    def __init__(
        self, temperature: float = 0.2, *, normalize: bool = True, reduction: str = "mean", return_parts: bool = False
    ) -> None:
        _check.number("QueueInfoNCE", "temperature", temperature, above=0.0)
        super().__init__(temperature=temperature, normalize=normalize, reduction=reduction, return_parts=return_parts)

    def forward(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor | QueueLoss:
        """Loss of queries and keys ``[N, D]`` against a queue ``[K, D]``."""
        return queue_info_nce(q, k, queue, **self.options)


class DenseContrastive(_Contrastive):
    """:func:`avfast.dense_contrastive` as a module.

    Args:
        temperature, normalize, reduction, return_parts: as for the function.

    Raises:
        TypeError, ValueError: a temperature that is not positive.

    >>> q = torch.eye(2).expand(1, 2, 2)  # [B=1, D=2, S=2]
    >>> round(DenseContrastive(1.0)(q, q, -torch.eye(2), torch.tensor([[0, 1]])).item(), 4)
    0.4076
    """

    def __init__(
        self, temperature: float = 0.2, *, normalize: bool = True, reduction: str = "mean", return_parts: bool = False
    ) -> None:
        _check.number("DenseContrastive", "temperature", temperature, above=0.0)
        super().__init__(temperature=temperature, normalize=normalize, reduction=reduction, return_parts=return_parts)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        queue: Tensor,
        match: Tensor | Correspondence | DenseMatch | str,
        *,
        feat_q: Tensor | None = None,
        feat_k: Tensor | None = None,
    ) -> Tensor | QueueLoss:
        """Loss of maps ``[B, D, *S]`` against a queue ``[K, D]``; ``match`` as for the function."""
        return dense_contrastive(q, k, queue, match, feat_q=feat_q, feat_k=feat_k, **self.options)
