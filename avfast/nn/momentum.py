"""The slow copy of a network that momentum methods learn from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..ops import _check
from .shares import own_share


@torch.no_grad()
def momentum_update(encoder: nn.Module, momentum_encoder: nn.Module, m: float, *, buffers: bool = False) -> None:
    r"""Move a momentum encoder towards the encoder, in place.

    .. math:: \theta' \leftarrow m\,\theta' + (1 - m)\,\theta

    One ``torch._foreach_lerp_`` per device and dtype, not three launches per tensor; of networks that FSDP divided,
    every process moves its share. Parameters only, as in He et al. 2020, MoCo, section 3.2: the running statistics of
    the momentum encoder are its own.

    Args:
        encoder: the network that trains.
        momentum_encoder: its copy (``copy.deepcopy(encoder).requires_grad_(False)``); dtype and device may differ.
        m: share of the old value, in [0, 1].
        buffers: also average floating-point buffers, and copy the others.

    Raises:
        TypeError, ValueError: ``m`` out of range, or the two do not have the same parameters.

    >>> encoder, momentum_encoder = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(encoder.weight), nn.init.zeros_(momentum_encoder.weight)
    >>> momentum_update(encoder, momentum_encoder, 0.75)
    >>> momentum_encoder.weight.item()
    0.25
    """
    _check.number("momentum_update", "m", m, at_least=0.0)
    if m > 1:
        _check.fail("momentum_update", "m", "a number in [0, 1]", m)
    pairs = _paired("parameters", encoder.named_parameters(), momentum_encoder.named_parameters())
    if buffers:
        pairs += _paired("buffers", encoder.named_buffers(), momentum_encoder.named_buffers())
    groups: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}
    for source, target in ((own_share(source), own_share(target)) for source, target in pairs):
        if source.shape != target.shape:
            _check.fail("momentum_update", "momentum_encoder", "divided among processes as encoder is", "it is not")
        if not target.is_floating_point():
            target.copy_(source)
            continue
        slow, fast = groups.setdefault((target.device, target.dtype), ([], []))
        slow.append(target)
        fast.append(source.to(target.device, target.dtype))
    for slow, fast in groups.values():
        torch._foreach_lerp_(slow, fast, 1.0 - m)


def _paired(
    kind: str, online: Iterable[tuple[str, Tensor]], momentum: Iterable[tuple[str, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Tensors of both networks side by side, by name."""
    sources, targets = dict(online), dict(momentum)
    if sources.keys() != targets.keys():
        odd = sorted(sources.keys() ^ targets.keys())
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        got = f"{', '.join(odd[:3])}{more} in only one of them"
        _check.fail("momentum_update", "momentum_encoder", f"the {kind} of encoder", got)
    for name, source in sources.items():
        target = targets[name]
        if source.shape != target.shape:
            expected = f"{name} of shape {tuple(source.shape)}"
            _check.fail("momentum_update", "momentum_encoder", expected, tuple(target.shape))
        if source is target:
            _check.fail("momentum_update", "momentum_encoder", "a copy of encoder", f"the same tensor as {name}")
    return [(source, targets[name]) for name, source in sources.items()]
