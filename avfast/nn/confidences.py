"""How sure a classifier was of every sample of a data set, over the whole of its training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops._counter import content_key
from ..ops._distributed import world


class Confidences:
    """Running means by sample key: a number that belongs to a sample's content, never its place in a data set.

    >>> seen = Confidences()
    >>> seen.note(torch.tensor([7, 9]), torch.tensor([0.5, 1.0]))
    >>> seen.note(torch.tensor([7]), torch.tensor([1.0]))
    >>> seen.means()
    {7: 0.75, 9: 1.0}
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, int]] = {}
        self._pair: tuple[dict[int, float], dict[int, float]] | None = None

    @torch.no_grad()
    def note(self, keys: Tensor, values: Tensor) -> None:
        """Add probabilities ``[B]`` of samples int64 ``[B]``; those of all processes, where there are several."""
        own = list(zip(keys.tolist(), values.double().tolist(), strict=True))
        rank, size = world(None)
        everyone: list[Any] = [own]
        if size > 1:
            everyone = [None] * size
            torch.distributed.all_gather_object(everyone, own)
        for rows in everyone:
            for key, value in rows:
                total, count = self._sums.get(key, (0.0, 0))
                self._sums[key] = total + value, count + 1

    def means(self) -> dict[int, float]:
        return {key: total / count for key, (total, count) in self._sums.items()}

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint; :meth:`of` reads them."""
        rows = list(self._sums.items())
        return {
            "keys": torch.tensor([key for key, _ in rows], dtype=torch.int64),
            "sums": torch.tensor([total for _, (total, _) in rows], dtype=torch.float64),
            "counts": torch.tensor([count for _, (_, count) in rows], dtype=torch.int64),
        }

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Confidences:
        made = cls()
        rows = zip(*(state[name].tolist() for name in ("keys", "sums", "counts")), strict=True)
        made._sums = {key: (total, count) for key, total, count in rows}
        return made

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state`; means that were read from files stay."""
        self._sums = Confidences.of(state)._sums

    def by_id(self, ids: Iterable[str]) -> dict[str, float]:
        """Means by content id, of the samples that were seen: what is written for the next stage."""
        means = self.means()
        return {id: means[content_key(id)] for id in ids if content_key(id) in means}

    @classmethod
    def read(cls, audio: str | Path, video: str | Path) -> Confidences:
        """Means of two streams from JSON files ``{"confidence": {content id: mean}}``.

        Raises:
            ConfigError: a file that is not that, a mean outside [0, 1], or no sample that both files know.
        """
        made = cls()
        found = [_read(Path(path)) for path in (audio, video)]
        both = found[0].keys() & found[1].keys()
        if not both:
            raise ConfigError(f"'{audio}' and '{video}' have no sample in common: they are of different data sets")
        made._pair = tuple({content_key(id): means[id] for id in sorted(both)} for means in found)
        return made

    def ratios(
        self, keys: Tensor, *, mean: bool, of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Mask ratios of samples int64 ``[B]`` by the rule ``of`` (confidences to ratios), float32 ``[B]`` each.

        With ``mean``, the mean ratios of the data set for every sample. A sample that only one stream knows, because
        it could not be read at the time, is not masked.
        """
        audio, video = self._pair
        wanted = audio.keys() if mean else keys.tolist()
        pairs = torch.tensor([[c.get(key, torch.nan) for c in (audio, video)] for key in wanted])
        known = ~pairs.isnan().any(dim=1)
        found = of(*pairs.nan_to_num(0.0).T.contiguous())
        if mean:
            return tuple(r.mean().expand(len(keys)).contiguous().to(keys.device) for r in found)
        return tuple(torch.where(known, r, 0.0).to(keys.device) for r in found)


def _read(path: Path) -> dict[str, float]:
    try:
        means = json.loads(path.read_text())["confidence"]
        good = all(isinstance(c, (int, float)) and 0 <= c <= 1 for c in means.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"'{path}' is no file of confidences: {type(error).__name__}: {error}") from error
    if not good:
        raise ConfigError(f"'{path}': expected confidences in [0, 1]")
    return means
