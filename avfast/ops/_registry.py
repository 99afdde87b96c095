"""Every registered operator of avfast: its schema, its reference, and what else can compute it.

Schemas live here, in Python, so the package computes with no compiler at all: the reference is registered for every
device, and the compiled library, when it is there, adds its CPU and CUDA kernels above it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

LIBRARY = torch.library.Library("avfast", "DEF")


@dataclass(frozen=True)
class Boundary:
    """One registered operator. ``op`` is the public function it belongs to."""

    name: str
    op: str
    reference: Callable
    triton: str | None  # "module:function", imported when the dispatcher first calls it
    mutates: bool = False  # writes to its first argument and returns nothing


BOUNDARIES: dict[str, Boundary] = {}
# Public ops without an operator of their own, and those whose operators they use.
BUILT_ON = {"dense_contrastive": ("dense_match", "queue_info_nce"), "sup_con": ("info_nce", "nt_xent")}


def define(
    schema: str, *, op: str, reference: Callable, fake: Callable, triton: str | None = None, mutates: bool = False
) -> Callable:
    """Register an operator and return its overload, bound once: the cheapest way to call it."""
    name = schema[: schema.index("(")]
    reference = _without_autocast(reference)
    LIBRARY.define(schema)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"avfast::{name}", fake, lib=LIBRARY)
    BOUNDARIES[name] = Boundary(name, op, reference, triton, mutates)
    return getattr(torch.ops.avfast, name).default


def _without_autocast(reference: Callable) -> Callable:
    """Kernels compute in the types they are given whatever autocast says; so must what stands in for them."""

    @functools.wraps(reference)
    def run(*args):
        first = next((a for a in args if isinstance(a, torch.Tensor)), None)
        device = "cpu" if first is None else first.device.type
        if not torch.is_autocast_enabled(device):
            return reference(*args)
        with torch.autocast(device, enabled=False):
            return reference(*args)

    return run


def public_ops() -> tuple[str, ...]:
    return tuple(sorted({b.op for b in BOUNDARIES.values()} | set(BUILT_ON)))


def boundaries_of(op: str) -> tuple[Boundary, ...]:
    names = BUILT_ON.get(op, (op,))
    return tuple(b for b in BOUNDARIES.values() if b.op in names)
