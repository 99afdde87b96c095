"""JSON to Markdown and plots, and the README's numbers: ``python -m avfast.benches.report JSON ...``.

A headline is the worst ratio of a record, against all opponents. What was measured on a busy machine is shown
with that mark and never reaches the README.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from . import run
from .candidate import OURS, PUBLISHED
from .goals import goals_table
from .ratios import is_difference

COLUMNS = (
    "candidate",
    "median (quartiles)",
    "min",
    "CPU time",
    "avfast is faster by",
    "error",
    "peak memory",
    "held for backward",
    "of ceiling",
)


def seconds(value: float | None) -> str:
    """A duration in the unit that fits.

    >>> seconds(0.0000219), seconds(0.118)
    ('21.9 µs', '118 ms')
    """
    if value is None:
        return "-"
    for scale, unit in ((1e-6, "µs"), (1e-3, "ms")):
        if value < 999.5 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} s"


def size(value: float | None) -> str:
    """A number of bytes in the unit that fits.

    >>> size(3 * 2**20), size(60)
    ('3 MiB', '60 B')
    """
    if value is None:
        return "-"
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if value >= 2**power:
            return f"{value / 2**power:.3g} {unit}"
    return f"{value:.0f} B"


def headline(record: dict) -> str:
    """The worst ratio in words; "no difference" where it is within the noise of the record."""
    worst = record["worst"]
    if worst is None:
        return "no comparison: avfast or every opponent is missing"
    rivals = len(record["speedups"])
    against = f"against {worst['against']}, the best of {rivals} opponents"
    if not is_difference(worst["ratio"], record["noise_floor"]):
        return f"no difference {against} (ratio {worst['ratio']:.2f}, noise {record['noise_floor']:.1%})"
    return f"{worst['ratio']:.2f}x {against}"


def threads_text(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def title(record: dict) -> str:
    shape = "x".join(map(str, record["shape"]))
    where = threads_text(record["threads"]) if record["device"] == "cpu" else record["device"]
    what = f"{record['op']} {record['mode']}, {record['shape_name']} {shape}"
    return f"{what}, {record['layout']}, {record['dtype']}, {where}"


def record_table(record: dict) -> str:
    """One record as Markdown: every candidate asked for, those that did not run with the reason."""
    lines = [f"### {title(record)}", "", headline(record) + ".", ""]
    if "measured_at" in record:
        lines += [f"Measured at {record['measured_at']}.", ""]
    if not record["publishable"]:
        lines += [f"**Not for publication:** {'; '.join(record['not_for_publication'])}.", ""]
    lines += [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
    ]
    lines += [_row(candidate, record) for candidate in record["candidates"] if candidate["status"] != "left out"]
    if record["noise_floor"] is not None:
        lines += [
            "",
            f"{record['rounds']} rounds; {record['twin']} against itself: {record['noise_floor']:.1%}; load"
            f" {record['load_before']:.2f} before, {record['load_after']:.2f} after.",
        ]
    return "\n".join(lines) + "\n"


def _row(candidate: dict, record: dict) -> str:
    name = candidate["name"]
    if candidate["status"] != "ok":
        shown = f"~~{name}~~" if candidate["status"] == "struck out" else name
        return f"| {shown} | {candidate['status']}: {candidate['reason']} | | | | | | | |"
    ratio = record["speedups"].get(name)
    faster = "" if ratio is None else f"{ratio:.2f}x"
    if ratio is not None and not is_difference(ratio, record["noise_floor"]):
        faster += " (no difference)"
    lower, median, upper = (seconds(candidate[key]) for key in ("lower_s", "median_s", "upper_s"))
    share = candidate.get("ceiling_share")
    error = candidate.get("worst_error")
    cells = (
        f"**{name}**" if candidate["role"] == OURS else name,
        f"{median} ({lower} - {upper})",
        seconds(candidate["min_s"]),
        seconds(candidate["cpu_s"]),
        faster,
        "-" if error is None else f"{error:.1e}",
        size(candidate.get("peak_bytes")),
        size(candidate.get("saved_bytes")),
        "-" if share is None else f"{share:.0%} {candidate['ceiling']}",
    )
    return "| " + " | ".join(cells) + " |"


def overhead_table(rows: Sequence[dict]) -> str:
    """Cost of a call itself, on inputs so small that the kernel does not show."""
    lines = [
        "| op | public call | registered op alone | empty_like | our Python adds | call beyond its kernel |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        times = (row[f"{key}_s"] for key in ("public", "raw", "floor", "python", "overhead"))
        lines.append(f"| {row['op']} | " + " | ".join(map(seconds, times)) + " |")
    return "\n".join(lines) + "\n"


def machine_line(machine: dict) -> str:
    device = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['cpu_capability']}"
    return (
        f"{device}; torch {machine['torch']}, avfast {machine['avfast']} at {machine['commit']}, "
        f"Python {machine['python']}, {machine['date']}"
    )


def markdown(results: dict) -> str:
    """The full report."""
    parts = [f"# Benchmarks\n\nMachine: {machine_line(results['machine'])}.\n"]
    if asked := goals_table(results["cases"]):
        parts.append("### Asked and measured\n\n" + asked)
    parts += [record_table(record) for record in results["cases"]]
    if results["overhead"]:
        parts.append("### Cost of a call\n\n" + overhead_table(results["overhead"]))
    return "\n".join(parts)


def readme_block(results: dict) -> str:
    """The README's table: for every case the worst ratio first, on the most threads measured."""
    most = max((record["threads"] for record in results["cases"]), default=1)
    chosen = [
        r for r in results["cases"] if r["threads"] == most and (r["worst"] or _could_not_run(r)) and r["publishable"]
    ]
    held_back = [r for r in results["cases"] if r["threads"] == most and not r["publishable"]]
    lines = [
        f"Measured on {machine_line(results['machine'])}; {threads_text(most)}.",
        "",
        "| op | input | against its best opponent | against the published form | peak memory | error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_readme_row(record) for record in chosen]
    earlier = [record for record in chosen if "measured_at" in record]
    for when in sorted({record["measured_at"] for record in earlier}):
        ops = dict.fromkeys(record["op"] for record in earlier if record["measured_at"] == when)
        lines += ["", f"Rows of {', '.join(ops)} were measured at {when}."]
    if held_back:
        lines += ["", f"{len(held_back)} cases were measured on a busy machine or with much noise, and are not shown."]
    if results["overhead"]:
        slowest = max(results["overhead"], key=lambda row: row["overhead_s"])
        lines += [
            "",
            f"A call costs at most {seconds(slowest['overhead_s'])} beyond its kernel ({slowest['op']}).",
        ]
    return "\n".join(lines)


def _could_not_run(record: dict) -> dict[str, str]:
    """Those that a case is too large for, where ours did run: name to "cannot run in so much memory"."""
    if not any(c["role"] == OURS and c["status"] == "ok" for c in record["candidates"]):
        return {}
    reasons = {c["name"]: c.get("reason") or "" for c in record["candidates"]}
    return {name: reason.split(":")[0] for name, reason in reasons.items() if reason.startswith("cannot run")}


def _readme_row(record: dict) -> str:
    by_role = {c["role"]: c for c in reversed(record["candidates"]) if c["status"] == "ok"}
    ours, published = by_role[OURS], by_role.get(PUBLISHED, {})
    worst, to_published = record["worst"], record["ratio_to_published"]
    if worst is None:
        refused = _could_not_run(record)
        against = f"{', '.join(refused)} {next(iter(refused.values()))}"
    elif is_difference(worst["ratio"], record["noise_floor"]):
        against = f"{worst['ratio']:.2f}x ({worst['against']})"
    else:
        against = f"no difference ({worst['against']})"
    cells = (
        f"{record['op']} {record['mode']}",
        f"{record['shape_name']} {'x'.join(map(str, record['shape']))} {record['dtype']} {record['layout']}",
        against,
        "-" if to_published is None else f"{to_published:.2f}x",
        f"{size(published.get('peak_bytes'))} to {size(ours.get('peak_bytes'))}",
        f"{ours['worst_error']:.1e}",
    )
    return "| " + " | ".join(cells) + " |"


def readme_with(path: Path, block: str, markers: str = "bench") -> str:
    """The text of a file with ``block`` between the markers of that name. ValueError unless there is one pair."""
    begin, end = f"<!-- {markers}:begin -->", f"<!-- {markers}:end -->"
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{path}: expected one {begin} followed by one {end}")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n{block}\n{end}", text, flags=re.S)


