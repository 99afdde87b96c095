"""What gets installed: with a compiler, without one, beside a CUDA toolkit that fails; and how fast it imports.

Everything is built in a copy of the sources and installed into folders of its own.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

import avfast

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "avfast", "benches", "csrc", "kernels", "tests")
NEEDS = ("pip", "setuptools", "wheel", "ninja", "pybind11")

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="the tests do not stand beside the sources here"
)

# Makes an interpreter look as if torch and NumPy, with what they require, were all that is installed.
BARE = '''
import sys
from importlib.machinery import PathFinder

REQUIRED = """avfast torch torchgen functorch numpy typing_extensions sympy mpmath networkx jinja2 markupsafe
              fsspec filelock setuptools pkg_resources""".split()
HERE = {*sys.stdlib_module_names, *REQUIRED}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return super().find_spec(name, path, target) if name.partition(".")[0] in HERE else None

    @classmethod
    def find_distributions(cls, *args, **kwargs):
        for found in PathFinder.find_distributions(*args, **kwargs):
            if found.metadata["Name"].lower().replace("-", "_") in HERE:
                yield found


# Without the finder of an editable install of avfast, which would answer for files that were not installed.
finders = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
sys.meta_path[:] = [Bare if f is PathFinder else f for f in finders]
'''


def outputs() -> dict[str, torch.Tensor]:
    """Every op forward and backward on fixed inputs, by its own name; runs here and in the installed package."""
    import torch

    import avfast
    from avfast import testing

    torch.set_num_threads(1)
    found = {}
    for case in testing.CASES:
        for dtype in testing.DTYPES:
            for shape in testing.CHECK_SHAPES[:3]:
                generator = torch.Generator().manual_seed(5)
                for i, out in enumerate(case.run(*case.make(shape, dtype, generator))):
                    found[f"{case.name} {dtype} {shape} {i}"] = out
    generator = torch.Generator().manual_seed(6)
    layer = avfast.nn.AdaptiveBatchNorm2d(5, activation="relu")
    x = torch.randn(4, 5, 6, 6, generator=generator).requires_grad_()
    y = layer(x)
    loss = avfast.info_nce(y.flatten(1), x.flatten(1), distance="l2")
    loss.backward()
    found.update(y=y.detach(), loss=loss.detach(), dx=x.grad)
    found.update({f"d{name}": p.grad for name, p in layer.named_parameters()}, **dict(layer.named_buffers()))
    found.update(avfast.ScanPlan(torch.nn.Sequential(layer)).scan(0.5)._asdict())
    return found


def copied(folder: Path) -> Path:
    """The sources without anything built or cached."""
    folder.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("*.so", "*.o", "__pycache__", "build", "*.egg-info")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


def environment(**variables: str) -> dict[str, str]:
    ours = re.compile(r"AVFAST_|CUDA_HOME|CUDA_PATH|PYTHONPATH|CXX$|MAX_JOBS|TRITON_INTERPRET")
    kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
    return {**kept, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}


def pip(*words: str, expect: int = 0, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--no-deps", "--no-index"],
        env=environment(**variables), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    log = done.stdout + done.stderr
    assert (done.returncode != 0) == (expect != 0), log
    return log


def wheel(sources: Path, out: Path, **variables: str) -> tuple[Path, str]:
    """(wheel, build log)"""
    log = pip("wheel", "-v", "--no-build-isolation", "-w", str(out), str(sources), **variables)
    (path,) = out.glob("avfast-*.whl")
    return path, log


def names_in(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module", autouse=True)
def tools():
    for name in NEEDS:
        if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode:
            pytest.skip(f"the package '{name}' is not installed: nothing can be built here")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    return copied(tmp_path_factory.mktemp("sources") / "avfast")


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder that, on PYTHONPATH, hides every package but torch, NumPy and their requirements."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(BARE)
    return folder


@pytest.fixture(scope="module")
def pure_wheel(sources, tmp_path_factory) -> Path:
    path, log = wheel(sources, tmp_path_factory.mktemp("pure"), AVFAST_NATIVE="0")
    assert "avfast build: pure Python, as AVFAST_NATIVE=0 asks" in log
    return path


@pytest.fixture(scope="module")
def installed(pure_wheel, bare, tmp_path_factory):
    """Runs Python with the pure package installed, in an interpreter that has torch and NumPy only."""
    target = tmp_path_factory.mktemp("target")
    pip("install", "--target", str(target), str(pure_wheel))

    def python(*words: str, expect: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *words], env=environment(PYTHONPATH=f"{bare}{os.pathsep}{target}"),
            cwd=target, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout if expect == 0 else done.stderr

    return python


# ------------------------------------------------------------------------------------------ pure package


def test_contents_of_the_wheel(pure_wheel):
    """Every Python module, every header the kernels are read from, the demo's pictures with their licences."""
    names = names_in(pure_wheel)
    assert pure_wheel.name == f"avfast-{avfast.__version__}-py3-none-any.whl"
    for folder, package in (("avfast", "avfast"), ("kernels", "avfast/kernels"), ("benches", "avfast/benches")):
        modules = {f"{package}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*.py")}
        assert modules and modules - names == set()
    headers = [p for suffix in ("h", "inl", "cu", "cuh") for p in ROOT.glob(f"kernels/**/*.{suffix}")]
    kernels = {f"avfast/{p.relative_to(ROOT)}" for p in headers}
    assert kernels and kernels - names == set()
    assets = {str(p.relative_to(ROOT)) for p in ROOT.glob("avfast/data/assets/**/*") if p.is_file()}
    assert "avfast/data/assets/LICENSES.md" in assets and assets - names == set()
    licences = {name.partition("/licenses/")[2] for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "avfast/data/assets/LICENSES.md"}


