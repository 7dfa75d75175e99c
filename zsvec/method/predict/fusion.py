"""The strategies of fusion, one table: how what the experts say becomes one distribution per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from zsvec.method.arrays import Doubles
from zsvec.method.calibration import Calibration, LogLinear, uncalibrated
from zsvec.method.predict.entropy_fusion import confidences, fuse, inverse_entropy, max_confidence, neg_exp_entropy
from zsvec.method.predict.logits import Logits, softmax
from zsvec.method.predict.opinion_pool import log_linear
from zsvec.method.predict.transduction import transduce
from zsvec.method.similarities import SearchResult


@dataclass(frozen=True, slots=True)
class Fused:
    """What a strategy gives.

    Attributes:
        probabilities: float64 ``(n_images, n_categories)``; rows sum to 1.
        confidence: float64 ``(n_experts, n_images)``, not negative; how much each expert weighs.
    """

    probabilities: Doubles
    confidence: Doubles


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A way to fuse, and what it takes.

    Attributes:
        function: The way.
        summary: In one line, for help and documentation.
        several_aggregations: Whether evidence, and with it novelty, is made by several aggregations of each expert
            where the calibration has coefficients for them and every reference was compared.
        classwise: Whether fusion, but not novelty, is by what the means of categories say, where the calibration has
            learned that.
        needs_classwise: Whether it must have.
        needs_exact: Whether every image must have been compared with every reference.
        needs_calibration: Whether a calibration is needed.
        needs_images: Whether an expert must compare images with images.
        joint: Whether what is said of an image depends on the others of its batch.
        fallback: The strategy that runs instead where something is missing.
    """

    function: Callable[[Logits], Fused]
    summary: str
    several_aggregations: bool = True
    classwise: bool = False
    needs_classwise: bool = False
    needs_exact: bool = False
    needs_calibration: bool = False
    needs_images: bool = False
    joint: bool = False
    fallback: str | None = None


def choose_strategy(
    name: str, found: SearchResult, calibration: Calibration | None, temperatures: Mapping[str, float], aggregation: str
) -> tuple[str, LogLinear, LogLinear]:
    """The strategy that runs, and the pools that it makes evidence by.

    Args:
        name: The chosen one, a name in `STRATEGIES`.
        found: The answer of the search.
        calibration: The one to be used, if there is any.
        temperatures: By expert; taken where there is no calibration.
        aggregation: A name in `aggregation.AGGREGATIONS`; taken likewise.

    Returns:
        A name in `STRATEGIES`: `name`, or the nearest of its fallbacks whose needs are met; the pool of fusion; and
        that of novelty.
    """
    exact = found.exact
    images = any(expert.modality == "image" for expert in found.experts)
    wanted = calibration.classwise if calibration and exact and STRATEGIES[name].classwise else None
    classwise = wanted if wanted and calibration and found.summed_up(calibration.backgrounds) else None
    strategy = STRATEGIES[name]
    while strategy.fallback and (
        (strategy.needs_exact and not exact)
        or (strategy.needs_calibration and calibration is None)
        or (strategy.needs_images and not images)
        or (strategy.needs_classwise and classwise is None)
    ):
        name, strategy = strategy.fallback, STRATEGIES[strategy.fallback]
    if calibration is None:
        pool = uncalibrated({expert.name: temperatures[expert.name] for expert in found.experts}, aggregation)
        return name, pool, pool
    # A prototype can be told only where every reference was compared.
    several = exact and strategy.several_aggregations
    pool = calibration.aggregations if several else calibration.plain
    return name, classwise if classwise and strategy.classwise else pool, pool


def _by_confidence(confidence: Callable[[Doubles], Doubles], logits: Logits) -> Fused:
    """The paper's fusion: the mean of the distributions, weighted by a confidence of each."""
    weight = confidences(logits.probabilities, logits.coverage, confidence)
    return Fused(fuse(logits.probabilities, logits.coverage, weight), weight)


def _fixed(logits: Logits) -> Fused:
    """The paper's fusion by weights that are the same for every image."""
    return _by_confidence(lambda p: np.repeat(logits.weights[:, None], p.shape[1], axis=1), logits)


def _weighed_evidence(logits: Logits) -> tuple[Doubles, Doubles]:
    """Evidence of all experts, ``(n_images, n_categories)``, and the confidence of each, ``(n_experts, n_images)``."""
    n_experts, n_images, _ = logits.evidence.shape
    confidence = logits.shares[:, None].repeat(n_images, axis=1)
    if logits.pool.learned or n_experts == 1:
        return logits.pooled, confidence
    # Their worth in general was not learned, so it is taken from each image (paper, option 3).
    weights = neg_exp_entropy(logits.probabilities)
    weights = weights * n_experts / weights.sum(axis=0)
    evidence = log_linear(logits.evidence, logits.experts, logits.pool.neutral, weights)
    return evidence, confidence * weights


def _log_linear(logits: Logits) -> Fused:
    evidence, confidence = _weighed_evidence(logits)
    return Fused(softmax(evidence), confidence)


def _transductive(logits: Logits) -> Fused:
    evidence, confidence = _weighed_evidence(logits)
    images = [i for i, expert in enumerate(logits.found.experts) if expert.modality == "image"]
    vectors = [logits.found.queries[logits.found.experts[i].encoder] for i in images]
    return Fused(softmax(transduce(evidence, vectors, logits.shares[images])), confidence)


STRATEGIES: Mapping[str, Strategy] = {
    "max_confidence": Strategy(
        function=partial(_by_confidence, max_confidence),
        summary="mean of the experts' distributions, weighted by their largest probability (paper, option 1)",
    ),
    "inverse_entropy": Strategy(
        function=partial(_by_confidence, inverse_entropy),
        summary="mean of the experts' distributions, weighted by 1 / entropy (paper, option 2 and its default)",
    ),
    "neg_exp_entropy": Strategy(
        function=partial(_by_confidence, neg_exp_entropy),
        summary="mean of the experts' distributions, weighted by exp(-entropy) (paper, option 3)",
    ),
    "fixed": Strategy(
        function=_fixed,
        summary="mean of the experts' distributions, by the weights of the settings (paper)",
    ),
    "log_linear": Strategy(
        function=_log_linear,
        summary="sum of the experts' evidence, by coefficients that calibration learns",
        several_aggregations=False,
    ),
    "log_linear_views": Strategy(
        function=_log_linear,
        summary="sum of the evidence of two aggregations of each expert; without a calibration, log_linear",
        needs_exact=True,
        needs_calibration=True,
        fallback="log_linear",
    ),
    "log_linear_gda": Strategy(
        function=_log_linear,
        summary="sum of the evidence of texts, centred prototypes and Gaussian discriminants; log_linear_views where a "
        "category has fewer than three images",
        classwise=True,
        needs_classwise=True,
        needs_exact=True,
        needs_calibration=True,
        needs_images=True,
        fallback="log_linear_views",
    ),
    "transductive": Strategy(
        function=_transductive,
        summary="log_linear_gda, or what runs in its place, and the images of a batch help each other",
        classwise=True,
        needs_images=True,
        joint=True,
        fallback="log_linear_gda",
    ),
}
"""By name, in the order of the documentation."""
