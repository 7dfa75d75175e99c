"""The fusion strategies: functions from the logits of the experts to one distribution per image.

The paper's fusion (section 3.3) is the sum of the experts' distributions, weighted by confidence. An expert may cover
only some categories. Its distribution is then over these categories, and does not tell how likely the other categories
are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.calibration import Calibration, LogLinear, uncalibrated
from zsvec.method.predict.logits import Logits, entropy, softmax
from zsvec.method.predict.opinion_pool import log_linear
from zsvec.method.predict.transduction import transduce
from zsvec.method.similarities import SearchResult

_SILENT = 1e-6  # confidence of an expert that covers fewer than two categories
_RESTART = 1e-15  # probability of a step to any expert, so that experts without a common category count equally


@dataclass(frozen=True, slots=True)
class Fused:
    """Result of a strategy.

    Attributes:
        probabilities: float64 ``(n_images, n_categories)``; rows sum to 1.
        confidence: float64 ``(n_experts, n_images)``, weight of each expert, not negative.
    """

    probabilities: Doubles
    confidence: Doubles


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A fusion function and its requirements.

    Attributes:
        function: Fuses the logits of the experts.
        summary: One line for help and documentation.
        several_aggregations: Whether the evidence, and hence the novelty, combines several aggregations of each expert.
            This requires a calibration, and that every reference was compared.
        classwise: Whether the strategy fuses evidence from category means if the calibration has coefficients for
            category means. Novelty never uses this evidence.
        needs_classwise: Whether coefficients for category means are required.
        needs_exact: Whether every image must have been compared with every reference.
        needs_calibration: Whether a calibration is required.
        needs_images: Whether at least one expert must compare images with images.
        joint: Whether the result for an image depends on the other images of its batch.
        fallback: The strategy that runs if a requirement is not met.
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
    """Chooses the strategy that runs, and the pools that combine the evidence.

    Args:
        name: The wanted strategy, a name in `STRATEGIES`.
        found: The result of the search.
        calibration: The calibration in use, if any.
        temperatures: Temperature of each expert; used only without a calibration.
        aggregation: A name in `reference_aggregation.AGGREGATIONS`; used only without a calibration.

    Returns:
        The name of the strategy, as `strategy_to_run` returns it. Then the pool for fusion, and the pool for novelty.
    """
    exact = found.exact
    images = any(expert.modality == "image" for expert in found.experts)
    wanted = calibration.classwise if calibration and exact and STRATEGIES[name].classwise else None
    classwise = wanted if wanted and calibration and found.summed_up(wanted, calibration.backgrounds) else None
    calibrated = calibration is not None
    name = strategy_to_run(name, exact=exact, calibrated=calibrated, images=images, classwise=classwise is not None)
    if calibration is None:
        pool = uncalibrated({expert.name: temperatures[expert.name] for expert in found.experts}, aggregation)
        return name, pool, pool
    # One of two aggregations is the prototype, which needs the similarities to all references.
    several = exact and STRATEGIES[name].several_aggregations
    pool = calibration.aggregations if several else calibration.plain
    return name, classwise if classwise and STRATEGIES[name].classwise else pool, pool


def strategy_to_run(
    name: str, *, exact: bool = True, calibrated: bool = True, images: bool = True, classwise: bool = True
) -> str:
    """Returns the name of the strategy that runs: the wanted one, or its first fallback that has all it needs.

    Args:
        name: The wanted strategy, a name in `STRATEGIES`.
        exact: Whether every image is compared with every reference.
        calibrated: Whether there is a calibration.
        images: Whether an expert compares images with images.
        classwise: Whether the calibration has coefficients for category means, and the means are known.
    """
    strategy = STRATEGIES[name]
    while strategy.fallback and (
        (strategy.needs_exact and not exact)
        or (strategy.needs_calibration and not calibrated)
        or (strategy.needs_images and not images)
        or (strategy.needs_classwise and not classwise)
    ):
        name, strategy = strategy.fallback, STRATEGIES[strategy.fallback]
    return name


def max_confidence(probabilities: Doubles) -> Doubles:
    """Returns the largest probability (paper, option 1), float64 ``(...,)``, 0 to 1."""
    largest: Doubles = probabilities.max(axis=-1)
    return largest


def inverse_entropy(probabilities: Doubles) -> Doubles:
    """Returns 1 / (H + 1e-6), H in nats (paper, option 2 and its default), float64 ``(...,)``."""
    return 1.0 / (entropy(probabilities) + 1e-6)


def neg_exp_entropy(probabilities: Doubles) -> Doubles:
    """Returns exp(-H), H in nats (paper, option 3), float64 ``(...,)``, 0 to 1."""
    return np.exp(-entropy(probabilities))


def confidences(
    probabilities: Doubles, coverage: NDArray[np.bool_], confidence: Callable[[Doubles], Doubles]
) -> Doubles:
    """Returns the weight of each expert for each image.

    Args:
        probabilities: float64 ``(n_experts, n_images, n_categories)``, from `softmax`.
        coverage: bool ``(n_experts, n_categories)``, whether the expert has references of the category.
        confidence: Function that maps each distribution to a positive number, such as `inverse_entropy`.

    Returns:
        float64 ``(n_experts, n_images)``, positive. An expert that covers fewer than two categories compares nothing,
        so its weight is negligible.
    """
    weight = confidence(probabilities)
    weight[coverage.sum(axis=1) < 2] = _SILENT
    return weight


def fuse(probabilities: Doubles, coverage: NDArray[np.bool_], confidence: Doubles) -> Doubles:
    """Fuses the distributions of the experts, weighted by confidence.

    If every expert covers every category, the result is the paper's sum of confidence × probability, normalised.
    Otherwise, a category must neither lose nor gain because an expert has no reference of it. So each expert ``e``,
    with distribution ``p_e`` and confidence ``w_e``, redistributes only the probability that the result ``q`` gives to
    the categories ``K_e`` that the expert covers:

        q(c) · Σ_{e covers c} w_e  =  Σ_{e covers c} w_e · p_e(c) · q(K_e)

    This ``q`` is the stationary distribution of a Markov chain over the categories. Each step picks an expert by
    confidence; if the expert covers the present category, the expert draws the next category. The solution is exact,
    and computed from an equivalent chain over the experts, which are few.

    Args:
        probabilities: float64 ``(n_experts, n_images, n_categories)``, from `softmax`.
        coverage: bool ``(n_experts, n_categories)``; every expert covers at least one category.
        confidence: float64 ``(n_experts, n_images)``, positive.

    Returns:
        float64 ``(n_images, n_categories)``; rows sum to 1. A category that no expert covers has probability 0.
    """
    if coverage.all():
        fused = np.einsum("en,enc->nc", confidence, probabilities)
    else:
        covered = coverage.astype(np.float64)
        total = confidence.T @ covered  # (n_images, n_categories)
        share = np.divide(probabilities, total, out=np.zeros_like(probabilities), where=total > 0)
        common = share @ covered.T  # (n_experts, n_images, n_experts)
        handover = np.einsum("enf,fn->nef", common + _RESTART / confidence.sum(axis=0)[None, :, None], confidence)
        fused = np.einsum("ne,enc->nc", _stationary(handover), share)
    normalised: Doubles = fused / fused.sum(axis=1, keepdims=True)
    return normalised


def _stationary(transitions: Doubles) -> Doubles:
    """Returns the stationary distributions of small Markov chains, float64 ``(n, k, k)`` → ``(n, k)``.

    Uses the elimination of Grassmann, Taksar and Heyman (1985). It has no subtractions, so the result stays accurate
    for confidences that differ by many orders of magnitude.
    """
    chain = transitions.copy()
    k = chain.shape[1]
    for last in range(k - 1, 0, -1):
        leaving = chain[:, last, :last].sum(axis=1, keepdims=True)
        chain[:, :last, last] /= leaving
        chain[:, :last, :last] += chain[:, :last, last, None] * chain[:, last, None, :last]
    out = np.zeros(chain.shape[:2])
    out[:, 0] = 1.0
    for state in range(1, k):
        out[:, state] = (out[:, :state] * chain[:, :state, state]).sum(axis=1)
    stationary: Doubles = out / out.sum(axis=1, keepdims=True)
    return stationary


def _by_confidence(confidence: Callable[[Doubles], Doubles], logits: Logits) -> Fused:
    """The paper's fusion: the mean of the distributions, weighted by confidence."""
    weight = confidences(logits.probabilities, logits.coverage, confidence)
    return Fused(fuse(logits.probabilities, logits.coverage, weight), weight)


