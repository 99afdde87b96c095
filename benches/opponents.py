"""Ready-made candidates: avfast and its backends, torch.compile of a plain function, a plain function."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from . import compiled
from .candidate import BACKEND, COMPILED, LEAN, OURS, PUBLISHED, Call, Candidate

Function = Callable[[Any], Any]


def plain(name: str, function: Function, view: Callable, role: str = PUBLISHED) -> Candidate:
    """``function(inputs)`` in eager PyTorch."""
    return Candidate(name, lambda inputs: lambda: function(inputs), role, view)


def compile_of(name: str, function: Function, view: Callable, device: str, *, slow: bool = False) -> Candidate:
    """torch.compile of ``function(inputs)``; compiled when it is first called, which is never timed."""

    def prepare(inputs: Any) -> Call:
        fast = compiled.compiled(function)
        return lambda: fast(inputs)

    return Candidate(f"compile({name})", prepare, COMPILED, view, missing=lambda: compiled.missing(device), slow=slow)


def eager_step(name: str, forward: Function, role: str = LEAN, **options) -> Candidate:
    """Forward and backward of ``forward(inputs)`` in eager PyTorch; the inputs know their leaves (``step``)."""
    return Candidate(name, lambda inputs: inputs.step(forward), role, **options)


def compiled_step(name: str, forward: Function, device: str, *, slow: bool = False) -> Candidate:
    """The same with ``forward`` under torch.compile, its backward included."""

    def prepare(inputs: Any) -> Call:
        return inputs.step(compiled.compiled(forward))

    return Candidate(f"compile({name})", prepare, COMPILED, missing=lambda: compiled.missing(device), slow=slow)


def installed(*modules: str) -> Callable[[], str | None]:
    """``missing`` of a candidate that needs these packages."""

    def missing() -> str | None:
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    return missing


def ours(
    op: str, prepare: Callable[[Any], Call], view: Callable, device: str = "cpu", *, backends: bool = True
) -> tuple[Candidate, ...]:
    """avfast as a user gets it, then (with ``backends``) the same call held to each other backend of the device."""
    others = ("torch", "triton") if torch.device(device).type == "cuda" else ("torch",)
    others = others if backends else ()
    return (
        Candidate("avfast", prepare, OURS, view),
        *(_held_to(backend, op, prepare, view, device) for backend in others),
    )


def _held_to(backend: str, op: str, prepare: Callable, view: Callable, device: str) -> Candidate:
    import avfast

    def missing() -> str | None:
        explanation = avfast.explain(op, torch.empty(0, device=device))
        if explanation.chosen == backend:
            return "it is what avfast runs already"
        why = explanation.reasons[backend]
        return None if why.startswith("can run") else why

    return Candidate(
        f"avfast[{backend}]",
        prepare,
        BACKEND,
        view,
        scope=lambda: avfast.use_backend(backend),
        missing=missing,
    )


def backend_in_use(op: str, device: str = "cpu") -> str:
    """The backend behind the plain "avfast" row."""
    import avfast

    return avfast.explain(op, torch.empty(0, device=device)).chosen
