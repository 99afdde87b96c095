"""pytest-benchmark entries: ``pytest benches --benchmark-only``.

The bench files are collected as they are; each has one test, run for every case and candidate. The answer is
asserted before anything is timed, threads and seed are fixed, and the clock waits for the device.
Pick with ``-k``, for instance ``-k "channel_stats and avfast"``. The record to publish is made by
`avfast.benches.run`, which interleaves the candidates; this entry is for profiling and quick looks.
"""

from __future__ import annotations

import os
import time

import pytest
import torch

from . import accuracy, compiled, machine, timing
from .candidate import PUBLISHED

THREADS = int(os.environ.get("AVFAST_BENCH_THREADS", "0")) or machine.cores()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def clock() -> float:
    """The wall clock, after the device has finished."""
    timing.synchronise(DEVICE)
    return time.perf_counter()


def pytest_collect_file(file_path, parent):
    if file_path.name.startswith("bench_") and file_path.suffix == ".py":
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_generate_tests(metafunc):
    if {"case", "candidate"} <= set(metafunc.fixturenames):
        pairs = [(case, candidate) for case in metafunc.module.cases(DEVICE) for candidate in case.candidates]
        metafunc.parametrize(
            ("case", "candidate"), pairs, ids=[f"{case.key}-{candidate.name}" for case, candidate in pairs]
        )


def pytest_collection_modifyitems(items):
    for item in items:
        if "measure" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(group=item.callspec.params["case"].key, timer=clock))


@pytest.fixture(scope="session")
def machine_facts() -> dict:
    return machine.facts()


@pytest.fixture
def measure(benchmark, machine_facts):
    """Assert the candidate's answer, then time it; skips in words what cannot run here."""

    def run(case, candidate) -> None:
        if candidate.slow:
            pytest.skip("takes minutes to compile: python -m avfast.benches.run --slow")
        if reason := candidate.missing():
            pytest.skip(reason)
        torch.manual_seed(0)
        with timing.threads(THREADS), compiled.thread_count_known(THREADS), candidate.scope():
            call = candidate.prepare(case.inputs())
            result = call()
            if candidate.role != "context":
                _assert_answer(case, candidate, result)
            rounds = 20 if DEVICE == "cuda" else 7
            repeat = timing.repeats_for([call], DEVICE)
            benchmark.pedantic(call, rounds=rounds, iterations=repeat, warmup_rounds=1)
        benchmark.extra_info.update(
            threads=THREADS, bytes_moved=case.bytes_moved, flops=case.flops, machine=machine_facts
        )

    return run


def _assert_answer(case, candidate, result) -> None:
    expected = case.oracle(case.inputs())
    errors = accuracy.errors_of(candidate.view(result), expected)
    published = next(c for c in case.candidates if c.role == PUBLISHED)
    baseline = None
    if published.missing() is None:
        with published.scope():
            baseline = accuracy.errors_of(published.view(published.prepare(case.inputs())()), expected)
    wrong = accuracy.objection(errors, baseline, case.dtype, case.exact, case.least_allowance)
    assert wrong is None, f"{case.key}, {candidate.name}: {wrong}"
