"""Losses, gradients and states that are no numbers: found before they are saved, and undone where that is wanted."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from avfast.nn.shares import own_share

MOST = 10
"""Steps in a row that are dropped before the run is called diverged."""
CURE = "A smaller optim.lr or optim.clip_norm=1 usually helps"


class FiniteWatch:
    """Remembers the losses since it last looked, on their device: only looking makes a GPU wait. ``dropped`` counts the
    steps that were dropped."""

    def __init__(self, method: nn.Module) -> None:
        self.method = method
        # A method may keep infinities on purpose (masks); only what was finite has to stay so.
        self._watched = {name for name, value in _floats(method) if bool(value.isfinite().all())}
        self._steps: list[tuple[int, Tensor, dict[str, Any]]] = []
        self._in_a_row, self.dropped = 0, 0

    def statistics(self) -> list[Tensor]:
        """What a forward pass may have spoilt although loss and gradient are finite: floating-point buffers."""
        return [b for name, b in self.method.named_buffers() if name in self._watched]

    @property
    def dropping(self) -> bool:
        """Whether the step before was dropped."""
        return self._in_a_row > 0

    def good_step(self) -> None:
        self._in_a_row = 0

    def dropped_step(self) -> bool:
        """Count a step that was dropped; whether they are too many in a row."""
        self._in_a_row += 1
        self.dropped += 1
        return self._in_a_row >= MOST

    def note(self, step: int, loss: Tensor, batch: dict[str, Any]) -> None:
        self._steps.append((step, loss.detach().float(), {"id": batch.get("id", []), "index": batch["index"]}))

    def look(self) -> tuple[str, int, dict[str, Any]] | None:
        """None if all is well; else what is not finite, at which step it was first seen, and ids and indices of that
        batch (nothing where it is the state, and no loss tells since when)."""
        steps, self._steps = self._steps, []
        losses = torch.stack([loss for _, loss, _ in steps]) if steps else torch.zeros(1)
        state = [value.isfinite().all() for name, value in _floats(self.method) if name in self._watched]
        if bool(torch.stack([losses.isfinite().all().to(s.device) for s in state[:1]] + state).all()):
            return None
        for step, loss, names in steps:
            if not bool(loss.isfinite()):
                return f"the loss is {loss.item()}", step, names
        bad = next(n for n, v in _floats(self.method) if n in self._watched and not bool(v.isfinite().all()))
        return f"the state is not finite ('{bad}')", steps[-1][0] if steps else 0, {}


class Snapshot:
    """What a forward pass may change in a method: buffers, frozen parameters (of momentum networks), state kept outside
    of tensors, random numbers. :meth:`restore` undoes it."""

    def __init__(self, method: nn.Module) -> None:
        self._modules = list(method.modules())
        tensors = [p for p in method.parameters() if not p.requires_grad]
        buffers = [(m, name, b) for m in self._modules for name, b in m._buffers.items()]
        self._buffers = [(m, name, b, None if b is None else b.clone()) for m, name, b in buffers]
        self._frozen = [(p, p.detach().clone()) for p in tensors]
        own = [m for m in self._modules if type(m).get_extra_state is not nn.Module.get_extra_state]
        self._extra = [(m, copy.deepcopy(m.get_extra_state())) for m in own]
        self._rng = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, value in self._frozen:
            parameter.copy_(value)
        for module, state in self._extra:
            module.set_extra_state(state)
        for module, name, buffer, value in self._buffers:
            if buffer is not None:
                buffer.copy_(value)
            module._buffers[name] = buffer
        torch.set_rng_state(self._rng[0])
        if self._rng[1] is not None:
            torch.cuda.set_rng_state(self._rng[1])


def is_finite_step(
    model: nn.Module, loss: Tensor, norm: Tensor | None, statistics: list[Tensor], *, scaled: bool
) -> bool:
    """Whether a step may reach the optimiser.

    Args:
        statistics: tensors that its forward pass may have changed.
        norm: of the gradient, where it is known.
        scaled: gradients belong to a loss scaler (fp16), for which overflow is everyday life: only the loss counts.
    """
    values = [loss.detach(), *statistics]
    if not scaled and norm is not None:
        values.append(norm.detach())
    elif not scaled:  # each process looks at its part
        found = [p.grad for p in model.parameters() if p.grad is not None]
        values += [own_share(part) for part in found]
    return bool(torch.stack([value.isfinite().all() for value in values]).all())


def named(batch: dict[str, Any], source: Any) -> dict[str, Any]:
    """Ids and files of a batch, for the log; files only where `source` (a ClipSource) knows them."""
    index = batch["index"].tolist()
    paths = [] if source is None else [str(source.records[i].path) for i in index]
    return {"id": list(batch.get("id", [])), "path": paths}


def batch_words(names: dict[str, Any]) -> str:
    """
    >>> batch_words({"id": ["ab", "cd"], "path": []})
    'batch of ab, cd'
    """
    return f"batch of {', '.join(names['path'] or names['id'])}"


def _floats(method: nn.Module) -> list[tuple[str, Tensor]]:
    named = [*method.named_parameters(), *method.named_buffers()]
    shares = [(name, own_share(value)) for name, value in named if value.is_floating_point()]
    return [(name, value) for name, value in shares if value.numel()]
