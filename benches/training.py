"""A forward and backward pass as one timed call, with the same seed gradient for everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from .memory import Saved, saved_for_backward


class Step:
    """``forward()``, then the gradients of its output with respect to ``wrt``; a loss needs no seed ``gradient``.

    Calling it returns ``{"output": y, "d_<name>": gradient, ...}`` and the ``buffers`` the forward updates in
    place, so that an update nobody pays for does not go unnoticed. ``saved()`` weighs what the forward holds:
    parameters are never counted, ``inputs`` are told apart (see `memory.saved_for_backward`).
    """

    def __init__(
        self,
        forward: Callable[[], torch.Tensor],
        wrt: Mapping[str, torch.Tensor],
        gradient: torch.Tensor | None,
        *,
        parameters: Iterable[torch.Tensor] = (),
        inputs: Iterable[torch.Tensor] = (),
        buffers: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._forward, self._gradient = forward, gradient
        self._names, self._tensors = tuple(f"d_{name}" for name in wrt), tuple(wrt.values())
        self._buffers = dict(buffers or {})
        self._parameters, self._inputs = tuple(parameters), tuple(inputs)

    def __call__(self) -> dict[str, torch.Tensor]:
        y = self._forward()
        gradients = torch.autograd.grad(y, self._tensors, self._gradient)
        return {"output": y, **dict(zip(self._names, gradients, strict=True)), **self._buffers}

    def saved(self) -> Saved:
        return saved_for_backward(self._forward, parameters=self._parameters, inputs=self._inputs)
