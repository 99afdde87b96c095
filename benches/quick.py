"""The kernel table of the demo: a few cases, seconds not minutes; and what ``avfast bench`` runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from . import bench_batch_norm_scan, bench_blended_batch_norm, bench_channel_stats, machine, registry
from .candidate import COMPILED, OURS, PUBLISHED, Candidate, Case
from .harness import Protocol, run_case
from .opponents import backend_in_use
from .report import seconds, size

SCAN_COMPILE = "building it takes longer than the whole table; `avfast bench batch_norm_scan` does it"


def _cases(device: str) -> list[tuple[Case, str, str | None]]:
    """(case, public op, the compiled form worth waiting for), the op's typical shape each."""
    return [
        (bench_batch_norm_scan.case("resnet50", device), "scan_batchnorm", None),
        (
            bench_channel_stats.case("resnet50.layer1", "contiguous", device=device),
            "channel_stats",
            "compile(shifted sums)",
        ),
        (
            bench_blended_batch_norm.case("resnet18.layer2", device=device),
            "blended_batch_norm",
            "compile(blend)",
        ),
    ]


def kernel_table(
    budget_s: float = 10.0, *, compile_s: float = 15.0, device: str = "cpu", threads: int | None = None
) -> list[dict]:
    """One row per op.

    Keys: ``op, shape, mode, threads, eager_ms, compile_ms, compile_reason, avfast_ms, speedup, error,
    backend, reason, eager_peak_bytes, compile_peak_bytes, avfast_peak_bytes, publishable,
    not_for_publication``. What is missing is None, and ``compile_reason`` or ``reason`` says why in words.

    ``budget_s`` is for checking and timing, shared by the ops; ``compile_s`` is the most all compilations
    together may take. All cores unless ``threads`` is given; the protocol of `harness`, fewer rounds.
    """
    chosen, rows = _cases(device), []
    deadline = time.monotonic() + compile_s
    for case, op, wanted in chosen:
        left = deadline - time.monotonic()
        in_time = wanted is not None and left > 1

        def include(candidate: Candidate, wanted=wanted, in_time=in_time) -> bool:
            return candidate.role in (PUBLISHED, OURS) or (in_time and candidate.name == wanted)

        begin = time.monotonic()
        protocol = Protocol(
            threads=threads or machine.cores(),
            seconds=budget_s / len(chosen) / 2,  # the other half goes to checking and weighing
            ready_limit=max(left, 5.0),
            include=include,
            cores_in_use=machine.cores(),
        )
        record = run_case(case, protocol)
        reason = SCAN_COMPILE if wanted is None else "no time left for compilation"
        rows.append(_row(record, wanted, None if in_time else reason, backend_in_use(op, device)))
        compiling = sum(c.get("first_call_s", 0) for c in record["candidates"] if c["role"] == COMPILED)
        # Only compilation eats into the compile budget.
        deadline += max(0.0, time.monotonic() - begin - compiling)
    return rows


def _row(record: dict, wanted: str | None, why_not: str | None, backend: str) -> dict:
    by_name = {c["name"]: c for c in record["candidates"]}
    eager = next(c for c in record["candidates"] if c["role"] == PUBLISHED)
    ours = next(c for c in record["candidates"] if c["role"] == OURS)
    compiled = by_name.get(wanted, {})
    return {
        "op": record["op"],
        "shape": f"{record['shape_name']} {'x'.join(map(str, record['shape']))}",
        "mode": record["mode"],
        "threads": record["threads"],
        "eager_ms": _ms(eager),
        "compile_ms": _ms(compiled),
        "compile_reason": why_not or compiled.get("reason"),
        "avfast_ms": _ms(ours),
        "speedup": record["ratio_to_published"],
        "eager_peak_bytes": eager.get("peak_bytes"),
        "compile_peak_bytes": compiled.get("peak_bytes"),
        "avfast_peak_bytes": ours.get("peak_bytes"),
        "error": ours.get("worst_error"),
        "backend": backend,
        "reason": ours.get("reason"),
        "publishable": record["publishable"],
        "not_for_publication": record["not_for_publication"],
    }


def _ms(candidate: dict) -> float | None:
    median = candidate.get("median_s")
    return None if median is None else median * 1e3


def markdown(rows: Sequence[dict]) -> str:
    """The table of `kernel_table` as Markdown, reasons below it."""
    lines = [
        "| op | input | eager | compile | avfast | over eager | peak memory | error | backend |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes: list[str] = []
    for row in rows:
        times = [seconds(row[key] and row[key] / 1e3) for key in ("eager_ms", "compile_ms", "avfast_ms")]
        cells = (
            f"{row['op']} {row['mode']}",
            row["shape"],
            *times,
            "-" if row["speedup"] is None else f"{row['speedup']:.1f}x",
            f"{size(row['eager_peak_bytes'])} to {size(row['avfast_peak_bytes'])}",
            "-" if row["error"] is None else f"{row['error']:.1e}",
            row["backend"],
        )
        lines.append("| " + " | ".join(cells) + " |")
        notes += [f"{row['op']}, compile: {row['compile_reason']}."] if row["compile_reason"] else []
        notes += [f"{row['op']}, avfast: {row['reason']}."] if row["reason"] else []
    busy = sorted({reason for row in rows for reason in row["not_for_publication"]})
    notes += [f"Measured on a busy machine, not for publication: {'; '.join(busy)}."] if busy else []
    return "\n".join(lines + ([""] + [f"- {note}" for note in notes] if notes else [])) + "\n"


def bench_command(names: Sequence[str] = (), json_path: str | os.PathLike | None = None, quick: bool = False) -> int:
    """What ``avfast bench [NAME ...] [--json OUT] [--quick]`` does; returns the exit status.

    Raises ConfigError for an unknown name, before anything is measured.
    """
    from . import run

    if quick:
        unknown = [name for name in names if name not in registry.BENCHES]
        if unknown:
            registry.load(unknown[0])  # raises with the known names
        rows = [row for row in kernel_table() if not names or row["op"] in names]
        print(markdown(rows))
        if json_path:
            run.save(
                {
                    "schema": run.SCHEMA,
                    "machine": machine.facts(),
                    "quick": rows,
                    "cases": [],
                    "overhead": [],
                },
                json_path,
            )
        return 0
    for name in names:
        registry.load(name)
    return run.main([*names, *(["--json", os.fspath(json_path)] if json_path else [])])
