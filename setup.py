"""Builds libavfast.so (kernels, on the LibTorch stable ABI) and _native (introspection) with one ninja file.

Everything else about the package is in pyproject.toml. What a build needs, and what happens without it:

* torch   its header folder only; found without importing torch. Missing: an error that says what to type.
* a C++20 compiler (GCC 11 or newer). Missing: the package installs pure, every op runs its reference.
* nvcc    adds the CUDA kernels. Missing or failing: the CPU library is built all the same, and `avfast env` says why.

Environment: AVFAST_NATIVE=0 (pure Python), AVFAST_CUDA=0 (never) or 1 (fail if it fails), AVFAST_CUDA_ARCHS="80;90",
AVFAST_DEBUG=1, AVFAST_UP_TO=avx2 (no AVX-512), CXX, CUDA_HOME, MAX_JOBS. AVFAST_SANITIZE=address,undefined checks
memory and arithmetic as kernels run, and is for a folder of its own: python setup.py build --build-lib
build/sanitized (see .ci/sanitize).
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "0x020a000000000000"  # stable ABI of torch 2.10: the oldest torch the library loads in
CXX_FLAGS = (
    "-std=c++20 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wno-psabi"
)
# GCC 12's own AVX-512 headers trip these three.
CXX_FLAGS += " -Wno-uninitialized -Wno-maybe-uninitialized -Wno-ignored-attributes"
SOURCES = {".cpp", ".h", ".inl", ".cu", ".cuh"}
# Enough to find a fault in a body that every instruction set shares, at a third of the compile time.
SANITIZED_FLAGS = " -O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -DAVFAST_UP_TO_AVX2"
SHARED = ("dispatch", "tables")  # of kernels/isa: compiled once, not per family
HOW_TO = "install torch first, then: pip install --no-build-isolation -e ."


def log(message: str) -> None:
    print(f"avfast build: {message}", file=sys.stderr, flush=True)


def sanitizers() -> str:
    """What AVFAST_SANITIZE asks of the compiler, as its -fsanitize= is written; "" for a normal build."""
    asked = os.environ.get("AVFAST_SANITIZE", "0")
    return "" if asked == "0" else asked


def torch_folder() -> Path:
    """Where torch is installed. In pip's isolated build the interpreter's own packages are hidden: ask it afresh."""
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        return Path(spec.origin).parent
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    probe = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
    found = subprocess.run([sys.executable, "-c", probe], env=clean, capture_output=True, text=True).stdout.strip()
    if not found:
        raise SystemExit(f"avfast: torch was not found by {sys.executable}: {HOW_TO}")
    return Path(found).parent


def torch_version(folder: Path) -> tuple[str, str | None]:
    """(version, CUDA version) read from torch's own file, without importing it."""
    text = (folder / "version.py").read_text()
    version = re.search(r"^__version__ = '(.+)'", text, re.M)
    cuda = re.search(r"^cuda.* = '(.+)'", text, re.M)
    return version[1] if version else "unknown", cuda[1] if cuda else None


def find_nvcc() -> tuple[str | None, str]:
    """nvcc and its toolkit's folder, or None and the reason. The nvcc on PATH may be a wrapper outside its toolkit."""
    if os.environ.get("AVFAST_CUDA") == "0":
        return None, "switched off by AVFAST_CUDA=0"
    if sanitizers():
        return None, "switched off by AVFAST_SANITIZE"
    on_path = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"]
    homes += sorted(glob.glob("/usr/local/cuda-*"), reverse=True)
    homes.append(str(Path(on_path).resolve().parent.parent) if on_path else None)
    for home in filter(None, homes):
        nvcc = Path(home) / "bin" / "nvcc"
        if nvcc.exists() and (Path(home) / "include" / "cuda_runtime.h").exists():
            return str(nvcc), home
    return None, "nvcc was not found (set CUDA_HOME)"


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


