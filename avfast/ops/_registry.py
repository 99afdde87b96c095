"""Every registered operator of avfast: its schema, its reference, and what else can compute it.

Schemas live here, in Python, so the package computes with no compiler at all: the reference is registered for every
device, and the compiled library, when it is there, adds its CPU and CUDA kernels above it.
"""

from __future__ import annotations

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


BOUNDARIES: dict[str, Boundary] = {}
# Public ops that are plain PyTorch so far: they have no registered operator.
COMPOSITES: set[str] = set()


def define(schema: str, *, op: str, reference: Callable, fake: Callable, triton: str | None = None) -> Callable:
    """Register an operator and return its overload, bound once: the cheapest way to call it."""
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"avfast::{name}", fake, lib=LIBRARY)
    BOUNDARIES[name] = Boundary(name, op, reference, triton)
    return getattr(torch.ops.avfast, name).default


def public_ops() -> tuple[str, ...]:
    return tuple(sorted({b.op for b in BOUNDARIES.values()} | COMPOSITES))


def boundaries_of(op: str) -> tuple[Boundary, ...]:
    return tuple(b for b in BOUNDARIES.values() if b.op == op)
