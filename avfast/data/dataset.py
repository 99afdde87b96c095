"""Clips as training samples: augmentation from keys, and an honest account of what could not be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avfast.data.frame_sampling import SAMPLINGS, middle, pictures_at, segment_times
from avfast.data.keyed import KeyedDataset, UnusableClip
from avfast.data.media import Clip, Decoded, MediaError, MediaFile, read_all
from avfast.data.randomness import Draws
from avfast.data.sampler import EpochSampler
from avfast.data.sources import ClipSource
from avfast.data.worker_signals import shield_worker
from avfast.errors import UnreadableFile


class ClipDataset(KeyedDataset):
    """Samples of a :class:`ClipSource`, asked for by ``(epoch, index)``.

    A sample is a dictionary: ``frames`` uint8 ``[T, 3, H, W]`` RGB, ``waveform`` float32 ``[S]``, ``label``
    (class number, -1 if none), ``index`` into the source, ``id`` (content hash) and ``errors``. With ``frames=0``
    it has no pictures, without ``sound`` no waveform; that stream is not decoded, and files need not have it.

    Training samples take a random time, a random resized crop and a random flip, the same for all frames of
    the clip, drawn from ``(seed, epoch, id)``. Evaluation samples take the middle of the file and of the
    picture.

    Args:
        source: where the clips are.
        frames, size, duration, sample_rate: as for :func:`avfast.data.media.read_clip`.
        seed: of the augmentation.
        train: augment or not.
        on_error: what a clip that cannot be used does. ``"raise"`` stops with a :class:`DataError`.
            ``"skip"`` leaves it out of its batch. ``"resample"`` puts another clip, drawn from the same keys,
            in its place. The last two are reported in ``errors`` (one dictionary of ``index``, ``path``,
            ``cause``, ``detail`` and ``policy`` per failed clip); a made-up picture or silence is never
            handed out.
        cache: None, or ``"memory"`` to decode every file once and cut all clips from that.
            It takes ``3 F H W`` bytes per file of F frames; see :meth:`preload`.
        crop: ``"center"`` keeps the aspect, ``"squash"`` does not.
        crop_scale: range of the share of the picture that a training crop shows; ``(1, 1)`` turns it off.
        flip: probability of a horizontal flip.
        sound: whether samples have a waveform.
        sampling: ``"even"`` shows the centres of ``frames`` equal parts of a clip; ``"segments"``, in training, a
            random picture of each part.
        fps: pictures per second that ``sampling`` chooses from, as if the video had been stored at that rate; 0 for
            all.
        timeout: seconds that reading a clip may take, after which it cannot be used (cause ``timeout``); 0 for no
            limit.
    """

    noun = "clips"

    def __init__(
        self,
        source: ClipSource,
        *,
        frames: int,
        size: int | tuple[int, int],
        duration: float,
        sample_rate: int,
        seed: int,
        train: bool,
        on_error: str = "raise",
        cache: str | None = None,
        crop: str = "center",
        crop_scale: tuple[float, float] = (0.4, 1.0),
        flip: float = 0.5,
        sound: bool = True,
        sampling: str = "even",
        fps: float = 0.0,
        timeout: float = 0.0,
    ) -> None:
        super().__init__(source, seed=seed, train=train, on_error=on_error, cache=cache, timeout=timeout)
        where = "avfast.data.ClipDataset"
        if frames < 0 or sample_rate < 1 or not duration > 0:
            raise ValueError(f"{where}: frames, sample_rate and duration: expected positive numbers (frames may be 0)")
        if not frames and not sound:
            raise ValueError(f"{where}: frames, sound: expected pictures or sound, got neither")
        if sampling not in SAMPLINGS:
            raise ValueError(f"{where}: sampling: expected one of {SAMPLINGS}, got {sampling!r}")
        if not 0 <= fps < math.inf or (fps and pictures_at(duration, fps) < frames):
            raise ValueError(
                f"{where}: fps: expected 0, or {frames} pictures in {duration:g} s, got {fps:g} per second"
            )
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"{where}: crop_scale: expected 0 < low <= high <= 1, got {crop_scale}")
        self.frames, self.duration, self.sample_rate = frames, duration, sample_rate
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.crop, self.crop_scale, self.flip = crop, crop_scale, flip
        self.sound, self.sampling, self.fps = sound, sampling, fps
        self._decoded: dict[int, Decoded | UnreadableFile] = {}

    @property
    def read_size(self) -> tuple[int, int]:
        """Pictures are decoded an eighth larger for training, so that crops have something to cut."""
        grow = 8 / 7 if self.train and self.crop_scale[0] < 1 else 1
        return round(self.size[0] * grow), round(self.size[1] * grow)

    def preload(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode everything now (``cache="memory"``), so that workers started later share one copy."""
        if self.cache != "memory":
            raise ValueError("avfast.data.ClipDataset.preload: needs cache='memory'")
        for index in range(len(self)):
            try:
                self.limit.run(self.source.records[index].path, self._load, index)
            except UnreadableFile:
                pass  # tried again, and reported, when it is asked for
            if progress is not None:
                progress(index + 1, len(self))

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        record = self.source.records[index]
        draws = Draws(self.seed, epoch, record.id) if self.train else None
        clip = self._clip(index, draws)
        found: dict[str, Any] = {}
        if self.frames:
            found["frames"] = clip.frames if draws is None else self._augment(clip.frames, draws)
        if self.sound:
            found["waveform"] = clip.waveform
        return found | {
            "label": int(self._labels[index]),
            "index": index,
            "id": record.id,
        }

    def _clip(self, index: int, draws: Draws | None) -> Clip:
        if self.cache == "memory":
            decoded = self._load(index)
            if isinstance(decoded, UnreadableFile):
                # A new one: each time that an error is raised, its traceback grows and holds on to more frames.
                raise type(decoded)(decoded.path, decoded.cause, decoded.detail)
            start = self._start(decoded.duration, draws)
            return decoded.cut(start=start, duration=self.duration, frames=self.frames, times=self._times(start, draws))
        with MediaFile(self.source.records[index].path) as media:
            start = self._start(media.require_duration(), draws)
            times = self._times(start, draws)
            decoded = media.decode(window=(start, self.duration, times), **self._reading)
        return decoded.cut(start=start, duration=self.duration, frames=self.frames, times=times)

    @property
    def _reading(self) -> dict[str, Any]:
        return {"size": self.read_size, "sample_rate": self.sample_rate, "crop": self.crop,
                "pictures": self.frames > 0, "sound": self.sound}  # fmt: skip

    def _start(self, total: float, draws: Draws | None) -> float:
        if draws is None:
            return middle(total, self.duration)
        return draws.uniform(0.0, max(total - self.duration, 0.0))

    def _times(self, start: float, draws: Draws | None) -> list[float]:
        own = draws if self.sampling == "segments" else None
        return segment_times(start, self.duration, self.frames, fps=self.fps, draws=own)

    def _load(self, index: int) -> Decoded | MediaError:
        if index not in self._decoded:
            path = self.source.records[index].path
            try:
                self._decoded[index] = read_all(path, **self._reading)
            except MediaError as error:
                self._decoded[index] = error
        return self._decoded[index]

    def _augment(self, frames: Tensor, draws: Draws) -> Tensor:
        """One random resized crop and one flip for the whole clip."""
        height, width = frames.shape[-2:]
        area = draws.uniform(*self.crop_scale)
        stretch = draws.uniform(-1, 1) * (self.crop_scale[0] < 1)
        # Aspect between 3:4 and 4:3 around that of the picture, evenly in the logarithm.
        aspect = (4 / 3) ** stretch
        rows = min(round(height * (area / aspect) ** 0.5), height)
        columns = min(round(width * (area * aspect) ** 0.5), width)
        top, left = draws.integer(height - rows + 1), draws.integer(width - columns + 1)
        out = frames[..., top : top + rows, left : left + columns]
        if out.shape[-2:] != self.size:
            out = F.interpolate(out, self.size, mode="bilinear", antialias=True)
        return out.flip(-1) if draws.coin(self.flip) else out.contiguous()


