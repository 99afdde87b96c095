"""A report's section on abnormal batch-norm channels of the encoders: as they were given, at the start, at the end."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from avfast.engine.conclude import Outcome
from avfast.engine.drawing import Drawing
from avfast.engine.figures import matplotlib_figure
from avfast.engine.record import Section
from avfast.methods import Method
from avfast.nn import BatchNormReport, fold_abri, scan_batchnorm
from avfast.nn.encoder import Encoder
from avfast.ops.bn_scan import Scan

GIVEN, START, END = "as given", "at the start", "after training"
LEGEND = (
    f"{START}: what the first step got; both halves of an ABRi layer act together, so what is scanned is the batch "
    "norm they fold to."
)
LEGEND_GIVEN = (
    f"{GIVEN}: the weights of the other modality as they came, before anything was done to their batch norms."
)


def dead_channels(outcome: Outcome, method: Method) -> list[Section]:
    """One table per encoder with a row per layer, and a picture of each scan under ``figures/``."""
    with torch.random.fork_rng():
        # Batch norms start from constants or from files, not from chance.
        start, given = type(method)(method.config), _untreated(method)
    parts = []
    for name, encoder in method.named_children():
        if not isinstance(encoder, Encoder):
            continue
        sources = {GIVEN: given.get(name), START: getattr(start, name), END: encoder}
        scans = {when: scan for when, source in sources.items() if source and (scan := _scan(source)) is not None}
        if {START, END} - scans.keys():
            continue  # a network without batch norms
        told = " ".join(f"{when.capitalize()}: {scan.summary()}." for when, scan in scans.items())
        parts.append(f"**{name}.** {told}\n\n{_table(scans)}")
        parts.append("\n".join(f"- {text}" for text in ([LEGEND_GIVEN] if GIVEN in scans else []) + [LEGEND]))
        for when, scan in scans.items():
            file = f"figures/batchnorm_{name}_{when.replace(' ', '_')}.png"
            outcome.album.add("", file, batch_norms(scan))
            parts.append(f"![{name}, {when}]({file})")
    return [Section("Dead channels", "\n\n".join(parts))] if parts else []


def _untreated(method: Method) -> dict[str, Encoder]:
    """Encoders that began as weights of another modality, with these weights and nothing done to them, by name."""
    config, found = method.config, {}
    for name, encoder in method.named_children():
        if isinstance(encoder, Encoder) and getattr(config, f"{name}_from", ""):
            changes = {f"{name}_init": "naive", f"{name}_weights": ""}
            found[name] = getattr(type(method)(dataclasses.replace(config, **changes)), name)
    return found


def batch_norms(scan: BatchNormReport) -> Drawing:
    """The picture of a scan."""
    return Drawing("batch_norms", {
        "names": list(scan.names), "sizes": list(scan.sizes), "threshold": scan.threshold, **scan.scan._asdict()
    })  # fmt: skip


def draw_batch_norms(
    path: Path, names: list[str], sizes: list[int], threshold: float, flags: Tensor, score: Tensor, live: Tensor,
    counts: Tensor,
) -> Path | None:  # fmt: skip
    """Draw a scan, see :class:`avfast.ops.bn_scan.Scan`, of layers of `sizes` channels."""
    if matplotlib_figure() is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    return BatchNormReport(tuple(names), tuple(sizes), threshold, Scan(flags, score, live, counts)).plot(path)


def _scan(encoder: Encoder) -> BatchNormReport | None:
    try:
        return scan_batchnorm(fold_abri(copy.deepcopy(encoder).cpu()))
    except ValueError:  # a network without batch norms
        return None


def _table(scans: dict[str, BatchNormReport]) -> str:
    heads = [f"abnormal {when}" for when in scans]
    rows = [f"| layer | channels | {' | '.join(heads)} | collapsed at the end |", "|---" * (len(heads) + 3) + "|"]
    for layers in zip(*(scan.layers for scan in scans.values()), strict=True):
        masks = [layer.abnormal for layer in layers] + [layers[-1].collapsed]
        counts = [f"{int(x.sum())} ({x.float().mean():.0%})" for x in masks]
        rows.append(f"| {layers[-1].name} | {layers[-1].channels} | {' | '.join(counts)} |")
    return "\n".join(rows)
