"""Loads the compiled library once. Its absence is a fact to report, never an error."""

from __future__ import annotations

import importlib
import types
from pathlib import Path

import torch

from . import env

PATH = Path(__file__).with_name("libavfast.so")

loaded = False
reason = ""  # why the library did not load, in words
native: types.ModuleType | None = None  # the introspection module


def _load() -> None:
    global loaded, reason, native
    if not env.flag("AVFAST_NATIVE"):
        reason = "switched off by AVFAST_NATIVE=0"
        return
    if not PATH.exists():
        reason = "libavfast.so was not built (no C++ compiler at install time, or AVFAST_NATIVE=0)"
        return
    try:
        torch.ops.load_library(PATH)
    except OSError as error:
        reason = f"libavfast.so does not load beside torch {torch.__version__}: {error}"
        return
    loaded = True
    try:
        native = importlib.import_module("avfast._native")
    except ImportError:  # built for another Python; the ops do not need it
        native = None


def isa() -> str | None:
    """Instruction set of the CPU kernels now in use: ``base``, ``avx2``, ``avx512`` or ``avx512_bf16``."""
    return native.cpu_isa() if native else None


def has_kernel(boundary: str, device: str) -> bool:
    """Whether the library itself brought a kernel for this operator and device."""
    return (boundary, device) in _kernels


_load()
_kernels: frozenset[tuple[str, str]] = frozenset()


def record_kernels(boundaries: tuple[str, ...]) -> None:
    """Look once, before any override, which (operator, device) pairs the library serves."""
    global _kernels
    _kernels = frozenset(
        (name, device)
        for name in boundaries
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA"))
        if loaded and torch._C._dispatch_has_kernel_for_dispatch_key(f"avfast::{name}", key)
    )
