"""The benchmark protocol: check, then weigh, then time; one record per case.

1. Every candidate's answer is compared with float64 *before* anything is timed; a wrong one is struck out.
2. Peak memory is measured in the process so warmed, and what autograd holds for backward where there is one.
3. The others are timed round-robin in one process. One runs twice per round: what separates it from itself is
   the noise floor, and a smaller difference between two candidates is no difference.
4. A record made on a busy machine, or with much noise, is kept but marked as not for publication, with the reason.

Absolute times compare nothing across machines or days; the ratios inside one record do.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import accuracy, compiled, machine, memory, timing
from .candidate import CONTEXT, OURS, PUBLISHED, Candidate, Case
from .ratios import ratios

AGAIN = " (again)"
MOST_NOISE = 0.25
"""A candidate that differs from itself by more says nothing about others."""


@dataclass(frozen=True)
class Protocol:
    """How carefully to measure. ``rounds=None`` means 20 on a GPU, 11 on a CPU or what a slow case asks for."""

    threads: int = 1
    rounds: int | None = None
    seconds: float | None = None  # stop early after this long, once 5 rounds are complete
    ready_limit: float | None = 300.0  # seconds a candidate may take to be ready (torch.compile)
    include: Callable[[Candidate], bool] = field(default=lambda candidate: not candidate.slow)
    measure_memory: bool = True
    cores_in_use: int = 1  # the most threads anything in this run has used

    def rounds_of(self, case: Case) -> int:
        return self.rounds or (20 if torch.device(case.device).type == "cuda" else case.slow_rounds or 11)


@dataclass
class _Entrant:
    """A candidate on its way through the protocol."""

    candidate: Candidate
    record: dict
    calls: list[Callable[[], Any]] = field(default_factory=list)
    errors: dict[str, accuracy.Error] | None = None

    @property
    def timed(self) -> bool:
        return self.record["status"] == "ok"


def run_case(case: Case, protocol: Protocol) -> dict:
    """Measure one case at one thread count. The record holds plain JSON types only."""
    with timing.threads(protocol.threads), compiled.thread_count_known(protocol.threads):
        compiled.forget()
        entrants = _check(case, protocol)
        running = [entrant for entrant in entrants if entrant.timed]
        _weigh(case, running, protocol)
        watch = machine.Watch()  # not earlier: compiler processes of ours would count as others
        slices, rounds = _time(case, running, protocol)
        busyness = watch.stop()
        _describe(case, running, slices, protocol)
    busy = busyness.objections(max(protocol.threads, protocol.cores_in_use))
    twin = next((name for name in slices if name.endswith(AGAIN)), None)
    noise = _noise(slices, twin) if twin else None
    objections = list(busy)
    if noise is not None and noise > MOST_NOISE:
        objections.append(f"{twin.removesuffix(AGAIN)} differs from itself by {noise:.0%}")
    record = {
        "key": case.key,
        "op": case.op,
        "mode": case.mode,
        "shape_name": case.shape_name,
        "shape": list(case.shape),
        "layout": case.layout,
        "dtype": case.dtype_name,
        "device": case.device,
        "threads": protocol.threads,
        "rounds": rounds,
        "bytes_moved": case.bytes_moved,
        "flops": case.flops,
        "noise_floor": noise,
        "twin": twin.removesuffix(AGAIN) if twin else None,
        "load_before": busyness.load_before,
        "load_after": busyness.load_after,
        "foreign_cores": busyness.foreign_cores,
        "busy": bool(busy),
        "publishable": not objections,
        "not_for_publication": objections,
        "candidates": [entrant.record for entrant in entrants],
    }
    record.update(ratios(record))
    return record


def input_sets(case: Case) -> list[Any]:
    """One set of inputs on a CPU; on a GPU enough of them that going round leaves nothing in L2."""
    if torch.device(case.device).type != "cuda":
        return [case.inputs()]
    cache = torch.cuda.get_device_properties(case.device).L2_cache_size
    return [case.inputs() for _ in range(min(16, 1 + -(-2 * cache // max(case.bytes_moved, 1))))]


# ------------------------------------------------------------------------------------------------- 1. check


def _check(case: Case, protocol: Protocol) -> list[_Entrant]:
    expected = case.oracle(case.inputs())
    order = sorted(case.candidates, key=lambda candidate: candidate.role != PUBLISHED)  # the yardstick first
    baseline: dict[str, accuracy.Error] | None = None
    entrants = {}
    for candidate in order:
        entrant = _Entrant(candidate, {"name": candidate.name, "role": candidate.role, "status": "ok"})
        if not protocol.include(candidate):
            entrant.record.update(status="left out", reason="not asked for in this run")
        elif reason := candidate.missing():
            entrant.record.update(status="unavailable", reason=reason)
        else:
            _answer(case, entrant, expected, baseline, protocol.ready_limit)
        if candidate.role == PUBLISHED and entrant.timed:
            baseline = entrant.errors
        entrants[candidate.name] = entrant
    return [entrants[candidate.name] for candidate in case.candidates]


def _answer(case, entrant, expected, baseline, ready_limit) -> None:
    """Run the candidate once on inputs of its own and compare; a failure does not end the run."""
    candidate, record = entrant.candidate, entrant.record
    begin = time.perf_counter()
    try:
        with candidate.scope(), compiled.time_limit(ready_limit):
            result = candidate.prepare(case.inputs())()
            timing.synchronise(case.device)
        record["first_call_s"] = time.perf_counter() - begin
        if candidate.role == CONTEXT:
            return
        entrant.errors = accuracy.errors_of(candidate.view(result), expected)
    except Exception as error:  # a competitor that breaks must not take the others with it
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        record.update(status="failed", reason=reason[:300])
        return
    record["errors"] = {name: error.to_dict() for name, error in entrant.errors.items()}
    record["worst_error"] = max((error.relative for error in entrant.errors.values()), default=0.0)
    if wrong := accuracy.objection(entrant.errors, baseline, case.dtype, case.exact, case.least_allowance):
        record.update(status="struck out", reason=wrong)


# ------------------------------------------------------------------------------------------------- 2. weigh


def _weigh(case: Case, running: Sequence[_Entrant], protocol: Protocol) -> None:
    sets = input_sets(case)
    for entrant in running:
        with entrant.candidate.scope():
            entrant.calls = [entrant.candidate.prepare(inputs) for inputs in sets]
            for call in entrant.calls:
                call()
            if protocol.measure_memory:
                peak = memory.peak_memory(entrant.calls[0], case.device)
                entrant.record.update(
                    peak_bytes=peak.bytes,
                    peak_resident_bytes=peak.resident,
                    peak_allocated_bytes=peak.allocated,
                )
                _saved(entrant)


def _saved(entrant: _Entrant) -> None:
    """A call that trains knows what its forward is: see `training.Step`."""
    saved = getattr(entrant.calls[0], "saved", None)
    if saved is not None:
        held = saved()
        entrant.record.update(saved_bytes=held.total, saved_beyond_inputs_bytes=held.beyond_inputs)


# -------------------------------------------------------------------------------------------------- 3. time


def _time(case: Case, running: Sequence[_Entrant], protocol: Protocol) -> tuple[dict[str, list], int]:
    if not running:
        return {}, 0
    field_of = {entrant.candidate.name: entrant for entrant in running}
    twin = next((e for e in running if e.candidate.role == OURS), running[0])
    field_of[twin.candidate.name + AGAIN] = twin
    repeat = {}
    for entrant in running:
        with entrant.candidate.scope():
            repeat[entrant.candidate.name] = timing.repeats_for(entrant.calls, case.device)
    slices: dict[str, list[timing.Slice]] = {name: [] for name in field_of}
    rounds, begin = protocol.rounds_of(case), time.perf_counter()
    gc.collect()
    gc.disable()  # a collection would land on whoever happens to run
    try:
        for index, name in timing.round_robin(list(field_of), rounds):
            if _out_of_time(protocol, begin, index, slices):
                break
            entrant = field_of[name]
            with entrant.candidate.scope():
                slices[name].append(timing.time_slice(entrant.calls, repeat[entrant.candidate.name], case.device))
    finally:
        gc.enable()
    return slices, min(len(taken) for taken in slices.values())


def _out_of_time(protocol: Protocol, begin: float, index: int, slices: dict[str, list]) -> bool:
    complete = len({len(taken) for taken in slices.values()}) == 1
    late = protocol.seconds is not None and time.perf_counter() - begin > protocol.seconds
    return late and complete and index >= 5


def _noise(slices: dict[str, list], twin: str) -> float:
    first, again = slices[twin.removesuffix(AGAIN)], slices[twin]
    return timing.noise_floor([s.wall for s in first], [s.wall for s in again])


def _describe(case: Case, running: Sequence[_Entrant], slices: dict[str, list], protocol: Protocol) -> None:
    ceiling, work, unit = None, case.bytes_moved, "bytes"
    if case.traffic == "fma":
        ceiling, work, unit = machine.fma_rate(case.dtype, case.device, protocol.threads), case.flops, "flops"
    elif work:
        ceiling = machine.bandwidth(case.traffic, work, case.device, protocol.threads)
    for entrant in running:
        taken = slices[entrant.candidate.name]
        wall = timing.Spread.of([s.wall for s in taken])
        entrant.record.update(
            median_s=wall.median,
            lower_s=wall.lower,
            upper_s=wall.upper,
            min_s=wall.minimum,
            cpu_s=timing.Spread.of([s.cpu for s in taken]).median,
        )
        if ceiling:
            rate = work / wall.median
            entrant.record.update(
                {
                    f"{unit}_per_s": rate,
                    f"ceiling_{unit}_per_s": ceiling,
                    "ceiling": case.traffic,
                    "ceiling_share": rate / ceiling,
                }
            )
