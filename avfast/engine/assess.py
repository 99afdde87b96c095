"""The table of a report: trained, untrained and shuffled-pair models under one protocol, read from the test
split."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avfast.engine.inputs import InputPipeline
from avfast.engine.sources import readable
from avfast.errors import AvfastError
from avfast.evaluate import (
    Score,
    accuracy_score,
    cross_modal_retrieval,
    knn_accuracy,
    linear_probe,
    shapley_values,
)
from avfast.methods import Method
from avfast.methods.base import LabelledInputs

NO_TEST = "no test split"


@dataclass
class Embedded:
    """One split through one model: embeddings and features by modality, labels and positions, all on the CPU,
    and the clips that could not be read."""

    embeddings: dict[str, Tensor]
    features: dict[str, Tensor]
    labels: Tensor
    index: Tensor
    errors: dict[str, int]


@torch.no_grad()
def embed_split(method: Method, pipeline: InputPipeline, loader: DataLoader) -> Embedded:
    """Run a split through `method` in eval mode."""
    was_training = method.training
    method.eval()
    rows: dict[tuple[str, str], list[Tensor]] = {}
    labels, index, errors = [], [], {}
    for batch in readable(loader, errors):
        features = method.features(pipeline.plain(batch))
        for group, values in (("features", features), ("embeddings", method.project(features))):
            for name, value in values.items():
                rows.setdefault((group, name), []).append(value.float().cpu())
        labels.append(batch["label"])
        index.append(batch["index"])
    method.train(was_training)
    joined = {key: torch.cat(parts) for key, parts in rows.items()}
    pick = {g: {name: z for (group, name), z in joined.items() if group == g} for g in ("embeddings", "features")}
    return Embedded(pick["embeddings"], pick["features"], torch.cat(labels), torch.cat(index), errors)


@torch.no_grad()
def calibrate_batchnorm(method: Method, pipeline: InputPipeline, loader: DataLoader) -> Method:
    """A copy whose batch-norm statistics are the averages over one pass of `loader`, without augmentation; weights
    stay.

    An untrained network with the statistics it was born with (mean 0, variance 1) is a weaker opponent than
    the same weights deserve.
    """
    twin = copy.deepcopy(method).train()
    norms = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # cumulative average
    for batch in readable(loader):
        if len(batch["index"]) > 1:
            twin.features(pipeline.plain(batch))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    return twin.eval()


def assess(
    method: Method,
    pipeline: InputPipeline,
    loaders: dict[str, DataLoader | None],
    *,
    labelled: bool,
    context: str,
) -> tuple[dict[str, Score], Embedded | None]:
    """All scores of one model by name, and its embedded test split (None without one).

    Names are ``<metric> <direction or modality> <level>``, for instance ``R@1 audio->video class-level``.
    """
    if loaders["test"] is None:
        if isinstance(method.inputs, LabelledInputs):
            return {"accuracy": Score.unavailable(NO_TEST)}, None
        return {"R@1 audio->video instance-level": Score.unavailable(NO_TEST)}, None
    test = embed_split(method, pipeline, loaders["test"])
    supervised = isinstance(method.inputs, LabelledInputs)
    scores = {} if supervised else _retrieval_scores(test, labelled, context)
    if labelled:
        train = embed_split(method, pipeline, loaders["train"])
        if supervised:
            scores |= _classification_scores(method, train.labels, test, context)
        val = embed_split(method, pipeline, loaders["val"]) if loaders["val"] is not None else None
        scores |= _probe_scores(train, val, test, context)
    else:
        reason = "needs labels"
        scores |= {f"{name} {m}": Score.unavailable(reason) for name in ("kNN", "linear probe") for m in test.features}
    return scores, test


def _retrieval_scores(test: Embedded, labelled: bool, context: str) -> dict[str, Score]:
    z = test.embeddings
    if not {"audio", "video"} <= z.keys():
        return {"R@1 audio->video instance-level": Score.unavailable("the method has one modality")}
    if not all(torch.isfinite(value).all() for value in z.values()):
        raise AvfastError("embeddings of the test split are not finite; the training diverged")
    labels = test.labels if labelled else None
    scores: dict[str, Score] = {}
    for result in cross_modal_retrieval(z["audio"], z["video"], labels, chance_range=True, context=context):
        for k, score in result.recall.items():
            scores[f"R@{k} {result.direction} {result.level}"] = score
        scores[f"median rank {result.direction} {result.level}"] = result.median_rank
    if not labelled:
        scores["R@1 audio->video class-level"] = Score.unavailable("needs labels")
    return scores


@torch.no_grad()
def _classification_scores(method: Method, known: Tensor, test: Embedded, context: str) -> dict[str, Score]:
    """Accuracy of whatever the method classifies from; of two modalities also what each adds."""
    device = next(method.parameters()).device
    said = method.classify({name: x.to(device) for name, x in test.features.items()})
    protocol = f"classify/1 n={len(test.labels)} {context}"
    scores = {
        f"accuracy {name}": accuracy_score(logits.argmax(dim=1).cpu().numpy(), known, test.labels, protocol)
        for name, logits in said.items()
    }
    if {"joint", "audio", "video", "nothing"} <= said.keys():
        sets = {"nothing": frozenset(), "audio": frozenset({"audio"}), "video": frozenset({"video"}),
                "joint": frozenset({"audio", "video"})}  # fmt: skip
        shares = shapley_values({members: scores[f"accuracy {name}"].value for name, members in sets.items()})
        text = f"shapley/1 of the accuracy, absent modality masked at the head {context}"
        scores |= {f"Shapley value {m}": Score(x, n=len(test.labels), protocol=text) for m, x in shares.items()}
    return scores


def _probe_scores(train: Embedded, val: Embedded | None, test: Embedded, context: str) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    for name, features in test.features.items():
        scores[f"kNN {name}"] = knn_accuracy(train.features[name], train.labels, features, test.labels, context=context)
        scores[f"linear probe {name}"] = (
            Score.unavailable("no validation split to choose the regularisation on")
            if val is None
            else linear_probe(
                (train.features[name], train.labels), (val.features[name], val.labels),
                (features, test.labels), context=context,
            )
        )  # fmt: skip
    return scores


def score_table(scores: dict[str, dict[str, Score]]) -> list[dict[str, Any]]:
    """One row per metric with the columns of a report: trained, chance, untrained, shuffled, protocol."""
    rows = []
    for name, trained in scores["trained"].items():
        row: dict[str, Any] = {"metric": name, "trained": trained}
        row |= {other: scores.get(other, {}).get(name) for other in ("untrained", "shuffled")}
        rows.append(row)
    return rows
