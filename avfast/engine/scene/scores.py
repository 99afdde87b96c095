"""What the drawn pictures are worth, by a judge that was trained on real frames and has seen no drawn one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfast.data.image_folder import read_picture
from avfast.encoders import build_encoder
from avfast.engine.assess import calibrate_batchnorm, embed_split
from avfast.engine.config import DataConfig
from avfast.engine.inputs import InputPipeline
from avfast.engine.scene.synthesis import Synthesiser
from avfast.engine.sources import build_dataset, evaluation_loader, open_data
from avfast.evaluate import FrameClassifier, Score, accuracy_score, generation_scores, train_classifier
from avfast.methods.base import ImageInputs, Method
from avfast.nn.scene_targets import SceneTargets

if TYPE_CHECKING:
    from avfast.engine.scene.pipeline import Scene

ARMS = ("trained", "shuffled", "untrained", "mean", "nearest", "true")
"""Where the feature that is drawn comes from: the sound, through the trained audio encoder, the one trained on wrong
pairs, or the untrained one; the mean feature of the training frames, whatever is heard; the training frame nearest to
the sound's feature (shown as it is, not drawn); and the test clip's own frame, the best a sound could point to."""
PICTURES = 8
"""Drawn per clip, from the same noise for every clip and arm."""
JUDGE_STEPS = 300


@dataclass
class SceneScores:
    """Scores by arm and name; ``judge`` is what the judge makes of real test frames. ``drawn`` uint8 ``[N, P, 3, S,
    S]`` and ``judged`` int64 ``[N]``, the judge's class of the first picture, are of the trained arm."""

    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    judge: Score | None = None
    drawn: Tensor | None = None
    judged: Tensor | None = None
    index: Tensor | None = None
    labels: Tensor | None = None
    z_audio: Tensor | None = None


def scene_scores(scene: Scene, load: Callable[..., Method], synthesiser: Synthesiser) -> SceneScores:
    """All arms on the test split; empty without one.

    Args:
        load: the method of a stage, see :func:`avfast.engine.scene.pipeline.stage_method`.
    """
    test = scene.bundle.splits["test"]
    if test is None:
        return SceneScores()
    features = _features(scene, load)
    first = features["trained"]
    real, real_labels = _frames(scene, "test", synthesiser.size)
    known, known_labels = _frames(scene, "train", synthesiser.size)
    labelled = scene.bundle.labelled
    judge, accuracy = _judge(scene, synthesiser, known, known_labels, real, real_labels) if labelled else (None, None)
    network = judge if labelled else _Looks(synthesiser)
    found = SceneScores(judge=accuracy, index=first.index, labels=first.labels, z_audio=first.embeddings["audio"])
    context = f"split=test fingerprint={scene.bundle.fingerprint[:12]} {PICTURES} pictures per clip"
    name = f"classifier trained on {len(known)} real frames" if labelled else "frozen image encoder"
    for arm in ARMS:
        if arm == "shuffled" and arm not in features:
            continue  # the audio stage ran without its control
        pictures = _pictures(arm, scene, features, synthesiser, known)
        wanted = first.labels.repeat_interleave(pictures.shape[1]) if labelled else None
        made = _signed(pictures.flatten(0, 1))
        scores = generation_scores(network, real, made, network_name=name, labels=wanted, context=context)
        if not labelled:
            scores["IS"] = Score.unavailable("needs labels: a classifier of the frames")
        found.scores[arm] = scores
        if arm == "trained":
            found.drawn = pictures
            found.judged = judge(_signed(pictures[:, 0]))[1].argmax(dim=1) if labelled else None
    return found


def _features(scene: Scene, load: Callable[..., Method]) -> dict:
    """The test clips through the trained, the shuffled and the untrained audio encoder."""
    inputs = load(scene, "audio", untrained=True).inputs
    pipeline = InputPipeline(inputs)

    def loader(split: str):
        data = build_dataset(scene.bundle.splits[split], inputs, DataConfig(), seed=0, train=False, cache=False)
        return evaluation_loader(data, 16)

    methods = {"trained": load(scene, "audio")}
    methods["untrained"] = calibrate_batchnorm(load(scene, "audio", untrained=True), pipeline, loader("train"))
    if (scene.out / "audio" / "control").is_dir():
        methods["shuffled"] = load(scene, "audio", control=True)
    return {name: embed_split(method, pipeline, loader("test")) for name, method in methods.items()}


def _pictures(arm: str, scene: Scene, features: dict, synthesiser: Synthesiser, known: Tensor) -> Tensor:
    """uint8 ``[N, P, 3, S, S]``; of the nearest training frame there is one per clip."""
    z = features["trained"].embeddings
    if arm in features:
        return synthesiser.images(features[arm].embeddings["audio"], count=PICTURES)
    if arm == "true":
        return synthesiser.images(z["video"], count=PICTURES)
    if arm == "mean":
        mean = F.normalize(_training_targets(scene), dim=1).mean(dim=0, keepdim=True)
        return synthesiser.images(mean.expand(len(z["audio"]), -1), count=PICTURES)
    if arm == "nearest":
        seen = torch.cat([synthesiser.embed_pictures(_bytes(part)) for part in known.split(64)])
        nearest = (F.normalize(z["audio"], dim=1) @ seen.T).argmax(dim=1)
        return _bytes(known[nearest])[:, None]
    raise ValueError(f"scene_scores: arm: expected one of {ARMS}, got {arm!r}")


def _training_targets(scene: Scene) -> Tensor:
    from avfast.ops._counter import content_key

    table = SceneTargets.read(scene.targets)
    keys = torch.tensor([content_key(record.id) for record in scene.bundle.splits["train"].records])
    known = keys[torch.isin(keys, table.keys)]
    return table.features[table.rows(known)].flatten(0, 1)


def _frames(scene: Scene, split: str, size: int) -> tuple[Tensor, Tensor]:
    """Real frames of a split in [-1, 1], ``[N, 3, size, size]``, and their classes."""
    source = open_data(scene.frames, ImageInputs(size)).splits[split]
    pictures = torch.stack([read_picture(record.path, size) for record in source.records])
    return _signed(pictures), torch.tensor(source.labels)


def _judge(scene, synthesiser, known, known_labels, real, real_labels) -> tuple[FrameClassifier, Score]:
    classes = len(scene.bundle.source.classes)
    encoder = build_encoder(scene.config.method.judge, in_channels=3)
    judge = train_classifier(
        encoder, nn.Linear(encoder.channels, classes), known, known_labels, steps=JUDGE_STEPS,
        seed=scene.config.run.seed,
    )  # fmt: skip
    said = torch.cat([judge(part)[1].argmax(dim=1) for part in real.split(64)])
    name = scene.config.method.judge
    protocol = f"frame-classifier/1 {name} {JUDGE_STEPS} steps on {len(known)} frames of {synthesiser.size} pixels"
    return judge, accuracy_score(said.numpy(), known_labels, real_labels, protocol)


class _Looks(nn.Module):
    """The frozen image encoder as the network of the metrics; of classes it knows one."""

    def __init__(self, synthesiser: Synthesiser) -> None:
        super().__init__()
        self.synthesiser = synthesiser

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        z = self.synthesiser.embed_pictures(_bytes(pictures))
        return z, z.new_zeros(len(z), 1)


def _signed(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def _bytes(pictures: Tensor) -> Tensor:
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
