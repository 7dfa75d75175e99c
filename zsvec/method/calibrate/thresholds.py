"""Learns neutral evidence, thresholds of unknown images, and quantiles for sets, from the evidence of left-out images.

- *Neutral* evidence replaces the evidence of an expert for a category that the expert does not cover. Its value makes
  the mean likelihood ratio of a wrong category 1. So categories covered by texts, by images or by both compete fairly.
  In a pool of category means, its value makes a category without the expert as probable as its images are frequent.
- A *threshold* is the evidence below which a new image of the store's categories falls with the wanted probability.
- The *quantiles* for sets are log odds (`zsvec.method.predict.candidates`) that an image's own category has with the
  wanted probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles, logistic
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibration import COVERAGES, LogLinear
from zsvec.method.predict.candidates import log_odds
from zsvec.method.predict.logits import logsumexp
from zsvec.method.predict.opinion_pool import log_linear, neutral_evidence, pattern
from zsvec.streams.drift import PARTS
from zsvec.types import MAX_IMAGES, ThresholdProgress, encoder_and_modality

_SEPARATE = 0.95  # coverage that a category's images must promise, for quantiles of the category
_MISSING = 0.01  # images that may be missing for a coverage, because learned noise is never exactly 0


def enough(images: float, fraction: float) -> bool:
    """Returns whether ``images`` images suffice for the `quantile` of ``fraction``, a number between 0 and 1."""
    return 1 <= fraction * (images + 1) <= images


def fewest(fraction: float) -> float:
    """Returns the least number of images that is `enough` for a fraction."""
    least = float(np.ceil(max(1 / fraction, 1 / (1 - fraction))) - 1)
    # Rounding may have made the quotient too large or too small.
    return next((images for images in (least - 1, least, least + 1) if enough(images, fraction)), least)


def threshold_progress(sample: LeftOut, images: int, false_unknown_rate: float) -> ThresholdProgress | None:
    """Returns the progress towards a threshold; ``None`` if the images are `enough`.

    Args:
        sample: Left-out images.
        images: Number of these images that count, from `learn_thresholds`.
        false_unknown_rate: As in `learn_thresholds`.
    """
    if enough(images, false_unknown_rate):
        return None
    needed = int(min(fewest(false_unknown_rate), MAX_IMAGES))
    one_scene = int(np.count_nonzero(sample.alone()))
    return ThresholdProgress(images, needed, one_scene=one_scene, copied=sample.skipped)


def quantile(evidence: Doubles, fraction: float) -> float:
    """Returns the evidence below which a new image falls with exactly the given probability, for any distribution.

    The result is the value at rank ``fraction * (n_images + 1)`` (Weibull, 1939). The sorted evidence divides the
    numbers into n_images + 1 intervals, and a new image falls into each interval with equal probability. With the
    default method of `numpy.quantile`, the probability would be ``fraction + (1 - 2 * fraction) / (n_images + 1)``.

    Args:
        evidence: float64 ``(n_images,)``, of `enough` images.
        fraction: Between 0 and 1.
    """
    return float(np.quantile(evidence, fraction, method="weibull"))


def learn_neutral(evidence: Doubles, sample: LeftOut) -> dict[str, float]:
    """Learns the neutral evidence of sets of experts.

    The sets are all experts, each expert alone, and, for each category, the experts that do not cover the category.

    Args:
        evidence: float64 ``(n_experts, n_images, n_categories)``, from `opinion_pool.expert_evidence`.
        sample: Left-out images.

    Returns:
        Nats, by the `opinion_pool.pattern` of the experts. Sets without evidence for wrong categories are missing.
    """
    experts = list(sample.aggregations)
    everyone = np.ones((len(experts), 1), dtype=bool)
    sets = np.unique(np.hstack([everyone, np.eye(len(experts), dtype=bool), ~sample.coverage]), axis=1).T
    wrong = sample.labels[:, None] != np.arange(len(sample.categories))
    neutral = {}
    for chosen in sets[sets.any(axis=1)]:
        logs, n = [], 0
        for of_image, others in zip(evidence[chosen].swapaxes(0, 1), wrong, strict=True):  # saves memory
            together = of_image.sum(axis=0)[others]
            together = together[~np.isnan(together)]
            if together.size:
                logs.append(float(logsumexp(together)))
                n += together.size
        if n:
            neutral[pattern(experts, chosen)] = float(logsumexp(np.array(logs)) - np.log(n))
    return neutral


def balanced_neutral(evidence: Doubles, sample: LeftOut, neutral: Mapping[str, float]) -> dict[str, float]:
    """Learns neutral evidence by which a category without some experts is as probable as its images are frequent.

    Evidence from category means is relative to the mean of all categories, so an image unlike every category still has
    evidence for some category. By the mean likelihood ratio (`learn_neutral`), a category without this evidence would
    hardly ever be found.

    Each left-out image is classified once for each category, as if the experts did not cover this category. The
    probabilities of these categories sum to the number of their images. So the neutral evidence is the intercept of a
    logistic regression, by maximum likelihood. Categories have equal weight.

    Args:
        evidence: As in `learn_neutral`.
        sample: Left-out images.
        neutral: Result of `learn_neutral`.

    Returns:
        Nats, by the `opinion_pool.pattern` of the experts: each expert alone, all image experts, and, for each
        category, the experts that do not cover the category. Sets without a left-out image that they could lose are
        missing.
    """
    from scipy.optimize import brentq  # slow to import, and not needed to classify
    from scipy.special import expit

    experts = list(sample.aggregations)
    of_images = np.array([[encoder_and_modality(expert)[1] == "image"] for expert in experts])
    sets = np.unique(np.hstack([of_images, np.eye(len(experts), dtype=bool), ~sample.coverage]), axis=1).T
    complete = sample.complete(evidence)
    if not complete.any():
        return {}
    evidence, labels = evidence[:, complete], sample.labels[complete]
    total = log_linear(evidence, experts, neutral)
    odds = log_odds(total, *np.ogrid[: total.shape[0], : total.shape[1]])
    shares = (1 / np.bincount(labels)[labels])[:, None]
    balanced = {}
    for chosen in sets[sets.any(axis=1) & ~sets.all(axis=1)]:
        covered = sample.coverage[chosen].all(axis=0)
        others = odds[:, covered] - evidence[chosen][..., covered].sum(axis=0)
        own = float(shares[covered[labels]].sum())
        if not 0 < (frequency := own / float(shares.sum() * max(1, int(np.count_nonzero(covered))))) < 1:
            continue
        # With this intercept, the least or the largest probability is the frequency, so the solution is in between. If
        # all are equal, rounding may leave it outside.
        even = np.log(frequency / (1 - frequency))

        def excess(intercept: float, others: Doubles = others, own: float = own) -> float:
            return float((shares * expit(others + intercept)).sum()) - own

        balanced[pattern(experts, chosen)] = float(
            brentq(excess, even - others.max() - 1, even - others.min() + 1, xtol=1e-6)
        )
    return balanced


def learn_thresholds(
    pool: LogLinear, evidence: Doubles, sample: LeftOut, false_unknown_rate: float
) -> tuple[LogLinear, int]:
    """Learns thresholds and quantiles by the set of experts that cover the category of an image.

    Args:
        pool: Pool with the neutral evidence and the noise.
        evidence: As in `learn_neutral`.
        sample: Left-out images.
        false_unknown_rate: Fraction of the images that fall below a threshold, between 0 and 1.

    Returns:
        The pool with thresholds, quantiles and odds. Sets of experts without enough images are missing, and have an
        early threshold. Then the number of images for the threshold of categories with reference images.
    """
    thresholds, quantiles, images = {}, {}, 0
    early: dict[str, list[float]] = {}
    odds: dict[str, list[float]] = {}
    category_odds: dict[str, list[float]] = {}
    experts = list(sample.aggregations)
    of_images = np.array([encoder_and_modality(expert)[1] == "image" for expert in experts])
    everywhere, shares = np.ones(len(sample.labels), dtype=bool), sample.shares
    for covering in np.unique(sample.coverage, axis=1).T:
        total, rows = _evidence(evidence, sample, pool.neutral, covering, everywhere)
        best = total.max(axis=1)
        name = pattern(experts, covering)
        if covering[of_images].any():
            images = max(images, len(best))
        if enough(len(best), false_unknown_rate):
            thresholds[name] = quantile(best, false_unknown_rate)
        elif n := len(best):  # the nearest fraction that n images can tell, so that enough images continue from here
            fraction = min(max(false_unknown_rate, 1 / (n + 1)), n / (n + 1))
            early[name] = [quantile(best, fraction), n / fewest(false_unknown_rate)]
        if enough(len(best), 1 / PARTS):
            quantiles[name] = [quantile(best, k / PARTS) for k in range(1, PARTS)]
        labels = sample.labels[rows]
        own = log_odds(total, np.arange(len(labels)), labels)
        weights = shares[rows] * right_labels(own, pool.noise, len(sample.categories))
        if not (table := odds_quantiles(own, weights)):
            continue
        odds[name] = table
        frequent = np.bincount(labels, minlength=len(sample.categories)) >= fewest(1 - _SEPARATE)
        for position in np.flatnonzero(frequent & (sample.coverage == covering[:, None]).all(axis=0)):
            chosen = labels == position
            separate = odds_quantiles(own[chosen], weights[chosen])
            if len(separate) > COVERAGES.index(_SEPARATE):
                rest = np.minimum(separate[-1], table[len(separate) :])
                category_odds[sample.categories[position]] = [*separate, *rest.tolist()]
    pool = replace(pool, thresholds=thresholds, early=early, quantiles=quantiles)
    return replace(pool, odds=odds, category_odds=category_odds), images


def right_labels(odds: Doubles, noise: float, n_categories: int) -> Doubles:
    """Returns the probability that the label of each image is right, float64 ``(n_images,)``, 0 to 1.

    Args:
        odds: float64 ``(n_images,)``, log odds of the category of each image, nats.
        noise: `LogLinear.noise`. A label without information is any category with equal probability.
        n_categories: Number of categories.
    """
    own = (1 - noise) * logistic(odds)
    right: Doubles = own / (own + noise / n_categories)
    return right


def odds_quantiles(odds: Doubles, weights: Doubles) -> list[float]:
    """Returns the log odds that a new image has for its category with each coverage, descending.

    The quantiles are those of `quantile`, of weighted images (weighted conformal prediction: Tibshirani et al., 2019).
    An image counts with the probability that its label is right: wrong labels have low log odds, which would make sets
    large. The images of a scene together count as one, because they are not independent.

    Args:
        odds: float64 ``(n_images,)``, nats.
        weights: float64 ``(n_images,)``, 0 to 1.

    Returns:
        A quantile for each of the first `COVERAGES`, as far as there are enough images.
    """
    order, total = np.argsort(odds), weights.sum() + 1
    below = np.cumsum(weights[order]) / total
    beyond = [1 - coverage for coverage in COVERAGES if (1 - coverage) * (total + _MISSING) >= 1]
    return [float(value) for value in np.interp(beyond, below, odds[order])] if beyond else []


def learn_category_thresholds(
    evidence: Doubles, sample: LeftOut, neutral: Mapping[str, float], false_unknown_rate: float
) -> dict[str, float]:
    """Learns a threshold for each category that has enough images.

    Args:
        evidence: As in `learn_neutral`.
        sample: Left-out images.
        neutral: Result of `learn_neutral`.
        false_unknown_rate: As in `learn_thresholds`.

    Returns:
        Nats, by category.
    """
    thresholds = {}
    for position, name in enumerate(sample.categories):
        own = sample.labels == position
        if enough(int(np.count_nonzero(own)), false_unknown_rate):
            best = _evidence(evidence, sample, neutral, sample.coverage[:, position], own)[0].max(axis=1)
            if enough(len(best), false_unknown_rate):
                thresholds[name] = quantile(best, false_unknown_rate)
    return thresholds


def _evidence(
    evidence: Doubles,
    sample: LeftOut,
    neutral: Mapping[str, float],
    covering: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
) -> tuple[Doubles, NDArray[np.intp]]:
    """Returns the evidence of the chosen images, as if exactly the `covering` experts covered the image's category.

    Images without complete evidence are left out.

    Returns:
        float64 ``(n_images, n_categories)``, nats; and int ``(n_images,)``, row of each image in the sample.
    """
    experts = list(sample.aggregations)
    labels = sample.labels[chosen]
    evidence, images = evidence[:, chosen], np.arange(len(labels))
    own = evidence[:, images, labels]
    # The values for an image's own category are replaced below, so NaN there does not make the image incomplete.
    evidence[:, images, labels] = np.where(sample.coverage[:, labels], np.nan_to_num(own), np.nan)
    complete = ~np.isnan(own[covering]).any(axis=0) & sample.complete(evidence)
    if not complete.any():
        return np.empty((0, len(sample.categories))), np.empty(0, dtype=np.intp)
    evidence, own, labels = evidence[:, complete], own[:, complete], labels[complete]
    total = log_linear(evidence, experts, neutral)
    rest = neutral_evidence(evidence, experts, neutral, ~covering) if not covering.all() else 0.0
    against = neutral_evidence(evidence, experts, neutral, np.ones(len(experts), dtype=bool))
    total[np.arange(len(total)), labels] = own[covering].sum(axis=0) + rest - against
    return total, np.flatnonzero(chosen)[complete]
