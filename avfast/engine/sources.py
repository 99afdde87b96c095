"""From a ``--data`` argument and a method's needs to data sets and loaders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from avfast.data import ClipDataset, ClipSource, EpochSampler, build_loader, probe
from avfast.data.dataset import collate
from avfast.data.deadline import MANY
from avfast.data.image_folder import ImageDataset
from avfast.data.layouts import open_source
from avfast.data.sources import EXTENSIONS, IMAGE_EXTENSIONS
from avfast.engine.batches import SMALLEST
from avfast.engine.config import DataConfig
from avfast.errors import AvfastError, DataError
from avfast.methods import Inputs
from avfast.methods.base import ImageInputs

SPLITS = ("train", "val", "test")
CACHE_LIMIT = 1 << 30
ADVICE = {
    "clips": "avfast media-scan names the files and the causes",
    "images": "remove the broken files, or list the good ones in a CSV with the column 'path'",
}
"""What to do about samples that cannot be read."""


@dataclass(frozen=True)
class DataBundle:
    """The clips or images of a run: the whole source and one source per split; val and test may be None.
    ``noun`` is what samples are called."""

    source: ClipSource
    splits: dict[str, ClipSource | None]
    noun: str = "clips"

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def labelled(self) -> bool:
        return len(self.source.classes) > 1 and all(label >= 0 for label in self.source.labels)

    @property
    def mask_classes(self) -> int:
        """Classes in the masks, background included; 256 where the manifest does not list them."""
        return len((self.source.manifest or {}).get("mask_classes", range(256)))


def open_data(path: str | Path, inputs: Inputs | ImageInputs | None = None, *, on_error: str = "raise") -> DataBundle:
    """Open a folder, CSV, manifest, shards or published data set (``vggsound:DIR``) and divide it; a source without
    splits is divided by content hash.

    The first process of a machine looks at the files; others beside it take the index that it left.

    Args:
        inputs: says whether clips or images are looked for.
        on_error: as ``data.on_error``; unless it is "raise", damaged shards are used as far as they go.
    """
    noun = Inputs.noun if inputs is None else inputs.noun
    images = isinstance(inputs, ImageInputs)
    wanted, other = (IMAGE_EXTENSIONS, EXTENSIONS) if images else (EXTENSIONS, IMAGE_EXTENSIONS)
    damaged = "raise" if on_error == "raise" else "drop"
    source = open_source(path, extensions=wanted, damaged=damaged, trust=_beside_main())
    if all(record.path.suffix.lower() in other for record in source.records):
        raise DataError(
            f"{path}: the recipe needs {noun}, and there are only files such as {source.records[0].path.name}; "
            "`avfast recipes` says what each recipe needs"
        )
    if not source.splits:
        source = source.with_splits()
    parts = {name: source.split(name) if source.splits.get(name) else None for name in SPLITS}
    if parts["train"] is None or len(parts["train"]) < 2:
        raise DataError(f"{path}: training needs at least 2 {noun} in the split 'train'; there are {source.splits}")
    return DataBundle(source, parts, noun)


def _beside_main() -> bool:
    """Whether the main process, which goes first, runs on this machine too."""
    rank = os.environ.get("RANK", "0")
    return rank != "0" and os.environ.get("LOCAL_RANK", "0") == rank


def build_dataset(
    source: ClipSource, inputs: Inputs | ImageInputs, data: DataConfig, *, seed: int, train: bool, cache: bool
) -> ClipDataset | ImageDataset:
    """A data set that yields what `inputs` asks for; evaluation data are not augmented."""
    if isinstance(inputs, ImageInputs):
        return ImageDataset(
            source, size=inputs.source_size, seed=seed, train=train, on_error=data.on_error,
            cache="memory" if cache else None, mask_size=inputs.size, timeout=data.timeout,
        )  # fmt: skip
    return ClipDataset(
        source,
        frames=inputs.frames,
        size=inputs.size,
        duration=inputs.duration,
        sample_rate=inputs.sample_rate,
        seed=seed,
        train=train,
        on_error=data.on_error,
        cache="memory" if cache else None,
        sound=inputs.sound,
        sampling=inputs.sampling,
        fps=inputs.fps,
        timeout=data.timeout,
    )


def fits_in_memory(bundle: DataBundle, inputs: Inputs | ImageInputs, data: DataConfig) -> bool:
    """Resolve ``data.cache``: "auto" estimates the decoded size of all clips from the first that opens."""
    if data.cache != "auto":
        return data.cache == "memory"
    if isinstance(inputs, ImageInputs):
        return 3 * inputs.source_size**2 * len(bundle.source) < CACHE_LIMIT
    for record in bundle.source.records[:8]:
        try:
            info = probe(record.path)
        except AvfastError:
            continue
        seconds = record.duration or info.duration or inputs.duration
        picture = seconds * (info.fps or 25.0) * 3 * inputs.size**2
        sound = seconds * inputs.sample_rate * 4
        return (picture + sound) * len(bundle.source) < CACHE_LIMIT
    return False


def training_sampler(
    samples: int, data: DataConfig, *, seed: int, accumulate: int, rank: int = 0, processes: int = 1
) -> EpochSampler:
    """The order of training samples; one of its batches is what an optimiser step reads on one process, `accumulate`
    times ``data.batch_size``. All processes have batches of one size, also at the end of an epoch.

    Raises:
        DataError: fewer samples than one batch.
    """
    return EpochSampler(
        samples, seed=seed, batch_size=data.batch_size * accumulate, drop_last=data.drop_last, least=SMALLEST,
        rank=rank, world_size=processes,
    )  # fmt: skip


def training_loader(dataset: Any, sampler: EpochSampler, data: DataConfig, *, pin_memory: bool) -> DataLoader:
    """Batches in the sampler's order; creating an iterator leaves the global generator alone (exact
    resume)."""
    loader = _adapted(build_loader(dataset, sampler, workers=data.workers, pin_memory=pin_memory))
    if data.workers and data.timeout:
        # A process that cannot keep the limit of a sample itself (a decoder that never lets Python run) ends the run.
        loader.timeout = data.timeout * (data.batch_size + MANY)
    return loader


def evaluation_loader(dataset: Any, batch_size: int) -> DataLoader:
    """Every sample once, in order, read in this process."""
    sampler = _SamePass(len(dataset), seed=0, batch_size=batch_size, shuffle=False, drop_last=False)
    return _adapted(build_loader(dataset, sampler))


class _SamePass(EpochSampler):
    """Epoch 0 again and again: a score must not depend on how often it was taken before."""

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        self.set_position(0, 0)
        return super().__iter__()


def collate_readable(samples: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples; when none of them could be read, an empty batch that still says what failed.

    One broken file that ends up alone in the last batch of a split must not end a run.
    """
    samples = list(samples)
    if any("index" in sample for sample in samples):
        return collate(samples)
    return {"index": torch.zeros(0, dtype=torch.int64), "errors": [e for s in samples for e in s["errors"]]}