def collate(samples: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples to a batch, key by key; samples that could not be read leave only their ``errors``.

    Raises:
        UnusableClip: no sample of the batch has a clip.
    """
    samples = list(samples)
    errors = [error for sample in samples for error in sample["errors"]]
    good = [sample for sample in samples if "index" in sample]
    if not good:
        raise UnusableClip(
            f"none of the {len(samples)} clips of a batch could be used; the first is {errors[0]['path']}, "
            f"which {errors[0]['detail']}"
        )
    return {key: _together([sample[key] for sample in good]) for key in good[0] if key != "errors"} | {"errors": errors}


def _together(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    return torch.tensor(values) if isinstance(values[0], int) else values


def build_loader(dataset: Dataset, sampler: EpochSampler, *, workers: int = 0, pin_memory: bool = False) -> DataLoader:
    """A ``DataLoader`` of batches: ``frames`` uint8 ``[B, T, 3, H, W]``, ``waveform`` ``[B, S]``, ``label``
    and ``index`` int64 ``[B]``, ``id`` and ``errors`` lists.

    Batches do not depend on ``workers``; workers live as long as the loader and keep their decoded clips.
    ``errors`` holds what failed, so counts are kept in the main process.
    """
    if sampler.n != len(dataset):
        raise ValueError(
            f"avfast.data.build_loader: sampler: expected one over {len(dataset)} samples, got {sampler.n}"
        )
    if workers and isinstance(keyed := getattr(dataset, "dataset", dataset), KeyedDataset):
        keyed.beacon = torch.full((workers,), -1).share_memory_()
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=shield_worker,
    )
