"""Tells which images one encoder settles alone. `zsvec.method.calibrate.cascade` learns the rule."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zsvec.method.calibration import CascadeRule
from zsvec.method.predict.candidates import log_odds
from zsvec.method.predict.fusion import strategy_to_run
from zsvec.method.predict.scoring import Scores

CASCADED = ("log_linear_gda", "log_linear_views", "log_linear")
"""Strategies with a cascade: the others weigh the experts of each image anew, or compare images with each other."""

_TINY = np.finfo(np.float64).tiny


def fractions(rules: Mapping[str, CascadeRule], fusion: str, *, exact: bool) -> dict[str, float]:
    """Returns by encoder the fraction of images that it settles alone, 0 to 1.

    An encoder is missing if its rule was learned for another strategy than the present one.

    Args:
        rules: The rule of each encoder.
        fusion: The wanted strategy, a name in `CASCADED`.
        exact: Whether every image is compared with every reference.
    """
    return {
        name: rule.settled
        for name, rule in rules.items()
        if rule.fusion == strategy_to_run(fusion, exact=exact, classwise=rule.calibration.classwise is not None)
    }


def settled(scores: Scores, rule: CascadeRule) -> NDArray[np.bool_]:
    """Returns whether each image needs no other encoder, bool ``(n_images,)``.

    Args:
        scores: Scores of the images by `CascadeRule.calibration`.
        rule: The rule of the encoder. It settles nothing under another strategy, or if categories have changed since.
    """
    if scores.fusion != rule.fusion or scores.calibration != "current":
        return np.zeros(len(scores.fused), dtype=bool)
    scale = rule.calibration.scale  # the rule was learned from evidence before scaling
    evidence = np.log(np.maximum(scores.fused, _TINY)) / scale
    odds = log_odds(evidence, np.arange(len(evidence)), evidence.argmax(axis=1))
    novelty = np.clip(scores.novelty, _TINY, 1 - np.finfo(np.float64).eps)
    above = (np.log1p(-novelty) - np.log(novelty)) / scale  # the inverse of `novelty.novelty`
    found: NDArray[np.bool_] = (odds >= rule.odds) & (above >= rule.above) & ~scores.unknown
    return found
