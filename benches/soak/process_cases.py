"""Every recipe and stage, small, in float64, on samples made of numbers: what several processes are compared on.

A training of this file runs the engine's own loop. Nothing in it is drawn per process: the samples carry their seeds,
batch norms synchronise or keep groups of one process's size, and the single process reads each batch in the order in
which the others hold it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avfast.data import EpochSampler
from avfast.engine import loop
from avfast.engine.build import build_accelerator
from avfast.engine.config import TrainConfig, parse_config
from avfast.engine.parallel import whole
from avfast.engine.signals import Budget, StopRequest
from avfast.methods.base import ImageInputs, Method
from avfast.nn.scene_targets import SceneTargets
from avfast.ops._counter import content_key

BATCH = 4
"""Samples per process and step."""
SAMPLES = 40
CLIP = ["method.frames=1", "method.duration=1"]
FUSION = [*CLIP, "method.size=32", "method.classes=3", "method.spectrogram_frames=64"]
SCENE = ["method.visual=resnet-tiny", "method.visual_size=32", "method.duration=1"]
SYNC = ["run.sync_batchnorm=true"]

CASES: dict[str, tuple[str, list[str]]] = {
    "av-align": ("av-align", [*CLIP, *SYNC, "method.size=32", "method.dim=16"]),
    "av-align, frozen": (
        "av-align", [*CLIP, *SYNC, "method.size=32", "method.train_visual=false", "method.distance=l2"],
    ),
    "densecl": (
        "densecl", ["method.size=32", "method.dim=16", "method.queue=24", f"method.group_size={BATCH}",
                    "optim.clip_norm=1"],
    ),
    "densecl, batch norm of all": (
        "densecl", [*SYNC, "method.size=32", "method.dim=16", "method.queue=24", "method.group_size=0"],
    ),
    "cim": ("cim", ["method.decoder_dim=32"]),
    "cim, global branch": (
        "cim", [*SYNC, "method.decoder_dim=32", "method.contrastive_weight=1", "method.head_hidden=32",
                "method.head_dim=16"],
    ),
    "fusion-tuning, audio": ("fusion-tuning", [*FUSION, *SYNC, "method.stage=audio", "method.audio_init=abri_channel"]),
    "fusion-tuning, video": ("fusion-tuning", [*FUSION, *SYNC, "method.stage=video", "method.sparsity=1e-5"]),
    "fusion-tuning, joint": ("fusion-tuning", [*FUSION, *SYNC, "method.stage=joint", "method.masks=conf"]),
    "sound2scene, localiser": ("sound2scene", [*SCENE, *SYNC, "method.stage=localiser", "method.localiser_dim=16"]),
    "sound2scene, generator": ("sound2scene", [*SCENE, *SYNC, "method.stage=generator"]),
    "sound2scene, audio": ("sound2scene", [*SCENE, *SYNC, "method.stage=audio", "method.frame_rule=random"]),
}  # fmt: skip
"""Name -> recipe and its words."""

MEANS = ("cim",)
"""Cases whose loss is a mean over samples that nothing else connects: a step in parts is a step of one piece."""


class Training(NamedTuple):
    """What one process saw: losses ``[steps]`` of its own samples, gradients of the first and last step, whole state at
    the end."""

    losses: Tensor
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


class Made:
    """Samples by ``(epoch, index)``; those in ``broken`` cannot be read."""

    def __init__(self, inputs: Any, samples: int = SAMPLES, broken: tuple[int, ...] = ()) -> None:
        self.inputs, self.samples, self.broken = inputs, samples, broken

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        if index in self.broken:
            error = {"index": index, "path": f"{index}.mp4", "cause": "unreadable", "detail": "is torn"}
            return {"errors": [error]}
        draw = torch.Generator().manual_seed(index)
        found: dict[str, Any] = {"label": index % 3, "index": index, "id": f"sample {index}", "errors": []}
        i = self.inputs
        if isinstance(i, ImageInputs):
            shape = (3, i.source_size, i.source_size)
            found["seed"] = 1000 * epoch + index
            return found | {"image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)}
        if i.frames:
            found["frames"] = torch.randint(
                0, 256, (i.frames, 3, i.size, i.size), dtype=torch.uint8, generator=draw
            )  # fmt: skip
        if i.sound:
            found["waveform"] = torch.rand(round(i.duration * i.sample_rate), generator=draw) - 0.5
        return found


class InTurn(EpochSampler):
    """One process's batches, in the order in which ``world`` processes hold them: first those of the first one; as many
    from each as the one with the most ``broken`` samples can read."""

    world, broken = 1, ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in super().__iter__():
            shares = [[key for key in batch[rank :: self.world] if key[1] not in self.broken]
                      for rank in range(self.world)]  # fmt: skip
            fewest = min(map(len, shares))
            yield [key for share in shares for key in share[:fewest]]


def config_of(case: str, folder: Path, *, batch: int, extra: tuple[str, ...] = ()) -> TrainConfig:
    """The configuration of a case; what its stage reads is written to ``folder`` first."""
    recipe, words = CASES[case]
    words = [*words, f"data.batch_size={batch}", "optim.warmup_steps=2", "run.control=false", *extra]
    if case == "fusion-tuning, joint":
        for name, shift in (("audio", 0), ("visual", 5)):
            sure = {f"sample {i}": ((7 * i + shift) % 12) / 11 for i in range(SAMPLES)}
            (folder / f"{name}.json").write_text(json.dumps({"confidence": sure}))
            words.append(f"method.{name}_confidence={folder / f'{name}.json'}")
    if case == "sound2scene, audio":
        draw = torch.Generator().manual_seed(0)
        keys = torch.tensor([content_key(f"sample {i}") for i in range(SAMPLES)])
        table = SceneTargets(
            keys, torch.rand(SAMPLES, 3, 128, generator=draw), torch.rand(SAMPLES, 3, generator=draw)
        )  # fmt: skip
        table.save(folder / "targets.safetensors")
        words.append(f"method.targets={folder / 'targets.safetensors'}")
    return parse_config(recipe, words)


def train(
    case: str, folder: Path, *, steps: int, batch: int = BATCH, in_turn: int = 1, extra: tuple[str, ...] = (),
    broken: tuple[int, ...] = (), samples: int = SAMPLES, pause: int = 0, then: tuple[str, ...] = (),
) -> Training:  # fmt: skip
    """Train a case in this process, beside the others if there are any.

    Args:
        batch: samples per process.
        in_turn: processes whose order of samples this one process shall follow.
        extra: more words, such as ``run.parallel=fsdp``.
        broken: samples that cannot be read.
        pause: stop after this step and go on from the checkpoint; what was seen is then of the second half.
        then: words of the second half in place of ``extra``.
    """
    own = folder / os.environ.get("RANK", "0")  # what a stage reads; checkpoints are of all processes
    own.mkdir(parents=True, exist_ok=True)

    def trainer_of(words: tuple[str, ...], resume: Path | None = None) -> loop.Trainer:
        config = config_of(case, own, batch=batch, extra=words)
        accelerator = build_accelerator("cpu", "no")
        made = Made(loop.build_method(config).inputs, samples, () if in_turn > 1 else broken)
        return loop.Trainer(
            config, made, None, folder, accelerator, fingerprint="made", steps=steps, resume=resume
        )  # fmt: skip

    with double_precision(in_turn, broken):
        trainer = trainer_of(extra)
        if pause:
            first = trainer.fit(_StopAt(trainer, pause), Budget(None))
            trainer = trainer_of(then or extra, first.checkpoints["last"])
        losses, gradients = watched(trainer, steps)
        trainer.fit(StopRequest(), Budget(None))
    state = trainer.parallel.states()[0]
    return Training(
        torch.stack(losses), gradients,
        {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)},
    )  # fmt: skip


class _StopAt(StopRequest):
    """A signal that arrives during a step of a trainer."""

    def __init__(self, trainer: Any, step: int) -> None:
        super().__init__()
        self.trainer, self.step = trainer, step

    @property
    def signal_name(self) -> str | None:
        return "SIGTERM" if self.trainer.step >= self.step else None

    @signal_name.setter
    def signal_name(self, value: str | None) -> None:
        pass


@contextmanager
def double_precision(in_turn: int, broken: tuple[int, ...]) -> Iterator[None]:
    """The engine's loop in float64, with its samples in the order of so many processes."""
    method, pipeline, sampler = loop.build_method, loop.build_pipeline, loop.training_sampler

    def ordered(*args: Any, **options: Any) -> EpochSampler:
        made = sampler(*args, **options)
        if in_turn > 1:
            made.__class__, made.world, made.broken = InTurn, in_turn, broken
        return made

    def doubled(config: TrainConfig) -> Method:
        made = method(config).double()
        if (targets := getattr(made, "targets", None)) is not None:
            targets.features = targets.features.double()  # a table, no buffer
        return made

    loop.build_method = doubled
    loop.build_pipeline = lambda inputs: Double(pipeline(inputs))
    loop.training_sampler = ordered
    try:
        yield
    finally:
        loop.build_method, loop.build_pipeline, loop.training_sampler = method, pipeline, sampler


