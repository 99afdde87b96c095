"""Scan of many batch-norm layers at once. Private: :func:`avfast.scan_batchnorm` is the public face."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import batch_norm as reference
from . import _registry


class Scan(NamedTuple):
    """Packed result over all layers: flags uint8 [C], score and live float32 [C], counts int32 [layers, 3]."""

    flags: Tensor
    score: Tensor
    live: Tensor
    counts: Tensor


def _fake(
    weight: list[Tensor], bias: list[Tensor], running_mean: list[Tensor], running_var: list[Tensor], threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layers = list(zip(weight, bias, running_mean, running_var, strict=True))
    n = sum(max(t.numel() for t in layer) for layer in layers)
    like = next((t for layer in layers for t in layer if t.numel()), torch.empty(0))
    return (
        like.new_empty(n, dtype=torch.uint8),
        like.new_empty(n, dtype=torch.float32),
        like.new_empty(n, dtype=torch.float32),
        like.new_empty((len(layers), 3), dtype=torch.int32),
    )


scan = _registry.define(
    "bn_scan(Tensor[] weight, Tensor[] bias, Tensor[] running_mean, Tensor[] running_var, float threshold)"
    " -> (Tensor flags, Tensor score, Tensor live, Tensor counts)",
    op="scan_batchnorm",
    reference=reference.bn_scan,
    fake=_fake,
)

# A plan keeps the tensors' handles inside the library, because unpacking a long list costs more than the scan. These
# three exist only there; the anchor is any tensor of the plan and carries the device.
_registry.LIBRARY.define(
    "bn_scan_plan(Tensor[] weight, Tensor[] bias, Tensor[] running_mean, Tensor[] running_var) -> int"
)
_registry.LIBRARY.define(
    "bn_scan_planned(Tensor anchor, int plan, float threshold)"
    " -> (Tensor flags, Tensor score, Tensor live, Tensor counts)"
)
_registry.LIBRARY.define("bn_scan_release(Tensor anchor, int plan) -> ()")
make_plan = torch.ops.avfast.bn_scan_plan.default
scan_planned = torch.ops.avfast.bn_scan_planned.default
release_plan = torch.ops.avfast.bn_scan_release.default
