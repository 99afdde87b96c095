"""Every environment variable of avfast, and the facts of this build and machine."""

from __future__ import annotations

import json
import os
import platform
import sys

# name: (default, meaning)
VARIABLES = {
    "AVFAST_BACKEND": ("auto", "backend chosen at import: auto, torch, cpp, cuda or triton"),
    "AVFAST_NATIVE": ("1", "0: do not load (or, at install, build) the compiled library"),
    "AVFAST_CUDA": ("auto", "at install: 0 never compiles CUDA, 1 fails if it does not compile"),
    "AVFAST_CUDA_ARCHS": ("80;90", "at install: CUDA architectures; PTX of the last is added"),
    "AVFAST_DEBUG": ("0", "at install: 1 compiles the library without optimisation, with symbols"),
    "AVFAST_UP_TO": ("all", "at install: avx2 leaves the AVX-512 kernels out, which halves the build"),
    "AVFAST_SANITIZE": ("0", "at build: address,undefined makes a library that checks itself, see .ci/sanitize"),
    "AVFAST_MAX_PIXELS": ("89478485", "largest picture that is decoded, in pixels"),
    "AVFAST_MAX_FILE_BYTES": (str(4 << 30), "most bytes that one media file may decode to"),
}


def text(name: str) -> str:
    return os.environ.get(name) or VARIABLES[name][0]


def flag(name: str) -> bool:
    return text(name) != "0"


def build_info() -> dict[str, object]:
    """Facts compiled into the library (compiler, flags, CUDA, torch headers); empty without the library."""
    from . import _library

    return json.loads(_library.native.build_info()) if _library.native else {}


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def version_of(package: str) -> str:
    """Installed version of a package, without importing it."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


OPTIONAL = (
    "triton", "av", "accelerate", "jsonargparse", "rich", "safetensors", "scikit-learn", "transformers", "matplotlib",
    "tensorboard",
)  # fmt: skip


def facts() -> dict[str, str]:
    """What a bug report needs, in order, as plain text."""
    import torch

    from . import __version__, _library, backends
    from .errors import BackendError
    from .ops import _registry

    info = build_info()
    rows = {
        "avfast": __version__ + (f" ({info['commit']})" if info.get("commit") else ""),
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "processor": f"{cpu_model()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can see",
        "library": "loaded" if _library.loaded else f"not loaded: {_library.reason}",
    }
    if _library.native:
        has = [name for name in ("base", "avx2", "avx512", "avx512_bf16") if _library.native.has_isa(name)]
        rows["instruction set"] = f"{_library.isa()} (this machine has {', '.join(has)})"
        rows["compiled by"] = f"{info['compiler']}, headers of torch {info['torch_headers']}, ABI {info['abi_target']}"
        rows["flags"] = str(info["flags"])
        rows["cuda kernels"] = _cuda_kernels(info)
    elif _library.loaded:
        rows["introspection"] = f"_native was not built for Python {sys.version_info.major}.{sys.version_info.minor}"
    rows["backend"] = backends.current()
    for op in _registry.public_ops():
        try:
            rows[f"  {op}"] = backends.explain(op).chosen
        except BackendError as error:  # the backend chosen by name cannot take it: part of the report
            rows[f"  {op}"] = str(error)
    rows["optional"] = ", ".join(f"{name} {version_of(name)}" for name in OPTIONAL)
    rows["environment"] = ", ".join(f"{k}={os.environ[k]}" for k in VARIABLES if os.environ.get(k)) or "nothing set"
    rows["defaults"] = ", ".join(f"{k}={text(k)}" for k in VARIABLES if not os.environ.get(k)) or "none in force"
    return rows


def _cuda_kernels(info: dict[str, object]) -> str:
    if info["cuda"]:
        return f"{info['cuda']} for sm {', '.join(info['cuda_archs'])}"
    return f"no: {info['cuda_reason'] or 'nvcc was found but did not compile them; the build log says why'}"


def main() -> int:
    """Print :func:`facts`, ready to paste into a bug report."""
    rows = facts()
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:<{width}}  {value}")
    return 0