class Ninja:
    """Collects compile and link edges, writes one build.ninja, runs it target by target."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.lines = ["ninja_required_version = 1.5", f"builddir = {folder}"]

    def rule(self, name: str, command: str, deps: str = "") -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        self.lines += [f"  {line}" for line in deps.split("|") if line]

    def edge(self, rule: str, output: Path, inputs: list[Path], implicit: list[Path] = (), **variables: str) -> Path:
        after = f" | {' '.join(map(str, implicit))}" if implicit else ""
        self.lines.append(f"build {output}: {rule} {' '.join(map(str, inputs))}{after}")
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]
        return output

    def write(self) -> None:
        text = "\n".join(self.lines) + "\n"
        path = self.folder / "build.ninja"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

    def run(self, target: Path) -> bool:
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        return subprocess.run([*self.command(), "-C", str(self.folder), *jobs, str(target)]).returncode == 0

    @staticmethod
    def command() -> list[str]:
        if importlib.util.find_spec("ninja"):
            return [sys.executable, "-m", "ninja"]
        if shutil.which("ninja"):
            return ["ninja"]
        raise SystemExit("avfast: ninja was not found: pip install ninja")


class BuildNative(build_ext):
    """Fills the place of setuptools' one extension with what ninja made."""

    def run(self) -> None:
        if sanitizers() and (self.inplace or self.editable_mode):
            raise SystemExit(
                "avfast: AVFAST_SANITIZE would replace the library in use by one that loads only beside its sanitizer:"
                " python setup.py build --build-lib build/sanitized"
            )
        super().run()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not build_temp: an editable install throws that away, and with it every object that need not be rebuilt.
        kind = "sanitized" if sanitizers() else "native"
        library, native = compile_all(ROOT / "build" / f"{kind}-{sys.implementation.cache_tag}")
        shutil.copy2(native, target)
        replace(library, target.parent / "libavfast.so")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        source = Path(self.get_finalized_command("build_py").get_package_dir("avfast"))
        replace(Path(self.build_lib) / "avfast" / "libavfast.so", source / "libavfast.so")


def replace(source: Path, target: Path) -> None:
    """Copy over a library that a running process may have mapped: never write into the old file."""
    fresh = target.with_suffix(".new")
    shutil.copy2(source, fresh)
    fresh.replace(target)


