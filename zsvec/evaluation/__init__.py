"""How well a store classifies images whose categories are known."""

from zsvec.evaluation.evaluate import Evaluation, Judged, evaluate, labelled_images, labelled_images_of
from zsvec.evaluation.metrics import CategoryScore

__all__ = ["CategoryScore", "Evaluation", "Judged", "evaluate", "labelled_images", "labelled_images_of"]
