"""How the temperature of an expert is chosen: by cross-entropy on left-out images, drawn towards a spread.

It is the temperature of least cross-entropy (Guo et al., 2017), where some labels may be wrong.

The *spread* is the standard deviation of an image's similarities to wrong categories. Where no image can be
left out (one reference a category), the temperature is the spread; with few pairs of categories the spread
itself is drawn towards the profile's temperature.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats
from zsvec.method.calibrate.cross_entropy import least_cross_entropy
from zsvec.method.calibration import ExpertCalibration

_PAIRS = 20  # pairs of categories whose spread counts as much as the profile's temperature
_CLEAN = 8.0  # images that speak against noise: an expert alone is often wrong where the label is right
_NEVER = -1e4  # logit of what cannot be the answer
_ROUNDING = 1e-6  # a smaller spread is rounding


def calibrate_expert(similarity: Floats, labels: NDArray[np.intp], default: float) -> ExpertCalibration:
    """Temperature and accuracy of one expert.

    Args:
        similarity: float32 ``(n_images, n_categories)``, of left-out images; NaN where it cannot be told.
        labels: int ``(n_images,)``, the category of each image, as a column.
        default: The profile's temperature.
    """
    own = np.take_along_axis(similarity, labels[:, None], axis=1)[:, 0]
    wrong = similarity.copy()
    wrong[np.arange(len(labels)), labels] = np.nan
    spread = _drawn_spread(wrong, labels, default)
    usable = ~np.isnan(own) & ~np.isnan(wrong).all(axis=1)
    if not usable.any():
        return ExpertCalibration(spread if np.isfinite(wrong).any() else default, spread, 0, None)
    logits = np.where(np.isnan(similarity[usable]), np.float32(_NEVER * spread), similarity[usable])
    truth = labels[usable]
    accuracy = float((logits.argmax(axis=1) == truth).mean())
    (weight,), _, _ = least_cross_entropy(logits[None] / spread, truth, np.ones(1), _CLEAN)
    return ExpertCalibration(float(spread / weight), spread, len(truth), accuracy)


def _drawn_spread(wrong: Floats, labels: NDArray[np.intp], default: float) -> float:
    """The spread, drawn towards the default the more, the fewer pairs of categories it is told by."""
    spread = _spread(wrong)
    if spread <= _ROUNDING:
        return default
    pairs = sum((~np.isnan(wrong[labels == own])).any(axis=0).sum() for own in np.unique(labels))
    trust = pairs / (pairs + _PAIRS)
    return float(np.exp(trust * np.log(spread) + (1 - trust) * np.log(default)))


def _spread(wrong: Floats) -> float:
    """Standard deviation of an image's similarities to wrong categories, or over all images if each has one."""
    several = np.flatnonzero((~np.isnan(wrong)).sum(axis=1) > 1)
    if several.size:
        return float(np.sqrt(np.mean([np.nanvar(wrong[row], dtype=np.float64) for row in several])))
    present = wrong[np.isfinite(wrong)]
    return float(present.std(dtype=np.float64)) if present.size else 0.0