def compile_all(folder: Path) -> tuple[Path, Path]:
    """(libavfast.so, _native.so), with CUDA kernels where nvcc makes them."""
    import pybind11

    torch = torch_folder()
    version, torch_cuda = torch_version(torch)
    cxx = os.environ.get("CXX", "g++")
    nvcc, cuda_home = find_nvcc()
    checks = f" -fsanitize={sanitizers()}" if sanitizers() else ""
    speed = " -O0 -g" if os.environ.get("AVFAST_DEBUG") == "1" else " -O3 -DNDEBUG"
    flags = CXX_FLAGS + (SANITIZED_FLAGS + checks if checks else speed)
    flags += " -DAVFAST_UP_TO_AVX2" if not checks and os.environ.get("AVFAST_UP_TO") == "avx2" else ""
    launcher = "ccache " if shutil.which("ccache") else ""
    ninja = Ninja(folder)
    ninja.rule("cxx", f"{launcher}{cxx} {flags} $includes -MD -MF $out.d -c $in -o $out", "deps = gcc|depfile = $out.d")
    ninja.rule("link", f"{cxx} -shared{checks} $in -o $out $libs")

    api = f"-isystem {torch}/include -DTORCH_TARGET_VERSION={TORCH_TARGET}"
    python = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}"

    def objects(pattern: str, **variables: str) -> list[Path]:
        return [
            ninja.edge("cxx", folder / f"{source.parent.name}_{source.stem}.o", [source], **variables)
            for source in sorted(ROOT.glob(pattern))
        ]

    apart = {"introspect", "native", "register_cuda"}
    # One object for each instruction set and family, so that a changed kernel recompiles its own family only.
    families = sorted(path.parent for path in (ROOT / "kernels").glob("*/bodies.inl"))
    sets = [source for source in sorted((ROOT / "kernels/isa").glob("*.cpp")) if source.stem not in SHARED]
    kernels = [ninja.edge("cxx", folder / f"isa_{stem}.o", [ROOT / f"kernels/isa/{stem}.cpp"]) for stem in SHARED]
    kernels += [
        ninja.edge("cxx", folder / f"{source.stem}_{family.name}.o", [source], includes=f"-I{family}")
        for family in families
        for source in sets
    ]
    bindings = [
        ninja.edge("cxx", folder / f"csrc_{source.stem}.o", [source], includes=api)
        for source in sorted((ROOT / "csrc").glob("*.cpp"))
        if source.stem not in apart
    ]
    introspect = objects("csrc/introspect.cpp")

    # libtorch.so brings torch's CUDA library in where there is one; nothing else of torch is linked by name.
    libs = f"-L{torch}/lib -Wl,--no-as-needed -ltorch -Wl,--as-needed -ltorch_cpu"

    def library(name: str, extra: list[Path], more_libs: str, **facts: object) -> Path:
        info = folder / f"{name}_info.cpp"
        text = json.dumps(
            {
                "avfast": VERSION,
                "compiler": output_of(cxx, "--version").split("\n")[0],
                "flags": flags,
                "torch_headers": version,
                "abi_target": "2.10",
                "commit": output_of("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or None,
                **facts,
            }
        )
        source = (
            f'extern "C" const char avfast_build_info_json[];\nconst char avfast_build_info_json[] = R"J({text})J";\n'
        )
        if not info.exists() or info.read_text() != source:
            info.write_text(source)
        made = ninja.edge("cxx", folder / f"{name}_info.o", [info])
        output = folder / name / "libavfast.so"
        output.parent.mkdir(exist_ok=True)
        return ninja.edge("link", output, [*kernels, *bindings, *introspect, made, *extra], libs=f"{libs} {more_libs}")

    cpu = library("cpu", [], "", cuda=None, cuda_reason=None if nvcc else cuda_home)
    cuda = None
    if nvcc:
        archs = os.environ.get("AVFAST_CUDA_ARCHS", "80;90").split(";")
        gencode = " ".join(f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs)
        gencode += f" -gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"
        ninja.rule(
            "nvcc",
            f"{nvcc} -O3 -std=c++17 -lineinfo {gencode} -Xcompiler -fPIC,-fvisibility=hidden "
            "-MD -MF $out.d -c $in -o $out",
            "deps = gcc|depfile = $out.d",
        )
        device = [
            ninja.edge("nvcc", folder / f"{source.stem}.cu.o", [source])
            for source in sorted((ROOT / "kernels").glob("*/*.cu"))
        ]
        register = ninja.edge("cxx", folder / "csrc_register_cuda.o", [ROOT / "csrc/register_cuda.cpp"], includes=api)
        release = next((w.strip(",")[1:] for w in output_of(nvcc, "--version").split() if w.startswith("V")), "unknown")
        cuda_libs = f"-L{cuda_home}/lib64 -lcudart_static -ldl -lrt -lpthread"
        cuda = library("cuda", [*device, register], cuda_libs, cuda=release, cuda_archs=archs)
        if torch_cuda and torch_cuda.split(".")[0] != release.split(".")[0]:
            log(f"nvcc {release} and torch's CUDA {torch_cuda} differ in major version; building anyway")

    def native(beside: Path) -> Path:
        name = "_native_" + beside.parent.name
        return ninja.edge(
            "link",
            folder / f"{name}.so",
            [native_object],
            implicit=[beside],
            libs=f"-L{beside.parent} -lavfast -Wl,-rpath,'$$ORIGIN' -L{torch}/lib -Wl,-rpath-link,{torch}/lib",
        )

    native_object = ninja.edge("cxx", folder / "csrc_native.o", [ROOT / "csrc/native.cpp"], includes=python)
    native_cpu, native_cuda = native(cpu), native(cuda) if cuda else None
    ninja.write()

    if not ninja.run(native_cpu):
        raise SystemExit("avfast: the CPU library did not compile; AVFAST_NATIVE=0 installs the pure-Python package")
    if native_cuda:
        if ninja.run(native_cuda):
            return cuda, native_cuda
        if os.environ.get("AVFAST_CUDA") == "1":
            raise SystemExit("avfast: the CUDA kernels did not compile, and AVFAST_CUDA=1 asks for them")
        log("the CUDA kernels did not compile (see above); the CPU library was built without them")
    else:
        log(f"no CUDA kernels: {cuda_home}")
    return cpu, native_cpu


def native_extensions() -> list[Extension]:
    if os.environ.get("AVFAST_NATIVE") == "0":
        log("pure Python, as AVFAST_NATIVE=0 asks")
        return []
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        log(f"no C++ compiler ('{compiler}' was not found): pure Python, every op runs its reference")
        return []
    # ninja has the sources; naming them here puts them into the source archive.
    files = [p for folder in ("csrc", "kernels") for p in sorted((ROOT / folder).rglob("*")) if p.suffix in SOURCES]
    return [Extension("avfast._native", sources=[], depends=[str(p.relative_to(ROOT)) for p in files])]


def packages() -> list[str]:
    """avfast and its children, with kernels/ and benches/ installed as avfast.kernels and avfast.benches."""
    found = find_packages(str(ROOT), include=["avfast", "avfast.*"])
    for outer in ("kernels", "benches"):
        found += [f"avfast.{outer}"]
        found += [f"avfast.{outer}.{inner}" for inner in find_packages(str(ROOT / outer))]
    return found


VERSION = next(
    line.split('"')[1] for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version = ")
)
setup(packages=packages(), ext_modules=native_extensions(), cmdclass={"build_ext": BuildNative})
