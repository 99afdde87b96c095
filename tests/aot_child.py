"""Compiles every GPU kernel without a GPU and holds it to its budget.

    python tests/aot_child.py               check everything, as CI does; exit code 1 if one is over budget
    python tests/aot_child.py --only nvcc   or triton: one half; exit code 77 if it cannot run here
    python tests/aot_child.py --update      write tests/budgets.json from what the compilers report now

A kernel may not spill, may not use a stack frame, and may not need more registers or shared memory than
budgets.json grants it. A kernel that the file does not know fails: look at its numbers, then --update. The
budgets name the compiler they were made with; another version gets 16 registers of grace.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
BUDGETS = Path(__file__).resolve().parent / "budgets.json"
ARCHITECTURES = (80, 90, 100)
# As setup.py builds, so that the numbers are those of the shipped code.
NVCC_FLAGS = ["-O3", "-std=c++17", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v"]
GRACE = 16
WIDE_LOAD = r"ld\.global\.v4\.b32|ld\.global\.v2\.b64|cp\.async\.cg\.shared\.global [^\n]*0x10"
SKIPPED = 77

Usage = dict[str, dict[str, int]]  # kernel and architecture -> registers, stack, spills, shared


class Unavailable(Exception):
    """Why one half of the check cannot run on this machine."""


# -------------------------------------------------------------------------------------------------- nvcc


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    candidates += [Path("/usr/local/cuda/bin/nvcc")]
    for path in candidates:
        if path.is_file():
            return str(path)
    found = shutil.which("nvcc")
    if found is None:
        raise Unavailable("no nvcc: neither in CUDA_HOME, nor in the standard place, nor on the PATH")
    return found


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text)[1]


def short_name(demangled: str) -> str:
    """`moments_kernel<bf16_t, 0, 8, true>` from the compiler's full signature."""
    text = re.sub(r"\((?:[\w]+::)+\w+\)(?=\d)", "", demangled)  # the cast before an enumerator's number
    text = text.replace("(anonymous namespace)::", "")
    text = re.sub(r"\b\w+::", "", text).removeprefix("void ")
    return text.split("(")[0]


def parse_ptxas(log: str) -> Usage:
    usage: Usage = {}
    pattern = (
        r"Compiling entry function '([^']+)' for 'sm_(\d+)'"
        r".*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)"
    )
    for name, arch, stack, stores, loads, registers, rest in re.findall(pattern, log, re.S):
        shared = re.search(r"(\d+) bytes smem", rest)
        usage[f"{short_name(name)} sm_{arch}"] = {
            "registers": int(registers),
            "stack": int(stack),
            "spills": int(stores) + int(loads),
            "shared": int(shared[1]) if shared else 0,
        }
    return usage


def compile_cu(nvcc: str, source: Path, architectures: list[int]) -> Usage:
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    with tempfile.TemporaryDirectory() as scratch:
        command = [nvcc, *NVCC_FLAGS, *codes, "-c", str(source), "-o", str(Path(scratch) / "kernel.o")]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{source.relative_to(ROOT)} does not compile:\n{run.stderr[-3000:]}")
    log = subprocess.run(["c++filt"], input=run.stdout + run.stderr, capture_output=True, text=True, check=True).stdout
    return parse_ptxas(log)


def measure_nvcc() -> tuple[str, dict[str, Usage]]:
    nvcc = find_nvcc()
    if shutil.which("c++filt") is None:
        raise Unavailable("no c++filt on the PATH to read the compiler's kernel names")
    text = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    known = {int(a) for a in re.findall(r"sm_(\d+)", text)}
    architectures = [a for a in ARCHITECTURES if a in known]
    if not architectures:
        raise Unavailable(f"nvcc {nvcc_version(nvcc)} knows none of sm_{ARCHITECTURES}")
    sources = sorted(KERNELS.rglob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda source: compile_cu(nvcc, source, architectures), sources))
    return nvcc_version(nvcc), {
        str(source.relative_to(KERNELS)): usage for source, usage in zip(sources, results, strict=True)
    }


# ------------------------------------------------------------------------------------------------ triton


def measure_triton() -> tuple[str, dict[str, Usage]]:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise Unavailable("TRITON_INTERPRET=1: interpreted kernels cannot be compiled; use a process without it")
    try:
        import triton
    except ImportError as error:
        raise Unavailable(f"Triton does not import: {error}") from None
    if not find_cuobjdump().is_file():
        raise Unavailable("this Triton has no cuobjdump to read registers with")
    sources = sorted(KERNELS.rglob("*_triton.py"))
    with ProcessPoolExecutor(2) as pool:
        results = list(pool.map(compile_triton, sources))
    return triton.__version__, {
        str(source.relative_to(KERNELS)): usage for source, usage in zip(sources, results, strict=True)
    }


