"""CIM: where in a picture was this piece cut from?

Several exemplars are cut out of a picture, turned, resized and recoloured. One network encodes them, a slow copy of it
encodes the whole picture (the context), and a small decoder of cross-attention predicts for each exemplar a map over
the context that is 1 where the exemplar came from.

The map is compared with a rotated rectangle given by five numbers: neither the map at full size nor its target exists.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.encoders import Encoder, build_encoder
from avfast.errors import ConfigError
from avfast.methods.base import Batch, CorrelationInputs, Method, MethodCard, StepOutput
from avfast.nn import CorrelationBlock, momentum_update
from avfast.nn.location_maps import fixed_prior, map_agreement
from avfast.nn.positions import sin_cos_positions
from avfast.ops.correlate import correlate
from avfast.ops.info_nce import info_nce
from avfast.ops.rotated_box import rotated_box_bce, rotated_box_mask
from avfast.ops.sample_exemplars import sample_exemplars

WATCHED = 16
"""Pictures of a training batch whose maps are made at full size for the metrics."""
PRIOR_BOXES = 512
FOCUS = 1.0
"""Exponent of the focal loss: errors are weighted by their size to this power."""


@dataclass(frozen=True)
class CIMConfig:
    """Options of the recipe `cim`. Defaults suit a thousand pictures of 64 pixels and some hundred steps, in which a
    network learns to find upright pieces in their own colours; the presets hold the published settings.

    Attributes:
        encoder: network: a preset of avfast.encoders (vit-*, resnet*) or a local folder with weights.
        size: side in pixels of the searched part of a picture, which exemplars are cut from.
        context: side of the searched part as the slow network sees it; the map has this size.
        exemplar: side of an exemplar as the network sees it.
        count: exemplars of each picture.
        area: range of an exemplar's share of the searched part.
        aspect: range of its width over height.
        angle: range of its rotation in degrees.
        colours: whose colours are changed: of exemplars, of the context, of both (each by itself) or of none.
        mirror: mirror every other exemplar, whose place stays what it is.
        freeze_patches: keep the patch embedding as it was drawn, in both networks.
        target: network for the context: the slow copy (ema), the same network with gradient (shared) or without
            (stopgrad).
        momentum: share of its old weights that the slow copy keeps after the first step; rises to 1 along half a
            cosine.
        direction: who asks in the decoder: the context's tokens, the exemplars' tokens, first these and then those
            (bidirectional), or nobody (correlation: one similarity per token of the context).
        decoder_dim: width of the decoder.
        decoder_heads: heads of its attention.
        loss: of a map: binary cross-entropy, or squared error of the probability weighted by the error (focal_mse).
        contrastive_weight: of the global branch, in which an exemplar's class token finds the context's among those
            of the batch; 0 does not build it.
        head_hidden: width inside the heads of the global branch.
        head_dim: width of their outputs.
        temperature: divides the logits of the global branch.
        compat: released makes targets, the first weights of the map's head and the decoder's precision those of the
            released code.
    """

    encoder: str = "vit-mini8"
    size: int = 64
    context: int = 48
    exemplar: int = 24
    count: int = 3
    area: tuple[float, float] = (0.05, 0.48)
    aspect: tuple[float, float] = (1 / 3, 3.0)
    angle: tuple[float, float] = (0.0, 0.0)
    colours: Literal["none", "exemplars", "context", "both"] = "none"
    mirror: bool = False
    freeze_patches: bool = True
    target: Literal["ema", "shared", "stopgrad"] = "ema"
    momentum: float = 0.95
    direction: Literal["context", "exemplar", "bidirectional", "correlation"] = "context"
    decoder_dim: int = 128
    decoder_heads: int = 4
    loss: Literal["bce", "focal_mse"] = "bce"
    contrastive_weight: float = 0.0
    head_hidden: int = 4096
    head_dim: int = 256
    temperature: float = 0.2
    compat: Literal["none", "released"] = "none"


_PAPER = {
    "method.size": 224, "method.context": 160, "method.exemplar": 64, "method.count": 6,
    "method.angle": [-45.0, 45.0], "method.colours": "exemplars", "method.mirror": True,
    "method.momentum": 0.99, "method.decoder_dim": 512, "method.decoder_heads": 16,
    "data.batch_size": 256, "optim.lr": 1.5e-4, "optim.lr_batch": 256, "optim.warmup_epochs": 40,
    "optim.clip_norm": 1.0, "run.epochs": 300,
}  # fmt: skip


class Branch(nn.Module):
    """Encoder and, with the global branch, the projection of its class token."""

    def __init__(self, encoder: Encoder, projector: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector


class Decoder(nn.Module):
    """Maps of exemplars over a context.

    Context ``[B, N, C]`` and exemplars ``[B, E, M, C]`` to logits ``[B * E, 2, h, w]``, outside and inside. Both come
    to the decoder's width by one linear layer; the context alone gets positions.
    """

    def __init__(self, c: CIMConfig, channels: int, class_tokens: int, grid: tuple[int, int]) -> None:
        super().__init__()
        dim = c.decoder_dim
        self.direction, self.heads, self.class_tokens, self.grid = c.direction, c.decoder_heads, class_tokens, grid
        self.project = nn.Linear(channels, dim)
        positions = F.pad(sin_cos_positions(dim, *grid), (0, 0, class_tokens, 0))
        self.register_buffer("positions", positions, persistent=False)
        asks = {"context": ["context"], "exemplar": ["exemplar"], "bidirectional": ["exemplar", "context"]}
        self.blocks = nn.ModuleDict(
            {name: CorrelationBlock(dim, c.decoder_heads) for name in asks.get(c.direction, [])}
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(1 if c.direction == "correlation" else dim, 2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # The released code takes a formula for the inner layers of residual networks, which sees two outputs.
        nn.init.normal_(self.head.weight, std=1.0 if c.compat == "released" else 0.02)

    def forward(self, context: Tensor, exemplars: Tensor) -> Tensor:
        context, exemplars = self.project(context) + self.positions, self.project(exemplars)
        if self.direction == "correlation":
            cells = self._correlation(context, exemplars)
        else:
            cells = self.norm(self._attended(context, exemplars))
        logits = self.head(cells[:, :, self.class_tokens :])  # [B, E, h * w, 2], which is a 1x1 convolution
        return logits.mT.flatten(0, 1).unflatten(2, self.grid)

    def _attended(self, context: Tensor, exemplars: Tensor) -> Tensor:
        """``[B, E, N, D]``."""
        if "exemplar" in self.blocks:
            asked = self.blocks["exemplar"](exemplars.flatten(1, 2), context.unsqueeze(1))[:, 0]
            exemplars = asked.unflatten(1, exemplars.shape[1:3])
        if "context" in self.blocks:
            return self.blocks["context"](context, exemplars)
        return context.unsqueeze(1) * exemplars.mean(dim=2, keepdim=True)

    def _correlation(self, context: Tensor, exemplars: Tensor) -> Tensor:
        """``[B, E, N, 1]``: how well the best tokens of an exemplar fit each cell."""
        q, k = (self.norm(x).unflatten(-1, (self.heads, -1)) for x in (context, exemplars))
        return correlate(q, k, k, correlation="lse")[1].unsqueeze(-1)


class LocationMaps(NamedTuple):
    """Predicted and true maps of the exemplars of a batch.

    Attributes:
        logits: float ``[B, E, S, S]``.
        truth: uint8 ``[B, E, S, S]``.
        prior: bool ``[S, S]``, the best map that is the same for every exemplar.
        level: probability from which on a pixel counts as inside where overlap is measured, for both the best.
    """

    logits: Tensor
    truth: Tensor
    prior: Tensor
    level: Tensor


class CIM(Method):
    """Correlational image modelling; see :class:`CIMConfig`."""

    card = MethodCard(
        name="cim",
        title="Correlational Image Modeling for Self-Supervised Visual Pre-Training",
        authors="Li, Xie, Loy",
        venue="CVPR 2023",
        arxiv="2303.12670",
        summary="says on a map where in a picture each of several turned and recoloured pieces was cut from",
        needs="a folder of images; no labels",
    )
    Config = CIMConfig
    defaults = {
        "optim.name": "adamw", "optim.lr": 1e-3, "optim.beta2": 0.95, "optim.weight_decay": 0.05,
        "optim.warmup_steps": 40, "run.steps": 800,
    }  # fmt: skip
    presets = {
        "small": {"method.encoder": "vit-tiny8", "method.momentum": 0.99},
        "vit-small": {**_PAPER, "method.encoder": "vit-small"},
        "vit-base": {**_PAPER, "method.encoder": "vit-base"},
        "resnet50": {**_PAPER, "method.encoder": "resnet50"},
        # The released code asks for clipping, in a branch that it never takes.
        "released": {**_PAPER, "method.encoder": "vit-base", "method.compat": "released", "optim.clip_norm": 0.0},
    }

    def __init__(self, config: CIMConfig, *, encoder: Encoder | None = None) -> None:
        super().__init__(config)
        _check_config(config)
        c = config
        encoder = encoder or build_encoder(c.encoder, in_channels=3)
        if c.freeze_patches and encoder.class_tokens:
            encoder.freeze_patches()
        projector, self.predictor = None, None
        if c.contrastive_weight:
            projector = _mlp([encoder.channels, c.head_hidden, c.head_hidden, c.head_dim])
            self.predictor = _mlp([c.head_dim, c.head_hidden, c.head_dim])
        self.branch = Branch(encoder, projector)
        self.momentum_branch = copy.deepcopy(self.branch).requires_grad_(False) if c.target == "ema" else None
        self.decoder = Decoder(c, encoder.channels, encoder.class_tokens, _grid(encoder, c.context))
        self.total_steps = 0
        boxes = sample_exemplars(1, **self._boxes | {"count": PRIOR_BOXES}, generator=0).boxes[0]
        prior = fixed_prior(rotated_box_mask(boxes, **self._target))
        self.register_buffer("prior_rate", prior.rate, persistent=False)
        self.register_buffer("prior_level", prior.level, persistent=False)
        self.register_buffer("prior_mask", prior.mask, persistent=False)

    @property
    def encoder(self) -> Encoder:
        """The network that learns."""
        return self.branch.encoder

    @property
    def _boxes(self) -> dict[str, Any]:
        c = self.config
        return {"count": c.count, "size": c.size, "area": c.area, "aspect": c.aspect, "angle": c.angle}

    @property
    def _target(self) -> dict[str, float]:
        """How boxes become maps. The released code resizes the bounding box of a picture turned there and back, two
        pixels wider than the picture in most draws, by an operation that erodes the border."""
        c = self.config
        if c.compat == "released":
            return {"size": c.context, "source_size": c.size + 2, "shrink": 0.25}
        return {"size": c.context, "source_size": c.size, "shrink": 0.0}

    @property
    def inputs(self) -> CorrelationInputs:
        c = self.config
        return CorrelationInputs(
            c.size, context=c.context, exemplar=c.exemplar, count=c.count, area=c.area, aspect=c.aspect, angle=c.angle,
            colours=c.colours, mirror=c.mirror,
        )  # fmt: skip

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return {"image": self.dense_features(batch).mean(dim=(2, 3))}

    def dense_features(self, batch: Batch) -> Tensor:
        """Patch features of ``image``, ``[B, C, h, w]``."""
        return self.encoder(batch["image"])

    @property
    def compares_samples(self) -> bool:
        return self.predictor is not None

    def training_step(self, batch: Batch) -> StepOutput:
        return self._step(batch, gather=True)

    def validation_step(self, batch: Batch) -> StepOutput:
        return self._step(batch, gather=False)

    def _step(self, batch: Batch, *, gather: bool) -> StepOutput:
        c = self.config
        pieces, whole = self._tokens(batch)
        logits = self._maps(whole, pieces)
        boxes = batch["boxes"].flatten(0, 1)
        loss_map = c.count * self._map_loss(logits, boxes)
        loss = loss_map
        metrics = {"loss_map": loss_map.detach(), **self._agreement(logits, boxes)}
        if self.predictor is not None:
            loss_global = self._global_loss(pieces, whole, gather=gather)
            loss = loss + c.contrastive_weight * loss_global
            metrics["loss_global"] = loss_global.detach()
        embeddings = {"exemplar": pieces[:, 0].detach().mean(dim=1), "context": whole.detach().mean(dim=1)}
        return StepOutput(loss, metrics, embeddings)

    def _tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens of exemplars ``[B, E, M, C]`` and of contexts ``[B, N, C]``."""
        exemplars = batch["exemplars"]
        pieces = self.encoder.tokens(exemplars.flatten(0, 1)).unflatten(0, exemplars.shape[:2])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.target == "shared"):
            return pieces, (self.momentum_branch or self.branch).encoder.tokens(batch["context"])

    def _maps(self, whole: Tensor, pieces: Tensor) -> Tensor:
        """Logits ``[B * E, 2, h, w]``."""
        if self.config.compat != "released":
            return self.decoder(whole, pieces)
        with torch.autocast(whole.device.type, enabled=False):
            return self.decoder(whole.float(), pieces.float())

    def _map_loss(self, logits: Tensor, boxes: Tensor) -> Tensor:
        if self.config.loss == "bce":
            return rotated_box_bce(logits, boxes, **self._target)
        truth = rotated_box_mask(boxes, **self._target)
        error = (self._enlarged(logits).sigmoid() - truth).abs()
        return error.pow(2 + FOCUS).mean()

    def _enlarged(self, logits: Tensor) -> Tensor:
        """``[M, S, S]``: log odds of inside at the size of the context."""
        odds = (logits[:, 1:] - logits[:, :1]).to(torch.promote_types(logits.dtype, torch.float32))
        size = (self.config.context, self.config.context)
        return F.interpolate(odds, size, mode="bilinear", align_corners=True)[:, 0]

    @torch.no_grad()
    def _agreement(self, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Maps against truth, beside the two answers that need no picture; all background has IoU 0. Overlap is best
        well below a probability of one half, so both are cut at the level that is best for the fixed map."""
        some = WATCHED * self.config.count if self.training else len(logits)
        truth = rotated_box_mask(boxes[:some], **self._target)
        maps = self._enlarged(logits[:some])
        return {
            "map_iou": map_agreement(maps.sigmoid() > self.prior_level, truth).iou.mean(),
            "prior_iou": map_agreement(self.prior_mask, truth).iou.mean(),
            "map_accuracy": map_agreement(maps > 0, truth).accuracy.mean(),
            "background_accuracy": 1 - truth.float().mean(),
        }  # fmt: skip

    def _global_loss(self, pieces: Tensor, whole: Tensor, *, gather: bool) -> Tensor:
        """InfoNCE of each exemplar with the contexts of the batch, scaled by twice the temperature as in MoCo-v3."""
        t = self.config.temperature
        summaries = pieces[:, :, 0] if self.encoder.class_tokens else pieces.mean(dim=2)
        target = whole[:, 0] if self.encoder.class_tokens else whole.mean(dim=1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.target == "shared"):
            target = (self.momentum_branch or self.branch).projector(target)
        losses = [
            info_nce(self.predictor(self.branch.projector(one)), target, temperature=t, symmetric=False, gather=gather)
            for one in summaries.unbind(1)  # batch norm over the exemplars of one place in the order, as released
        ]
        return 2 * t * torch.stack(losses).sum()

    def prepare_training(self, steps: int) -> None:
        self.total_steps = steps

    def after_optimizer_step(self, step: int) -> None:
        if self.momentum_branch is None:
            return
        momentum_update(self.branch, self.momentum_branch, self.momentum_at(step))
        if self.encoder.class_tokens:
            # The context is read with the class token that learns, not with a slow one.
            with torch.no_grad():
                self.momentum_branch.encoder.class_token.copy_(self.encoder.class_token)

    def momentum_at(self, step: int) -> float:
        """Share of old weights kept after optimiser step ``step``, counted from 1: half a cosine from
        ``config.momentum`` to 1 over the steps of the run, or the former throughout where those are not known."""
        if not self.total_steps:
            return self.config.momentum
        share = min(1.0, (step - 1) / self.total_steps)
        return 1 - (1 - self.config.momentum) * (1 + math.cos(math.pi * share)) / 2

    @torch.no_grad()
    def location_maps(self, batch: Batch) -> LocationMaps:
        """Predicted and true maps, for scores and pictures."""
        pieces, whole = self._tokens(batch)
        shape = batch["boxes"].shape[:2]
        logits = self._enlarged(self._maps(whole, pieces)).unflatten(0, shape)
        truth = rotated_box_mask(batch["boxes"].flatten(0, 1), **self._target).unflatten(0, shape)
        return LocationMaps(logits, truth, self.prior_mask, self.prior_level)

    def exports(self) -> dict[str, nn.Module]:
        modules = {"encoder": self.encoder.backbone, "decoder": self.decoder}
        if self.momentum_branch is not None:
            modules["momentum_encoder"] = self.momentum_branch.encoder.backbone
        return modules

    def loss_bounds(self, batch_size: int) -> dict[str, float]:
        """``one rate everywhere``: the loss of predicting how often a pixel is inside; ``fixed prior``: of predicting
        that for each pixel."""
        if self.config.loss != "bce" or self.config.contrastive_weight:
            return {}
        rates = self.prior_rate.double().clamp(1e-6, 1 - 1e-6)
        entropy = lambda p: -(p * p.log() + (1 - p) * (1 - p).log()).mean().item()  # noqa: E731
        return {
            "one rate everywhere": self.config.count * entropy(rates.mean()),
            "fixed prior": self.config.count * entropy(rates),
        }


def _grid(encoder: Encoder, pixels: int) -> tuple[int, int]:
    """Cells of the map of a square picture."""
    training = encoder.training
    encoder.eval()  # batch norm must not learn from a black picture
    with torch.no_grad():
        cells = encoder.tokens(torch.zeros(1, 3, pixels, pixels)).shape[1] - encoder.class_tokens
    encoder.train(training)
    return math.isqrt(cells), math.isqrt(cells)


def _mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers, each with batch norm; ReLU between them; the last batch norm has no gain and no bias."""
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        last = place == len(widths) - 2
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=not last)]
        layers += [] if last else [nn.ReLU()]
    return nn.Sequential(*layers)


