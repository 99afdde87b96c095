"""Every compiled CPU op, forward and backward, inside the library that checks itself.

    .ci/sanitize    builds it (AVFAST_SANITIZE, see setup.py) and runs this beside the sanitizers' libraries

A read or write outside of memory, an overflow, an odd address: the sanitizer prints where and ends the process.
Options: --calls N of the fuzzed calls (benches/soak/fuzz_ops.py), --seed S.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import torch

import avfast
from avfast import _library, testing
from avfast.benches.soak import fuzz_ops

SHAPES = ((2, 3, 5), (4, 6, 7, 5), (19, 70), (1, 1, 1))


def every_kernel(isa: str) -> int:
    """Each registered operator in each type and layout, its outputs between guards."""
    calls = 0
    for case in testing.CASES:
        for dtype in testing.DTYPES:
            for shape in SHAPES:
                for layout in testing.LAYOUTS:
                    args = testing.laid_out(case.make(shape, dtype, torch.Generator().manual_seed(calls)), layout)
                    with testing.poisoned():
                        outs = case.run(*args)
                    if not all(testing.guards_intact(out) for out in outs if out.numel()):
                        sys.exit(f"{isa}: {case.name} {shape} {dtype} {layout}: wrote outside its output")
                    calls += 1
    return calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    built = str(avfast.env.build_info().get("flags"))
    if "-fsanitize=" not in built:
        sys.exit(f"sanitize: {avfast.__file__} was built without a sanitizer: {built}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    failures: list[str] = []
    for isa in ("base", "avx2"):
        if not _library.native.has_isa(isa):
            print(f"sanitize: this processor has no {isa}")
            continue
        begun = time.monotonic()
        with testing.forced_isa(isa):
            calls = every_kernel(isa)
            (row,) = fuzz_ops.check(options.calls, options.seed, print)
        failures += row.failures
        print(
            f"sanitize: {isa}: {calls} calls of kernels, {row.times} of ops, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    for text in failures:
        print(f"failed: {text}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
