"""Fixtures of every test: a fixed seed, and each way this machine can compute an op."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import avfast
from avfast import _library, backends, testing

# Every way to run an op on the CPU. A GPU adds "cuda" and "triton"; the Triton interpreter has a process of its own.
SETS = ("cpp[base]", "cpp[avx2]", "cpp[avx512]", "cpp[avx512_bf16]")
WAYS = ("torch", *SETS, "cuda", "triton")


def why_not(way: str) -> str | None:
    """In words, why this machine cannot compute that way."""
    name, _, isa = way.partition("[")
    if reason := backends._machine_reason(name):
        return f"{way}: {reason}"
    if isa and not (_library.native and _library.native.has_isa(isa.rstrip("]"))):
        return f"{way}: this machine's processor does not have it"
    return None


@contextlib.contextmanager
def computing(way: str) -> Iterator[None]:
    name, _, isa = way.partition("[")
    with contextlib.ExitStack() as stack:
        stack.enter_context(avfast.use_backend(name))
        if isa:
            stack.enter_context(testing.forced_isa(isa.rstrip("]")))
        yield


def device_of(way: str) -> str:
    return "cuda" if way in ("cuda", "triton") else "cpu"


@pytest.fixture(params=WAYS)
def way(request) -> Iterator[str]:
    """One way to compute, in force for the test; skipped with its reason where this machine lacks it."""
    if reason := why_not(request.param):
        pytest.skip(reason)
    with computing(request.param):
        yield request.param


@pytest.fixture(params=SETS)
def compiled(request) -> Iterator[str]:
    """One instruction set of the compiled CPU kernels."""
    if reason := why_not(request.param):
        pytest.skip(reason)
    with computing(request.param):
        yield request.param


# Modules of half a minute and more on a quiet core, the longest first.
LONG = (
    "test_packaging", "test_engine_scene", "test_triton_interpreter", "test_engine_pretrain", "test_aot",
    "test_processes", "test_engine_finetune", "test_soak_steps", "test_engine_shards", "test_env_check",
    "test_methods_cim", "test_engine_resume_kill", "test_fusion_quality", "test_methods_densecl", "test_processes_lost",
    "test_engine_resume_state", "test_data_scale", "test_dropped_steps",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long modules come first, then those of many tests: one that began last would leave the other cores idle."""
    if gone := set(LONG) - {path.stem for path in Path(__file__).parent.glob("test_*.py")}:
        raise pytest.UsageError(f"tests/conftest.py: LONG names modules that are not there: {', '.join(sorted(gone))}")
    counts = Counter(item.path for item in items)
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (place.get(item.path.stem, len(LONG)), -counts[item.path]))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for a whole module: small networks only wait for a second one, and more round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """As without matplotlib: drawing takes longer than the trainings of the tests."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
