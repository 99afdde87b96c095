"""Run the long checks: ``python -m avfast.benches.soak.run [NAME ...] [--minutes M] [--seed S] [--record]``.

Without names every check runs, at its long size; ``--minutes`` makes all of them smaller or larger in proportion, so
that together they take about so long. Ctrl-C keeps what is done. Ends with status 1 if something failed, and with 130
if it was interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import machine
from ..run import RESULTS, save
from . import registry, report
from .rows import FAILED, Row

TABLE = Path(__file__).resolve().parents[1] / "SOAK.md"


def measure(
    names: Sequence[str] = (),
    *,
    minutes: float | None = None,
    size: int | None = None,
    seed: int = 0,
    command: str = "",
    tell: Callable[[dict], None] = lambda record: None,
    say: Callable[[str], None] = print,
) -> dict:
    """Run checks; what goes into the JSON file. ``tell`` gets every record as it comes.

    A check that raises has failed, and the others still run. KeyboardInterrupt ends the check it comes into, leaves it
    out and is noted under ``interrupted``.
    """
    modules = {name: registry.load(name) for name in names or registry.CHECKS}  # an unknown name fails before any work
    share = minutes / max(sum(module.MINUTES for module in modules.values()), 1e-9) if minutes else 1.0
    facts = machine.facts()
    results = {"schema": report.SCHEMA, "machine": facts, "checks": [], "interrupted": ""}
    for name, module in modules.items():
        count = size or max(module.SMALL, round(module.LONG * share))
        say(f"{name}: {count} {module.UNIT}")
        watch, begun = machine.Watch(), time.monotonic()
        try:
            rows = module.check(count, seed, lambda line, name=name: say(f"  {name}: {line}"))
        except KeyboardInterrupt:
            results["interrupted"] = name
            break
        except Exception as error:
            traceback.print_exc()
            words = f"{type(error).__name__}: {error}"
            rows = [Row("the check itself", "runs to its end", failures=(words,), seconds=time.monotonic() - begun)]
        record = {
            "check": name,
            "size": count,
            "unit": module.UNIT,
            "seed": seed,
            "command": command,
            "seconds": time.monotonic() - begun,
            "date": facts["date"],
            "versions": "avfast {avfast} at {commit}, torch {torch}, Python {python}".format(**facts),
            "beside": _others(watch.stop()),
            "rows": [row.record() for row in rows],
        }
        results["checks"].append(record)
        tell(record)
    return results


def _others(busyness: machine.Busyness) -> dict:
    """How busy others kept the machine: a slow row beside much load says nothing."""
    return {"load": busyness.load_after, "foreign_cores": busyness.foreign_cores}


def failed(results: dict) -> int:
    return sum(row["result"] == FAILED for record in results["checks"] for row in record["rows"])


def keep(results: dict, folder: Path = RESULTS, table: Path = TABLE) -> Path:
    """Put the checks into this machine's file, beside those it holds and these are not, and write the table anew."""
    path = folder / f"soak-{machine.slug(results['machine'])}.json"
    fresh = {record["check"]: record for record in results["checks"]}
    kept = {record["check"]: record for record in report.load(path)["checks"]} if path.exists() else {}
    every = {**kept, **fresh}
    order = [*registry.CHECKS, *every]
    checks = [every[name] for name in dict.fromkeys(order) if name in every]
    save({**results, "checks": checks}, path)
    table.write_text(report.markdown([report.load(found) for found in sorted(folder.glob("soak-*.json"))]))
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avfast.benches.soak.run", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(registry.CHECKS)}")
    parser.add_argument("--minutes", type=float, help="about how long all of them together may take")
    parser.add_argument("--size", type=int, help="the size of every check, instead of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    parser.add_argument("--record", action="store_true", help="keep them in results/soak-*.json and SOAK.md")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in registry.CHECKS:
            parser.error(f"unknown check {name!r}: expected any of {', '.join(registry.CHECKS)}")

    def show(record: dict) -> None:
        for row in record["rows"]:
            words = [f"{report.number(value)} {name}" for name, value in row["numbers"].items()]
            print(f"{record['check']}: {row['name']}: {', '.join([row['result'], *words])}", flush=True)
            for text in row["failures"]:
                print(f"  failed: {text}", flush=True)

    words = sys.argv[1:] if arguments is None else arguments
    results = measure(
        chosen.names,
        minutes=chosen.minutes,
        size=chosen.size,
        seed=chosen.seed,
        command=shlex.join(["python", "-m", "avfast.benches.soak.run", *words]),
        tell=show,
    )
    if chosen.json:
        save(results, chosen.json)
    if chosen.record and results["checks"]:
        print(f"recorded {keep(results).name}")
    if results["interrupted"]:
        print(f"interrupted in {results['interrupted']}; what was done before is kept", file=sys.stderr)
        return 130
    return 1 if failed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
