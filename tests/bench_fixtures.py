"""Synthetic candidates whose speed, error and memory are known, and one real, tiny result."""

from __future__ import annotations

import time

import torch

from avfast.benches import harness, machine, run
from avfast.benches.candidate import LEAN, OURS, PEER, PUBLISHED, Candidate, Case

SIZE = 1000


def candidate(name, role, seconds=0.0, result=None, log=None, **options):
    """Doubles its input, after sleeping; ``result`` replaces the right answer."""

    def prepare(x):
        def call():
            if log is not None:
                log.append(name)
            if seconds:
                time.sleep(seconds)
            return {"y": 2 * x if result is None else result(x)}

        return call

    return Candidate(name, prepare, role, **options)


def case(*candidates, **options):
    return Case(
        op="double",
        shape_name="vector",
        shape=(SIZE,),
        inputs=lambda: torch.arange(SIZE, dtype=torch.float32),
        oracle=lambda x: {"y": 2 * x.double()},
        candidates=candidates,
        bytes_moved=8 * SIZE,
        traffic="copy",
        **options,
    )


def by_name(record):
    return {entry["name"]: entry for entry in record["candidates"]}


def quick_protocol(**options):
    return harness.Protocol(**{"rounds": 5, "measure_memory": False, **options})


def tiny_results():
    """Results of one real, tiny run, made publishable whatever the machine is doing."""
    record = harness.run_case(
        case(
            candidate("published", PUBLISHED, seconds=4e-3),
            candidate("lean", LEAN, seconds=2e-3),
            candidate("ours", OURS, seconds=1e-3),
            candidate("absent", PEER, missing=lambda: "not installed"),
        ),
        quick_protocol(threads=1),
    )
    record.update(busy=False, publishable=True, not_for_publication=[], noise_floor=0.01)
    return {"schema": run.SCHEMA, "machine": machine.facts(), "cases": [record], "overhead": []}
