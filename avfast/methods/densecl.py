"""DenseCL: momentum contrast of whole images and of every position of the feature map.

Two views of an image; a query network that learns and a key network that follows it slowly. The global branch is
MoCo-v2: the query's pooled vector against its key and a queue of earlier keys. The dense branch does the same at every
cell of the map: its positive is the cell of the other view that shows the same thing (found by the backbone's own
features, by default), its negatives are a queue of pooled dense keys, one per image.

The loss rises at first. The queues start with random directions, which are easy negatives; they are replaced by keys
of real images within ``queue / batch`` steps (``queue_fill`` in the log), and only from there on does the loss fall.
For the preset `coco-800` a published log has the halves of the loss, global and dense, at about 4.29 and 4.39 in the
first 50 steps, 4.97 and 4.8 within the first epoch, and 3.35 and 3.40 at the end.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize
from torch.nn.parallel import DistributedDataParallel

from avfast.encoders import Encoder, build_encoder
from avfast.errors import ConfigError
from avfast.methods.base import Batch, ImageInputs, Method, MethodCard, StepOutput
from avfast.nn import FeatureQueue, GroupShuffleBN, geometric_match, momentum_update, random_match
from avfast.ops._distributed import require_even
from avfast.ops.dense_contrastive import Correspondence, dense_contrastive
from avfast.ops.dense_match import dense_match
from avfast.ops.queue_info_nce import queue_info_nce


@dataclass(frozen=True)
class DenseCLConfig:
    """Options of the recipe `densecl`. Defaults suit a thousand images and a few hundred steps; the presets hold the
    published settings.

    Attributes:
        encoder: network: a preset of avfast.encoders or a local folder with weights.
        size: side of a view in pixels.
        dim: width of both heads' outputs.
        hidden: width inside both heads; 0 takes that of the encoder's map.
        loss_lambda: share of the dense loss; 0 is MoCo-v2, without the dense branch and its cost.
        lambda_start: optimiser step from which on loss_lambda counts, 0 before; the dense branch is watched and its
            queue filled meanwhile. Needed where loss_lambda is 1.
        match: positive of a cell: most similar by backbone features, same place by geometry, or random (a control),
            drawn by the batch's `seed` where it has one, whatever the number of processes.
        grid: cells per side of the dense branch, both maps pooled to it; 0 takes the map as it is.
        queue: negatives kept, for each branch; well under the number of images, or most images meet an older key of
            their own among their negatives (840 images in batches of 32: 71 % of them in a queue of 1,024, 5 % of
            256).
        queue_dtype: type in which the losses read the queues; bfloat16 halves their memory traffic.
        share_queue: keys of all processes enter the queues of all; otherwise each process keeps its own, and a
            checkpoint holds those of the first.
        temperature: divides the logits of both losses.
        momentum: share of its old weights that the key network keeps per step.
        group_size: samples that share batch-norm statistics; keys are shuffled between groups, so use at most half
            the batch. 0: plain batch norm over the batch of a process.
    """

    encoder: str = "resnet-small16"
    size: int = 96
    dim: int = 128
    hidden: int = 0
    loss_lambda: float = 0.5
    lambda_start: int = 0
    match: Literal["feature", "geometry", "random"] = "feature"
    grid: int = 0
    queue: int = 256
    queue_dtype: Literal["float32", "bfloat16"] = "float32"
    share_queue: bool = True
    temperature: float = 0.2
    momentum: float = 0.99
    group_size: int = 16


_PAPER = {
    "method.encoder": "resnet50", "method.size": 224, "method.queue": 65536, "method.momentum": 0.999,
    "method.group_size": 32,
    "data.batch_size": 256, "optim.name": "sgd", "optim.momentum": 0.9, "optim.weight_decay": 1e-4,
    "optim.lr_batch": 256, "optim.schedule": "cosine-epoch", "optim.warmup_steps": 0,
}  # fmt: skip
# The published settings for 256 images per step: on one device as 8 groups of 32, which were 8 devices in the paper.


class View(NamedTuple):
    """One view through a network: backbone map ``[B, C, h, w]``, global vector ``[B, D]`` and dense map ``[B, D, s,
    s]``, neither normalised; no dense map for MoCo-v2."""

    map: Tensor
    vector: Tensor
    dense: Tensor | None


class CellMatches(NamedTuple):
    """Cells of two views that belong together, for a picture.

    Attributes:
        index: int64 ``[B, S]``, cell of ``view_k`` most similar to each cell of ``view_q``, row by row.
        similarity: float ``[B, S]``, their cosine.
        keep: bool ``[B, S]``, nearest to each other both ways and at least as similar as the threshold.
        grid: (rows, columns) of the map, S of them.
        truth: the match by geometry, where the batch has the crops.
    """

    index: Tensor
    similarity: Tensor
    keep: Tensor
    grid: tuple[int, int]
    truth: Correspondence | None


class Neck(nn.Module):
    """Two heads of the same widths, without batch norm: an MLP on the pooled map and 1x1 convolutions on every cell."""

    def __init__(self, channels: int, hidden: int, dim: int, *, dense: bool) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.convs = None
        if dense:
            self.convs = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, dim, 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.mlp(features.mean(dim=(2, 3))), None if self.convs is None else self.convs(features)


class Network(nn.Module):
    """Encoder and neck."""

    def __init__(self, encoder: GroupShuffleBN | Encoder, neck: Neck, grid: int) -> None:
        super().__init__()
        self.encoder, self.neck, self.grid = encoder, neck, grid

    def forward(self, images: Tensor) -> View:
        features = self.encoder(images)
        if features.ndim != 4:
            raise ConfigError(
                f"method.encoder: expected a network that gives a feature map [B, C, h, w], got {list(features.shape)}"
            )
        vector, dense = self.neck(features)
        if self.grid and dense is not None:
            # Both, or cells of one map would be matched by another: pooled before anything is normalised.
            features, dense = (adaptive_avg_pool2d(x, self.grid) for x in (features, dense))
        return View(features, vector, dense)


class DenseCL(Method):
    """Momentum contrast, global and dense; see :class:`DenseCLConfig`."""

    card = MethodCard(
        name="densecl",
        title="Dense Contrastive Learning for Self-Supervised Visual Pre-Training",
        authors="Wang, Zhang, Shen, Kong, Li",
        venue="CVPR 2021",
        arxiv="2011.09157",
        summary="two views agree as wholes and cell by cell, against queues of earlier keys; loss_lambda=0 is MoCo-v2",
        needs="a folder of images; no labels",
    )
    Config = DenseCLConfig
    presets = {
        "moco-v2": {"method.loss_lambda": 0.0},
        "coco-800": {**_PAPER, "optim.lr": 0.3, "run.epochs": 800},
        "imagenet-200": {**_PAPER, "optim.lr": 0.03, "run.epochs": 200},
    }

    def __init__(self, config: DenseCLConfig, *, encoder: Encoder | None = None) -> None:
        super().__init__(config)
        _check_config(config)
        c = config
        encoder = encoder or build_encoder(c.encoder, in_channels=3)
        neck = Neck(encoder.channels, c.hidden or encoder.channels, c.dim, dense=self.is_dense)
        key_encoder, key_neck = copy.deepcopy(encoder), copy.deepcopy(neck)
        if c.group_size:
            encoder = GroupShuffleBN(encoder, c.group_size, shuffle=False)
            key_encoder = GroupShuffleBN(key_encoder, c.group_size, shuffle=True)
        self.network = Network(encoder, neck, c.grid)
        self.momentum_network = Network(key_encoder, key_neck, c.grid).requires_grad_(False)
        shadow = torch.bfloat16 if c.queue_dtype == "bfloat16" else None
        options = {"shadow_dtype": shadow, "share": c.share_queue}
        self.queue = FeatureQueue(c.queue, c.dim, seed=0, **options)
        self.dense_queue = FeatureQueue(c.queue, c.dim, seed=1, **options) if self.is_dense else None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._waiting: list[list[Tensor]] = []  # keys of this optimiser step, for the queues
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, FeatureQueue.local_buffers(self))

    @property
    def is_dense(self) -> bool:
        return self.config.loss_lambda > 0

    @property
    def encoder(self) -> Encoder:
        """The query encoder itself."""
        encoder = self.network.encoder
        return encoder.module if isinstance(encoder, GroupShuffleBN) else encoder

    @property
    def inputs(self) -> ImageInputs:
        return ImageInputs(self.config.size, views=2)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return {"image": self.dense_features(batch).mean(dim=(2, 3))}

    def dense_features(self, batch: Batch) -> Tensor:
        """Backbone map of ``image``, ``[B, C, h, w]``, as a segmentation head reads it."""
        return self.network.encoder(batch["image"])

    def project(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"image": self.network.neck.mlp(features["image"])}

    def training_step(self, batch: Batch) -> StepOutput:
        if self.config.share_queue or self.config.group_size:
            option = "queues or batch norms are shared"
            require_even("densecl", "view_q", batch["view_q"], option=option)
        q = self.network(batch["view_q"])
        with torch.no_grad():
            k = self.momentum_network(batch["view_k"])
        output = self._loss(batch, q, k, [queue.negatives() for queue in self._queues])
        self._waiting.append(_keys(k))
        held = self.config.queue // len(k.vector) + 1  # older keys would leave the queue before they are read
        if len(self._waiting) > held:
            warnings.warn(
                f"densecl: {len(self._waiting)} batches without the end of a step: the queue does not fill and the key "
                "network does not move; call method.after_optimizer_step(step) after optimizer.step()",
                stacklevel=2,
            )
            del self._waiting[:-held]
        return output

    @property
    def _queues(self) -> list[FeatureQueue]:
        return [queue for queue in (self.queue, self.dense_queue) if queue is not None]

    def after_optimizer_step(self, step: int) -> None:
        """The key network follows, and the keys of the step enter the queues: all batches of a step, if it had several,
        were compared with the same negatives."""
        momentum_update(self.network, self.momentum_network, self.config.momentum)
        for keys in self._waiting:
            for queue, rows in zip(self._queues, keys, strict=True):
                queue.push(rows)
        self._waiting.clear()
        self.step.fill_(step)

    def forget_step(self) -> None:
        self._waiting.clear()

    def validation_step(self, batch: Batch) -> StepOutput:
        """Against the keys of the batch: against the queues, a loss would measure how old they are."""
        k = self.momentum_network(batch["view_k"])
        return self._loss(batch, self.network(batch["view_q"]), k, _keys(k))

    def _loss(self, batch: Batch, q: View, k: View, negatives: list[Tensor]) -> StepOutput:
        """Both losses against ``negatives``, one ``[K, D]`` for each branch."""
        c = self.config
        whole = queue_info_nce(q.vector, k.vector, negatives[0], temperature=c.temperature, return_parts=True)
        embeddings = {"image": q.vector.detach()}
        metrics = {
            "loss_global": whole.loss.detach(),
            "queue_fill": self.queue.filled,
            "pos_sim": whole.positive.mean() * c.temperature,
            "neg_sim": _mean_cosine(q.vector, negatives[0]),
        }
        if q.dense is None:
            return StepOutput(whole.loss, metrics, embeddings)
        index, agreement = self._match(batch, q, k)
        cells = dense_contrastive(
            q.dense, k.dense, negatives[1], index, temperature=c.temperature, reduction="none", return_parts=True
        )
        count = (index >= 0).sum().clamp(min=1)  # crops that share no place have no cell to compare
        dense = cells.loss.sum() / count
        metrics |= agreement | {
            "loss_dense": dense.detach(),
            "dense_pos_sim": cells.positive.sum() / count * c.temperature,
            "dense_neg_sim": _mean_cosine(q.dense, negatives[1]),
        }
        embeddings["dense"] = q.dense.detach().mean(dim=(2, 3))
        share = c.loss_lambda * (self.step >= c.lambda_start)
        return StepOutput((1 - share) * whole.loss + share * dense, metrics, embeddings)

    def _match(self, batch: Batch, q: View, k: View) -> tuple[Tensor, dict[str, Tensor]]:
        """Positive of each cell ``[B, S]``, -1 for none, and how often features find the place that geometry knows."""
        by_feature = dense_match(q.map, k.map).index.flatten(1)
        truth = _geometry(batch, q.map)
        agreement = {}
        if truth is not None:
            found = (by_feature == truth.index) & truth.valid
            agreement["match_agreement"] = found.sum() / truth.valid.sum().clamp(min=1)
        if self.config.match == "feature":
            return by_feature, agreement
        if self.config.match == "random":
            keys, grid = batch.get("seed"), tuple(k.map.shape[2:])
            return random_match(len(by_feature), grid, device=by_feature.device, keys=keys).index, agreement
        if truth is None:
            raise ConfigError("method.match=geometry: the batch has no crop_q and crop_k")
        return truth.index, agreement

    @torch.no_grad()
    def correspondences(self, batch: Batch, *, threshold: float = 0.9) -> CellMatches:
        """Cells of ``view_q`` and ``view_k`` that find each other through the query encoder's features."""
        q, k = (self.network(batch[name]).map for name in ("view_q", "view_k"))
        index, similarity = (x.flatten(1) for x in dense_match(q, k))
        back = dense_match(k, q).index.flatten(1)
        mutual = back.gather(1, index) == torch.arange(index.shape[1], device=index.device)
        return CellMatches(
            index, similarity, mutual & (similarity >= threshold), tuple(q.shape[2:]), _geometry(batch, q)
        )

    def exports(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder.backbone, "neck": self.network.neck}

    def loss_bounds(self, batch_size: int) -> dict[str, float]:
        """``chance``: the loss of features that say nothing; in validation, against the keys of the batch."""
        return {"chance": math.log(self.config.queue + 1), "chance in validation": math.log(batch_size + 1)}

    def notes(self) -> list[str]:
        c = self.config
        lines = [
            f"the loss rises until {c.queue} images have replaced the random rows of the queue (queue_fill in the "
            "log); judge it from there"
        ]
        if c.loss_lambda == 1 and not c.lambda_start:
            lines.append("method.loss_lambda=1 trains the dense branch from random matches; give method.lambda_start")
        return lines

    def data_notes(self, samples: int, shown: int) -> list[str]:
        queue, lines = self.config.queue, []
        if shown < queue:
            lines.append(
                f"the queue of {queue} never fills: {shown} images are shown in all, and random rows stay among the "
                "negatives; lower method.queue or train longer"
            )
        share = own_key_share(queue, samples)
        if share > 0.25 and shown > samples:
            lines.append(
                f"{share:.0%} of images meet an older key of their own among their negatives, from the epoch before; "
                f"lower method.queue (now {queue}, for {samples} images)"
            )
        return lines

    def param_groups(self, weight_decay: float) -> list[dict]:
        """One group: the recipe decays biases and norm gains too."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "weight_decay": weight_decay}]


def own_key_share(queue: int, images: int) -> float:
    """Share of images whose key of the epoch before is still in a full queue.

    Between two uses of an image lie as many others as its places in two shuffled epochs are apart: 0 to 2 epochs, one
    on average, in a triangle.

    >>> round(own_key_share(1024, 840), 2), round(own_key_share(256, 840), 2)
    (0.7, 0.05)
    """
    epochs = min(queue / images, 2.0)
    return epochs**2 / 2 if epochs <= 1 else 1 - (2 - epochs) ** 2 / 2


def _keys(view: View) -> list[Tensor]:
    """What enters the queues: unit rows ``[B, D]``, dense maps averaged first and normalised after."""
    vectors = [view.vector] if view.dense is None else [view.vector, view.dense.mean(dim=(2, 3))]
    return [_unit(vector) for vector in vectors]


def _unit(x: Tensor) -> Tensor:
    return normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


@torch.no_grad()
def _mean_cosine(q: Tensor, negatives: Tensor) -> Tensor:
    """Mean cosine of all queries ``[B, D, *S]`` with all negatives ``[K, D]``, from two means."""
    rows = _unit(q).flatten(2).mean(dim=(0, 2)) if q.ndim > 2 else _unit(q).mean(dim=0)
    return rows @ negatives.mean(dim=0, dtype=rows.dtype)


def _geometry(batch: Batch, features: Tensor) -> Correspondence | None:
    if "crop_q" not in batch:
        return None
    return geometric_match(batch["crop_q"], batch["crop_k"], tuple(features.shape[2:]))


def _check_config(c: DenseCLConfig) -> None:
    smallest = {"size": 8, "dim": 1, "hidden": 0, "lambda_start": 0, "grid": 0, "queue": 1, "group_size": 0}
    for name, least in smallest.items():
        if getattr(c, name) < least:
            raise ConfigError(f"method.{name}: expected at least {least}, got {getattr(c, name)}")
    if c.group_size == 1:
        raise ConfigError("method.group_size: expected 0 (plain batch norm) or at least 2, got 1")
    if not c.temperature > 0:
        raise ConfigError(f"method.temperature: expected a positive number, got {c.temperature}")
    for name in ("loss_lambda", "momentum"):
        if not 0 <= getattr(c, name) <= 1:
            raise ConfigError(f"method.{name}: expected a number in [0, 1], got {getattr(c, name)}")
    for name, options in (("match", ("feature", "geometry", "random")), ("queue_dtype", ("float32", "bfloat16"))):
        if getattr(c, name) not in options:
            raise ConfigError(f"method.{name}: expected one of {', '.join(options)}, got '{getattr(c, name)}'")