def update_readme(path: Path, block: str, markers: str = "bench") -> bool:
    """Put ``block`` between the markers; True if the file changed. ValueError unless there is one pair."""
    old, new = path.read_text(), readme_with(path, block, markers)
    path.write_text(new)
    return new != old


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m avfast.benches.report", description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, nargs="+", help="results of one machine each")
    parser.add_argument("--out", type=Path, help="folder for report.md and the plots (default: print the report)")
    parser.add_argument("--readme", type=Path, help="rewrite the numbers between the markers of this file")
    chosen = parser.parse_args(arguments)
    if chosen.out and len(chosen.json) > 1:
        parser.error("--out: expected the results of one machine")
    every = [run.load(path) for path in chosen.json]
    if chosen.readme:
        changed = update_readme(chosen.readme, "\n\n".join(map(readme_block, every)))
        print(f"{chosen.readme}: {'updated' if changed else 'unchanged'}")
    if chosen.out:
        from .plots import draw

        chosen.out.mkdir(parents=True, exist_ok=True)
        (results,) = every
        pictures = draw(results, chosen.out)
        links = "".join(f"\n![{picture.stem}]({picture.name})\n" for picture in pictures)
        (chosen.out / "report.md").write_text(markdown(results) + links)
        print(f"wrote {chosen.out / 'report.md'} and {len(pictures)} plots")
    elif not chosen.readme:
        print("\n".join(map(markdown, every)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
