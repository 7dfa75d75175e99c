"""Learns from left-out images which categories an image belongs to, where an image may belong to several.

One logistic regression over all pairs of image and category is shared by the categories, so that it needs few images of
each: on photos with other photos pasted on them, it ranks better than a logistic regression for each category on the
vectors (`scripts/several_labels.py`). Its evidence is the evidence of the opinion pool. A category that is added later
needs no training.

A *threshold* turns probabilities into decisions. By default, one threshold for all categories has the largest F1 score
on the left-out images. A threshold for each category scored no better, also with 20 images of each. With a requested
false-positive rate, a category with enough images has a threshold of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles, logistic
from zsvec.method.calibrate.thresholds import enough, quantile
from zsvec.method.calibration import LabelModel
from zsvec.method.predict.labels import label_features, label_probabilities


def learn_labels(
    evidence: Doubles, belongs: NDArray[np.bool_], categories: Sequence[str], false_positive_rate: float | None
) -> LabelModel | None:
    """Learns the logistic regression and the thresholds.

    The coefficients of the standardised features have a standard normal prior.

    Args:
        evidence: float64 ``(n_images, n_categories)``, nats: evidence of each left-out image for each category, from
            `opinion_pool.log_linear`. The images differ from each other.
        belongs: bool ``(n_images, n_categories)``, whether the image belongs to the category.
        categories: Names of the columns.
        false_positive_rate: As in `LabelModel`.

    Returns:
        The model; ``None`` unless some pairs of image and category are a yes, and some a no.
    """
    from scipy.optimize import minimize  # slow to import, and not needed to classify

    covered = np.isfinite(evidence).all(axis=0)
    features = label_features(evidence[:, covered]).reshape(3, -1)
    yes = belongs[:, covered].ravel()
    if yes.all() or not yes.any():
        return None
    centre, spread = features.mean(axis=1), features.std(axis=1) + 1e-9
    standard = (features - centre[:, None]) / spread[:, None]

    def cost(free: Doubles) -> tuple[float, Doubles]:
        odds = free[1:] @ standard + free[0]
        residuals = logistic(odds) - yes
        gradient = np.concatenate([[residuals.sum()], standard @ residuals + free[1:]])
        return float(np.logaddexp(0, odds).sum() - odds[yes].sum() + free[1:] @ free[1:] / 2), gradient

    intercept, *coefficients = minimize(cost, np.zeros(4), jac=True, method="L-BFGS-B").x
    own, mean, largest = (coefficients / spread).tolist()
    untold = LabelModel(
        intercept=float(intercept - (coefficients / spread) @ centre),
        own=own,
        mean=mean,
        largest=largest,
        threshold=0.5,
        false_positive_rate=false_positive_rate,
        images=len(evidence),
    )
    return _with_thresholds(untold, label_probabilities(evidence, untold), belongs, categories)


def _with_thresholds(
    model: LabelModel, probabilities: Doubles, belongs: NDArray[np.bool_], categories: Sequence[str]
) -> LabelModel:
    threshold, own = best_f1_threshold(probabilities.ravel(), belongs.ravel()), {}
    if model.false_positive_rate is not None:
        kept = 1 - model.false_positive_rate
        if enough(int((~belongs).sum()), kept):
            threshold = quantile(probabilities[~belongs], kept)
        for name, said, yes in zip(categories, probabilities.T, belongs.T, strict=True):
            if enough(int((~yes).sum()), kept):
                own[name] = quantile(said[~yes], kept)
    return replace(model, threshold=threshold, category_thresholds=own)


def best_f1_threshold(probabilities: Doubles, yes: NDArray[np.bool_]) -> float:
    """Returns the threshold with the largest F1 score, in the middle between two probabilities.

    Args:
        probabilities: float64 ``(n,)``, 0 to 1; at least one.
        yes: bool ``(n,)``, whether each pair is a yes; at least one is.
    """
    order = np.argsort(-probabilities)
    falling = probabilities[order]
    last = np.append(falling[1:] < falling[:-1], True)  # equal probabilities are decided alike
    right, told = np.cumsum(yes[order])[last], np.flatnonzero(last) + 1
    best = int(np.argmax(2 * right / (told + yes.sum())))
    steps = falling[last]
    return float(steps[best : best + 2].mean())
