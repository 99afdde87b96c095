"""TensorBoard, for those who ask for it with ``run.tensorboard=true``; ``metrics.jsonl`` is written either way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from avfast.data.outputs import writing
from avfast.errors import MissingDependency


def require_tensorboard() -> type:
    """The SummaryWriter class of torch.

    Raises:
        MissingDependency: the package tensorboard is not installed, or does not import.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise MissingDependency("tensorboard", extra="tb", purpose="run.tensorboard=true") from error
    return SummaryWriter


class Board:
    """Event files of one training.

    Args:
        folder: where the event files go; one folder per curve, as TensorBoard shows them.
        step: steps done before; what an earlier run wrote after them is hidden.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self.folder = folder
        with writing(folder):
            self._writer = require_tensorboard()(str(folder), purge_step=step + 1)

    def row(self, row: Mapping[str, Any]) -> None:
        """Every number of a row of ``metrics.jsonl`` as ``kind/name``, nested names joined by slashes."""
        with writing(self.folder):
            for name, value in _numbers(row, row["kind"]):
                self._writer.add_scalar(name, value, row["step"])

    def pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """PNG files by title."""
        for title, path in pictures.items():
            from matplotlib.image import imread  # it drew them, so it is there

            self._writer.add_image(title, imread(path)[..., :3], step, dataformats="HWC")
        self.flush()

    def flush(self) -> None:
        with writing(self.folder):
            self._writer.flush()


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)) and name not in ("step", "time"):
            yield f"{prefix}/{name}", value
