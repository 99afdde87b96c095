"""Which implementation of an op runs, and why the others do not.

=========  ==============================================================================================
``auto``   the first that can run: C++ on the CPU; CUDA, then Triton on a GPU; the reference anywhere else
``torch``  the reference, plain PyTorch
``cpp``    the compiled CPU kernels (instruction set chosen at run time)
``cuda``   the compiled CUDA kernels
``triton`` the Triton kernels; on CPU tensors only under ``TRITON_INTERPRET=1``
=========  ==============================================================================================

A choice is applied once, by registering over the dispatcher's entry, never looked up per call. A backend asked for by
name that cannot run raises the reason; ``auto`` falls through and says so once if it ends at the reference on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _library, env
from .errors import BackendError
from .ops import _registry

NAMES = ("auto", "torch", "cpp", "cuda", "triton")
ORDER = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}

_current = "auto"
_override: torch.library.Library | None = None


def current() -> str:
    """The backend now chosen."""
    return _current


def set_backend(name: str) -> None:
    """Choose a backend for every op of this process, until changed.

    Raises:
        BackendError: the name is unknown, or that backend cannot run on this machine.

    >>> set_backend("torch"); current()
    'torch'
    >>> set_backend("auto")
    """
    global _current
    if name not in NAMES:
        raise BackendError(f"avfast.set_backend: name: expected one of {', '.join(NAMES)}, got {name!r}")
    reason = _machine_reason(name)
    if reason:
        raise BackendError(f"avfast: backend '{name}' cannot run here: {reason}")
    _install(name)
    _current = name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """:func:`set_backend` for the length of a ``with`` block.

    >>> with use_backend("torch"):
    ...     current()
    'torch'
    """
    before = _current
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


@dataclass(frozen=True)
class Explanation:
    """Which backend an op would run on these inputs; ``reasons`` says why each other one would not."""

    op: str
    device: str
    chosen: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        isa = _library.isa() if self.chosen == "cpp" else None
        lines = [f"{self.op} on {self.device}: {self.chosen}" + (f" ({isa})" if isa else "")]
        return "\n".join(lines + [f"  {name:<7} {why}" for name, why in self.reasons.items()])


def explain(op: str | Callable, *inputs: Tensor) -> Explanation:
    """Say which backend ``op`` runs on these inputs and why each other does not.

    Args:
        op: a public function of avfast, or its name.
        inputs: the tensors it would get (only their device matters); none means CPU tensors.

    Raises:
        BackendError: no such op, or the backend chosen by name cannot take these inputs.

    >>> with use_backend("torch"):
    ...     explain("info_nce", torch.zeros(2, 2)).chosen
    'torch'
    """
    name = op if isinstance(op, str) else op.__name__
    if name not in _registry.public_ops():
        raise BackendError(f"avfast.explain: op: expected one of {', '.join(_registry.public_ops())}, got {name!r}")
    device = next((x.device.type for x in inputs if isinstance(x, Tensor)), "cpu")
    reasons = {backend: _reason(backend, name, device) for backend in NAMES[1:]}
    if _current == "auto":
        chosen = next(b for b in ORDER.get(device, ("torch",)) if reasons[b] is None)
    else:
        chosen = _current
        if reasons[chosen]:
            raise BackendError(f"avfast.{name}: backend '{chosen}' cannot run: {reasons[chosen]}")
    why_not = "can run, comes later" if _current == "auto" else f"can run, but '{chosen}' was chosen"
    return Explanation(name, device, chosen, {b: "runs" if b == chosen else r or why_not for b, r in reasons.items()})


# ------------------------------------------------------------------------------------------------- reasons


def _machine_reason(backend: str) -> str | None:
    """Why a backend cannot run on this machine at all, or None."""
    if backend == "cpp" and not _library.loaded:
        return _library.reason
    if backend == "cuda":
        if not _library.loaded:
            return _library.reason
        if not any(device == "cuda" for _, device in _library._kernels):
            return "the library was built without CUDA (nvcc was not found, or AVFAST_CUDA=0)"
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "the package 'triton' is not installed"
        if not _interpreting() and not torch.cuda.is_available():
            return "torch sees no CUDA device, and TRITON_INTERPRET is not 1"
    return None


def _reason(backend: str, op: str, device: str) -> str | None:
    """Why a backend cannot run this op on this kind of device, or None."""
    if backend == "torch":
        return None
    boundaries = _registry.boundaries_of(op)
    if backend == "triton" and not all(b.triton for b in boundaries):
        return "this op has no Triton kernel"
    if machine := _machine_reason(backend):
        return machine
    if backend == "triton":
        return None if device == "cuda" or _interpreting() else f"it runs on CUDA tensors, got {device}"
    wanted = {"cpp": "cpu", "cuda": "cuda"}[backend]
    if device != wanted:
        return f"it runs on {wanted.upper()} tensors, got {device}"
    missing = [b.name for b in boundaries if not _library.has_kernel(b.name, wanted)]
    return f"the library has no {wanted} kernel for {', '.join(missing)}" if missing else None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


# ------------------------------------------------------------------------------------------------ override


def _install(backend: str) -> None:
    global _override
    if _override is not None:
        _override._destroy()
        _override = None
    chosen = {
        (b.name, device): function
        for b in _registry.BOUNDARIES.values()
        for device in _KEYS
        if (function := _function(backend, b, device)) is not None
    }
    if not chosen:
        return
    _override = torch.library.Library("avfast", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for (name, device), function in chosen.items():
            _override.impl(name, function, _KEYS[device], allow_override=True)


def _function(backend: str, boundary: _registry.Boundary, device: str) -> Callable | None:
    """What to register over (boundary, device), or None to leave the library's kernel or the reference."""
    if backend == "torch":
        return boundary.reference
    if backend == "auto":
        if device == "cpu" or _library.has_kernel(boundary.name, device) or not torch.backends.cuda.is_built():
            return None
        if boundary.triton and importlib.util.find_spec("triton") is not None:
            return _lazy(boundary.triton)
        return _warn_once_then(boundary)
    reason = _reason(backend, boundary.op, device)
    if reason:
        return _refuse(boundary.op, backend, reason)
    return _lazy(boundary.triton) if backend == "triton" else None


