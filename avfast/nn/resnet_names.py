"""Names of residual networks: those of torchvision and of ABRi's release, in those of `transformers`."""

from __future__ import annotations

import re

_STEM = {"conv1": "convolution", "bn1": "normalization"}
_SHORTCUT = {"0": "convolution", "conv": "convolution", "1": "normalization", "bn": "normalization"}
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(?:(conv|bn)(\d+)|downsample\.(0|1|conv|bn))\.(\w+)")


def to_transformers(name: str) -> str | None:
    """The name of a tensor in ``transformers.ResNetModel``, or None for what has none there (the classifier).

    >>> to_transformers("layer2.0.downsample.0.weight")
    'encoder.stages.1.layers.0.shortcut.convolution.weight'
    >>> to_transformers("bn1.running_mean"), to_transformers("fc.bias")
    ('embedder.embedder.normalization.running_mean', None)
    """
    module, _, leaf = name.rpartition(".")
    if module in _STEM:
        return f"embedder.embedder.{_STEM[module]}.{leaf}"
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    stage, block, kind, number, shortcut, leaf = found.groups()
    where = f"encoder.stages.{int(stage) - 1}.layers.{block}"
    if shortcut is not None:
        return f"{where}.shortcut.{_SHORTCUT[shortcut]}.{leaf}"
    return f"{where}.layer.{int(number) - 1}.{_STEM[kind + '1']}.{leaf}"


def foreign(names: object) -> bool:
    """Whether names are torchvision's: a stem called ``conv1`` and stages called ``layer1`` and so on.

    >>> foreign(["conv1.weight", "layer1.0.conv1.weight"]), foreign(["embedder.embedder.convolution.weight"])
    (True, False)
    """
    known = set(names)
    return "conv1.weight" in known and any(name.startswith("layer1.") for name in known)
