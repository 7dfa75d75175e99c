"""One factor of all evidence, fitted on labelled images from where a classifier is used.

Probabilities that were calibrated on references are too sure of images that are worse than these: blurred, dark, noisy.
No number of images without labels tells how much. A few with labels do, since there is one number to be learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.calibration import Calibration, LogLinear
from zsvec.method.predict.logits import logsumexp

_WIDEST = 20.0  # factor by which the evidence may change
_SHRINKAGE = 4.0  # of the squared logarithm of the factor: few images move it little, if none is a confident mistake


def fit_scale(evidence: Doubles, labels: NDArray[np.intp]) -> float:
    """The factor of least cross-entropy, drawn towards 1.

    Args:
        evidence: float64 ``(n_images, n_categories)``, nats.
        labels: int ``(n_images,)``, the category of each image, as a column.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and not needed to classify

    own = evidence[np.arange(len(labels)), labels]

    def cost(log_scale: float) -> float:
        scale = np.exp(log_scale)
        return float((logsumexp(scale * evidence) - scale * own).sum() + _SHRINKAGE * log_scale**2)

    limit = np.log(_WIDEST)
    return float(np.exp(minimize_scalar(cost, bounds=(-limit, limit), method="bounded").x))


def scaled(calibration: Calibration, factor: float) -> Calibration:
    """A calibration by which all evidence is so many times as large; what is unknown stays so."""
    return replace(
        calibration,
        plain=scaled_pool(calibration.plain, factor),
        aggregations=scaled_pool(calibration.aggregations, factor),
        classwise=calibration.classwise and scaled_pool(calibration.classwise, factor),
        scale=calibration.scale * factor,
    )


def scaled_pool(pool: LogLinear, factor: float) -> LogLinear:
    """A pool by which all evidence is so many times as large."""
    return replace(
        pool,
        coefficients={expert: _times(names, factor) for expert, names in pool.coefficients.items()},
        neutral=_times(pool.neutral, factor),
        least=None if pool.least is None else factor * pool.least,
        thresholds=_times(pool.thresholds, factor),
        category_thresholds=_times(pool.category_thresholds, factor),
        shares=_times(pool.shares, factor),
        quantiles={name: [factor * value for value in values] for name, values in pool.quantiles.items()},
    )


def _times(values: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in values.items()}