def _lazy(target: str) -> Callable:
    """Import a launcher when it is first called: Triton must not be imported with avfast."""

    @functools.cache
    def function() -> Callable:
        module, name = target.split(":")
        return getattr(importlib.import_module(module), name)

    return lambda *args: function()(*args)


def _refuse(op: str, backend: str, reason: str) -> Callable:
    def refuse(*args, **kwargs):
        raise BackendError(f"avfast.{op}: backend '{backend}' cannot run: {reason}")

    return refuse


def _warn_once_then(boundary: _registry.Boundary) -> Callable:
    warned = False

    def run(*args):
        nonlocal warned
        if not warned:
            warned = True
            warnings.warn(
                f"avfast.{boundary.op} runs its plain PyTorch reference on the GPU: "
                f"{_reason('cuda', boundary.op, 'cuda')}; {_reason('triton', boundary.op, 'cuda')}",
                stacklevel=2,
            )
        return boundary.reference(*args)

    return run


def initialise() -> None:
    """Called once, when every op is registered: note the library's kernels, then obey ``AVFAST_BACKEND``.

    A name that cannot run fails the import, before anything is computed. The commands of avfast import the package
    before any code of theirs could catch that, so they end here, with the message alone.
    """
    _library.record_kernels(tuple(_registry.BOUNDARIES))
    try:
        set_backend(env.text("AVFAST_BACKEND"))
    except BackendError as error:
        if not _is_own_command():
            raise
        print(f"error: AVFAST_BACKEND={env.text('AVFAST_BACKEND')}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_own_command() -> bool:
    """Whether this process is ``avfast ...`` or ``python -m avfast ...``, not a program that imports avfast."""
    words = sys.orig_argv
    as_module = any(pair == ("-m", "avfast") for pair in zip(words, words[1:], strict=False))
    return os.path.basename(sys.argv[0]) == "avfast" or (sys.argv[0] == "-m" and as_module)