def readable(loader: DataLoader, errors: dict[str, int] | None = None) -> Iterator[dict[str, Any]]:
    """The batches of `loader` that hold a sample; failures are added to `errors`.

    Raises:
        DataError: no sample at all could be read.
    """
    count, example = 0, ""
    for batch in loader:
        if batch["errors"] and not example:
            first = batch["errors"][0]
            example = f"; for instance, {first['path']} {first['detail']}"
        if errors is not None:
            count_errors(errors, batch["errors"])
        if len(batch["index"]):
            count += 1
            yield batch
    if not count:
        noun = "images" if isinstance(loader.dataset, ImageDataset) else "clips"
        raise DataError(f"no {noun.rstrip('s')} of a split could be read{example}; {ADVICE[noun]}")


def _adapted(loader: DataLoader) -> DataLoader:
    loader.collate_fn = collate_readable
    # Every iterator draws a base seed for its workers. From the global generator that draw would shift
    # dropout after a resume in mid-epoch, which makes one iterator more than the uninterrupted run.
    loader.generator = torch.Generator().manual_seed(0)
    return loader


def count_errors(counts: dict[str, int], errors: list[dict[str, Any]]) -> None:
    """Add a batch's failures to ``counts``: path and cause to occurrences."""
    for error in errors:
        key = f"{error['path']}: {error['cause']}"
        counts[key] = counts.get(key, 0) + 1
