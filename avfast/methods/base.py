"""The contract that makes the next system one file.

A system is one module in this folder, named for its recipe (``av-align`` lives in ``av_align.py``), that
defines one subclass of :class:`Method` with a :class:`MethodCard` and a frozen ``Config`` dataclass. It
declares the data it needs (:class:`Inputs`) and never reads any: the engine builds loaders, devices,
optimisers, checkpoints and reports around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from avfast.ops.info_nce import info_nce

Batch = dict[str, Any]
"""What a method receives. With :class:`ImageInputs`: ``view_q`` and ``view_k`` float ``[B, 3, S, S]``, ``crop_q``
and ``crop_k`` float ``[B, 5]`` (top, left, height, width as fractions of the picture, and 1 where it was flipped),
``image`` float ``[B, 3, S, S]``, the plain picture, and ``label`` and ``index`` as below. Pictures are normalised with
the ImageNet statistics. With :class:`CorrelationInputs`: ``context`` float ``[B, 3, C, C]``, ``exemplars`` float ``[B,
E, 3, P, P]``, ``boxes`` float ``[B, E, 5]`` as :func:`avfast.sample_exemplars` gives them, and ``image``, ``label``,
``index``.

With :class:`Inputs`: ``frames`` float ``[B, T, 3, H, W]`` normalised with the ImageNet statistics,
``spectrogram`` float ``[B, 1, *, *]`` from the front-end it asked for, ``waveform`` float ``[B, S]`` in [-1,
1], ``label`` int64 ``[B]`` (-1 where unknown), ``index`` int64 ``[B]`` (position in the data set) and ``key`` int64
``[B]``, a number that belongs to the content of the clip wherever it stands."""


@dataclass(frozen=True)
class MethodCard:
    """Where a system comes from and what it needs, as ``avfast recipes`` prints it."""

    name: str
    title: str
    authors: str
    venue: str
    arxiv: str
    summary: str
    needs: str


@dataclass(frozen=True)
class Inputs:
    """The sample a method wants.

    Attributes:
        frames: frames per clip, T; 0 for an audio-only method, whose files need no pictures.
        size: side of the square frame in pixels.
        duration: seconds of sound and picture per clip.
        sample_rate: samples per second of the waveform.
        frontend: audio front-end by name ("log-mel", "kaldi-fbank", "log-psd"), or None for waveforms only.
        frontend_options: keyword arguments of that front-end.
        sound: whether there are waveforms; without, files need no sound.
        sampling: pictures of training clips: "even" or "segments", see :class:`avfast.data.ClipDataset`.
        fps: pictures per second that these are chosen from; 0 for all.
    """

    noun: ClassVar[str] = "clips"
    """What a plan and a report call samples."""
    control: ClassVar[str] = "every sound tied to a wrong picture"
    """What the shuffled-pair control trains with, as a report says it."""

    frames: int
    size: int
    duration: float
    sample_rate: int
    frontend: str | None = None
    frontend_options: dict[str, Any] = field(default_factory=dict)
    sound: bool = True
    sampling: str = "even"
    fps: float = 0.0


@dataclass(frozen=True)
class LabelledInputs(Inputs):
    """The sample a supervised method wants: a clip and its class. A Config with such inputs has a field ``classes``,
    which the engine fills where it is 0."""

    control: ClassVar[str] = "every label given to another clip"


@dataclass(frozen=True)
class ImageInputs:
    """The sample a method of still pictures wants.

    Attributes:
        size: side of a view in pixels.
        views: 2 for two random views of each picture (``view_q`` and ``view_k``), 1 for the plain picture alone.
        scale: range of the share of the picture that a random view shows.
    """

    noun: ClassVar[str] = "images"
    control: ClassVar[str] = "the second view cut from another image"

    size: int
    views: int = 2
    scale: tuple[float, float] = (0.2, 1.0)

    @property
    def source_size(self) -> int:
        """Side of the picture that views are cut from: an eighth larger, so that crops have something to cut."""
        return round(self.size * 8 / 7)


@dataclass(frozen=True)
class CorrelationInputs(ImageInputs):
    """The sample correlational image modelling wants: part of a picture and pieces cut out of that part.

    Attributes:
        size: side of the searched part in pixels, and of the plain picture.
        scale: range of the share of the picture that is searched.
        context, exemplar: sides of the searched part and of a piece as a method gets them.
        count: pieces of each picture.
        area, aspect, angle: ranges of pieces, as in :func:`avfast.sample_exemplars`.
        colours: what changes its colours: "exemplars" (the pieces), "context", "both" or "none".
        mirror: whether half of the pieces are mirrored.
    """

    control: ClassVar[str] = "exemplars cut from another image"

    views: int = 1
    scale: tuple[float, float] = (0.5, 1.0)
    context: int = 160
    exemplar: int = 64
    count: int = 6
    area: tuple[float, float] = (0.05, 0.48)
    aspect: tuple[float, float] = (1 / 3, 3.0)
    angle: tuple[float, float] = (-45.0, 45.0)
    colours: str = "exemplars"
    mirror: bool = True


class StepOutput(NamedTuple):
    """Result of one training step: a scalar ``loss``, named scalar ``metrics``, and the embeddings ``[B,
    D]`` that the collapse indicators watch. Metrics and embeddings are detached."""

    loss: Tensor
    metrics: dict[str, Tensor]
    embeddings: dict[str, Tensor]


class Method(nn.Module):
    """A pre-training system: its networks, its loss and its defaults.

    Everything that must survive an interruption is a parameter, a buffer, or returned by
    ``get_extra_state``; the engine saves ``state_dict()`` and nothing else of a method. Queues and momentum
    encoders are buffers and modules.
    """

    card: ClassVar[MethodCard]
    Config: ClassVar[type]
    defaults: ClassVar[dict[str, Any]] = {}
    """Settings outside the method's own ``Config`` that this system needs, as dotted overrides: ``{"optim.name":
    "sgd"}``."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Named sets of dotted overrides, for instance the settings of the paper: ``{"paper": {"optim.lr":
    1e-3}}``."""

    stages: ClassVar[dict[str, dict[str, Any]]] = {}
    """Of a recipe that trains in several runs: the values of ``Config.stage`` in their order, with dotted overrides of
    each, which count where neither a preset nor the user says otherwise."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def build(cls, config: Any) -> Method:
        """The method of a configuration; a recipe whose stages share nothing returns the class of its stage."""
        return cls(config)

    @property
    def inputs(self) -> Inputs | ImageInputs:
        """The data this method needs under its configuration."""
        raise NotImplementedError

    @property
    def compares_samples(self) -> bool:
        """Whether the loss of a sample depends on the others of its batch, as with in-batch negatives: a step made of
        several small batches is not one of a large batch then."""
        return False

    def training_step(self, batch: Batch) -> StepOutput:
        """Loss of one batch. Called through ``forward`` so that wrappers such as DDP see it."""
        raise NotImplementedError

    def validation_step(self, batch: Batch) -> StepOutput:
        """Loss of one held-out batch, in eval mode and without gradients; must not gather across
        processes."""
        return self.training_step(batch)

    def example_step(self, batch: Batch) -> StepOutput:
        """A step on a made-up batch, with its graph, by which a plan judges time and memory."""
        return self.validation_step(batch)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Encoder features before any projection head, ``{"audio": [B, C], "video": [B, C]}``, as probes
        read them."""
        raise NotImplementedError

    def project(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """From features to the shared space; the identity for a method without heads."""
        return features

    def classify(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits ``[B, classes]`` from features by what they are made of, for instance ``"joint"``, ``"audio"``,
        ``"video"``, and ``"nothing"`` where both are masked; empty for a method that does not classify."""
        return {}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings in the shared space, ``{"audio": [B, D], "video": [B, D]}``, as retrieval compares
        them."""
        return self.project(self.features(batch))

    def dense_features(self, batch: Batch) -> Tensor:
        """Feature map of ``image``, ``[B, C, h, w]``, as a segmentation head reads it; only of image methods."""
        raise NotImplementedError

    def correspondences(self, batch: Batch) -> Any:
        """What a picture of correspondences draws, or None for a method that matches nothing. An object with ``index``
        int64 ``[B, S]`` (cell of ``view_k`` for each cell of ``view_q``), ``keep`` bool ``[B, S]`` and ``grid``
        (rows, columns)."""
        return None

    def location_maps(self, batch: Batch) -> Any:
        """Maps of where pieces of a picture belong, or None for a method that makes none. An object with ``logits``
        float ``[B, E, S, S]``, ``truth`` uint8 of the same shape, ``prior`` bool ``[S, S]``, the best answer that is
        the same for every piece, and ``level``, the probability at which maps are cut to be compared with that."""
        return None

    def exports(self) -> dict[str, nn.Module]:
        """The modules a user takes home, by name; each is written as safetensors with a JSON config."""
        raise NotImplementedError

    def prepare_training(self, steps: int) -> None:
        """Called before the first step, also of a continued run, with the optimiser steps of the whole run: for
        schedules of the method's own."""

    def after_optimizer_step(self, step: int) -> None:
        """Momentum and queue updates; ``step`` counts optimiser steps from 1."""

    def forget_step(self) -> None:
        """Called when a step is dropped because its loss or gradient is not finite: the optimiser has not seen it, and
        buffers, frozen parameters and extra state are back at what they were. Forgets what else its forward left."""

    def loss_bounds(self, batch_size: int) -> dict[str, float]:
        """Reference values of the loss to print beside it, at least ``chance`` where it is known."""
        return {}

    def notes(self) -> list[str]:
        """Remarks for the plan: anything about this configuration that would surprise its user."""
        return []

    def data_notes(self, samples: int, shown: int) -> list[str]:
        """Remarks on how it fits a training split of ``samples``, of which all steps together show ``shown``."""
        return []

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Trainable parameters in two groups: matrices and filters decay, biases and norm gains do not."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [g for g in groups if g["params"]]

    def forward(self, batch: Batch) -> StepOutput:
        return self.training_step(batch)


