"""Retrieval, probes, segmentation, maps, collapse and controls: numbers with the level of chance beside them."""

from __future__ import annotations

from avfast.evaluate.collapse import collapse_indicators, collapse_warning
from avfast.evaluate.controls import ShuffledLabels, ShuffledPairs, shuffled_order
from avfast.evaluate.location import location_scores
from avfast.evaluate.probes import accuracy_score, knn_accuracy, linear_probe
from avfast.evaluate.retrieval import RetrievalResult, cross_modal_retrieval, retrieval
from avfast.evaluate.scores import Score, bootstrap_interval
from avfast.evaluate.segmentation import linear_segmentation, mean_iou
from avfast.evaluate.shapley import shapley_values

__all__ = [
    "RetrievalResult",
    "Score",
    "ShuffledLabels",
    "ShuffledPairs",
    "accuracy_score",
    "bootstrap_interval",
    "collapse_indicators",
    "collapse_warning",
    "cross_modal_retrieval",
    "knn_accuracy",
    "linear_probe",
    "linear_segmentation",
    "location_scores",
    "mean_iou",
    "retrieval",
    "shapley_values",
    "shuffled_order",
]
