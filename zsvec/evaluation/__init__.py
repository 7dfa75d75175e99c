"""Accuracy of a store on labelled images."""

from zsvec.evaluation.evaluate import Evaluation, Judged, evaluate, labelled_images, labelled_images_of
from zsvec.evaluation.metrics import CategoryScore

__all__ = ["CategoryScore", "Evaluation", "Judged", "evaluate", "labelled_images", "labelled_images_of"]
