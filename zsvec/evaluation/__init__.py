"""How well a store classifies images whose categories are known."""

from zsvec.evaluation.by_category import CategoryScore
from zsvec.evaluation.evaluate import Evaluation, Judged, evaluate, labelled_images, labelled_images_of

__all__ = ["CategoryScore", "Evaluation", "Judged", "evaluate", "labelled_images", "labelled_images_of"]
