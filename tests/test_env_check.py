"""`avfast env` and `avfast check`: what a bug report needs, and a verdict that can be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

import avfast
from avfast import _library, backends, env, testing
from avfast.cli import main
from avfast.errors import BackendError
from avfast.ops import _registry
from avfast.testing import CASES, DTYPES, Case, CheckRow

needs_native = pytest.mark.skipif(_library.native is None, reason="no introspection module on this machine")


def report(capsys) -> dict[str, str]:
    """The lines of `avfast env` as name and value."""
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.rstrip().partition("  ") for line in lines)} | {
        line.split()[0]: line.split(None, 1)[1] for line in lines if line.startswith("  ")
    }


# ---------------------------------------------------------------------------------------------------- env


def test_env_reports_machine_and_versions(capsys):
    rows = report(capsys)
    assert rows["avfast"].startswith(avfast.__version__)
    assert rows["torch"].startswith(torch.__version__)
    assert rows["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert rows["processor"].endswith(f"{os.cpu_count()} cores")
    for name in env.OPTIONAL:
        assert f"{name} {env.version_of(name)}" in rows["optional"]


@needs_native
def test_env_reports_the_library(capsys):
    rows, info = report(capsys), env.build_info()
    assert rows["library"] == "loaded"
    assert rows["instruction set"].startswith(f"{_library.isa()} (this machine has base")
    assert info["compiler"] in rows["compiled by"] and "ABI 2.10" in rows["compiled by"]
    assert rows["flags"] == info["flags"]
    assert rows["cuda kernels"].startswith(str(info["cuda"]) if info["cuda"] else "no: ")


def test_env_reports_every_variable(capsys, monkeypatch):
    """Set or not, each is there with the value in force."""
    for name in env.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AVFAST_CUDA_ARCHS", "90a")
    rows = report(capsys)
    assert rows["environment"] == "AVFAST_CUDA_ARCHS=90a"
    usual = (
        "AVFAST_BACKEND=auto, AVFAST_NATIVE=1, AVFAST_CUDA=auto, AVFAST_DEBUG=0, AVFAST_UP_TO=all, AVFAST_SANITIZE=0"
    )
    assert rows["defaults"] == f"{usual}, AVFAST_MAX_PIXELS=89478485, AVFAST_MAX_FILE_BYTES=4294967296"
    for name in env.VARIABLES:
        monkeypatch.setenv(name, "1")
    rows = report(capsys)
    assert rows["defaults"] == "none in force" and all(f"{name}=1" in rows["environment"] for name in env.VARIABLES)
    for name in env.VARIABLES:
        monkeypatch.delenv(name)
    assert report(capsys)["environment"] == "nothing set"


def test_every_variable_that_the_package_reads_is_in_the_table():
    """Any AVFAST_ name in the sources, so that `avfast env` can never leave one out."""
    import re
    from pathlib import Path

    root = Path(avfast.__file__).resolve().parents[1]
    sources = [*root.glob("avfast/**/*.py"), *root.glob("setup.py")]
    assert sources
    named = {name for path in sources for name in re.findall(r"\bAVFAST_[A-Z_]+\b", path.read_text())}
    assert named == set(env.VARIABLES)


def test_env_says_which_backend_each_op_runs(capsys):
    rows = report(capsys)
    assert rows["backend"] == backends.current()
    for op in _registry.public_ops():
        assert rows[op] == backends.explain(op).chosen


@pytest.mark.skipif(not _library.loaded, reason="no compiled library on this machine")
def test_env_survives_a_backend_that_cannot_take_every_op(capsys, monkeypatch):
    """The report is most needed when something does not run."""
    monkeypatch.setattr(_library, "_kernels", _library._kernels - {("pair_nce_bwd", "cpu")})
    with avfast.use_backend("cpp"):
        rows = report(capsys)
    assert rows["channel_stats"] == "cpp"
    assert "backend 'cpp' cannot run: the library has no cpu kernel for pair_nce_bwd" in rows["info_nce"]


def test_env_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(_library, "native", None)
    monkeypatch.setattr(_library, "loaded", False)
    monkeypatch.setattr(_library, "reason", "libavfast.so was not built (no C++ compiler at install time)")
    monkeypatch.setattr(env, "version_of", lambda name: "not installed" if name == "rich" else "1.0")
    rows = report(capsys)
    assert rows["library"] == "not loaded: libavfast.so was not built (no C++ compiler at install time)"
    assert "rich not installed" in rows["optional"] and "instruction set" not in rows
    assert rows["channel_stats"] == "torch"


def test_env_names_a_library_without_introspection(capsys, monkeypatch):
    monkeypatch.setattr(_library, "native", None)
    monkeypatch.setattr(_library, "loaded", True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert report(capsys)["introspection"] == f"_native was not built for Python {version}"


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"cuda": "13.0", "cuda_archs": ["80", "90"]}, "13.0 for sm 80, 90"),
        ({"cuda": None, "cuda_reason": "nvcc was not found (set CUDA_HOME)"}, "no: nvcc was not found (set CUDA_HOME)"),
        (
            {"cuda": None, "cuda_reason": None},
            "no: nvcc was found but did not compile them; the build log says why",
        ),
    ],
)
def test_env_says_why_there_are_no_cuda_kernels(info, expected):
    assert env._cuda_kernels(info) == expected


def test_env_imports_nothing_optional():
    code = (
        "import sys, avfast.env; avfast.env.main()\n"
        "names = 'triton av accelerate jsonargparse rich safetensors sklearn transformers matplotlib tensorboard'\n"
        "sys.exit(','.join(n for n in names.split() if n in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------------------------- check


@pytest.fixture(scope="module")
def checked() -> tuple[list[CheckRow], float]:
    """What a check finds, and the seconds that it took."""
    start = time.perf_counter()
    return list(testing.check()), time.perf_counter() - start


@pytest.fixture
def few_cases(monkeypatch):
    """The ops of channels are enough where it matters only what a check does with its findings."""
    monkeypatch.setattr(testing, "CASES", [case for case in CASES if case.name.startswith("channel_")])


def test_check_covers_every_op_and_dtype_and_passes(checked):
    rows, seconds = checked
    assert seconds < 30, "on any machine; here it is a few"
    assert {(row.op, row.dtype) for row in rows} == {
        (name, str(dtype)[6:]) for name, b in _registry.BOUNDARIES.items() for dtype in DTYPES if not b.mutates
    }
    assert [row for row in rows if not row.passed] == []
    assert all(0 < row.tolerance < 0.1 for row in rows), "a tolerance of nothing or everything is no check"


@pytest.mark.parametrize("isa", testing.ISAS)
def test_check_passes_on_each_instruction_set(isa, capsys):
    if not (_library.native and _library.native.has_isa(isa)):
        pytest.skip(f"this machine has no {isa} kernels")
    with testing.forced_isa(isa):
        assert testing.check_command() == 0
    assert f"instruction set {isa})" in capsys.readouterr().out


def test_check_prints_error_tolerance_and_backend(checked, capsys, monkeypatch):
    monkeypatch.setattr(testing, "check", lambda device: iter(checked[0]))
    assert main(["check"]) == 0
    header, *rows, verdict = capsys.readouterr().out.splitlines()
    assert header.split() == ["op", "dtype", "backend", "error", "tolerance"]
    assert len(rows) == len(DTYPES) * len(CASES)
    for row in rows:
        op, dtype, backend, error, tolerance, word = row.split()
        assert word == "ok" and float(error) <= float(tolerance)
        assert backend == backends.explain(_registry.BOUNDARIES[op].op).chosen
    assert verdict.startswith("all ops agree with float64 (")


def test_check_of_the_reference(capsys):
    with avfast.use_backend("torch"):
        assert main(["check"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:-1]
    assert {row.split()[2] for row in rows} == {"torch"}


@pytest.mark.skipif(not _library.loaded, reason="no compiled library on this machine")
def test_check_of_a_backend_that_cannot_take_every_op(capsys, monkeypatch):
    """The ops it takes are checked; the others are named with the reason, not passed over and not an error."""
    monkeypatch.setattr(_library, "_kernels", _library._kernels - {("dense_match_fwd", "cpu")})
    monkeypatch.setattr(testing, "CASES", [case for case in CASES if case.name.startswith(("channel_", "dense_"))])
    assert main(["check", "--backend", "cpp"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:-1]
    left_out = [row for row in rows if not row.endswith("  ok")]
    assert {row.split()[2] for row in rows if row not in left_out} == {"cpp"}
    assert [" ".join(row.split()) for row in left_out] == [
        f"{op} not checked: the library has no cpu kernel for dense_match_fwd"
        for op in ("dense_contrastive", "dense_match")
    ]


@pytest.mark.parametrize("fault", ["a little off", "one NaN", "unwritten"])
def test_check_finds_a_broken_op(fault, few_cases, capsys, monkeypatch):
    """An op that is wrong in one output must be named, and the exit status must say so."""
    right = Case.run

    def broken(self, *args):
        first, *rest = right(self, *args)
        if self.name == "channel_affine_fwd":
            first = first.clone()
            if fault == "a little off":
                first *= 1 + 64 * torch.finfo(first.dtype).eps
            elif fault == "one NaN":
                first[(-1,) * first.dim()] = torch.nan
            else:
                first.zero_()
        return (first, *rest)

    monkeypatch.setattr(Case, "run", broken)
    assert main(["check"]) == 1
    *rows, verdict = capsys.readouterr().out.splitlines()[1:]
    wrong = [row.split()[:2] for row in rows if row.endswith("WRONG")]
    assert wrong == [["channel_affine_fwd", str(dtype)[6:]] for dtype in DTYPES]
    assert verdict.startswith("4 rows are wrong (")


def test_a_row_fails_beyond_its_tolerance():
    def row(error):
        return CheckRow("op", "float32", "cpp", error, 1e-6).passed

    assert row(1e-6) and row(0.0) and not row(1.1e-6) and not row(float("inf")) and not row(float("nan"))


def test_check_leaves_the_backend_as_it_was(few_cases, monkeypatch):
    before = backends.current()
    testing.check_command("torch")
    monkeypatch.setattr(testing, "check", lambda device: (_ for _ in ()).throw(RuntimeError("boom")))
    with pytest.raises(RuntimeError, match="boom"):
        testing.check_command("torch")
    assert backends.current() == before
    with pytest.raises(BackendError):
        testing.check_command("turbo")
