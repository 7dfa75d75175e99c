"""Learns which images one encoder settles alone, so that the other encoders need not run (setting ``cascade``).

Every left-out image is classified by all encoders, and by one encoder alone. If the encoder settled images above some
log odds, the answers of a fraction of all images would be others. The learned limit is the smallest for which this
fraction is at most `DISAGREEMENT` if one more image has another answer: conformal risk control (Angelopoulos et al.,
ICLR 2024, arXiv 2208.02814). So the expected fraction is about `DISAGREEMENT` at most for new images that are like the
references. The promise is not exact, because the same images also fit the calibrations.

An answer is a category or ``unknown``. Images of no category are not among the references. Therefore an encoder settles
only images with more evidence than a quarter of the left-out images. Few images of no category have as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibration import Calibration, CascadeRule, LogLinear
from zsvec.method.predict.candidates import log_odds
from zsvec.method.predict.fusion import STRATEGIES, strategy_to_run
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear, pattern
from zsvec.types import encoder_and_modality

DISAGREEMENT = 0.01
"""Largest expected fraction of images that have another answer than with all encoders."""

_BELOW = 0.25  # fraction of the left-out images with so little evidence that all encoders classify them
_ROUNDING = 1e-9
_UNKNOWN = -1


def learn_cascade(
    calibration: Calibration,
    sample: LeftOut,
    fit: Callable[[LeftOut], Calibration],
    strategy: str,
) -> dict[str, CascadeRule]:
    """Learns the rule of each encoder.

    Args:
        calibration: Calibration of all experts.
        sample: The left-out images that the calibration was learned from.
        fit: Returns the calibration of some experts of the sample.
        strategy: Name of the log-linear strategy that classifies.

    Returns:
        The rule by encoder. Encoders that settle nothing are missing: there are too few references, the calibration has
        no threshold, or an expert does not cover every category.
    """
    encoders = dict.fromkeys(encoder_and_modality(expert)[0] for expert in sample.aggregations)
    if len(encoders) < 2 or not sample.coverage.all():
        return {}
    shares = sample.shares
    everyone = _answers(sample, *_pools(calibration, strategy)[1:])
    found = {}
    for encoder in encoders:
        part = sample.of([expert for expert in sample.aggregations if encoder_and_modality(expert)[0] == encoder])
        made = fit(part)
        fusion, *of_one = _pools(made, strategy)
        by_one = _answers(part, *of_one)
        if everyone is None or by_one is None:
            continue
        (answers, odds_of_all, _), (own, odds, above) = everyone, by_one
        known = ~(np.isnan(odds) | np.isnan(odds_of_all))
        least = float(np.quantile(above[known], _BELOW)) if known.any() else 0.0
        if least <= 0:
            continue
        ready = known & (above >= least)
        limit = least_odds(odds[ready], shares[ready] * (own != answers)[ready], float(shares[known].sum()))
        if limit is not None and (settled := ready & (odds >= limit)).any():
            found[encoder] = CascadeRule(made, fusion, limit, least, float(shares[settled].sum() / shares[known].sum()))
    return found


def least_odds(odds: Doubles, differs: Doubles, total: float) -> float | None:
    """Returns the smallest log odds from which on an encoder may settle images.

    Args:
        odds: float64 ``(n,)``, of the images that the encoder may settle, nats.
        differs: float64 ``(n,)``, the weight of each image that has another answer by all encoders, 0 to 1; 0 for the
            rest. The images of a scene together weigh 1, because they are not independent.
        total: Weight of all images.

    Returns:
        ``None`` if no image may be settled.
    """
    allowed = DISAGREEMENT * (total + 1) - 1 + _ROUNDING
    if allowed < 0 or not odds.size:
        return None
    order = np.argsort(-odds)
    beyond = np.flatnonzero(np.cumsum(differs[order]) > allowed)
    above = odds[odds > odds[order[beyond[0]]]] if beyond.size else odds
    return float(above.min()) if above.size else None


def _pools(calibration: Calibration, strategy: str) -> tuple[str, LogLinear, LogLinear]:
    """Returns the strategy that runs, and the pools for fusion and for novelty, as `fusion.choose_strategy` does."""
    runs = strategy_to_run(strategy, classwise=calibration.classwise is not None)
    pool = calibration.aggregations if STRATEGIES[runs].several_aggregations else calibration.plain
    return runs, calibration.classwise if calibration.classwise and STRATEGIES[runs].classwise else pool, pool


def _answers(
    sample: LeftOut, pool: LogLinear, novelty_pool: LogLinear
) -> tuple[NDArray[np.intp], Doubles, Doubles] | None:
    """Returns the answer to each image, its log odds, and the evidence above the threshold, nats.

    Images without complete evidence have NaN. ``None`` without a threshold or without complete evidence for any image.
    """
    experts, pools = list(sample.aggregations), (pool, novelty_pool)
    threshold = novelty_pool.thresholds.get(pattern(experts, np.ones(len(experts), dtype=bool)))
    found = [expert_evidence(_of(p, experts), sample.aggregations, p.least) for p in pools]
    complete = np.logical_and.reduce([sample.complete(evidence) for evidence in found])
    if threshold is None or not complete.any():
        return None
    # Only complete images, because log_linear takes the coverage of all images from the first one.
    evidence, of_novelty = (log_linear(e[:, complete], experts, p.neutral) for e, p in zip(found, pools, strict=True))
    best = evidence.argmax(axis=1)
    answers = np.full(len(complete), _UNKNOWN)
    odds, above = np.full((2, len(complete)), np.nan)
    odds[complete] = log_odds(evidence, np.arange(len(best)), best)
    above[complete] = of_novelty.max(axis=1) - threshold
    answers[complete] = np.where(above[complete] < 0, _UNKNOWN, best)
    return answers, odds, above


def _of(pool: LogLinear, experts: list[str]) -> Mapping[str, Mapping[str, float]]:
    return {expert: pool.coefficients[expert] for expert in experts}