def contrastive_bounds(batch_size: int, *, temperature: float, distance: str, rectified: bool) -> dict[str, float]:
    """Chance and floor of a symmetric InfoNCE over unit vectors.

    Chance is ``log B``. The floor is reached when every pair coincides and the B embeddings are as far apart
    as unit vectors can be: mean off-diagonal cosine ``-1 / (B - 1)``, or 0 when the features are rectified
        (non-negative).
    With ``distance="l2"`` the logits are ``-d / temperature``, so the floor stays far above zero: for
    non-negative features and temperature 1 it is ``log(1 + (B - 1) exp(-sqrt(2)))`` (Sound2Scene's loss).

    >>> bounds = contrastive_bounds(64, temperature=1.0, distance="l2", rectified=True)
    >>> round(bounds["floor"], 2), round(bounds["chance"], 2)
    (2.79, 4.16)
    """
    if batch_size < 2:
        return {"chance": 0.0, "floor": 0.0}
    cosine = 0.0 if rectified else -1.0 / (batch_size - 1)
    gap = 1.0 - cosine if distance == "cosine" else math.sqrt(2.0 - 2.0 * cosine)
    return {
        "chance": math.log(batch_size),
        "floor": math.log1p((batch_size - 1) * math.exp(-gap / temperature)),
    }


def alignment_step(z: dict[str, Tensor], *, temperature: float, distance: str, gather: bool) -> StepOutput:
    """Symmetric InfoNCE of the embeddings ``"audio"`` and ``"video"``, ``[B, D]`` each, and how near the pairs are; the
    options are those of :func:`avfast.info_nce`."""
    loss = info_nce(z["audio"], z["video"], temperature=temperature, distance=distance, gather=gather)
    detached = {name: value.detach() for name, value in z.items()}
    return StepOutput(loss, pair_metrics(detached["audio"], detached["video"]), detached)


@torch.no_grad()
def pair_metrics(z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
    """Mean cosine of matching and of other pairs in a batch, and how often the match is the nearest. Both
    ``[B, D]``."""
    cosine = nn.functional.normalize(z_a.float(), dim=1) @ nn.functional.normalize(z_b.float(), dim=1).T  # [B, B]
    count = cosine.shape[0]
    diagonal = cosine.diagonal()
    others = (cosine.sum() - diagonal.sum()) / max(1, count * (count - 1))
    nearest = (cosine.argmax(dim=1) == torch.arange(count, device=cosine.device)).float().mean()
    return {"cos_pos": diagonal.mean(), "cos_neg": others, "batch_r1": nearest}
