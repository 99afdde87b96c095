"""Fusion Tuning: each modality learns alone, then both together while the one that is surer of a clip is partly hidden.

Stage 1 trains an encoder of one modality with its own classifier and notes how sure it was of every training clip.
Stage 2 (``joint``) takes both encoders and a new fusion head and trains them end to end; patches of the stream that
was surer of a clip are masked, so that the other one has to be heard. Either encoder may start from weights of the
other modality, with ABRi (adaptive batch norm re-initialisation) to bring its dead channels back.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.encoders import Encoder, build_encoder
from avfast.errors import ConfigError
from avfast.methods.base import Batch, LabelledInputs, Method, MethodCard, StepOutput
from avfast.nn.abri import convert_abri, fold_abri
from avfast.nn.adaptive_batch_norm import AdaptiveBatchNorm2d
from avfast.nn.bn_layers import batchnorm_layers
from avfast.nn.confidences import Confidences
from avfast.nn.cross_modal import cross_modal_init
from avfast.nn.fusion_head import FusionHead
from avfast.nn.shares import own_share
from avfast.nn.spec_augment import spec_augment
from avfast.ops.mask_patches import mask_patches
from avfast.ops.mask_ratio import mask_ratio
from avfast.weights import read_weights

MODALITIES = ("audio", "video")
SILENCE = {"ks": 4.503877 / 10.282552, "esc50": 5.902779 / 9.014282, "cavmae": 5.081 / 4.4849}
"""What 0 before the normalisation of a spectrogram is after it; its padding too."""
Init = Literal["naive", "reset_all", "reset_abnormal", "abri_scalar", "abri_channel"]


@dataclass(frozen=True)
class FusionTuningConfig:
    """Options of the recipe `fusion-tuning`.

    Attributes:
        stage: audio or video trains that encoder alone and notes its confidence in every clip; joint trains both.
        audio: audio encoder: a preset of avfast.encoders or a local folder with weights; it reads one channel.
        visual: visual encoder, likewise.
        audio_from: weights of another modality to start from: a folder, .safetensors or .pt; "" for none.
        visual_from: the same for the visual encoder.
        audio_init: what happens to batch norms then (abri_* also without such weights).
        visual_init: the same for the visual encoder.
        alpha: share of the pre-trained half of an ABRi layer at first.
        sparsity: what every step takes off the size of batch-norm gains and biases (network slimming, Liu et al. 2017):
            dead channels in a short training, as a long one with weight decay has them; 0 for none.
        audio_weights: the encoder that stage 1 exported, for the joint stage; "" for none.
        visual_weights: the same for the visual encoder.
        head: how the joint stage fuses.
        classes: number of classes; 0 for as many as the data have.
        masks: of the joint stage: none, conf by the confidences of each clip, mean by their mean ratio for all.
        audio_confidence: the file of confidences that stage 1 wrote; needed where masks is not none.
        visual_confidence: the same of the visual encoder.
        rule: which stream is masked, see avfast.mask_ratio.
        threshold: confidence from which on the other stream counts as knowing a clip.
        eta: slope of the ratio, or one for audio and one for video.
        rho: largest ratio, or one for each.
        audio_patch: a masked patch of the spectrogram, in (frames, mel bands).
        visual_patch: side of a masked patch of a picture in pixels.
        mask_seed: of the masks.
        frames: pictures per clip.
        sampling: pictures of training clips: even ones, or segments for a random one of each of `frames` equal parts.
        fps: pictures per second that these are chosen from; 0 for all of the video.
        size: side of a picture in pixels.
        duration: seconds per clip.
        sample_rate: audio samples per second.
        spectrogram_frames: frames of the spectrogram, padded or cut; 0 for what the duration gives, rounded up to 16.
        spectrogram: its normalisation, a preset of avfast.data.frontends.KaldiFbank.
        repeats: how often the sound is played, one after the other; the paper plays ESC-50's 5 s twice.
        spec_augment: largest band and stretch of training spectrograms that are hidden, in (mel bands, frames).
    """

    stage: Literal["audio", "video", "joint"] = "joint"
    audio: str = "resnet-tiny"
    visual: str = "resnet-tiny"
    audio_from: str = ""
    visual_from: str = ""
    audio_init: Init = "naive"
    visual_init: Init = "naive"
    alpha: float = 0.5
    sparsity: float = 0.0
    audio_weights: str = ""
    visual_weights: str = ""
    head: Literal["concat", "sum", "gated", "film"] = "concat"
    classes: int = 0
    masks: Literal["none", "conf", "mean"] = "none"
    audio_confidence: str = ""
    visual_confidence: str = ""
    rule: Literal["symmetric", "released", "figure"] = "symmetric"
    threshold: float = 0.5
    eta: float | tuple[float, float] = 1.0
    rho: float | tuple[float, float] = 0.5
    audio_patch: tuple[int, int] = (16, 8)
    visual_patch: int = 8
    mask_seed: int = 0
    frames: int = 3
    sampling: Literal["even", "segments"] = "even"
    fps: float = 0.0
    size: int = 64
    duration: float = 2.0
    sample_rate: int = 16000
    spectrogram_frames: int = 0
    spectrogram: Literal["ks", "esc50", "cavmae"] = "ks"
    repeats: int = 1
    spec_augment: tuple[int, int] = (0, 0)


class FusionTuning(Method):
    """One of the two encoders with a classifier, or both with a fusion head; see :class:`FusionTuningConfig`."""

    card = MethodCard(
        name="fusion-tuning",
        title="Revisiting Pre-training in Audio-Visual Learning",
        authors="Xia, Wei et al.",
        venue="2023",
        arxiv="2302.03533",
        summary="two encoders learn alone, then together while the surer one of a clip is masked; ABRi for both",
        needs="labelled clips with sound. `avfast finetune` runs its stages; `avfast pretrain` runs one",
    )
    Config = FusionTuningConfig
    defaults = {"run.eval_epochs": 1, "run.steps": 150, "data.batch_size": 16}
    presets = {
        "paper": {
            "method.audio": "resnet18", "method.visual": "resnet18", "method.size": 224, "method.duration": 10.0,
            "method.sampling": "segments", "method.fps": 1.0, "method.spectrogram_frames": 1024,
            "method.audio_patch": [32, 8], "method.visual_patch": 10,
            "optim.name": "sgd", "optim.lr": 1e-3, "optim.schedule": "step", "optim.warmup_steps": 0,
            "data.batch_size": 64, "run.epochs": 100,
        },
        "esc50": {  # sound alone: with method.stage=audio
            "method.stage": "audio", "method.audio": "resnet18", "method.duration": 5.0, "method.repeats": 2,
            "method.spectrogram": "esc50", "method.spectrogram_frames": 1024, "method.spec_augment": [15, 64],
            "optim.name": "sgd", "optim.lr": 1e-3, "optim.schedule": "step", "optim.warmup_steps": 0,
            "data.batch_size": 64, "run.epochs": 100,
        },
    }  # fmt: skip

    def __init__(self, config: FusionTuningConfig) -> None:
        super().__init__(config)
        _check(config)
        self.accounts: list[str] = []
        if config.stage != "video":
            self.audio = self._encoder("audio", 1)
        if config.stage != "audio":
            self.visual = self._encoder("visual", 3)
        classes = max(config.classes, 1)  # until the engine has seen the data
        self.confidences: Confidences | None = None
        if config.stage == "joint":
            self.head: nn.Module = FusionHead(self.audio.channels, self.visual.channels, classes, config.head)
            if config.masks != "none":
                self.confidences = Confidences.read(config.audio_confidence, config.visual_confidence)
        else:
            self.head = nn.Linear(self._own.channels, classes)
            self.confidences = Confidences()
        self.register_buffer("gradient_norms", torch.zeros(2))
        self.step = 0

    @property
    def _own(self) -> Encoder:
        """The encoder of stage 1."""
        return self.audio if self.config.stage == "audio" else self.visual

    def _encoder(self, name: str, channels: int) -> Encoder:
        c = self.config
        source, start, init = (getattr(c, f"{name}{part}") for part in ("", "_from", "_init"))
        encoder = build_encoder(source, in_channels=channels)
        try:
            if start:
                account = cross_modal_init(encoder.backbone, read_weights(start), init, alpha=c.alpha)
                self.accounts.append(f"{name} encoder from '{start}', {account}")
            elif init.startswith("abri"):
                convert_abri(encoder.backbone, alpha=c.alpha, alpha_shape=init.removeprefix("abri_"))
        except ValueError as error:
            raise ConfigError(f"method.{name}_from: '{start}': {error}") from error
        if weights := getattr(c, f"{name}_weights"):
            try:
                encoder.backbone.load_state_dict(read_weights(weights))
            except RuntimeError as error:
                raise ConfigError(
                    f"method.{name}_weights: '{weights}' does not fit {source} with {name}_init={init}: {error}"
                ) from error
        return encoder

    @property
    def inputs(self) -> LabelledInputs:
        c = self.config
        options = {"preset": c.spectrogram, "frames": _frames(c), "layout": "tf", "repeats": c.repeats}
        frontend = None if c.stage == "video" else "kaldi-fbank"
        return LabelledInputs(
            0 if c.stage == "audio" else c.frames, c.size, c.duration, c.sample_rate, frontend,
            options if frontend else {}, c.stage != "video", c.sampling, c.fps,
        )  # fmt: skip

    def features(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.config.stage != "video":
            found["audio"] = self.audio.pooled(batch["spectrogram"])  # [B, C]
        if self.config.stage != "audio":
            frames = batch["frames"]  # [B, T, 3, H, W]
            video = self.visual.pooled(frames.flatten(0, 1))  # [B * T, C]
            found["video"] = video.unflatten(0, frames.shape[:2]).mean(dim=1)
        return found

    def classify(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.config.stage != "joint":
            return {self.config.stage: self.head(features[self.config.stage])}
        pair = features["audio"], features["video"]
        alone = {"audio": "a", "video": "v", "nothing": ""}
        return {"joint": self.head(*pair)} | {name: self.head.alone(*pair, which) for name, which in alone.items()}

    def project(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}  # there is no space in which sound and picture are compared

    def training_step(self, batch: Batch) -> StepOutput:
        self._augment(batch)
        masked = self._mask(batch)
        features = self.features(batch)
        if self.config.stage == "joint":
            for i, name in enumerate(MODALITIES):
                features[name].register_hook(partial(self._note_gradient, i))
        output, logits = self._step(batch, features)
        if self.config.stage != "joint" and "key" in batch:
            sure = logits.detach().float().softmax(dim=1).gather(1, batch["label"][:, None])[:, 0]
            self.confidences.note(batch["key"], sure)
        if self.config.stage == "joint":
            share = self.gradient_norms[0] / self.gradient_norms.sum().clamp_min(1e-12)
            output.metrics["audio_gradient_share"] = share.clone()  # of the step before this one
        output.metrics.update({f"masked_{name}": ratio for name, ratio in masked.items()})
        return output

    def _note_gradient(self, i: int, gradient: Tensor) -> None:
        self.gradient_norms[i] = gradient.detach().norm()

    def validation_step(self, batch: Batch) -> StepOutput:
        return self._step(batch, self.features(batch))[0]

    def _step(self, batch: Batch, features: dict[str, Tensor]) -> tuple[StepOutput, Tensor]:
        # The joint logits alone carry gradient: what each modality says by itself is looked at, not trained.
        kept = {name: x.detach() for name, x in features.items()}
        logits = self.head(*(features[name] for name in MODALITIES if name in features))
        loss = F.cross_entropy(logits, batch["label"])
        with torch.no_grad():
            said = self.classify(kept) if self.config.stage == "joint" else {self.config.stage: logits}
            metrics = {
                f"accuracy_{name}": (x.argmax(dim=1) == batch["label"]).float().mean()
                for name, x in said.items() if name != "nothing"
            }  # fmt: skip
        return StepOutput(loss, metrics, kept), logits

    def _augment(self, batch: Batch) -> None:
        bands, frames = self.config.spec_augment
        if self.config.stage == "video" or not (bands or frames) or "key" not in batch:
            return
        batch["spectrogram"] = spec_augment(
            batch["spectrogram"], bands, frames, seed=self.config.mask_seed, sample_ids=batch["key"], step=self.step,
            value=SILENCE[self.config.spectrogram],
        )  # fmt: skip

    def _mask(self, batch: Batch) -> dict[str, Tensor]:
        """Mask patches of the batch in place; mean ratios by stream."""
        c = self.config
        if c.stage != "joint" or c.masks == "none" or "key" not in batch:
            return {}
        rule = {"threshold": c.threshold, "eta": c.eta, "rho": c.rho, "rule": c.rule}
        ratios = self.confidences.ratios(batch["key"], mean=c.masks == "mean", of=lambda a, v: mask_ratio(a, v, **rule))
        for name, ratio, patch, salt in (
            ("spectrogram", ratios[0], c.audio_patch, 0), ("frames", ratios[1], c.visual_patch, 1)
        ):  # fmt: skip
            batch[name] = mask_patches(
                batch[name].contiguous(), ratio, tuple(patch) if salt == 0 else patch, seed=2 * c.mask_seed + salt,
                sample_ids=batch["key"], step=self.step, inplace=True,
            )[0]  # fmt: skip
        return dict(zip(MODALITIES, (r.mean() for r in ratios), strict=True))

    @torch.no_grad()
    def after_optimizer_step(self, step: int) -> None:
        self.step = step
        if self.config.sparsity:
            for _, layer in batchnorm_layers(self):
                for x in (own_share(layer.weight), own_share(layer.bias)):
                    x.copy_(F.softshrink(x, self.config.sparsity))

    def get_extra_state(self) -> dict[str, Any]:
        return {"step": self.step, "confidences": {} if self.confidences is None else self.confidences.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        if state["confidences"] and self.confidences is not None:
            self.confidences.restore(state["confidences"])

    def exports(self) -> dict[str, nn.Module]:
        """Encoders as plain networks, ABRi folded; with ABRi also as they were trained, for the joint stage."""
        modules: dict[str, nn.Module] = {}
        for name in ("audio", "visual"):
            if not hasattr(self, name):
                continue
            backbone = getattr(self, name).backbone
            if any(isinstance(m, AdaptiveBatchNorm2d) for m in backbone.modules()):
                modules[f"{name}_unfolded"] = backbone
                backbone = fold_abri(copy.deepcopy(backbone))
            modules[name] = backbone
        return {**modules, "head": self.head}

    def loss_bounds(self, batch_size: int) -> dict[str, float]:
        return {"chance": math.log(self.config.classes)} if self.config.classes else {}

    def notes(self) -> list[str]:
        c = self.config
        bare = c.stage == "joint" and not (c.audio_weights and c.visual_weights)
        return [
            *self.accounts,
            *(["the joint stage starts from encoders that did not learn alone; `avfast finetune` runs all stages"]
              if bare else []),
        ]  # fmt: skip


def _frames(c: FusionTuningConfig) -> int:
    """Of a spectrogram."""
    return c.spectrogram_frames or 16 * math.ceil(c.duration * c.repeats * 100 / 16)


def _check(c: FusionTuningConfig) -> None:
    for name, least in (("frames", 1), ("size", 32), ("sample_rate", 1000), ("classes", 0), ("visual_patch", 1),
                        ("spectrogram_frames", 0), ("repeats", 1)):  # fmt: skip
        if getattr(c, name) < least:
            raise ConfigError(f"method.{name}: expected at least {least}, got {getattr(c, name)}")
    if not c.duration > 0:
        raise ConfigError(f"method.duration: expected a positive number, got {c.duration}")
    if not 0 <= c.fps < math.inf or (c.fps and math.floor(c.duration * c.fps + 1e-6) < c.frames):
        raise ConfigError(
            f"method.fps: expected 0, or at least {c.frames} pictures (method.frames) in {c.duration:g} s, "
            f"got {c.fps:g} a second"
        )
    for name, most in (("threshold", 1), ("rho", 1), ("eta", math.inf)):
        value = getattr(c, name)
        pair = value if isinstance(value, (tuple, list)) else (value, value)
        if len(pair) != 2 or not all(0 <= x <= most and math.isfinite(x) for x in pair):
            span = "in [0, 1]" if most == 1 else "from 0 on"
            each = "" if name == "threshold" else ", or one for audio and one for video"
            raise ConfigError(f"method.{name}: expected a number {span}{each}, got {value}")
    if not math.isfinite(c.alpha):
        raise ConfigError(f"method.alpha: expected a finite number, got {c.alpha}")
    if not 0 <= c.sparsity < math.inf:
        raise ConfigError(f"method.sparsity: expected a number from 0 on, got {c.sparsity}")
    wide = _frames(c)
    if len(c.spec_augment) != 2 or not 0 <= c.spec_augment[0] <= 128 or not 0 <= c.spec_augment[1] <= wide:
        raise ConfigError(
            f"method.spec_augment: expected up to 128 mel bands and {wide} frames of the spectrogram, "
            f"got {tuple(c.spec_augment)}"
        )
    if len(c.audio_patch) != 2 or min(c.audio_patch) < 1:
        raise ConfigError(f"method.audio_patch: expected two positive numbers, got {c.audio_patch}")
    if c.stage == "joint" and c.masks != "none":
        for name in ("audio_confidence", "visual_confidence"):
            path = getattr(c, name)
            if not Path(path).is_file() or not path:
                raise ConfigError(f"method.{name}: masks={c.masks} needs the file that stage 1 wrote, got '{path}'")
