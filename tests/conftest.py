"""Fixtures of every test: a fixed seed, and each way this machine can compute an op."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
