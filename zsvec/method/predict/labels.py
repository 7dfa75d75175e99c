"""Decides for each category separately whether an image belongs to it (`zsvec.method.calibration.LabelModel`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zsvec.method.arrays import Doubles, logistic
from zsvec.method.calibration import LabelModel
from zsvec.types import Ranking


def label_features(evidence: Doubles) -> Doubles:
    """Returns the features of each pair of image and category: own evidence, mean and maximum over the categories.

    Args:
        evidence: float64 ``(n_images, n_categories)``, from `opinion_pool.log_linear`, finite.

    Returns:
        float64 ``(3, n_images, n_categories)``, nats.
    """
    others = (evidence.mean(axis=1, keepdims=True), evidence.max(axis=1, keepdims=True))
    return np.stack([evidence, *(np.broadcast_to(one, evidence.shape) for one in others)])


def label_probabilities(evidence: Doubles, model: LabelModel) -> Doubles:
    """Returns the probability that each image belongs to each category.

    Args:
        evidence: float64 ``(n_images, n_categories)``, from `opinion_pool.log_linear`; -inf for a category that no
            expert covers.
        model: Learned from the evidence of the same pool.

    Returns:
        float64 ``(n_images, n_categories)``, 0 to 1; 0 for a category that no expert covers. Rows need not sum to 1.
    """
    covered = np.isfinite(evidence).all(axis=0)
    probabilities = np.zeros_like(evidence)
    coefficients = np.array([model.own, model.mean, model.largest])
    odds = np.tensordot(coefficients, label_features(evidence[:, covered]), axes=1) + model.intercept
    probabilities[:, covered] = logistic(odds)
    return probabilities


def label_thresholds(categories: Sequence[str], model: LabelModel) -> Doubles:
    """Returns the threshold of each category, float64 ``(n_categories,)``, 0 to 1."""
    return np.array([model.category_thresholds.get(name, model.threshold) for name in categories])


def chosen_labels(probabilities: Doubles, thresholds: Doubles, categories: Sequence[str]) -> list[Ranking]:
    """Returns the categories of each image whose probability reaches the threshold, the most probable first.

    Args:
        probabilities: float64 ``(n_images, n_categories)``, 0 to 1.
        thresholds: float64 ``(n_categories,)``, 0 to 1.
        categories: Names of the columns. Equal probabilities are in the order of the columns.
    """
    found = []
    for own in probabilities:
        chosen = np.flatnonzero((own >= thresholds) & (own > 0))
        ordered = chosen[np.argsort(-own[chosen], kind="stable")]
        found.append(tuple((categories[column], float(own[column])) for column in ordered))
    return found
