"""Two pictures per op: speed-up by shape, memory by shape."""

from __future__ import annotations

from pathlib import Path

from .candidate import BACKEND, CONTEXT, OURS
from .report import machine_line


def draw(results: dict, folder: Path) -> list[Path]:
    """Write the pictures into ``folder`` and return their paths. Needs matplotlib (the ``plots`` extra)."""
    plt = _pyplot()
    written = []
    for op in dict.fromkeys(record["op"] for record in results["cases"]):
        records = [r for r in results["cases"] if r["op"] == op and r["worst"]]
        if not records:
            continue
        for kind, painter in (("speedup", _speedup), ("memory", _memory)):
            figure, axes = plt.subplots(figsize=(9, 1.6 + 0.9 * len(records)), layout="constrained")
            painter(axes, records)
            axes.set_yticks(range(len(records)), [_label(record) for record in records])
            axes.invert_yaxis()
            axes.set_xscale("log")
            axes.grid(axis="x", alpha=0.3)
            figure.legend(loc="outside lower center", ncols=3, fontsize="x-small")
            busy = "" if all(r["publishable"] for r in records) else " (busy machine: not for publication)"
            where = machine_line(results["machine"]).replace("; ", "\n", 1)
            axes.set_title(f"{op}{busy}\n{where}", fontsize="x-small")
            path = folder / f"{op}-{kind}.png"
            figure.savefig(path, dpi=120)
            plt.close(figure)
            written.append(path)
    return written


def _pyplot():
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except (ImportError, RuntimeError, OSError) as error:
        from avfast.errors import MissingDependency

        raise MissingDependency("matplotlib", extra="plots", purpose="drawing benchmark plots") from error
    return plt


def _label(record: dict) -> str:
    return f"{record['shape_name']}\n{record['layout']}, {record['dtype']}, {record['threads']} thr"


def _speedup(axes, records: list[dict]) -> None:
    _bars(axes, records, lambda record: record["speedups"], start=1)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("avfast is faster by (right of 1 is good)")


def _memory(axes, records: list[dict]) -> None:
    def values(record: dict) -> dict[str, float]:
        shown = [c for c in record["candidates"] if c["status"] == "ok" and c["role"] not in (BACKEND, CONTEXT)]
        return {c["name"]: max(c.get("peak_bytes") or 0, 1) / 2**20 for c in shown}

    _bars(
        axes,
        records,
        values,
        emphasise={c["name"] for r in records for c in r["candidates"] if c["role"] == OURS},
    )
    axes.set_xlabel("peak extra memory, MiB (left is good)")


def _bars(axes, records: list[dict], values, *, start: float = 0, emphasise: frozenset | set = frozenset()) -> None:
    """A group of bars per record, each from ``start`` to its value."""
    names = list(dict.fromkeys(name for record in records for name in values(record)))
    height = 0.8 / max(len(names), 1)
    for position, name in enumerate(names):
        rows = [(row, values(record)[name]) for row, record in enumerate(records) if name in values(record)]
        places = [row - 0.4 + height * (position + 0.5) for row, _ in rows]
        edge = {"edgecolor": "black", "linewidth": 1.2} if name in emphasise else {}
        axes.barh(places, [value - start for _, value in rows], height, left=start, label=name, **edge)
