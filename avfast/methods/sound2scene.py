"""Sound2Scene: from a sound to a picture of the scene it comes from.

A frozen image encoder spans the space; a conditional generator learns to draw from that space, and an audio encoder
learns to point into it. They learn one after the other, because each needs the one before: first the image encoder (a
recipe of its own, such as `densecl`, or any trained network), then a localiser that says which frame of a clip shows
what is heard, the generator, and at last the audio encoder, the only part that learns from pairs of sound and picture.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.diff_augment import diff_augment
from avfast.discriminator import DISCRIMINATORS, build_discriminator
from avfast.encoders import Encoder, build_encoder
from avfast.errors import ConfigError, DataError
from avfast.gan_losses import gan_losses
from avfast.generator import GENERATORS, Generator, build_generator, fold_spectral_norm
from avfast.icgan import load_icgan
from avfast.methods.base import (
    Batch,
    ImageInputs,
    Inputs,
    Method,
    MethodCard,
    StepOutput,
    alignment_step,
    contrastive_bounds,
)
from avfast.nn.cross_modal import cross_modal_init
from avfast.nn.momentum import momentum_update
from avfast.nn.pictures import from_signed, to_signed
from avfast.nn.sample_draws import SampleDraws
from avfast.nn.scene_targets import SceneTargets
from avfast.nn.sound_localiser import SoundLocaliser, select_frames
from avfast.ops.info_nce import info_nce
from avfast.weights import read_weights

HEADS = ("fc.*", "classifier.*", "head.*", "projection_head.*", "prototypes*", "pooler*")
"""Tensors of published checkpoints that are no part of the encoder."""


@dataclass(frozen=True)
class Sound2SceneConfig:
    """Options of the recipe `sound2scene`. Defaults suit some hundred clips and ten minutes; the preset `paper` holds
    the published settings.

    Attributes:
        stage: what this run trains: localiser, generator or audio. `avfast pretrain` runs all of them where it is not
            given.
        visual: image encoder, a preset of avfast.encoders or a local folder with weights; frozen, its pooled feature
            is the space of pictures and sounds.
        visual_weights: a file of weights for that preset, by the names of transformers or torchvision, as the
            checkpoints of SwAV, MoCo and supervised training have them (.pth, .safetensors); "" for none. With it, or
            with a folder as `visual`, no image encoder is trained.
        visual_size: side in pixels at which the image encoder sees a picture.
        frames: frames per clip that are looked at; one of them is the clip's picture.
        frame_rule: which: the frame that goes best with the sound (top1), one of the ten best (top10) or any (random),
            another at every step, or the middle one.
        localiser_dim: width of the localiser's space.
        localiser_temperature: divides its logits.
        generator: network that draws, a name of avfast.generator.
        generator_weights: a state dict in the layout of IC-GAN for that network (.pth, .safetensors); "" for none. With
            it no generator is trained.
        augment: what both real and drawn pictures go through before they are judged.
        flip: mirror half of the real pictures.
        ema: share of its old weights that the average of the generator keeps per step.
        targets: the features of all frames that the earlier stages left, for the audio stage.
        audio: audio encoder: a preset or a local folder with weights; it reads one channel.
        distance: logits from the negative euclidean distance of unit vectors (the paper) or their cosine.
        temperature: divides the logits; 1 in the paper.
        gather: contrast against the batches of all processes, in the stages localiser and audio.
        duration: seconds of sound per clip.
        sample_rate: audio samples per second.
        eps: floor of the log power spectrum, through which alone loudness is heard.
        judge: network of the classifier that judges the pictures, trained on real frames: a preset or a local folder.
    """

    stage: Literal["localiser", "generator", "audio"] = "audio"
    visual: str = "resnet-small16"
    visual_weights: str = ""
    visual_size: int = 64
    frames: int = 8
    frame_rule: Literal["top1", "top10", "middle", "random"] = "top1"
    localiser_dim: int = 64
    localiser_temperature: float = 0.07
    generator: str = "scene-32"
    generator_weights: str = ""
    augment: tuple[Literal["colour", "translation", "cutout"], ...] = ("colour", "translation", "cutout")
    flip: bool = True
    ema: float = 0.995
    targets: str = ""
    audio: str = "resnet-tiny"
    distance: Literal["l2", "cosine"] = "l2"
    temperature: float = 0.1
    gather: bool = True
    duration: float = 2.0
    sample_rate: int = 16000
    eps: float = 1e-7
    judge: str = "resnet-tiny"


class Sound2Scene(Method):
    """What the stages share; :meth:`build` gives the stage of a :class:`Sound2SceneConfig`."""

    card = MethodCard(
        name="sound2scene",
        title="Sound to Visual Scene Generation by Audio-to-Visual Latent Alignment",
        authors="Sung-Bin, Senocak, Ha, Owens, Oh",
        venue="CVPR 2023",
        arxiv="2303.17490",
        summary="a picture from a sound: image encoder, conditional GAN, and audio encoder, one after the other",
        needs="clips with sound; no labels. Optional: a trained image encoder; IC-GAN weights, as in the paper",
    )
    Config = Sound2SceneConfig
    defaults = {"optim.name": "adam", "optim.weight_decay": 1e-5, "run.control": False}
    presets = {
        "paper": {
            "method.visual": "resnet50", "method.visual_size": 224, "method.frames": 10,
            "method.generator": "icgan-128", "method.audio": "resnet18", "method.temperature": 1.0,
            "method.duration": 10.0, "optim.lr": 1e-3, "optim.schedule": "constant", "optim.warmup_steps": 0,
            "data.batch_size": 64, "run.epochs": 100,
        },
    }  # fmt: skip
    stages = {
        "localiser": {"run.steps": 150, "optim.lr": 1e-3, "data.batch_size": 32},
        "generator": {"run.steps": 4000, "optim.lr": 5e-4, "data.batch_size": 32, "optim.schedule": "constant",
                      "run.eval_every": 200, "run.save_every": 200, "run.log_every": 50},
        "audio": {"run.steps": 200, "optim.lr": 1e-3, "data.batch_size": 32, "run.control": True},
    }  # fmt: skip

    @classmethod
    def build(cls, config: Sound2SceneConfig) -> Method:
        return {"localiser": LocaliserStage, "generator": GeneratorStage, "audio": AudioStage}[config.stage](config)

    def __init__(self, config: Sound2SceneConfig) -> None:
        super().__init__(config)
        for name, least in (("visual_size", 16), ("frames", 1), ("localiser_dim", 1), ("sample_rate", 1000)):
            if getattr(config, name) < least:
                raise ConfigError(f"method.{name}: expected at least {least}, got {getattr(config, name)}")
        for name in ("temperature", "localiser_temperature", "duration", "eps"):
            if not getattr(config, name) > 0:
                raise ConfigError(f"method.{name}: expected a positive number, got {getattr(config, name)}")
        if config.generator not in GENERATORS:
            raise ConfigError(f"method.generator: expected one of {', '.join(GENERATORS)}, got '{config.generator}'")
        if config.generator_weights and not Path(config.generator_weights).is_file():
            raise ConfigError(f"method.generator_weights: '{config.generator_weights}': no such file")
        if not 0 <= config.ema < 1:
            raise ConfigError(f"method.ema: expected at least 0 and below 1, got {config.ema}")

    @property
    def inputs(self) -> Inputs | ImageInputs:
        c = self.config
        options = {"preset": "sound2scene", "eps": c.eps, "seconds": c.duration}
        return Inputs(1, c.visual_size, c.duration, c.sample_rate, "log-psd", options)

    def image_encoder(self) -> Encoder:
        """The image encoder with the weights it was given; only the localiser trains its copy of it."""
        encoder = build_encoder(self.config.visual, in_channels=3)
        if path := self.config.visual_weights:
            load_image_weights(encoder, path)
        return encoder

    def given_generator(self) -> Generator:
        """The generator with the weights it was given.

        Raises:
            ConfigError: tensors that do not fit, with their names.
        """
        c, width = self.config, build_encoder(self.config.visual, in_channels=3).channels
        try:
            with torch.device("meta"):  # the weights are about to be replaced, and drawing them takes longer
                generator = build_generator(c.generator, condition=width)
            self.account = load_icgan(generator, read_weights(c.generator_weights))
        except DataError as error:
            raise ConfigError(f"method.generator_weights: '{c.generator_weights}': {error}") from error
        return generator

    def notes(self) -> list[str]:
        visual = getattr(self, "visual", None)
        if visual is None or visual.pretrained:
            return []
        return ["the image encoder has random weights: method.visual=FOLDER gives it trained ones"]


def load_image_weights(encoder: Encoder, path: str) -> None:
    """Fill an image encoder from a published checkpoint, every tensor accounted for.

    Names may be torchvision's or those of `transformers`; of a momentum-contrast checkpoint the query network counts.

    Raises:
        ConfigError: no such file, or tensors that do not fit, with their names.
    """
    weights = read_weights(path)
    query = "encoder_q."
    if any(name.startswith(query) for name in weights):
        weights = {name.removeprefix(query): x for name, x in weights.items() if name.startswith(query)}
    try:
        cross_modal_init(encoder.backbone, weights, "naive", heads=HEADS)
    except ValueError as error:
        raise ConfigError(f"method.visual_weights: '{path}' does not fit method.visual: {error}") from error
    encoder.pretrained = True


class LocaliserStage(Sound2Scene):
    """Which part of a picture is heard: a map of cosines, its maximum contrasted between the clips of a batch.

    It starts from the image encoder and trains a copy of it, beside an audio encoder of its own.
    """

    def __init__(self, config: Sound2SceneConfig) -> None:
        super().__init__(config)
        self.localiser = SoundLocaliser(
            self.image_encoder(), build_encoder(config.audio, in_channels=1),
            config.localiser_dim, temperature=config.localiser_temperature,
        )  # fmt: skip

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return {
            "audio": self.localiser.audio.pooled(batch["spectrogram"]),
            "video": self.localiser.visual.pooled(batch["frames"][:, 0]),
        }

    def project(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """A clip's vector for retrieval is that of its mean place; training looks at the best one."""
        visual = self.localiser.visual_head(features["video"][:, :, None, None])[:, :, 0, 0]
        return {"audio": self.localiser.audio_head(features["audio"]), "video": visual}

    @property
    def compares_samples(self) -> bool:
        return True

    def training_step(self, batch: Batch) -> StepOutput:
        return self._step(batch, gather=self.config.gather)

    def validation_step(self, batch: Batch) -> StepOutput:
        return self._step(batch, gather=False)

    def _step(self, batch: Batch, *, gather: bool) -> StepOutput:
        loss, scores = self.localiser(batch["frames"][:, 0], batch["spectrogram"], gather=gather)
        right = (scores.argmax(dim=1) == torch.arange(len(scores), device=scores.device)).float().mean()
        z = {name: value.detach() for name, value in self.embed(batch).items()} if not self.training else {}
        metrics = {"cos_pos": scores.diagonal().mean(), "cos_all": scores.mean(), "batch_r1": right}
        return StepOutput(loss, {name: value.detach() for name, value in metrics.items()}, z)

    def exports(self) -> dict[str, nn.Module]:
        return {"visual": self.localiser.visual.backbone, "audio": self.localiser.audio.backbone}

    def loss_bounds(self, batch_size: int) -> dict[str, float]:
        return contrastive_bounds(
            batch_size, temperature=self.config.localiser_temperature, distance="cosine", rectified=False
        )