class Double(torch.nn.Module):
    """A pipeline whose results are float64; what it draws stays what it is."""

    def __init__(self, pipeline: torch.nn.Module) -> None:
        super().__init__()
        self.pipeline = pipeline

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        made = self.pipeline(batch)
        keep = {"boxes", "crop_q", "crop_k"}
        return {
            name: x.double() if isinstance(x, Tensor) and x.is_floating_point() and name not in keep else x
            for name, x in made.items()
        }  # fmt: skip


def watched(trainer: Any, steps: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Lists that fill while a trainer works: its losses, and the gradients of its first and last step."""
    losses: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    step: Callable[..., Any] = trainer._train_step

    def kept(batch: dict[str, Any]) -> Any:
        output = step(batch)
        if output is not None:
            losses.append(output.loss.detach().clone())
        return output

    def note(*_: Any) -> None:
        if trainer.step in (0, steps - 1):
            for name, p in trainer.method.named_parameters():
                if p.grad is not None:
                    gradients[f"{trainer.step} {name}"] = whole(p.grad).clone()

    trainer._train_step = kept
    trainer.parallel.bare.register_step_pre_hook(note)
    return losses, gradients


IGNORED = ("gradient_norms",)
"""Watched by each process for its own samples; no part of what is trained."""


def difference(several: list[Training], alone: Training) -> float:
    """The largest relative difference of losses, gradients and weights, of every process to one process; of tensors
    that are zero by symmetry, relative to a hundredth of the largest one of their kind."""
    losses = torch.stack([one.losses for one in several]).mean(dim=0)
    worst = ((losses - alone.losses).abs() / alone.losses.abs().clamp_min(1e-3)).max().item()
    for one in several:
        for found, expected in ((one.gradients, alone.gradients), (one.state, alone.state)):
            if found.keys() != expected.keys():
                return float("inf")
            real = {
                name: value for name, value in expected.items()
                if value.is_floating_point() and not name.endswith(IGNORED)
            }  # fmt: skip
            largest = max((value.abs().max().item() for value in real.values() if value.numel()), default=0.0)
            for name, value in expected.items():
                if name in real and value.numel():
                    scale = max(value.abs().max().item(), 0.01 * largest)
                    worst = max(worst, (found[name] - value).abs().max().item() / scale)
                elif not value.is_floating_point() and not torch.equal(found[name], value):
                    return float("inf")
    return worst
