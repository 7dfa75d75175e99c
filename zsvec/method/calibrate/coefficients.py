"""What a unit of each similarity is worth in nats: the coefficients of a pool, by cross-entropy on left-out images.

- The coefficients of similarities are positive, and drawn towards equal weights of the experts.
- The coefficient of the logarithm of a category's number of references has either sign, and is drawn towards 0: the
  mean of the nearest references and the cosine to their mean both grow with their number, whatever they show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats
from zsvec.method.calibrate.cross_entropy import least_cross_entropy
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibration import LOG_COUNT, ExpertCalibration
from zsvec.method.predict.logits import logsumexp

Evidence = tuple[str, str]
"""An expert and an aggregation."""

_CLEAN = 4.0  # images that speak against noise


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What was learned.

    Attributes:
        values: By expert and aggregation, nats per unit of similarity.
        noise: Fraction of the references whose label says nothing, 0 to 1.
        learned: Whether there were examples to learn from; if not, all experts weigh the same.
        shares: By expert, as `LogLinear.shares`.
    """

    values: Mapping[str, Mapping[str, float]]
    noise: float
    learned: bool
    shares: Mapping[str, float]


def learn_coefficients(
    sample: LeftOut, fitted: Mapping[Evidence, ExpertCalibration], aggregations: Mapping[str, Sequence[str]]
) -> Coefficients:
    """The coefficients of some aggregations of each expert.

    Args:
        sample: Left-out images.
        fitted: The temperature and the spread of each expert and aggregation.
        aggregations: By expert.
    """
    experts = list(aggregations)
    keys = [(expert, name) for expert, names in aggregations.items() for name in names]
    # A temperature that was learned and one that is a spread are no units of the same kind: where one cannot be
    # learned, all are spreads. But a learned one that is larger says that an expert is worse than it looks.
    untold = any(fitted[key].images == 0 for key in keys)
    units = [max(fitted[key].spread, fitted[key].temperature) if untold else fitted[key].temperature for key in keys]
    count = Counter(expert for expert, _ in keys)
    start = np.array([1 / (count[expert] * np.sqrt(len(experts))) for expert, _ in keys])
    counted = [(expert, LOG_COUNT) for expert in experts if sample.uneven(expert)]
    features = np.stack([sample.aggregations[expert][name] for expert, name in (*keys, *counted)])
    features[: len(keys)] /= np.array(units, dtype=np.float32)[:, None, None]
    row_of = {expert: row for row, expert in enumerate(sample.aggregations)}
    filled, tried = _filled(features, sample, [row_of[expert] for expert, _ in (*keys, *counted)])
    usable = ~np.isnan(filled[tried]).any(axis=(0, 2))
    labels = sample.labels[usable]
    weights, offsets, noise = start.copy(), np.zeros(len(counted)), 0.0
    learned = bool(tried.any()) and len(np.unique(labels)) > 1  # of one category, it would always be that one
    if learned:
        positive, free = np.split(tried, [len(keys)])
        logits = filled[np.ix_(tried, usable)]
        weights[positive], offsets[free], noise = least_cross_entropy(logits, labels, start[positive], _CLEAN)
    values: dict[str, dict[str, float]] = {}
    shares = dict.fromkeys(experts, 0.0)
    for (expert, name), weight, unit in zip(keys, weights, units, strict=True):
        values.setdefault(expert, {})[name] = float(weight / unit)
        shares[expert] += float(weight / unit) * fitted[expert, name].spread
    for (expert, name), offset in zip(counted, offsets, strict=True):
        values[expert][name] = float(offset)
    return Coefficients(values, noise, learned, shares)


def _filled(features: Floats, sample: LeftOut, expert: Sequence[int]) -> tuple[Floats, NDArray[np.bool_]]:
    """Features in which an expert says of a category that it does not cover what it says of wrong ones on average.

    Args:
        features: float32 ``(n_features, n_images, n_categories)``.
        sample: The left-out images.
        expert: Row in ``sample.coverage`` of each feature.

    Returns:
        The features, changed in place, and which of them could be tried on any image, bool ``(n_features,)``.
    """
    wrong = sample.labels[:, None] != np.arange(len(sample.categories))
    tried = np.zeros(len(features), dtype=bool)
    for row, coverage in enumerate(sample.coverage[list(expert)]):
        tried[row] = (wrong & ~np.isnan(features[row])).any()
        if tried[row] and not coverage.all():
            seen = features[row][wrong & ~np.isnan(features[row])].astype(np.float64)
            features[row][:, ~coverage] = logsumexp(seen) - np.log(seen.size)
    return features, tried
