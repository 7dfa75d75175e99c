"""Accuracy of a store on labelled images."""

from zsvec.evaluation.evaluate import Evaluation, Judged, evaluate, labelled_images, labelled_images_of
from zsvec.evaluation.labels import LabelEvaluation, evaluate_labels
from zsvec.evaluation.metrics import CategoryScore, LabelScore

__all__ = [
    "CategoryScore",
    "Evaluation",
    "Judged",
    "LabelEvaluation",
    "LabelScore",
    "evaluate",
    "evaluate_labels",
    "labelled_images",
    "labelled_images_of",
]
