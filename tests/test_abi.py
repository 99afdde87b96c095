"""libavfast.so loads beside every torch since 2.10: it uses nothing of torch but the stable C interface."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from avfast import _library, env

pytestmark = [
    pytest.mark.skipif(not _library.loaded, reason=f"no compiled library: {_library.reason}"),
    pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils (readelf) is not installed"),
]
TARGET = (2, 10)
HEADERS = Path(torch.__file__).parent / "include" / "torch" / "csrc"


def readelf(*options: str) -> str:
    return subprocess.run(
        ["readelf", "--wide", *options, str(_library.PATH)], capture_output=True, text=True, check=True
    ).stdout


def symbols() -> list[tuple[str, str, bool]]:
    """(name, binding, defined here) of every dynamic symbol, without its version."""
    found = []
    for line in readelf("--dyn-syms").splitlines():
        words = line.split()
        if len(words) >= 8 and words[0].rstrip(":").isdigit():
            found.append((words[7].split("@")[0], words[4], words[6] != "UND"))
    return found


def shims(text: str) -> dict[str, tuple[int, int]]:
    """C functions a header declares, and the version of torch that its guards ask for; (0, 0) without a guard."""
    guards: list[tuple[int, int]] = []
    found = {}
    for line in text.splitlines():
        if re.match(r"\s*#\s*if", line):
            needed = re.search(r"TORCH_FEATURE_VERSION\s*>=\s*TORCH_VERSION_(\d+)_(\d+)", line)
            guards.append((int(needed[1]), int(needed[2])) if needed else (0, 0))
        elif re.match(r"\s*#\s*endif", line):
            guards.pop()
        elif not line.lstrip().startswith("//"):
            for name in re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", line):
                found[name] = max([(0, 0), *guards])
    return found


def installed_shims() -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for folder in ("stable/c", "inductor/aoti_torch/c", "inductor/aoti_torch/generated"):
        for header in sorted((HEADERS / folder).glob("*.h")):
            found.update(shims(header.read_text()))
    return found


def used() -> set[str]:
    return {name for name, _, defined in symbols() if not defined and re.match(r"(aoti_)?torch_", name)}


def test_the_reader_of_headers_follows_guards():
    text = """
    #ifndef GUARD
    AOTI_TORCH_EXPORT int torch_old(int x);
    #if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_11_0
    AOTI_TORCH_EXPORT AOTITorchError
    torch_new(int x);
    #endif // TORCH_FEATURE_VERSION >= TORCH_VERSION_2_11_0
    // torch_only_mentioned(x)
    AOTI_TORCH_EXPORT int aoti_torch_after(void);
    #endif
    """
    assert shims(text) == {"torch_old": (0, 0), "torch_new": (2, 11), "aoti_torch_after": (0, 0)}


def test_no_cpp_symbol_of_torch_is_needed():
    """Mangled names change with every torch; the namespaces of torch must not appear in what is imported."""
    needed = [name for name, _, defined in symbols() if not defined]
    assert len(needed) > 20
    namespaces = re.compile(r"\d(at|c10|torch|caffe2)(\d|E)|^_ZNK?(2at|3c10|5torch)")
    assert [name for name in needed if name.startswith("_Z") and namespaces.search(name)] == []


def test_every_shim_is_as_old_as_the_target():
    known, needed = installed_shims(), used()
    assert len(known) > 100, "the headers were not found"
    assert len(needed) > 10 and "torch_parallel_for" in needed
    too_new = {name: known[name] for name in needed if known.get(name, (0, 0)) > TARGET}
    unknown = needed - known.keys()
    assert not too_new, f"newer than torch {TARGET[0]}.{TARGET[1]}"
    assert not unknown, "not in torch's stable headers"


def test_newer_shims_would_be_noticed():
    known = installed_shims()
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 11):
        pytest.skip("this torch has no shim newer than the target")
    assert any(version > TARGET for version in known.values())


def test_nothing_of_cuda_or_python_is_linked():
    """One file for machines with a GPU and without; torch brings what it has."""
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("--dynamic"))
    allowed = r"lib(torch|torch_cpu|c10|stdc\+\+|m|gcc_s|c|dl|rt|pthread)\.so.*|ld-linux.*"
    assert needed and [name for name in needed if not re.fullmatch(allowed, name)] == []
    imported = [name for name, binding, defined in symbols() if not defined and binding != "WEAK"]
    assert [n for n in imported if re.match(r"Py[A-Z_]|_Py|cuda[A-Z]|__cuda|cu[A-Z]", n)] == []


def test_the_cuda_stream_is_optional():
    """Exported by torch's CUDA library only, so its absence must not keep the library from loading."""
    bindings = {name: binding for name, binding, _ in symbols()}
    if env.build_info().get("cuda") is None:
        pytest.skip(f"no CUDA kernels in this build: {env.build_info().get('cuda_reason')}")
    assert bindings["aoti_torch_get_current_cuda_stream"] == "WEAK"


def test_exports_are_the_introspection_functions_alone():
    """A static CUDA runtime or a kernel that leaked out could be bound by another library of the process."""
    exported = {name for name, binding, defined in symbols() if defined and binding == "GLOBAL"}
    names = {name for name in exported if not name.startswith("_") and name not in ("_end", "_edata")}
    assert {n for n in names if n.startswith("avfast_")} == {
        "avfast_build_info", "avfast_cpu_isa", "avfast_force_isa", "avfast_has_isa", "avfast_peak_gflops",
        "avfast_poison_outputs",
    }  # fmt: skip
    assert {n for n in names if not n.startswith("avfast_")} == set()
    leaked = [name for name, _, defined in symbols() if defined and re.search(r"6avfast|cuda", name)]
    assert [name for name in leaked if not name.startswith("avfast_")] == []


def test_no_executable_stack_and_no_search_path():
    """A run path in a shared library would name folders of the machine that built it."""
    assert not re.search(r"\((RPATH|RUNPATH|TEXTREL)\)", readelf("--dynamic"))
    assert not re.search(r"GNU_STACK.*RWE", readelf("--program-headers"))


def test_build_facts_name_the_target():
    info = env.build_info()
    if not info:
        pytest.skip("no introspection module for this Python")
    assert info["abi_target"] == "2.10" and "-march" not in info["flags"] and "fast-math" not in info["flags"]
