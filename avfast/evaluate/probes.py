"""Probes of frozen features with scikit-learn: weighted nearest neighbours and a linear classifier."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from avfast.errors import MissingDependency
from avfast.evaluate.scores import Score, bootstrap_interval

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Inverse regularisation strengths the linear probe chooses from, on the validation split."""


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    query: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    context: str = "",
) -> Score:
    """Accuracy of a weighted k-nearest-neighbour vote, weights ``exp(cosine / temperature)``.

    The protocol of Wu et al. 2018 (instance discrimination, section 3.4) with k reduced for small banks;
    k=200 and temperature=0.1 is the usual setting on ImageNet.

    Args:
        bank, query: features ``[N, D]`` and ``[M, D]``.
        bank_labels, query_labels: int64 ``[N]`` and ``[M]``; negative means unknown and makes the score
            unavailable.
    """
    k = min(k, len(bank))
    protocol = f"knn/1 k={k} t={temperature} cosine bank={len(bank)} n={len(query)} {context}".strip()
    if reason := _unlabelled(bank_labels, query_labels):
        return Score.unavailable(reason, protocol)
    neighbors, _ = _sklearn("nearest neighbours")
    vote = neighbors.KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1.0 - d) / temperature)
    )
    vote.fit(bank.double().numpy(), bank_labels.numpy())
    return accuracy_score(vote.predict(query.double().numpy()), bank_labels, query_labels, protocol)


def linear_probe(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    context: str = "",
) -> Score:
    """Test accuracy of a multinomial logistic regression on standardised frozen features.

    Each argument is a pair (features ``[N, D]``, labels ``[N]``). The classifier is fitted on `train`, its
    regularisation is chosen on `val`, and `test` is read once.
    """
    protocol = f"linear/1 l-bfgs standardised C by val n_train={len(train[0])} n={len(test[0])} {context}".strip()
    if reason := _unlabelled(train[1], val[1], test[1]):
        return Score.unavailable(reason, protocol)
    if len(np.unique(train[1].numpy())) < 2:
        return Score.unavailable("one class only", protocol)
    _, linear_model = _sklearn("the linear probe")
    mean, std = train[0].double().mean(0), train[0].double().std(0).clamp(min=1e-6)
    x_train, x_val, x_test = (((x.double() - mean) / std).numpy() for x, _ in (train, val, test))
    best, best_accuracy = None, -1.0
    for strength in STRENGTHS:
        model = linear_model.LogisticRegression(C=strength, max_iter=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged at weak regularisation: the validation split judges
            model.fit(x_train, train[1].numpy())
        accuracy = float((model.predict(x_val) == val[1].numpy()).mean())
        if accuracy > best_accuracy:
            best, best_accuracy = model, accuracy
    return accuracy_score(best.predict(x_test), train[1], test[1], protocol)


def accuracy_score(predicted: np.ndarray, known: Tensor, labels: Tensor, protocol: str) -> Score:
    """Share of ``predicted`` ``[N]`` equal to ``labels`` ``[N]``, beside the chance of guessing by the class
    frequencies of ``known``, the labels of the training split."""
    truth = labels.numpy()
    correct = (predicted == truth).astype(np.float64)
    # Guessing knows the class frequencies of the training split and nothing else.
    values, counts = np.unique(known.numpy(), return_counts=True)
    chance = float((truth == values[counts.argmax()]).mean()) if counts.max() > counts.min() else 1.0 / len(values)
    return Score(
        value=float(correct.mean()),
        chance=chance,
        interval=bootstrap_interval(correct, truth),
        n=len(truth),
        protocol=protocol,
    )


def _unlabelled(*labels: Tensor) -> str | None:
    if any(len(part) == 0 for part in labels):
        return "a split is empty"
    return "clips without labels" if any(bool((part < 0).any()) for part in labels) else None


def _sklearn(purpose: str) -> tuple[Any, Any]:
    try:
        from sklearn import linear_model, neighbors
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependency("scikit-learn", extra="train", purpose=purpose) from error
    return neighbors, linear_model
