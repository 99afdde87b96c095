"""Runs every Triton launcher on CPU tensors and compiles each kernel exactly as that launch would, but launches none.

    python tests/launch_child.py      exit code 77 if Triton is not here

What tests/aot_child.py compiles is described by hand; this is what a launch on a GPU asks for: its arguments in their
order and types, and how Triton specialises them.
"""

from __future__ import annotations

import importlib
import sys

import torch

from avfast import testing
from avfast.ops import _registry

SHAPES = ((32, 128, 7, 7), (3, 20, 7))
ARCHITECTURE = 90
SKIPPED = 77


class NoDevice:
    """What Triton asks of a driver before a launch."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", ARCHITECTURE, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def arguments_of(boundary: _registry.Boundary, shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    """What the contract tests call it with; an in-place form takes the first arguments of its forward."""
    cases = {case.name: case for case in testing.CASES}
    case = cases[boundary.name + "fwd" if boundary.mutates else boundary.name]
    schema = getattr(torch.ops.avfast, boundary.name).default._schema
    return case.make(shape, dtype, torch.Generator().manual_seed(0))[: len(schema.arguments)]


def main() -> int:
    try:
        from triton.runtime import driver
        from triton.runtime.jit import JITFunction
    except ImportError as error:
        print(f"skipped: Triton does not import: {error}")
        return SKIPPED
    driver.set_active(NoDevice())
    compiled, run = set(), JITFunction.run

    def compile_only(kernel, *args, grid, warmup, **options):
        binary = run(kernel, *args, grid=grid, warmup=True, **options)
        compiled.add((kernel.__name__, binary.hash))

    JITFunction.run = compile_only
    for boundary in (b for b in _registry.BOUNDARIES.values() if b.triton):
        module, name = boundary.triton.split(":")
        before = len(compiled)
        for shape in SHAPES:
            for dtype in (torch.bfloat16, torch.float64):
                getattr(importlib.import_module(module), name)(*arguments_of(boundary, shape, dtype))
        print(f"{boundary.name}: {len(compiled) - before} kernels not compiled before")
    print(f"{len(compiled)} kernels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
