"""Novelty of images, and the decision whether an image is unknown.

Calibration learns from the references below which evidence an image is unknown. Where there are too few references for
such a threshold, the novelty is a prior that was learned from other data sets. The prior compares an image with the
references of wrong categories (`prior_novelty`), and with words for everyday things (`word_deviations`). The more
references there are, the less the prior counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles, logistic
from zsvec.method.calibration import Calibration
from zsvec.method.predict.logits import Logits
from zsvec.method.predict.opinion_pool import Similarity, covering_sets, pattern
from zsvec.method.similarities import SearchResult
from zsvec.types import NoveltyBasis

HALFWAY = 0.5
"""Novelty of an image whose evidence equals the threshold of its category."""
# Fitted on stores of few references, where one image in four belongs to no category: `python scripts/small_stores.py`.
SLOPE = 0.52
"""Log odds that an image belongs to its nearest category, nats per temperature of additional similarity."""
OFFSET = -0.26
"""Log odds for an image that is as similar as images of wrong categories, nats."""
WORD_SLOPE = 0.8
"""Log odds that an image belongs to its nearest category, nats per `word_deviations`."""
WORD_OFFSET = 0.9
"""Log odds for an image that is as similar to its nearest category as to the most similar of as many random words."""
_SMALLEST = 1e-12  # novelty of a certain prior
_BASES: Mapping[tuple[bool, bool], NoveltyBasis | None] = {
    (True, True): "both",
    (True, False): "words",
    (False, True): "references",
    (False, False): None,
}
_ENOUGH = 100  # left-out images from which on the calibration needs no prior


@dataclass(frozen=True, slots=True)
class Novelty:
    """Novelty of a batch of images.

    Attributes:
        novelty: float64 ``(n_images,)``, 0 to 1; NaN without evidence.
        threshold: float64 ``(n_images,)``, novelty above which an image is unknown; NaN without a threshold.
        unknown: bool ``(n_images,)``, whether the image is unknown.
        distance: float64 ``(n_images,)``, 0 to 2, from `distances`.
        basis: Evidence of each novelty, as `Prediction.novelty_basis`.
        rank: float64 ``(n_images,)``, fraction of the calibration's left-out images that had less evidence than the
            image, 0 to 0.95 in steps of 0.05. NaN if the calibration has no quantiles.
    """

    novelty: Doubles
    threshold: Doubles
    unknown: NDArray[np.bool_]
    distance: Doubles
    basis: Sequence[NoveltyBasis | None]
    rank: Doubles


def image_novelty(
    logits: Logits, *, prior: Doubles | None, words: Doubles, unknown_above: float | None, per_category: bool
) -> Novelty:
    """Computes the novelty of each image, and decides which images are unknown.

    Args:
        logits: Distributions and evidence of the experts.
        prior: The result of `prior_novelty`; ``None`` without a calibration. Without a calibration, words count only
            for categories without reference images.
        words: The result of `word_deviations`.
        unknown_above: Novelty above which an image is unknown. ``None``: `HALFWAY` for categories with a threshold or
            a prior; images of other categories are not unknown.
        per_category: Whether each category with enough references has a separate threshold.
    """
    nearest, best = logits.pooled.argmax(axis=1), logits.pooled.max(axis=1)
    rank, distance = ranks(logits, nearest), distances(logits.found)
    # Without a threshold and a prior, novelty is 0.5 at ln(n_categories): even odds against n_categories wrong ones.
    untold = best - np.log(len(logits.found.categories))
    if prior is None:
        rank = untold = prior = np.full(len(nearest), np.nan)
        images = [expert.modality == "image" for expert in logits.found.experts]
        words = np.where(logits.coverage[images][:, nearest].any(axis=0), np.nan, words)
    evidence = evidence_thresholds(logits, per_category=per_category)[nearest]
    early, share = early_thresholds(logits)[:, nearest]
    odds = prior_odds(prior, words, share)
    told, learned = ~np.isnan(odds), ~np.isnan(evidence)
    share[learned] = 1
    by_images = np.where(share > 0, best - np.where(learned, evidence, early), 0)
    joined = share * by_images + np.where(learned, 0, (1 - share) * odds)
    novel = logistic(-np.where(told | learned, joined, untold))
    threshold = np.where(told | learned, HALFWAY, np.nan)
    if unknown_above is not None:
        threshold = np.where(np.isnan(novel), np.nan, unknown_above)
    by_words = ~np.isnan(words) & ~learned
    by_references = ~np.isnan(novel) & ~(by_words & np.isnan(prior) & (share == 0))
    return Novelty(
        novelty=novel,
        threshold=threshold,
        unknown=is_unknown(novel, threshold),
        distance=distance,
        basis=[_BASES[evidence] for evidence in zip(by_words.tolist(), by_references.tolist(), strict=True)],
        rank=rank,
    )


def word_deviations(logits: Logits, similarities: Similarity, aggregation: str) -> Doubles:
    """Compares the nearest category of each image with words for everyday things, by the experts of texts.

    Of unrelated words, the nearest of many is nearer than the nearest of few. The category therefore competes with the
    most similar of as many random words as there are categories, which is about √(2 ln n) standard deviations above the
    mean. The words are negative labels as in NegLabel (Jiang et al., 2024, arXiv:2403.20078). Categories are compared
    by their name only: an image is farther from a sentence than from a word, even if both describe the image.

    Args:
        logits: Coverage and evidence of the experts, and the search with the words.
        similarities: Similarities of the images by `aggregation`.
        aggregation: The aggregation of the similarities to the texts of a category.

    Returns:
        float64 ``(n_images,)``: the similarity to the nearest category, in standard deviations of the similarities to
        the words above the random words. NaN if the nearest category has no text, or texts beside its name, or without
        different words.
    """
    nearest = logits.pooled.argmax(axis=1)
    named = np.array([logits.found.categories[i] not in logits.found.described for i in nearest.tolist()])
    total, count = np.zeros(len(nearest)), np.zeros(len(nearest))
    for expert, covered in zip(logits.found.experts, logits.coverage, strict=True):
        words = logits.found.words.get(expert.encoder)
        if expert.modality == "text" and words is not None:
            own = similarities[expert.name][aggregation][np.arange(len(nearest)), nearest]
            others = logits.found.queries[expert.encoder] @ words.T
            spread, by_chance = others.std(axis=1), np.sqrt(2 * np.log(max(1, int(covered.sum()))))
            told = covered[nearest] & named & (spread > 0)
            above = np.divide(own - others.mean(axis=1), spread, out=np.zeros_like(total), where=told)
            total += np.where(told, above - by_chance, 0)
            count += told
    mean: Doubles = np.divide(total, count, out=np.full(len(nearest), np.nan), where=count > 0)
    return mean


def prior_odds(prior: Doubles, words: Doubles, share: Doubles) -> Doubles:
    """Returns the log odds that an image belongs to its nearest category, from the evidence that needs no threshold.

    Images and words count as √2 experts, because they are neither independent nor identical.

    Args:
        prior: float64 ``(n_images,)``, the result of `prior_novelty`; NaN without reference images.
        words: float64 ``(n_images,)``, the result of `word_deviations`; NaN without words.
        share: float64 ``(n_images,)``, share of an early threshold in the novelty, 0 to 1. Words give way to images by
            this share.

    Returns:
        float64 ``(n_images,)``, nats; NaN where both arrays have NaN.
    """
    by_words = WORD_SLOPE * words + WORD_OFFSET
    bounded = np.clip(prior, _SMALLEST, 1 - _SMALLEST)
    by_images = np.log((1 - bounded) / bounded)
    both = share * by_images + (1 - share) * (by_images + by_words) / np.sqrt(2)
    odds: Doubles = np.where(np.isnan(prior), by_words, np.where(np.isnan(words), by_images, both))
    return odds


def prior_novelty(
    logits: Logits, similarities: Similarity, calibration: Calibration, temperatures: Mapping[str, float]
) -> Doubles:
    """Returns the probability that an image belongs to no category, from its similarity to its nearest category.

    The similarity of each image expert is compared with that of images of wrong categories, and divided by the default
    temperature of the expert.

    Args:
        logits: Coverage and evidence of the experts.
        similarities: Similarities of the images by the aggregation of the calibration.
        calibration: The calibration in use.
        temperatures: By expert, the temperature without a calibration.

    Returns:
        float64 ``(n_images,)``, 0 to 1; NaN if the nearest category of an image has no reference image, or if it alone
        has reference images.
    """
    nearest = logits.pooled.argmax(axis=1)
    total, count = np.zeros(len(nearest)), np.zeros(len(nearest))
    for expert, covered in zip(logits.found.experts, logits.coverage, strict=True):
        wrong = calibration.experts[expert.name].wrong
        if expert.modality == "image" and wrong is not None:
            own = similarities[expert.name][calibration.aggregation][np.arange(len(nearest)), nearest]
            total += np.where(covered[nearest], (own - wrong) / temperatures[expert.name], 0.0)
            count += covered[nearest]
    mean = np.divide(total, count, out=np.full(len(nearest), np.nan), where=count > 0)
    return novelty(SLOPE * mean + OFFSET, np.zeros(len(nearest)))


def largest_probability(novelty: Doubles, calibration: Calibration, n_categories: int) -> Doubles:
    """Returns the largest probability that a category of an image may have, float64 ``(n_images,)``.

    Few references make any evidence look certain. A distribution is therefore believed only as far as the image does
    not look new; the more images the calibration was learned from, the more it is believed.

    Args:
        novelty: float64 ``(n_images,)``, 0 to 1: the result of `prior_novelty`; for a category without images, the
            novelty of the image.
        calibration: The calibration in use.
        n_categories: Number of categories.
    """
    doubt = max(0.0, 1 - max(expert.images for expert in calibration.experts.values()) / _ENOUGH)
    largest: Doubles = 1 - doubt * np.nan_to_num(novelty) * (1 - 1 / n_categories)
    return largest


def is_unknown(novelty: Doubles, threshold: Doubles) -> NDArray[np.bool_]:
    """Returns whether the novelty of each image is above the threshold. NaN is never above."""
    return novelty > threshold


def novelty(evidence: Doubles, threshold: Doubles) -> Doubles:
    """Converts the evidence for the best category to novelty, 0 to 1; `HALFWAY` at the threshold.

    Args:
        evidence: float64 ``(n_images,)``, nats: the row maximum of `opinion_pool.log_linear`.
        threshold: float64 ``(n_images,)``, nats.
    """
    return logistic(threshold - evidence)


def evidence_thresholds(logits: Logits, *, per_category: bool) -> Doubles:
    """Returns the threshold of each category, float64 ``(n_categories,)``, nats.

    An image is unknown if its evidence for the best category is below the threshold of this category. The threshold
    depends on the experts that cover the category; NaN if the calibration has no threshold for these experts.

    Args:
        logits: Coverage of the experts, and the pool with the thresholds.
        per_category: Whether each category with enough references has a separate threshold.
    """
    coverage, pool, categories = logits.coverage, logits.pool, logits.found.categories
    sets, of_category = covering_sets(coverage)
    by_set = [pool.thresholds.get(pattern(logits.experts, covering), np.nan) for covering in sets]
    thresholds: Doubles = np.array(by_set)[of_category]
    if per_category:
        own = zip(categories, thresholds, strict=True)
        thresholds = np.array([pool.category_thresholds.get(name, threshold) for name, threshold in own])
    return thresholds


def early_thresholds(logits: Logits) -> Doubles:
    """Returns the early threshold of each category, nats, and its share in the novelty, float64 ``(2, n_categories)``.

    A category without such a threshold has NaN and the share 0.

    Args:
        logits: Coverage of the experts, and the pool with the thresholds.
    """
    sets, of_category = covering_sets(logits.coverage)
    by_set = [logits.pool.early.get(pattern(logits.experts, covering), (np.nan, 0.0)) for covering in sets]
    return np.array(by_set)[of_category].T


def ranks(logits: Logits, nearest: NDArray[np.intp]) -> Doubles:
    """Returns the `Novelty.rank` of each image, float64 ``(n_images,)``.

    Args:
        logits: Evidence of the experts, and the pool with the quantiles.
        nearest: int ``(n_images,)``, the category with the largest evidence. The experts that cover this category
            select the quantiles.
    """
    found = np.full(len(nearest), np.nan)
    sets, of_image = covering_sets(logits.coverage[:, nearest])
    for number, covering in enumerate(sets):
        if quantiles := logits.pool.quantiles.get(pattern(logits.experts, covering)):
            chosen = of_image == number
            below = np.searchsorted(quantiles, logits.pooled[chosen, nearest[chosen]])
            found[chosen] = below / (len(quantiles) + 1)
    return found


def distances(found: SearchResult) -> Doubles:
    """Returns the distance of each image from all references, float64 ``(n_images,)``, 0 to 2; needs no calibration.

    The distance is 1 - the largest cosine to a reference image, under the encoder with the largest distance. The
    largest distance is most often right, because each encoder places some different things close together. Without
    reference images, texts are used; without any reference, the distance is 2.
    """
    compared = [expert for expert in found.experts if expert.modality == "image"] or found.experts
    out = [
        max((1 - neighbors[0].similarity for neighbors in of_image if neighbors), default=2.0)
        for of_image in zip(*(expert.nearest for expert in compared), strict=True)
    ]
    clipped: Doubles = np.clip(np.array(out), 0.0, 2.0)
    return clipped