def limit(probabilities: Doubles, largest: Doubles, covered: NDArray[np.bool_]) -> Doubles:
    """Returns distributions without a probability above a limit, by mixing them with the uniform distribution.

    Args:
        probabilities: float64 ``(n_images, n_categories)``; rows sum to 1.
        largest: float64 ``(n_images,)``, the limit, from 1 / n_covered to 1.
        covered: bool ``(n_categories,)``, whether any expert covers the category. Others keep the probability 0.
    """
    uniform = covered / np.count_nonzero(covered)
    most = probabilities.max(axis=1)
    excess = np.maximum(most - np.maximum(largest, uniform.max()), 0.0)  # the limit may have been rounded down
    if not excess.any():
        return probabilities
    share = np.divide(excess, most - uniform.max(), out=np.zeros_like(excess), where=excess > 0)[:, None]
    mixed: Doubles = (1 - share) * probabilities + share * uniform
    return mixed


def _fixed(logits: Logits) -> Fused:
    return _by_confidence(lambda p: np.repeat(logits.weights[:, None], p.shape[1], axis=1), logits)


def _weighed_evidence(logits: Logits) -> tuple[Doubles, Doubles]:
    """Returns the evidence, ``(n_images, n_categories)``, and each expert's confidence, ``(n_experts, n_images)``."""
    n_experts, n_images, _ = logits.evidence.shape
    confidence = logits.shares[:, None].repeat(n_images, axis=1)
    if logits.pool.learned or n_experts == 1:
        return logits.pooled, confidence
    # Without learned coefficients, each image has its own weights (paper, option 3).
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
        summary="sum of the evidence of texts, centred prototypes and Gaussian discriminants; log_linear_views if most "
        "categories have no image, or none has three",
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
"""Strategies by name, in the order of the documentation."""