def require_opponent(config: Sound2SceneConfig) -> None:
    """
    Raises:
        ConfigError: a generator that can only be given, and is not.
    """
    if config.generator not in DISCRIMINATORS and not config.generator_weights:
        raise ConfigError(
            f"method.generator: '{config.generator}' has no opponent to train with here, only weights to be given "
            f"(method.generator_weights); trained are {', '.join(DISCRIMINATORS)}"
        )


class GeneratorStage(Sound2Scene):
    """A generator conditioned on the feature of a picture against a discriminator that sees both (IC-GAN, Casanova et
    al. 2021, without its neighbours), updated at the same time from one loss.

    Validation measures what the audio stage needs: whether the image encoder finds in a drawn picture the feature it
    was drawn from, ``1 - cosine`` for the averaged weights and noise that never changes.
    """

    def __init__(self, config: Sound2SceneConfig) -> None:
        super().__init__(config)
        require_opponent(config)
        self.visual = self.image_encoder().requires_grad_(False)
        self.generator = build_generator(config.generator, condition=self.visual.channels)
        self.size = self.generator.config.size
        self.discriminator = build_discriminator(config.generator, condition=self.visual.channels)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)

    def train(self, mode: bool = True) -> GeneratorStage:
        super().train(mode)
        self.visual.eval()
        self.average.eval()
        return self

    @property
    def inputs(self) -> ImageInputs:
        return ImageInputs(self.config.visual_size, views=1)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return {"image": self.visual.pooled(batch["image"])}

    def dense_features(self, batch: Batch) -> Tensor:
        return self.visual(batch["image"])

    def example_step(self, batch: Batch) -> StepOutput:
        return self.training_step(batch)

    @torch.no_grad()
    def _pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Real pictures ``[B, 3, S, S]`` in [-1, 1], and their features ``[B, D]``."""
        images = batch["image"]
        if self.training and self.config.flip:
            turned = (batch["seed"] & 1).bool().view(-1, 1, 1, 1)  # another half in every epoch
            images = torch.where(turned, images.flip(-1), images)
        small = F.interpolate(to_signed(images), (self.size, self.size), mode="bilinear", antialias=True)
        return small.clamp(-1, 1), self.visual.pooled(images)

    def training_step(self, batch: Batch) -> StepOutput:
        real, condition = self._pair(batch)
        draws = SampleDraws(batch["seed"], salt=1) if "seed" in batch else None
        if draws is None:
            noise = self.generator.sample_noise(len(real)).to(real.device)
        else:
            noise = draws.normal(self.generator.noise_dim).to(real)
        uniform = None if draws is None else draws.uniform
        d_loss, g_loss, drawn = gan_losses(
            self.generator, self.discriminator, real, condition, noise,
            augment=lambda pictures: diff_augment(pictures, policy=self.config.augment, draw=uniform),
        )  # fmt: skip
        metrics = {"d_loss": d_loss.detach(), "g_loss": g_loss.detach()}
        coarse = F.adaptive_avg_pool2d(drawn.detach(), 8).flatten(1)
        return StepOutput(d_loss + g_loss, metrics, {"drawn": coarse})

    @torch.no_grad()
    def validation_step(self, batch: Batch) -> StepOutput:
        _, condition = self._pair(batch)
        fixed = torch.Generator().manual_seed(0)
        noise = self.average.sample_noise(len(condition), generator=fixed).to(condition.device)
        drawn = self.average(noise, condition)
        cosine = F.cosine_similarity(self.visual.pooled(self._as_seen(drawn)), condition, dim=1).mean()
        return StepOutput(1 - cosine, {"consistency": cosine}, {})

    def _as_seen(self, drawn: Tensor) -> Tensor:
        """Drawn pictures as the image encoder reads them."""
        size = (self.config.visual_size, self.config.visual_size)
        return from_signed(F.interpolate(drawn, size, mode="bilinear", antialias=True).clamp(-1, 1))

    def after_optimizer_step(self, step: int) -> None:
        # The average starts from weights that have seen something: a young mean of young weights draws mud.
        momentum_update(self.generator, self.average, min(self.config.ema, step / (step + 10)), buffers=True)

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """No decay (spectral norms ignore length) and no first moment, as GANs of this family train."""
        nets = (self.generator, self.discriminator)
        return [{"params": list(net.parameters()), "weight_decay": 0.0, "betas": (0.0, 0.999)} for net in nets]

    def exports(self) -> dict[str, nn.Module]:
        return {"generator": fold_spectral_norm(self.average), "visual_encoder": self.visual.backbone}


class AudioStage(Sound2Scene):
    """The audio encoder learns the feature of the frame that goes with a sound; nothing else is trained.

    .. math:: L = (CE_rows(-d) + CE_cols(-d)) / 2, d_ij = |z_i / |z_i| - v_j / |v_j||
    """

    def __init__(self, config: Sound2SceneConfig) -> None:
        super().__init__(config)
        self.targets = SceneTargets.read(config.targets) if config.targets else None
        dim = self.targets.dim if self.targets else self.image_encoder().channels
        self.audio = build_encoder(config.audio, in_channels=1)
        self.head = nn.Linear(self.audio.channels, dim)
        self.step = 0
        if self.targets is not None:
            self.chosen = select_frames(self.targets.scores, self._still_rule, ids=self.targets.keys)

    @property
    def _still_rule(self) -> str:
        """The rule of everything but training: a score must not depend on a draw."""
        return "top1" if self.config.frame_rule == "top10" else self.config.frame_rule

    def example_step(self, batch: Batch) -> StepOutput:
        if self.targets is None:
            known = torch.rand(len(batch["index"]), self.head.out_features, device=batch["spectrogram"].device)
            z = self.head(self.audio.pooled(batch["spectrogram"])).relu()
            return StepOutput(info_nce(z, known, distance=self.config.distance), {}, {})
        keys = self.targets.keys[torch.arange(len(batch["index"])) % len(self.targets)]
        return self.validation_step({**batch, "key": keys.to(batch["spectrogram"].device)})

    def _targets(self, batch: Batch) -> Tensor:
        if self.targets is None:
            raise ConfigError("method.targets: the audio stage needs the features of the frames; got nothing")
        rows = self.targets.rows(batch["key"])
        frame = self.chosen[rows]
        if self.training and self.config.frame_rule in ("top10", "random"):
            keys = self.targets.keys[rows]
            frame = select_frames(self.targets.scores[rows], self.config.frame_rule, ids=keys, step=self.step)
        return self.targets.of(batch["key"], frame)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return {"audio": self.audio.pooled(batch["spectrogram"]), "video": self._targets(batch)}

    def project(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"audio": self.head(features["audio"]).relu(), "video": features["video"]}

    @property
    def compares_samples(self) -> bool:
        return True

    def training_step(self, batch: Batch) -> StepOutput:
        return self._step(batch, gather=self.config.gather)

    def validation_step(self, batch: Batch) -> StepOutput:
        return self._step(batch, gather=False)

    def _step(self, batch: Batch, *, gather: bool) -> StepOutput:
        c = self.config
        return alignment_step(self.embed(batch), temperature=c.temperature, distance=c.distance, gather=gather)

    def after_optimizer_step(self, step: int) -> None:
        self.step = step

    def get_extra_state(self) -> dict[str, Any]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def exports(self) -> dict[str, nn.Module]:
        return {"audio_encoder": self.audio.backbone, "audio_head": self.head}

    def loss_bounds(self, batch_size: int) -> dict[str, float]:
        c = self.config
        return contrastive_bounds(batch_size, temperature=c.temperature, distance=c.distance, rectified=True)
