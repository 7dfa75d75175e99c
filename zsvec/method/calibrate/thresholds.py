"""What evidence wrong categories and new images have: neutral evidence, and the thresholds of the unknown.

- *Neutral* evidence is what an expert would say of a category that it does not cover: such that the likelihood
  ratio of a wrong category is 1 on average. Categories covered by texts, by images or by both compete fairly by it.
- A *threshold* is the evidence below which the wanted fraction of new images of the store's categories falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.predict.logits import logsumexp
from zsvec.method.predict.opinion_pool import log_linear, neutral_evidence, pattern
from zsvec.streams.drift import PARTS


def enough(images: float, fraction: float) -> bool:
    """Whether so many images tell what a new one falls below with a probability `fraction`, between 0 and 1."""
    return 1 <= fraction * (images + 1) <= images


def fewest(fraction: float) -> float:
    """The least number of images that are `enough`."""
    least = float(np.ceil(max(1 / fraction, 1 / (1 - fraction))) - 1)
    return least - 1 if enough(least - 1, fraction) else least  # of a quotient that was rounded up


def quantile(evidence: Doubles, fraction: float) -> float:
    """What a new image falls below with a given probability: exactly, whatever the distribution of the evidence.

    That is the value at rank ``fraction * (n_images + 1)`` (Weibull, 1939): a new image is as likely to fall between
    any two of the others as beyond them all. Below a linear quantile fall ``fraction + (1 - 2 * fraction) /
    (n_images + 1)``.

    Args:
        evidence: float64 ``(n_images,)``, of `enough` images.
        fraction: Between 0 and 1.
    """
    return float(np.quantile(evidence, fraction, method="weibull"))


def learn_neutral(evidence: Doubles, sample: LeftOut) -> dict[str, float]:
    """Neutral evidence of all experts together, of each alone, and of those that lack references of some category.

    Args:
        evidence: Of the sample, float64 ``(n_experts, n_images, n_categories)``, from `pool.expert_evidence`.
        sample: Left-out images.

    Returns:
        Nats, by the `opinion_pool.pattern` of the experts.
    """
    experts = list(sample.aggregations)
    everyone = np.ones((len(experts), 1), dtype=bool)
    sets = np.unique(np.hstack([everyone, np.eye(len(experts), dtype=bool), ~sample.coverage]), axis=1).T
    wrong = sample.labels[:, None] != np.arange(len(sample.categories))
    neutral = {}
    for chosen in sets[sets.any(axis=1)]:
        logs, n = [], 0
        for of_image, others in zip(evidence[chosen].swapaxes(0, 1), wrong, strict=True):  # not a copy of everything
            together = of_image.sum(axis=0)[others]
            together = together[~np.isnan(together)]
            if together.size:
                logs.append(float(logsumexp(together)))
                n += together.size
        if n:
            neutral[pattern(experts, chosen)] = float(logsumexp(np.array(logs)) - np.log(n))
    return neutral


def learn_thresholds(
    evidence: Doubles, sample: LeftOut, neutral: Mapping[str, float], false_unknown_rate: float
) -> dict[str, float]:
    """Thresholds of images whose category these experts cover, and no others.

    Args:
        evidence: As in `learn_neutral`.
        sample: Left-out images.
        neutral: From `learn_neutral`.
        false_unknown_rate: Fraction of the images that fall below, 0 to 1.

    Returns:
        Nats, by the `opinion_pool.pattern` of the experts; of those with enough images.
    """
    return {
        name: quantile(best, false_unknown_rate)
        for name, best in _by_pattern(evidence, sample, neutral)
        if enough(len(best), false_unknown_rate)
    }


def learn_quantiles(evidence: Doubles, sample: LeftOut, neutral: Mapping[str, float]) -> dict[str, list[float]]:
    """What 5, 10, … 95 % of the images of a category fall below, by the experts that cover it; arguments likewise.

    Returns:
        Nats, ascending, by the `opinion_pool.pattern` of the experts; of those with enough images.
    """
    return {
        name: [quantile(best, k / PARTS) for k in range(1, PARTS)]
        for name, best in _by_pattern(evidence, sample, neutral)
        if enough(len(best), 1 / PARTS)
    }


def _by_pattern(evidence: Doubles, sample: LeftOut, neutral: Mapping[str, float]) -> Iterator[tuple[str, Doubles]]:
    """The largest evidence of each image as if just these experts covered its category, for each set that does."""
    everywhere = np.ones(len(sample.labels), dtype=bool)
    for covering in np.unique(sample.coverage, axis=1).T:
        best = _largest_evidence(evidence, sample, neutral, covering, everywhere)
        yield pattern(list(sample.aggregations), covering), best


def learn_category_thresholds(
    evidence: Doubles, sample: LeftOut, neutral: Mapping[str, float], false_unknown_rate: float
) -> dict[str, float]:
    """Thresholds by category, of those with enough images; arguments as in `learn_thresholds`."""
    thresholds = {}
    for position, name in enumerate(sample.categories):
        own = sample.labels == position
        if enough(int(np.count_nonzero(own)), false_unknown_rate):
            best = _largest_evidence(evidence, sample, neutral, sample.coverage[:, position], own)
            if enough(len(best), false_unknown_rate):
                thresholds[name] = quantile(best, false_unknown_rate)
    return thresholds


def _largest_evidence(
    evidence: Doubles,
    sample: LeftOut,
    neutral: Mapping[str, float],
    covering: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
) -> Doubles:
    """The largest evidence for any category, of each image as if only some experts covered its own category.

    Args:
        evidence: As in `learn_neutral`.
        sample: Left-out images. Those that can be compared with everything are used, so their number is smaller.
        neutral: From `learn_neutral`.
        covering: bool ``(n_experts,)``, the experts that cover the category of the image.
        chosen: bool ``(n_images,)``, the images.
    """
    experts = list(sample.aggregations)
    labels = sample.labels[chosen]
    evidence, images = evidence[:, chosen], np.arange(len(labels))
    own = evidence[:, images, labels]
    # What stands in the place of an image's own category is replaced below; a gap there is none of the expert's.
    evidence[:, images, labels] = np.where(sample.coverage[:, labels], np.nan_to_num(own), np.nan)
    complete = ~np.isnan(own[covering]).any(axis=0) & sample.complete(evidence)
    if not complete.any():
        return np.empty(0)
    evidence, own, labels = evidence[:, complete], own[:, complete], labels[complete]
    total = log_linear(evidence, experts, neutral)
    rest = neutral_evidence(evidence, experts, neutral, ~covering) if not covering.all() else 0.0
    against = neutral_evidence(evidence, experts, neutral, np.ones(len(experts), dtype=bool))
    total[np.arange(len(total)), labels] = own[covering].sum(axis=0) + rest - against
    largest: Doubles = total.max(axis=1)
    return largest
