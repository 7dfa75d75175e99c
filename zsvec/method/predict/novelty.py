"""How novel an image is, and whether it is called unknown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.predict.logits import Logits
from zsvec.method.predict.opinion_pool import covering_sets, pattern
from zsvec.method.similarities import SearchResult

HALFWAY = 0.5
"""Novelty of an image whose evidence is at the threshold of its category."""
_LARGEST = 700.0  # nats whose exponential does not overflow


@dataclass(frozen=True, slots=True)
class Novelty:
    """How far the images of a batch are from every category.

    Attributes:
        novelty: float64 ``(n_images,)``, 0 to 1; NaN without a calibration.
        threshold: float64 ``(n_images,)``, novelty above which an image is unknown; NaN where it cannot be told.
        unknown: bool ``(n_images,)``, whether the image is called unknown.
        distance: float64 ``(n_images,)``, 0 to 2, of `distances`.
        rank: float64 ``(n_images,)``, fraction of the images that calibration left out that had less evidence, 0 to
            0.95 in steps of 0.05; NaN where it is not known.
    """

    novelty: Doubles
    threshold: Doubles
    unknown: NDArray[np.bool_]
    distance: Doubles
    rank: Doubles


def image_novelty(logits: Logits, *, calibrated: bool, unknown_above: float | None, per_category: bool) -> Novelty:
    """Novelty of each image, and which images are unknown.

    Args:
        logits: What the experts say.
        calibrated: Whether by a calibration; without one nothing is called unknown.
        unknown_above: Novelty above which an image is unknown; ``None``: `HALFWAY` where there is a threshold.
        per_category: Whether categories with enough references have thresholds of their own.
    """
    distance = distances(logits.found)
    if not calibrated:
        nothing = np.full(len(distance), np.nan)
        return Novelty(nothing, nothing, is_unknown(nothing, nothing), distance, nothing)
    nearest = logits.pooled.argmax(axis=1)
    evidence = evidence_thresholds(logits, per_category=per_category)[nearest]
    # Without a threshold, the odds that it is of a category: one random wrong category for each that there is.
    even = np.where(np.isnan(evidence), np.log(len(logits.found.categories)), evidence)
    novel = novelty(logits.pooled.max(axis=1), even)
    threshold = (
        np.where(np.isnan(evidence), np.nan, HALFWAY) if unknown_above is None else np.full(len(novel), unknown_above)
    )
    return Novelty(novel, threshold, is_unknown(novel, threshold), distance, ranks(logits, nearest))


def is_unknown(novelty: Doubles, threshold: Doubles) -> NDArray[np.bool_]:
    """Whether images are called unknown: their novelty is above the threshold; never where either is NaN."""
    return novelty > threshold


def novelty(evidence: Doubles, threshold: Doubles) -> Doubles:
    """From the evidence for the best category to novelty, 0 to 1; `HALFWAY` at the threshold.

    Args:
        evidence: float64 ``(n_images,)``, nats: the largest of `opinion_pool.log_linear`.
        threshold: float64 ``(n_images,)``, nats.
    """
    # scipy.special.expit, which is slow to import: a tenth of a second in each process that classifies.
    scaled: Doubles = 1 / (1 + np.exp(np.minimum(evidence - threshold, _LARGEST)))
    return scaled


def evidence_thresholds(logits: Logits, *, per_category: bool) -> Doubles:
    """Evidence below which an image that is nearest to a category is unknown, float64 ``(n_categories,)``, nats.

    The threshold goes by the experts that cover the category; NaN where calibration learned none for them.

    Args:
        logits: What the experts say, and the pool with the thresholds.
        per_category: Whether categories with enough references have thresholds of their own.
    """
    coverage, pool, categories = logits.coverage, logits.pool, logits.found.categories
    sets, of_category = covering_sets(coverage)
    by_set = [pool.thresholds.get(pattern(logits.experts, covering), np.nan) for covering in sets]
    thresholds: Doubles = np.array(by_set)[of_category]
    if per_category:
        own = zip(categories, thresholds, strict=True)
        thresholds = np.array([pool.category_thresholds.get(name, threshold) for name, threshold in own])
    return thresholds


def ranks(logits: Logits, nearest: NDArray[np.intp]) -> Doubles:
    """Where the largest evidence of each image is among that of left-out images; see `Novelty.rank`.

    Args:
        logits: What the experts say, and the pool with the quantiles.
        nearest: int ``(n_images,)``, the category of the largest evidence: by the experts that cover it, it is ranked.
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
    """How far images are from all references, without a calibration, float64 ``(n_images,)``, 0 to 2.

    1 - the largest cosine to a reference image, under the encoder that sees the image farthest: as encoders differ in
    what they tell apart, one that sees it far away is right more often. To a text where there are no images; 2 where
    nothing was found.
    """
    compared = [expert for expert in found.experts if expert.modality == "image"] or found.experts
    out = [
        max((1 - neighbors[0].similarity for neighbors in of_image if neighbors), default=2.0)
        for of_image in zip(*(expert.nearest for expert in compared), strict=True)
    ]
    clipped: Doubles = np.clip(np.array(out), 0.0, 2.0)
    return clipped
