"""What a run will do, said before it does it: samples, steps, parameters, memory and time."""

from __future__ import annotations

import copy
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from avfast.engine.build import learning_rate
from avfast.engine.config import OptimConfig, TrainConfig
from avfast.engine.inputs import build_pipeline
from avfast.engine.progress import clock
from avfast.engine.sources import DataBundle
from avfast.errors import AvfastError, ConfigError
from avfast.methods import Method
from avfast.methods.base import ImageInputs, LabelledInputs
from avfast.nn.bn_layers import batchnorm_layers

PROBE_CLIPS = 8


@dataclass(frozen=True)
class Plan:
    """The numbers of a plan; bytes and seconds. Times are None when nothing could be measured."""

    clips: dict[str, int]
    fingerprint: str
    classes: int
    batch_size: int
    processes: int
    steps_per_epoch: int
    steps: int
    parameters: int
    trainable: int
    activation_bytes: int
    state_bytes: int
    step_seconds: float | None
    clip_seconds: float | None
    control: bool
    budget: float | None
    bounds: dict[str, float]
    notes: list[str]
    noun: str = "clips"
    optimizer: str = ""
    supervised: bool = False
    accumulate: int = 1

    @property
    def seconds(self) -> float | None:
        """Estimated time of training and control, decoding included; the budget caps it."""
        if self.step_seconds is None:
            return None
        decode = 0.0 if self.clip_seconds is None else self.clip_seconds * sum(self.clips.values())
        total = self.steps * self.step_seconds * (2 if self.control else 1) + decode
        return total if self.budget is None else min(total, self.budget)

    def lines(self, title: str) -> list[str]:
        clips = ", ".join(f"{count} {name}" for name, count in self.clips.items())
        purpose = "" if self.supervised else " (for evaluation only)"
        labels = f"{self.classes} classes{purpose}" if self.classes > 1 else "no labels"
        processes = f" x {self.processes} processes" if self.processes > 1 else ""
        accumulated = f" x {self.accumulate} accumulated" if self.accumulate > 1 else ""
        epochs = self.steps / self.steps_per_epoch
        budget = "none" if self.budget is None else f"{self.budget:.0f} s, training and control together"
        about = "not estimated" if self.seconds is None else f"about {clock(self.seconds)}"
        control = " + as many for the shuffled-pair control" if self.control else "; no shuffled-pair control"
        bounds = ", ".join(f"{name} {value:.2f}" for name, value in self.bounds.items())
        rows = [
            ("recipe", title),
            (self.noun, f"{clips}; {labels}; fingerprint {self.fingerprint[:12]}"),
            ("batch", f"{self.batch_size} {self.noun}{processes}{accumulated}, {self.steps_per_epoch} steps per epoch"),
            ("steps", f"{self.steps} ({epochs:.1f} epochs){control}"),
            ("optimiser", self.optimizer),
            ("parameters", f"{self.parameters:,}, of which {self.trainable:,} are trained"),
            ("memory", f"about {_mib(self.state_bytes)} of weights, gradients and optimiser state, and "
                       f"{_mib(self.activation_bytes)} of activations"),
            ("time", f"{about} (budget: {budget})"),
        ]  # fmt: skip
        if bounds:
            rows.append(("loss", bounds))
        width = max(len(name) for name, _ in rows)
        return [f"{name:<{width}}  {text}" for name, text in rows] + [f"note: {note}" for note in self.notes]


