"""Retrieval, probes, segmentation, maps, generated pictures, collapse, controls: numbers with chance beside them."""

from __future__ import annotations

from avfast.evaluate.collapse import collapse_indicators, collapse_warning
from avfast.evaluate.controls import ShuffledLabels, ShuffledPairs, shuffled_order
from avfast.evaluate.frame_classifier import FrameClassifier, train_classifier
from avfast.evaluate.frechet import FeatureMoments, frechet_distance
from avfast.evaluate.generation import InceptionScore, class_recall, generation_scores, inception_score
from avfast.evaluate.localisation import box_masks, centre_prior, consensus_iou, hottest, localisation_scores
from avfast.evaluate.location import location_scores
from avfast.evaluate.manifold import ManifoldScores, manifold_scores, prdc
from avfast.evaluate.probes import accuracy_score, knn_accuracy, linear_probe
from avfast.evaluate.retrieval import RetrievalResult, cross_modal_retrieval, retrieval
from avfast.evaluate.scores import Score, bootstrap_interval
from avfast.evaluate.segmentation import linear_segmentation, mean_iou
from avfast.evaluate.shapley import shapley_values

__all__ = [
    "FeatureMoments",
    "FrameClassifier",
    "InceptionScore",
    "ManifoldScores",
    "RetrievalResult",
    "Score",
    "ShuffledLabels",
    "ShuffledPairs",
    "accuracy_score",
    "bootstrap_interval",
    "box_masks",
    "centre_prior",
    "class_recall",
    "collapse_indicators",
    "collapse_warning",
    "consensus_iou",
    "cross_modal_retrieval",
    "frechet_distance",
    "generation_scores",
    "hottest",
    "inception_score",
    "knn_accuracy",
    "linear_probe",
    "linear_segmentation",
    "localisation_scores",
    "location_scores",
    "manifold_scores",
    "mean_iou",
    "prdc",
    "retrieval",
    "shapley_values",
    "shuffled_order",
    "train_classifier",
]