def find_cuobjdump() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_triton(path: Path) -> Usage:
    """Every case of one file's `aot_cases`, for every architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    sys.path.insert(0, str(ROOT))  # `kernels` is a package of the checkout; installed it is avfast.kernels
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    usage: Usage = {}
    for case in module.aot_cases():
        source = aot_source(ASTSource, case)
        for arch in ARCHITECTURES:
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=case["options"])
            if case["wide_loads"] and not re.search(WIDE_LOAD, compiled.asm["ptx"]):
                raise RuntimeError(f"{case['name']} for sm_{arch} reads x in less than 16 bytes at a time")
            usage[f"{case['name']} sm_{arch}"] = {
                **read_cubin(find_cuobjdump(), compiled.asm["cubin"]),
                "shared": compiled.metadata.shared,
            }
    return usage


def aot_source(ast_source: type, case: dict):
    """The source as a launch on 16-byte aligned tensors specialises it: ones are constants, multiples of 16
    are known."""
    names, integers = case["kernel"].arg_names, case["integers"]
    constants = case["constants"] | {n: 1 for n, value in integers.items() if value == 1}
    signature = (
        dict.fromkeys(constants, "constexpr") | case["pointers"] | dict.fromkeys(case.get("doubles", ()), "fp64")
    )
    for name, value in integers.items():
        signature.setdefault(name, "i32" if value < 2**31 else "i64")
    by_16 = [n for n in names if n in case["pointers"] or n not in constants and integers.get(n, 1) % 16 == 0]
    return ast_source(
        case["kernel"],
        {n: signature[n] for n in names},
        {(names.index(n),): value for n, value in constants.items()},
        {(names.index(n),): [["tt.divisibility", 16]] for n in by_16},
    )


def read_cubin(cuobjdump: Path, cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(cuobjdump), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "stack": stack, "spills": local}


# ----------------------------------------------------------------------------------------------- budgets


def to_budget(measured: dict[str, Usage]) -> dict[str, dict[str, dict[str, int]]]:
    """Registers rounded up to 8, the unit they are allocated in, and shared memory as it is."""
    return {
        file: {
            kernel: {"registers": -(-u["registers"] // 8) * 8, "shared": u["shared"]}
            for kernel, u in sorted(usage.items())
        }
        for file, usage in measured.items()
    }


def problems(version: str, measured: dict[str, Usage], budget: dict) -> list[str]:
    grace = 0 if version == budget.get("version") else GRACE
    found = []
    for file, usage in measured.items():
        granted = budget.get("kernels", {}).get(file, {})
        if not usage:
            found.append(f"{file}: no kernel in it was compiled")
        for kernel, u in usage.items():
            where = f"{file}: {kernel}"
            found += [f"{where}: {u[key]} bytes of {key}, 0 allowed" for key in ("spills", "stack") if u[key]]
            if kernel not in granted:
                found.append(f"{where}: no budget; look at {u}, then run tests/aot_child.py --update")
                continue
            limit = granted[kernel]
            if u["registers"] > limit["registers"] + grace:
                found.append(f"{where}: {u['registers']} registers, {limit['registers']} granted")
            if u["shared"] > limit["shared"]:
                found.append(f"{where}: {u['shared']} bytes of shared memory, {limit['shared']} granted")
        compiled = {kernel.rsplit(" ", 1)[1] for kernel in usage}
        gone = [k for k in granted if k not in usage and k.rsplit(" ", 1)[1] in compiled]
        found += [f"{file}: {kernel}: has a budget but no longer exists" for kernel in gone]
    stale = set(budget.get("kernels", {})) - set(measured)
    return found + [f"{file}: has budgets but no longer exists" for file in sorted(stale)]


MEASURE = {"nvcc": measure_nvcc, "triton": measure_triton}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(MEASURE))
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.is_file() else {}
    failed, skipped = [], []
    for half in [options.only] if options.only else sorted(MEASURE):
        try:
            version, measured = MEASURE[half]()
        except Unavailable as reason:
            print(f"{half}: skipped: {reason}")
            skipped.append(half)
            continue
        print(f"{half} {version}")
        for file, usage in measured.items():
            registers = max((u["registers"] for u in usage.values()), default=0)
            shared = max((u["shared"] for u in usage.values()), default=0)
            print(f"  {file}: {len(usage)} kernels, at most {registers} registers, {shared} bytes shared")
        if options.update:
            budgets[half] = {"version": version, "kernels": to_budget(measured)}
        else:
            failed += problems(version, measured, budgets.get(half, {}))
    if options.update:
        text = json.dumps(budgets, indent=1)
        one_line = re.sub(r'\{\s+("registers": \d+,)\s+("shared": \d+)\s+\}', r"{\1 \2}", text)
        BUDGETS.write_text(one_line + "\n")
    for line in failed:
        print(f"over budget: {line}")
    return 1 if failed else SKIPPED if options.only and skipped else 0


if __name__ == "__main__":
    sys.exit(main())
