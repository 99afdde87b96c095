"""A report's section on abnormal batch-norm channels of the encoders, before training and after."""

from __future__ import annotations

import copy

import torch

from avfast.engine.figures import matplotlib_figure
from avfast.engine.report import RunSummary, Section
from avfast.methods import Method
from avfast.nn import BatchNormReport, fold_abri, scan_batchnorm
from avfast.nn.encoder import Encoder


def dead_channels(summary: RunSummary, method: Method) -> list[Section]:
    """One table per encoder with a row per layer, and a picture of each scan under ``figures/``.

    Both halves of an ABRi layer act together, so what is scanned is the batch norm they fold to.
    """
    with torch.random.fork_rng():
        start = type(method)(method.config)  # batch norms start from constants or from files, not from chance
    parts = []
    for name, encoder in method.named_children():
        if not isinstance(encoder, Encoder):
            continue
        before, after = (_scan(getattr(m, name)) for m in (start, method))
        if before is None or after is None:
            continue
        parts.append(f"**{name}.** Before: {before.summary()}. After: {after.summary()}.\n\n{_table(before, after)}")
        if matplotlib_figure() is not None:
            for when, report in (("before", before), ("after", after)):
                path = summary.out / "figures" / f"batchnorm_{name}_{when}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                parts.append(f"![{name}, {when}]({report.plot(path).relative_to(summary.out)})")
    return [Section("Dead channels", "\n\n".join(parts))] if parts else []


def _scan(encoder: Encoder) -> BatchNormReport | None:
    try:
        return scan_batchnorm(fold_abri(copy.deepcopy(encoder).cpu()))
    except ValueError:  # a network without batch norms
        return None


def _table(before: BatchNormReport, after: BatchNormReport) -> str:
    rows = ["| layer | channels | abnormal before | abnormal after | collapsed after |", "|---|---|---|---|---|"]
    for old, new in zip(before.layers, after.layers, strict=True):
        counts = [f"{int(x.sum())} ({x.float().mean():.0%})" for x in (old.abnormal, new.abnormal, new.collapsed)]
        rows.append(f"| {new.name} | {new.channels} | {' | '.join(counts)} |")
    return "\n".join(rows)
