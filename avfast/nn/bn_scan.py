"""Scan every batch-norm layer of a model for abnormal channels."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from operator import getitem, is_

import torch
from torch import nn

from .. import _library, backends
from ..ops import _check
from ..ops import bn_scan as ops
from .bn_layers import batchnorm_layers
from .bn_report import BatchNormReport

_KEYS = ("weight", "bias", "running_mean", "running_var")


def _unchanged(homes: list[dict], keys: list[str], objects: list[object]) -> bool:
    """Whether ``home[key]`` is still the same object, for every row."""
    if _library.native:
        return _library.native.unchanged(homes, keys, objects)
    return all(map(is_, map(dict.get, homes, keys), objects))


class ScanPlan:
    """The batch-norm tensors of a model, found once, so that each scan is a single call.

    A plan follows its layers: a parameter whose storage moved (``p.data = ...``, ``.half()``, ``.to(device)``) or that
    was replaced by another tensor is read where it now is. Layers added, removed or replaced need a new plan.

    Args:
        model: a module, or the (name, batch-norm layer) pairs themselves.

    Raises:
        ValueError: the model has no batch-norm layer, or its layers lie on several devices.

    >>> plan = ScanPlan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    >>> plan.names, plan.channels
    (('1',), 8)
    """

    def __init__(self, model: nn.Module | Iterable[tuple[str, nn.Module]]) -> None:
        layers = list(batchnorm_layers(model) if isinstance(model, nn.Module) else model)
        if not layers:
            _check.fail("ScanPlan", "model", "a module with at least one batch-norm layer", type(model).__name__)
        self.names = tuple(name or type(layer).__name__ for name, layer in layers)
        # Where each tensor lives, so that a replaced one is noticed at C speed.
        self._homes = [home for _, m in layers for home in (m._parameters, m._parameters, m._buffers, m._buffers)]
        self._keys = [*_KEYS] * len(layers)
        self._build()

    def _build(self) -> None:
        self._tensors = list(map(getitem, self._homes, self._keys))
        self._measure()
        devices = {t.device for t in self._tensors if t is not None}
        if len(devices) > 1:
            _check.fail("ScanPlan", "model", "batch-norm layers on one device", ", ".join(sorted(map(str, devices))))
        device = devices.pop() if devices else torch.device("cpu")
        self._anchor = torch.empty(0, device=device)
        self._first = next((t for t in self._tensors if t is not None), self._anchor)
        self._release, self._number = None, None
        if _library.has_kernel("bn_scan", device.type):
            with torch.no_grad():
                self._number = ops.make_plan(*self._lists(self._tensors))
            self._release = weakref.finalize(self, ops.release_plan, self._anchor, self._number)

    def _measure(self) -> None:
        sizes = [0 if t is None else t.numel() for t in self._tensors]
        self.sizes = tuple(max(sizes[i : i + 4]) for i in range(0, len(sizes), 4))
        self.channels = sum(self.sizes)

    def _lists(self, tensors: list[torch.Tensor | None]) -> list[list[torch.Tensor]]:
        """One list per kind; an empty tensor stands for one a layer does not have."""
        present = [self._anchor if t is None else t for t in tensors]
        return [present[k::4] for k in range(4)]

    def _moved(self) -> bool:
        """Whether a tensor was replaced, or went to another device, since the plan was built."""
        if not _unchanged(self._homes, self._keys, self._tensors):
            return True
        return self._first.device != self._anchor.device

    def scan(self, threshold: float) -> ops.Scan:
        """Packed result over all layers; nothing waits for a GPU."""
        if self._moved():
            if self._release:
                self._release()
            self._build()
        if self._number is not None and backends.current() in ("auto", "cpp", "cuda"):
            scan = ops.Scan(*ops.scan_planned(self._anchor, self._number, threshold))
        else:
            tensors = [None if t is None else t.detach() for t in self._tensors]
            scan = ops.Scan(*ops.scan(*self._lists(tensors), threshold))
        if len(scan.score) != self.channels:  # parameters were pruned in place
            self._measure()
        return scan


def scan_batchnorm(model: nn.Module, *, threshold: float = 1e-10, plan: ScanPlan | None = None) -> BatchNormReport:
    r"""Find the abnormal channels of every batch-norm layer in one pass.

    Per channel, from gamma, beta and the running mean and variance:

    * *abnormal*: ``|gamma| <= threshold`` and ``|beta| <= threshold``; such a channel emits next to nothing, and
      passes next to no gradient to the filter before it;
    * *score* :math:`\max(|\gamma|, |\beta|)`: the smallest threshold that would call it abnormal;
    * *live* :math:`\Phi(\beta / |\gamma|)`: the probability that a ReLU after it is open, were its input Gaussian;
    * *non-finite*: NaN or infinity in any of the four; *collapsed*: running variance at most the threshold.

    Source: Wang et al. 2023, "Revisiting Pre-training in Audio-Visual Learning", section 3. Thresholds from 1e-40 (a
    denormal) to 2e-5 appear there, hence the argument; denormals count whatever the host's flush mode.

    Args:
        model: any module with batch-norm layers (1d, 2d, 3d, Sync, ABRi); lazy ones without a shape are skipped.
        threshold: number >= 0.
        plan: a :class:`ScanPlan` of the same model, for repeated scans.

    Raises:
        ValueError: no batch-norm layer, layers on several devices, negative or NaN threshold.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> _ = net[1].weight.data[:2].zero_()
    >>> scan_batchnorm(net).abnormal
    2
    """
    if not 0 <= threshold < float("inf"):
        _check.number("scan_batchnorm", "threshold", threshold, at_least=0.0)
    plan = plan or ScanPlan(model)
    scan = plan.scan(threshold)
    return BatchNormReport(plan.names, plan.sizes, threshold, scan)
