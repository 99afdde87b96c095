"""What a scan found, read when asked."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import MissingDependency
from ..reference.batch_norm import ABNORMAL, COLLAPSED, NON_FINITE

if TYPE_CHECKING:
    from rich.table import Table

    from ..ops.bn_scan import Scan


class LayerReport(NamedTuple):
    """One layer. Masks are bool ``[C]``, ``score`` and ``live`` float32 ``[C]``, all on the CPU."""

    name: str
    channels: int
    abnormal: Tensor
    non_finite: Tensor
    collapsed: Tensor
    score: Tensor
    live: Tensor

    @property
    def abnormal_share(self) -> float:
        return self.abnormal.float().mean().item() if self.channels else 0.0


class BatchNormReport:
    """Result of :func:`avfast.scan_batchnorm`. Tensors stay on their device until something here is read."""

    def __init__(self, names: tuple[str, ...], sizes: tuple[int, ...], threshold: float, scan: Scan) -> None:
        self.names, self.sizes, self.threshold, self.scan = names, sizes, threshold, scan

    @cached_property
    def counts(self) -> dict[str, tuple[int, int, int]]:
        """(abnormal, non-finite, collapsed) channels of each layer."""
        return {name: tuple(row) for name, row in zip(self.names, self.scan.counts.tolist(), strict=True)}

    @property
    def channels(self) -> int:
        return sum(self.sizes)

    @property
    def abnormal(self) -> int:
        """Abnormal channels in the whole model."""
        return sum(row[0] for row in self.counts.values())

    @cached_property
    def layers(self) -> tuple[LayerReport, ...]:
        flags, score, live = (t.cpu().split(self.sizes) for t in self.scan[:3])
        return tuple(
            LayerReport(name, n, f & ABNORMAL != 0, f & NON_FINITE != 0, f & COLLAPSED != 0, s, p)
            for name, n, f, s, p in zip(self.names, self.sizes, flags, score, live, strict=True)
        )

    def __getitem__(self, name: str) -> LayerReport:
        return self.layers[self.names.index(name)]

    def to_dict(self) -> dict[str, object]:
        """Plain numbers, ready for JSON; channels by index."""
        return {
            "threshold": self.threshold,
            "channels": self.channels,
            "abnormal": self.abnormal,
            "layers": [
                {
                    "name": layer.name,
                    "channels": layer.channels,
                    "abnormal": layer.abnormal.nonzero().flatten().tolist(),
                    "non_finite": layer.non_finite.nonzero().flatten().tolist(),
                    "collapsed": layer.collapsed.nonzero().flatten().tolist(),
                    "score_min": _number(layer.score.min()),
                    "score_median": _number(layer.score.median()),
                    "live_mean": _number(layer.live.mean()),
                }
                for layer in self.layers
                if layer.channels
            ],
        }

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                layer.name,
                str(layer.channels),
                f"{int(layer.abnormal.sum())} ({layer.abnormal_share:.0%})",
                str(int(layer.collapsed.sum())),
                str(int(layer.non_finite.sum())),
                f"{layer.score.min():.1e}",
                f"{layer.score.median():.1e}",
                f"{layer.live.mean():.2f}",
            )
            for layer in self.layers
            if layer.channels
        ]

    _HEAD = ("layer", "channels", "abnormal", "collapsed", "non-finite", "score min", "median", "live")

    def table(self) -> Table:
        """A ``rich`` table, one row per layer.

        Raises:
            MissingDependency: ``rich`` is not installed; ``print(report)`` needs nothing.
        """
        try:
            from rich.table import Table
        except ImportError as error:
            raise MissingDependency("rich", extra="train", purpose="BatchNormReport.table") from error
        table = Table(title=self.summary())
        for i, head in enumerate(self._HEAD):
            table.add_column(head, justify="right" if i else "left", no_wrap=True)
        for layer, row in zip((x for x in self.layers if x.channels), self._rows(), strict=True):
            bad = layer.abnormal.any() or layer.non_finite.any() or layer.collapsed.any()
            table.add_row(*row, style="yellow" if bad else None)
        return table

    def summary(self) -> str:
        share = self.abnormal / self.channels if self.channels else 0.0
        return (
            f"{self.abnormal} of {self.channels} channels in {len(self.names)} batch-norm layers are abnormal "
            f"({share:.1%}, threshold {self.threshold:g})"
        )

    def __str__(self) -> str:
        rows = [self._HEAD, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([self.summary(), *lines])

    __repr__ = __str__

    def plot(self, path: str | Path) -> Path:
        """Write a picture: abnormal share per layer, and every channel's score on a logarithmic axis.

        Raises:
            MissingDependency: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except (ImportError, RuntimeError, OSError) as error:
            raise MissingDependency("matplotlib", extra="plots", purpose="BatchNormReport.plot") from error
        layers = [layer for layer in self.layers if layer.channels]
        names_height = 0.06 * max((len(layer.name) for layer in layers), default=0)  # inches at 7 points
        figure = Figure(figsize=(max(6.0, 0.28 * len(layers) + 2), 5 + names_height), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        positions = range(len(layers))
        top.bar(positions, [100 * layer.abnormal_share for layer in layers], color="#c44e52")
        top.set_ylabel("abnormal channels, %")
        top.set_ylim(0, 100)
        top.set_title(self.summary(), fontsize=10)
        floor = 1e-46  # below the smallest denormal: where an exact zero is drawn
        for i, layer in enumerate(layers):
            score = torch.nan_to_num(layer.score.double(), posinf=0.0).clamp_min(floor)
            bottom.scatter([i] * layer.channels, score.tolist(), s=4, alpha=0.4, color="#4c72b0", linewidths=0)
        bottom.set_yscale("log")
        bottom.set_ylabel("score, max(|gamma|, |beta|)")
        if self.threshold > 0:
            bottom.axhline(self.threshold, color="#c44e52", linewidth=1, label="threshold")
            bottom.legend(loc="best", fontsize=8)
        bottom.set_xticks(list(positions), [layer.name for layer in layers], rotation=90, fontsize=7)
        path = Path(path)
        figure.savefig(path, dpi=120)
        return path


def _number(value: Tensor) -> float | None:
    """A float that JSON can carry: NaN and infinities become null."""
    number = float(value)
    return number if number == number and abs(number) != float("inf") else None