def test_nothing_else_is_in_the_wheel(pure_wheel):
    """No tests, no build folders, no libraries, no package besides avfast."""
    names = names_in(pure_wheel)
    assert {name.split("/")[0] for name in names} == {"avfast", f"avfast-{avfast.__version__}.dist-info"}
    assert [n for n in names if re.search(r"/tests?/|/test_|\.so$|\.o$|__pycache__|/build/|\.pyc$", n)] == []


def test_metadata_of_the_wheel(pure_wheel):
    with zipfile.ZipFile(pure_wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode().partition("\n\n")[0]
        scripts = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    required = [line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert {r for r in required if "extra ==" not in r} == {"torch>=2.10", "numpy"}
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.10" in metadata
    assert f"Version: {avfast.__version__}\n" in metadata, "pyproject.toml and avfast.__version__ differ"
    assert "avfast = avfast.cli:main" in scripts


def test_a_library_left_over_in_the_tree_is_not_packed(tmp_path):
    """Someone who built once and now asks for pure Python must not get the old library."""
    sources = copied(tmp_path / "avfast")
    (sources / "avfast" / "libavfast.so").write_bytes(b"left over from an earlier build")
    path, _ = wheel(sources, tmp_path / "out", AVFAST_NATIVE="0")
    assert [name for name in names_in(path) if name.endswith(".so")] == []


def test_without_a_compiler_the_package_installs_pure(sources, tmp_path):
    path, log = wheel(sources, tmp_path, CXX="/nowhere/g++-99")
    assert "no C++ compiler ('/nowhere/g++-99' was not found): pure Python, every op runs its reference" in log
    assert path.name.endswith("-py3-none-any.whl")
    assert [name for name in names_in(path) if name.endswith(".so")] == []


def test_the_source_archive_holds_what_the_build_needs(sources, tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)],
        cwd=sources, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("avfast-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {str(p.relative_to(ROOT)) for f in ("csrc", "kernels") for p in (ROOT / f).rglob("*.*") if p.is_file()}
    needed = {n for n in needed if Path(n).suffix in {".cpp", ".h", ".inl", ".cu", ".cuh", ".py"}}
    assert len(needed) > 30 and needed - names == set()


# ---------------------------------------------------------------------------- torch and NumPy, nothing else


def test_imports_with_torch_and_numpy_alone(installed):
    code = """
        import importlib.util, sys, avfast
        hidden = "av accelerate rich matplotlib sklearn transformers safetensors jsonargparse tensorboard triton"
        assert not any(importlib.util.find_spec(name) for name in hidden.split()), "the test hides nothing"
        print(avfast.__file__, avfast.explain("channel_stats").chosen)
        import avfast.kernels, avfast.benches, avfast.testing
        import avfast.methods, avfast.data, avfast.evaluate, avfast.engine
    """
    path, chosen = installed("-c", textwrap.dedent(code)).split()
    assert Path(path).parents[1].name.startswith("target") and chosen == "torch"


def test_env_says_what_is_missing(installed):
    text = installed("-m", "avfast", "env")
    assert re.search(
        r"^library +not loaded: libavfast.so was not built \(no C\+\+ compiler at install time", text, re.M
    )
    for name in ("av", "accelerate", "rich", "scikit-learn", "matplotlib", "triton", "transformers"):
        assert re.search(rf"\b{name} not installed\b", text), text
    assert re.search(r"^  channel_stats +torch$", text, re.M)


def test_recipes_are_listed(installed):
    text = installed("-m", "avfast", "recipes")
    assert text.startswith("av-align\n") and "needs: " in text


def test_check_passes_on_the_reference(installed):
    *rows, verdict = installed("-m", "avfast", "check").splitlines()[1:]
    assert verdict.startswith("all ops agree with float64") and len(rows) > 20
    assert {row.split()[2] for row in rows} == {"torch"}


def test_a_command_that_needs_more_names_it(installed, tmp_path):
    """Status 2 and one line that says what to install; not a traceback."""
    (tmp_path / "clip.mp4").write_bytes(b"not a film")
    error = installed("-m", "avfast", "media-scan", str(tmp_path), expect=2)
    assert re.fullmatch(r"error: .+ needs the package '\w+': pip install 'avfast\[\w+\]'\n", error), error


def test_results_are_those_of_the_reference_bit_for_bit(installed, tmp_path):
    file = tmp_path / "outputs.pt"
    source = "from __future__ import annotations\n" + inspect.getsource(outputs)
    installed("-c", f"{source}\nimport torch\ntorch.save(outputs(), {str(file)!r})")
    threads = torch.get_num_threads()
    try:
        with avfast.use_backend("torch"):
            expected = outputs()
    finally:
        torch.set_num_threads(threads)
    found = torch.load(file)
    assert found.keys() == expected.keys() and len(found) > 100
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].stride() == value.stride(), name
        assert torch.equal(found[name].nan_to_num(7.0), value.nan_to_num(7.0)), name


def test_import_takes_less_than_three_tenths_of_a_second(installed):
    """Beyond torch, which takes seconds."""
    code = "import time, torch; t = time.perf_counter(); import avfast; print(time.perf_counter() - t)"
    times = [float(installed("-c", code)) for _ in range(3)]
    assert statistics.median(times) < 0.3, times


# ------------------------------------------------------------------------------- a CUDA toolkit that fails


@pytest.fixture(scope="module")
def broken_toolkit(tmp_path_factory) -> Path:
    """A folder that looks like a CUDA toolkit and whose nvcc refuses every file."""
    home = tmp_path_factory.mktemp("cuda")
    for path in (home / "bin" / "nvcc", home / "include" / "cuda_runtime.h"):
        path.parent.mkdir()
        path.write_text("#!/bin/sh\necho 'nvcc fatal: unsupported' >&2\nexit 1\n")
    (home / "bin" / "nvcc").chmod(0o755)
    return home


def test_the_cpu_library_survives_a_failing_nvcc(sources, broken_toolkit, tmp_path):
    """A real build, kept short: unoptimised, two instruction sets; with AVFAST_CUDA=1 the same must fail instead."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler (g++) on this machine")
    variables = {"AVFAST_DEBUG": "1", "AVFAST_UP_TO": "avx2", "CUDA_HOME": str(broken_toolkit)}
    path, log = wheel(sources, tmp_path / "out", **variables)
    assert "nvcc fatal: unsupported" in log
    assert "the CUDA kernels did not compile (see above); the CPU library was built without them" in log
    libraries = {name for name in names_in(path) if name.endswith(".so")}
    assert "avfast/libavfast.so" in libraries and len(libraries) == 2
    assert not path.name.endswith("none-any.whl")

    target = tmp_path / "target"
    pip("install", "--target", str(target), str(path))
    done = subprocess.run(
        [sys.executable, "-c", "import avfast.cli as c; c.main(['env']) or exit(c.main(['check']))"],
        env=environment(PYTHONPATH=str(target)), cwd=target, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^library +loaded$", done.stdout, re.M)
    assert re.search(r"^cuda kernels +no: .*nvcc", done.stdout, re.M), done.stdout
    assert re.search(r"^channel_stats_fwd +float32 +cpp .* ok$", done.stdout, re.M)

    log = pip(
        "wheel", "-v", "--no-build-isolation", "-w", str(tmp_path / "no"), str(sources),
        expect=1, AVFAST_CUDA="1", **variables,
    )  # fmt: skip
    assert "the CUDA kernels did not compile, and AVFAST_CUDA=1 asks for them" in log
    assert not list((tmp_path / "no").glob("*.whl"))
