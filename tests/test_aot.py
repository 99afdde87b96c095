"""Every GPU kernel compiles for three generations of cards and stays inside its budget, with no card in
sight.

The work is done by tests/aot_child.py in processes of its own: Triton cannot compile where TRITON_INTERPRET
is set, and CI calls the same script by hand.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
KERNELS = TESTS.parent / "kernels"
sys.path.insert(0, str(TESTS))

import aot_child  # noqa: E402


def run_child(script: str, *options: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(TESTS / script), *options]
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    if child.returncode == aot_child.SKIPPED:
        pytest.skip(child.stdout.strip())
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout


@pytest.mark.parametrize("half", ["nvcc", "triton"])
def test_budgets(half):
    assert "registers" in run_child("aot_child.py", "--only", half), "nothing was compiled"


def test_what_launches_ask_for_compiles():
    """The budgets are of builds described by hand; a launch may specialise its arguments otherwise."""
    assert int(run_child("launch_child.py").split()[-2]) > 50


def test_element_wise_kernels_move_16_bytes_at_a_time(tmp_path):
    """A copy the compiler takes apart into words costs bandwidth and nothing else would show it."""
    try:
        nvcc = aot_child.find_nvcc()
    except aot_child.Unavailable as reason:
        pytest.skip(str(reason))
    source, out = KERNELS / "batch_norm" / "channel_apply_cuda.cu", tmp_path / "apply.ptx"
    subprocess.run([nvcc, *"-O3 -std=c++17 -arch=sm_80 -ptx -o".split(), str(out), str(source)], check=True)
    kernels = re.split(r"\.entry ", out.read_text())[1:]
    packed = [k for k in kernels if re.search(r"ld\.global\.\S*v4", k)]
    assert len(packed) == 12, "forward and backward, rows and lanes, three dtypes"
    for kernel in packed:
        stores = re.findall(r"st\.global\.\S+", kernel)
        assert stores and all("v4" in store for store in stores), kernel.split("(")[0]


def test_kernels_include_no_torch():
    """kernels/ is arithmetic alone: torch, ATen and c10 headers belong to csrc/."""
    sources = [p for p in KERNELS.rglob("*") if p.suffix in {".cu", ".cuh", ".h", ".inl", ".cpp"}]
    assert any(p.suffix == ".cu" for p in sources)
    include = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10)/', re.M)
    assert [str(p.relative_to(KERNELS)) for p in sources if include.search(p.read_text())] == []


def test_no_fast_math():
    """Thresholds are denormal and masks use infinities; approximate intrinsics are named where they are
    used."""
    for path in KERNELS.rglob("*.cu*"):
        text = path.read_text()
        assert not re.search(r"__(expf|logf|powf|fdividef|frsqrt_rn|frcp_rn|sinf|cosf|saturatef)\b", text) or (
            "approximate" in text.split("#include")[0]
        ), f"{path.name}: an approximate intrinsic its head comment does not name"
    assert not any("fast" in flag for flag in aot_child.NVCC_FLAGS)


def test_every_source_has_budgets():
    budgets = json.loads(aot_child.BUDGETS.read_text())
    for half, pattern in (("nvcc", "*.cu"), ("triton", "*_triton.py")):
        files = {str(p.relative_to(KERNELS)) for p in KERNELS.rglob(pattern)}
        assert files == set(budgets[half]["kernels"]), half


# The checker itself: it must notice what it exists for.

LOG = """
ptxas info    : Compiling entry function 'void avfast::(anonymous namespace)::some_kernel<avfast::f16_t, \
(avfast::Activation::Order)1, 8>(avfast::f16_t const*, int)' for 'sm_90'
ptxas info    : Function properties for void avfast::some_kernel
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 41 registers, used 1 barriers, 4096 bytes smem
"""
NAME = "some_kernel<f16_t, 1, 8> sm_90"


def test_compiler_output_is_understood():
    assert aot_child.parse_ptxas(LOG) == {NAME: {"registers": 41, "stack": 8, "spills": 16, "shared": 4096}}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"registers": 49}, "49 registers, 48 granted"),
        ({"shared": 4097}, "shared memory"),
        ({"spills": 4}, "spills"),
        ({"stack": 8}, "stack"),
    ],
)
def test_budget_violations_are_reported(change, complaint):
    usage = {"registers": 41, "stack": 0, "spills": 0, "shared": 4096}
    budget = {"version": "13.0", "kernels": aot_child.to_budget({"a.cu": {NAME: usage}})}
    found = aot_child.problems("13.0", {"a.cu": {NAME: usage | change}}, budget)
    assert (not found) if complaint is None else (len(found) == 1 and complaint in found[0]), found


def test_unknown_and_vanished_kernels_are_reported():
    usage = {"registers": 8, "stack": 0, "spills": 0, "shared": 0}
    budget = {
        "version": "13.0",
        "kernels": aot_child.to_budget({"a.cu": {NAME: usage}, "b.cu": {NAME: usage}}),
    }
    found = aot_child.problems("13.0", {"a.cu": {"other_kernel sm_90": usage}}, budget)
    assert len(found) == 3
    assert any("no budget" in line for line in found)
    assert sum("no longer exists" in line for line in found) == 2