def _check_config(c: CIMConfig) -> None:
    smallest = {
        "size": 8, "context": 8, "exemplar": 8, "count": 1, "decoder_dim": 4, "decoder_heads": 1, "head_hidden": 1,
        "head_dim": 1,
    }  # fmt: skip
    for name, least in smallest.items():
        if getattr(c, name) < least:
            raise ConfigError(f"method.{name}: expected at least {least}, got {getattr(c, name)}")
    if c.decoder_dim % 4 or c.decoder_dim % c.decoder_heads:
        raise ConfigError(
            f"method.decoder_dim: expected a multiple of 4 and of the {c.decoder_heads} heads, got {c.decoder_dim}"
        )
    if not 0 <= c.momentum <= 1:
        raise ConfigError(f"method.momentum: expected a number in [0, 1], got {c.momentum}")
    if not c.contrastive_weight >= 0:
        raise ConfigError(f"method.contrastive_weight: expected a number >= 0, got {c.contrastive_weight}")
    if not c.temperature > 0:
        raise ConfigError(f"method.temperature: expected a positive number, got {c.temperature}")
    allowed = {
        "target": ("ema", "shared", "stopgrad"), "loss": ("bce", "focal_mse"), "compat": ("none", "released"),
        "direction": ("context", "exemplar", "bidirectional", "correlation"),
        "colours": ("none", "exemplars", "context", "both"),
    }  # fmt: skip
    for name, options in allowed.items():
        if getattr(c, name) not in options:
            raise ConfigError(f"method.{name}: expected one of {', '.join(options)}, got '{getattr(c, name)}'")
    try:
        sample_exemplars(0, count=1, size=c.size, area=c.area, aspect=c.aspect, angle=c.angle, generator=0)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"method: {error}") from error
