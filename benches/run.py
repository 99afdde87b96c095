"""Measure: ``python -m avfast.benches.run [NAME ...] --json OUT``.

Without names every bench runs, on one thread and on all. Run it on a quiet machine: what is measured on a
busy one is kept but marked as not for publication. ``THP_MEM_ALLOC_ENABLE=1`` in the environment gives torch
huge pages on the CPU; both settings are worth a run, and the setting is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import machine, registry
from .candidate import COMPILED, Candidate
from .harness import Protocol, run_case

SCHEMA = 1
RESULTS = Path(__file__).resolve().parent / "results"  # one file per machine, the newest only


def measure(
    names: Sequence[str] = (),
    *,
    threads: Sequence[int] | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    device: str = "cpu",
    compile: bool = True,
    slow: bool = False,
    match: str = "",
    tell: Callable[[dict | list], None] = lambda record: None,
) -> dict:
    """Run benches and return what goes into the JSON file. ``tell`` gets every record as it comes."""
    counts = sorted(set(threads or (1, machine.cores())))
    modules = [registry.load(name) for name in names or registry.BENCHES]  # an unknown name fails before any work
    results = {
        "schema": SCHEMA,
        "machine": machine.facts(),
        "protocol": {
            "threads": counts,
            "rounds": rounds,
            "seconds": seconds,
            "compile": compile,
            "slow": slow,
        },
        "cases": [],
        "overhead": [],
    }

    def include(candidate: Candidate) -> bool:
        return (compile or candidate.role != COMPILED) and (slow or not candidate.slow)

    for module in modules:
        if hasattr(module, "measure"):
            rows = module.measure(device=device, rounds=rounds)
            results["overhead"] += rows
            tell(rows)
            continue
        for count, case in _plan(module, device, counts, match):
            protocol = Protocol(threads=count, rounds=rounds, seconds=seconds, include=include, cores_in_use=counts[-1])
            record = run_case(case, protocol)
            results["cases"].append(record)
            tell(record)
    return results


def _plan(module, device: str, counts: Sequence[int], match: str) -> Iterator:
    for case in module.cases(device):
        if match in case.key:
            for count in counts[-1:] if case.slow_rounds else counts:
                yield count, case


def save(results: dict, path: str | os.PathLike) -> None:
    """Write the JSON file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def record(results: dict, folder: Path = RESULTS) -> int:
    """Replace this machine's file unless the machine was busy; the exit status. Noisy cases are kept, and never shown.

    What other benches left in it stays, marked with the commit and date it is of. The file is kept small: six digits,
    and the worst error instead of one per output.
    """
    refused = [
        f"{case['key']} on {case['threads']} threads: {'; '.join(case['not_for_publication'])}"
        for case in results["cases"]
        if case.get("busy", not case["publishable"])
    ]
    if refused:
        print("not recorded, the machine was busy:", *refused, sep="\n  ", file=sys.stderr)
        return 1
    path = folder / f"{machine.slug(results['machine'])}.json"
    save(_compact(_beside_others(results, path)), path)
    print(f"recorded {path.name}")
    return 0


def _beside_others(results: dict, path: Path) -> dict:
    """``results`` with the records of all benches it does not hold, from the file that is there."""
    if not path.exists():
        return results
    old, fresh = load(path), {record["op"] for record in results["cases"]}
    when = f"{old['machine']['commit']}, {old['machine']['date']}"
    kept = [{"measured_at": when, **record} for record in old["cases"] if record["op"] not in fresh]
    return {**results, "cases": kept + results["cases"], "overhead": results["overhead"] or old["overhead"]}


def _compact(value):
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items() if key != "errors"}
    if isinstance(value, list):
        return [_compact(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load(path: str | os.PathLike) -> dict:
    """Read a JSON file of `save`. Raises ValueError if it is something else."""
    data = json.loads(Path(path).read_text())
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected avfast bench results of schema {SCHEMA}")
    return data


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avfast.benches.run", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(registry.BENCHES)}")
    parser.add_argument("--only", choices=registry.FAMILIES, help="the benches of one family")
    parser.add_argument("--threads", help="comma-separated thread counts (default: 1 and all cores)")
    parser.add_argument("--rounds", type=int, help="rounds per case (default: 11 on a CPU, 20 on a GPU)")
    parser.add_argument("--seconds", type=float, help="stop a case after this long, once 5 rounds are complete")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--match", default="", help="only cases whose key contains this")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--slow", action="store_true", help="compile networks and test shapes too (minutes)")
    parser.add_argument("--json", metavar="OUT", help="write the results here")
    parser.add_argument("--record", action="store_true", help="replace results/<this machine>.json")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in registry.BENCHES:
            parser.error(f"unknown bench {name!r}: expected any of {', '.join(registry.BENCHES)}")
    if chosen.only and chosen.names:
        parser.error(f"expected names or --only, got {chosen.names[0]} and --only {chosen.only}")

    from .report import overhead_table, record_table

    def show(record: dict | list) -> None:
        print(overhead_table(record) if isinstance(record, list) else record_table(record), flush=True)

    results = measure(
        registry.FAMILIES[chosen.only] if chosen.only else chosen.names,
        threads=[int(count) for count in chosen.threads.split(",")] if chosen.threads else None,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        device=chosen.device,
        compile=not chosen.no_compile,
        slow=chosen.slow,
        match=chosen.match,
        tell=show,
    )
    if chosen.json:
        save(results, chosen.json)
        print(f"wrote {chosen.json}")
    return record(results) if chosen.record else 0


if __name__ == "__main__":
    sys.exit(main())
