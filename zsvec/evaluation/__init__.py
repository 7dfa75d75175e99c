"""How well a store classifies images whose categories are known."""

from zsvec.evaluation.evaluate import Evaluation, evaluate, labelled_images

__all__ = ["Evaluation", "evaluate", "labelled_images"]