def make_plan(
    config: TrainConfig,
    bundle: DataBundle,
    method: Method,
    dataset: Any,
    *,
    steps: int,
    steps_per_epoch: int,
    processes: int,
    budget: float | None,
    device: torch.device,
) -> Plan:
    """Measure a step on a copy of `method` and a clip of `dataset`; neither is changed, and no random state
    moves."""
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in method.parameters())
    moments = 2 if config.optim.name.startswith("adam") else 1
    state_bytes = 4 * (parameters + trainable * (1 + moments))
    try:
        step_seconds, activation_bytes = probe_step(config, method, device)
    except (RuntimeError, ValueError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"the model does not run with these settings: {cause}") from error
    clips = {name: len(part) for name, part in bundle.splits.items() if part is not None}
    batch, accumulate = config.data.batch_size * processes, config.optim.accumulate
    shown = steps * batch * accumulate
    notes = [*bundle.source.notes, *method.notes(), *method.data_notes(clips["train"], shown)]
    notes += _of_parts(config, method, processes)
    if "val" not in clips:
        notes.append("no validation split: the last weights are evaluated, none are selected")
    if "test" not in clips:
        scores = "segmentation and probes" if isinstance(method.inputs, ImageInputs) else "retrieval and probes"
        notes.append(f"no test split: {scores} are not available")
    return Plan(
        clips=clips,
        fingerprint=bundle.fingerprint,
        classes=len(bundle.source.classes),
        batch_size=config.data.batch_size,
        processes=processes,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        parameters=parameters,
        trainable=trainable,
        activation_bytes=activation_bytes,
        state_bytes=state_bytes,
        step_seconds=step_seconds,
        clip_seconds=_probe_clip(dataset),
        control=config.run.control,
        budget=budget,
        bounds=method.loss_bounds(batch),
        notes=notes,
        noun=bundle.noun,
        supervised=isinstance(method.inputs, LabelledInputs),
        optimizer=_describe_optimizer(config.optim, batch * accumulate, bundle.noun),
        accumulate=accumulate,
    )


def _of_parts(config: TrainConfig, method: Method, processes: int) -> list[str]:
    """Where a step made of several batches is not what one large batch would be."""
    normed = any(p.requires_grad for _, layer in batchnorm_layers(method) for p in layer.parameters())
    several = [name for name, there in (("negatives", method.compares_samples), ("batch norms", normed)) if there]
    notes, batch, accumulate = [], config.data.batch_size, config.optim.accumulate
    if accumulate > 1 and several:
        own = processes if method.compares_samples or config.run.sync_batchnorm else 1
        notes.append(
            f"optim.accumulate={accumulate}: {' and '.join(several)} are of one batch of {batch * own}; a step of "
            f"{batch * accumulate * processes} is not what a batch of that size would be"
        )
    if processes > 1 and normed and not config.run.sync_batchnorm and batch < 16:
        notes.append(
            f"batch norms see the {batch} samples of one process; run.sync_batchnorm=true makes them see all "
            f"{batch * processes}"
        )
    return notes


def _describe_optimizer(optim: OptimConfig, batch: int, noun: str) -> str:
    rate = learning_rate(optim, batch)
    scaled = f" ({optim.lr:g} for {optim.lr_batch} {noun} per step, scaled to {batch})" if rate != optim.lr else ""
    warmup = f"{optim.warmup_epochs} epochs" if optim.warmup_epochs else f"{optim.warmup_steps} steps"
    warm = "" if warmup == "0 steps" else f"; {warmup} of warm-up"
    return f"{optim.name}, learning rate {rate:g}{scaled}, {optim.schedule}{warm}"


def probe_step(config: TrainConfig, method: Method, device: torch.device) -> tuple[float, int]:
    """Seconds of one step and bytes kept for its backward pass, scaled up from a small batch."""
    batch_size = config.data.batch_size
    size = min(PROBE_CLIPS, batch_size)
    twin = copy.deepcopy(method).to(device).train()
    pipeline = build_pipeline(method.inputs).to(device)
    batch = pipeline.example(size)
    own = {p.untyped_storage().data_ptr() for p in twin.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    best = float("inf")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the small batch of the probe, which is not what will be trained
        for attempt in range(2):  # the first pays for allocation and kernel selection
            began = time.perf_counter()
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = twin.example_step(pipeline(batch)).loss
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began) if attempt else best
    return best * batch_size / size, sum(kept.values()) * batch_size // size


def _probe_clip(dataset: Any) -> float | None:
    """Seconds to read one clip, or None when the first ones cannot be read."""
    best = None
    for index in range(min(4, len(dataset))):  # the first one also imports the decoder
        began = time.perf_counter()
        try:
            sample = dataset[0, index]
        except AvfastError:
            continue
        if "index" in sample:
            best = min(best or math.inf, time.perf_counter() - began)
    return best


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**33 else f"{count / 2**30:,.1f} GiB"
