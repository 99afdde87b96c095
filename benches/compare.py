"""Two commits side by side, or this tree against its committed ratios.

``python -m avfast.benches.compare A B [NAME ...]`` builds both commits in temporary worktrees, alternates
them (A B A B ...) in processes of their own, and prints for every case how the two differ, next to how the
published form differs between the same processes: that column is the control and should say 1.00.

``python -m avfast.benches.compare --gate [NAME ...]`` measures this installation and fails (exit status 1)
on a ratio more than 15 % below ``results/<machine>.json``, after measuring it three times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from . import machine, run
from .candidate import OURS, PUBLISHED
from .gate import Key, gate


@contextmanager
def built(commit: str, repository: Path) -> Iterator[Path]:
    """A folder for PYTHONPATH that holds avfast as of ``commit``; worktree and build go away afterwards."""
    with tempfile.TemporaryDirectory(prefix="avfast-compare-") as folder:
        tree, target = Path(folder, "tree"), Path(folder, "site")
        _run(["git", "worktree", "add", "--detach", "--force", str(tree), commit], repository)
        try:
            _run(
                [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
                + ["--target", str(target), "."],
                tree,
            )
            _check_import(target, Path(folder))
            yield target
        finally:
            _run(["git", "worktree", "remove", "--force", str(tree)], repository)


def _check_import(site: Path, cwd: Path) -> None:
    """An editable install of this checkout must not be measured in place of the commit."""
    found = subprocess.run(
        [sys.executable, "-c", "import avfast.benches; print(avfast.__file__, avfast.benches.__file__)"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    strangers = [path for path in found if not Path(path).resolve().is_relative_to(site.resolve())]
    if strangers:
        raise SystemExit(f"expected avfast from {site}, but Python imports {', '.join(strangers)}")


def _run(command: Sequence[str], cwd: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)}\nfailed in {cwd}:\n{tail}")


def alternate(
    commits: Sequence[str], repository: Path, names: Sequence[str], options: Sequence[str], turns: int
) -> list[list[dict]]:
    """Results per commit, ``turns`` each, measured in turn. Every turn is a process of its own."""
    collected: list[list[dict]] = [[] for _ in commits]
    with ExitStack() as stack:
        sites = [stack.enter_context(built(commit, repository)) for commit in commits]
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for turn in range(turns):
            for index, site in enumerate(sites):
                out = scratch / f"{index}-{turn}.json"
                command = [sys.executable, "-m", "avfast.benches.run", *names, *options, "--json", str(out)]
                _run(command, scratch, PYTHONPATH=str(site))
                collected[index].append(run.load(out))
    return collected


def role_times(turns: Sequence[dict], role: str) -> dict[Key, float]:
    """Median over the turns of the median time of the candidate with this role, per case."""
    seen: dict[Key, list[float]] = {}
    for results in turns:
        for record in results["cases"]:
            found = [c["median_s"] for c in record["candidates"] if c["role"] == role and c["status"] == "ok"]
            if found:
                seen.setdefault((record["key"], record["threads"]), []).append(found[0])
    return {key: statistics.median(times) for key, times in seen.items()}


def comparison(a: Sequence[dict], b: Sequence[dict]) -> str:
    """Markdown table of B against A: above 1 means that B is faster."""
    ours = role_times(a, OURS), role_times(b, OURS)
    control = role_times(a, PUBLISHED), role_times(b, PUBLISHED)
    lines = ["| case | threads | B is faster by | control (published form) |", "| --- | --- | --- | --- |"]
    for key in sorted(set(ours[0]) | set(ours[1])):
        cells = (_ratio(times, key) for times in (ours, control))
        lines.append(f"| {key[0]} | {key[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(times: tuple[dict[Key, float], dict[Key, float]], key: Key) -> str:
    before, after = (t.get(key) for t in times)
    if before is None or after is None:
        return "only in A" if before is not None else "only in B" if after is not None else "-"
    return f"{before / after:.2f}x"


def run_gate(names: Sequence[str], folder: Path = run.RESULTS) -> int:
    """Exit status of the gate on this machine; 2 if there is nothing to compare with."""
    path = folder / f"{machine.slug(machine.facts())}.json"
    if not path.exists():
        print(f"no committed results for this machine ({path.name}); nothing was compared", file=sys.stderr)
        return 2
    committed = run.load(path)
    if names:
        committed["cases"] = [r for r in committed["cases"] if r["op"] in names]

    def measure(keys: Sequence[Key] | None) -> dict:
        wanted = [(r["key"], r["threads"]) for r in committed["cases"]] if keys is None else keys
        results = [
            run.measure([key.split("/")[0]], threads=[threads], compile=False, match=key, device=_device(key))
            for key, threads in dict.fromkeys(wanted)
        ]
        return {"cases": [record for result in results for record in result["cases"]]}

    failures = gate(measure, committed)
    for failure in failures:
        print(f"regression: {failure}", file=sys.stderr)
    if not failures:
        print(f"every ratio is within 15 % of {path.name}")
    return 1 if failures else 0


def _device(key: str) -> str:
    return key.rsplit("/", 1)[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m avfast.benches.compare", description="Compare two commits, or gate this installation."
    )
    parser.add_argument("names", nargs="*", metavar="A B [NAME ...]", help="with --gate only bench names")
    parser.add_argument("--gate", action="store_true", help="compare with results/<machine>.json")
    parser.add_argument("--turns", type=int, default=3, help="how often each commit is measured")
    parser.add_argument("--threads", help="comma-separated thread counts")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--repository", type=Path, default=Path.cwd(), help="checkout that knows both commits")
    chosen = parser.parse_args(arguments)
    if chosen.gate:
        return run_gate(chosen.names)
    if len(chosen.names) < 2:
        parser.error("expected two commits, A and B (or --gate)")
    options = ["--no-compile"]
    for option in ("threads", "rounds"):
        if getattr(chosen, option):
            options += [f"--{option}", str(getattr(chosen, option))]
    commits, names = chosen.names[:2], chosen.names[2:]
    a, b = alternate(commits, chosen.repository.resolve(), names, options, chosen.turns)
    print(f"A = {commits[0]}, B = {commits[1]}, {chosen.turns} turns each\n\n{comparison(a, b)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
