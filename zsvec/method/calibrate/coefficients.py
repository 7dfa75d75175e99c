"""Learns temperatures, coefficients and the scale of evidence by least cross-entropy on labelled images.

- The *temperature* of an expert is fitted on left-out images (Guo et al., 2017). Without left-out images (one reference
  per category), the temperature is the *spread*: the standard deviation of an image's similarities to wrong categories.
  With few pairs of categories, the spread is shrunk towards the profile's temperature.
- The *coefficients* of a pool are positive, and shrunk towards equal weights of the experts. Only the coefficient of
  the logarithm of a category's number of references can have either sign; it is shrunk towards 0. This coefficient
  corrects a bias: the mean similarity to the nearest references and the cosine to the mean reference grow with the
  number of references, regardless of the image.
- The *scale* is one factor of all evidence, fitted on labelled images from the place where a classifier is used.
  Probabilities that were calibrated on references are overconfident for images of lower quality: blurred, dark, noisy.

Some references have a wrong label. Without the *noise*, the learned fraction of uninformative labels, such references
would shrink all coefficients (compare the lapse rate in psychophysics: Wichmann & Hill, 2001). Categories have equal
weight, regardless of their number of references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles, Floats, slices
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibration import LOG_COUNT, Calibration, ExpertCalibration, LabelModel, LogLinear
from zsvec.method.predict.logits import logsumexp

WIDEST = 100.0
"""Maximum factor between a positive coefficient and its prior's median; limit on the size of other coefficients."""
# Relative stiffness of the prior of coefficients of either sign. Leaving out an image lowers its category's number of
# references, so a large coefficient of this number would reveal the category.
_STIFF = 4.0
_BLOCK = 2**20  # double-precision logits that fit the cache
# Wrong labels are assumed only if they explain the images significantly better (likelihood-ratio test at 5 %).
# Otherwise, noise would explain mistakes on a few difficult images, and probabilities would be overconfident.
_SIGNIFICANT = 2.0  # nats
_LOW_NOISE = 0.02  # initial noise of the search
_LOGIT = 12.0  # limit on the size of the logit of the noise
# High noise or small coefficients can explain many wrong labels, and both explanations are local minima. If at most
# this fraction of images is classified correctly, the search runs again from high noise and larger coefficients.
_MOSTLY = 0.75
_HIGH_NOISE = 0.5
_LARGER = 4.0

_PAIRS = 20  # number of category pairs at which the measured spread and the profile's temperature weigh the same
_CLEAN_EXPERT = 8.0  # images; more than for a pool, because one expert alone often contradicts a right label
_CLEAN_POOL = 4.0  # images
_NEVER = -1e4  # logit of an impossible category
_ROUNDING = 1e-6  # largest spread that is due to rounding

_WIDEST_SCALE = 20.0  # maximum factor by which the evidence changes
_SCALE_SHRINKAGE = 4.0  # weight of the squared log factor, so that few images change the scale little


def least_cross_entropy(
    logits: NDArray[np.floating], truth: NDArray[np.intp], start: Doubles, clean_images: float
) -> tuple[Doubles, Doubles, float]:
    """Finds the coefficients and the noise with the least cross-entropy, given priors.

    The cross-entropy is averaged over the images of each category, then over categories.

    Args:
        logits: float ``(n_features, n_images, n_categories)``; features with a positive coefficient first.
        truth: int ``(n_images,)``, column index of each image's category.
        start: float64 ``(n_positive,)``, median of the log-normal prior of each positive coefficient.
        clean_images: Strength of the prior of the noise, Beta(1, 1 + ``clean_images``). The prior counts like
            ``clean_images`` additional images with the right label.

    Returns:
        The positive coefficients, the coefficients of either sign, and the noise; about 0 unless it is significant.
    """
    from scipy.optimize import minimize  # slow to import, and not needed to classify

    n_positive, n_categories = len(start), logits.shape[2]
    prior = np.concatenate([np.log(start), np.zeros(len(logits) - n_positive)])
    right = logits[:, np.arange(len(truth)), truth].astype(np.float64)
    n_of = np.bincount(truth)
    stiff = np.append(np.ones(n_positive), np.full(len(logits) - n_positive, _STIFF))
    share = len(truth) / np.count_nonzero(n_of) / n_of[truth]
    blocks = list(slices(len(truth), max(1, _BLOCK // (len(logits) * n_categories))))

    def weights_of(free: Doubles) -> Doubles:
        return np.concatenate([np.exp(free[:n_positive]), free[n_positive:-1]])

    def cost(free: Doubles) -> tuple[float, Doubles]:
        weight = weights_of(free)
        clean, lapse = 1 / (1 + np.exp(free[-1])), 1 / (1 + np.exp(-free[-1]))
        total, expected = np.empty(len(truth)), np.empty((len(logits), len(truth)))
        for block in blocks:
            some = logits[:, block].astype(np.float64)
            fused = np.tensordot(weight, some, axes=1)
            total[block] = logsumexp(fused)
            expected[:, block] = np.einsum("nc,vnc->vn", np.exp(fused - total[block, None]), some)
        own = clean * np.exp(weight @ right - total)
        said = own + lapse / n_categories
        by_weight = (expected - right) @ (share * own / said)
        by_weight[:n_positive] *= weight[:n_positive]
        off = (free[:-1] - prior) * stiff
        by_noise = clean_images * lapse - clean * lapse * (share / said) @ (1 / n_categories - own / clean)
        return (
            float(off @ off - share @ np.log(said) - clean_images * np.log(clean)),
            np.append(by_weight + 2 * off * stiff, by_noise),
        )

    widest = [np.log(WIDEST)] * n_positive + [WIDEST] * (len(prior) - n_positive)
    limits = [(p - w, p + w) for p, w in zip(prior, widest, strict=True)]

    def search(first: Doubles, noise: float, largest: float = _LOGIT) -> Any:
        tried = np.append(first, min(largest, np.log(noise / (1 - noise))))
        return minimize(cost, tried, jac=True, method="L-BFGS-B", bounds=[*limits, (-_LOGIT, largest)])

    def accuracy(weight: Doubles) -> float:
        best = [np.tensordot(weight, logits[:, block], axes=1).argmax(axis=1) for block in blocks]
        return float((np.concatenate(best) == truth).mean())

    clean = search(prior, _LOW_NOISE, -_LOGIT)
    noisy = search(clean.x[:-1], _LOW_NOISE)
    if accuracy(weights_of(clean.x)) <= _MOSTLY:
        larger = prior + np.append(np.full(n_positive, np.log(_LARGER)), np.zeros(len(prior) - n_positive))
        noisy = min(noisy, search(larger, _HIGH_NOISE), key=lambda result: float(result.fun))
    prior_of_noise = clean_images * np.log1p(np.exp(noisy.x[-1]))  # no part of the likelihood
    effective = len(truth) / (share @ share)  # fraction of the images that an even sample needs (Kish, 1965)
    found = noisy if effective * (clean.fun - noisy.fun + prior_of_noise) > _SIGNIFICANT else clean
    positive, free = np.split(weights_of(found.x), [n_positive])
    return positive, free, float(1 / (1 + np.exp(-found.x[-1])))


def calibrate_expert(similarity: Floats, labels: NDArray[np.intp], default: float) -> ExpertCalibration:
    """Learns the temperature and measures the accuracy of one expert.

    Args:
        similarity: float32 ``(n_images, n_categories)``, of left-out reference images to each category. NaN if the
            expert has no reference of the category outside the scene of the image, or no vector of the image.
        labels: int ``(n_images,)``, column index of each image's category.
        default: The profile's temperature.
    """
    own = np.take_along_axis(similarity, labels[:, None], axis=1)[:, 0]
    wrong = similarity.copy()
    wrong[np.arange(len(labels)), labels] = np.nan
    spread = _drawn_spread(wrong, labels, default)
    present = wrong[np.isfinite(wrong)]
    mean = float(present.mean(dtype=np.float64)) if present.size else None
    usable = ~np.isnan(own) & ~np.isnan(wrong).all(axis=1)
    if not usable.any():
        return ExpertCalibration(spread, spread, 0, None, mean)
    logits = np.where(np.isnan(similarity[usable]), np.float32(_NEVER * spread), similarity[usable])
    truth = labels[usable]
    accuracy = float((logits.argmax(axis=1) == truth).mean())
    (weight,), _, _ = least_cross_entropy(logits[None] / spread, truth, np.ones(1), _CLEAN_EXPERT)
    return ExpertCalibration(float(spread / weight), spread, len(truth), accuracy, mean)


def _drawn_spread(wrong: Floats, labels: NDArray[np.intp], default: float) -> float:
    """Returns the spread, shrunk towards the default. The fewer pairs of categories, the stronger the shrinkage."""
    spread = _spread(wrong)
    if spread <= _ROUNDING:
        return default
    pairs = sum((~np.isnan(wrong[labels == own])).any(axis=0).sum() for own in np.unique(labels))
    trust = pairs / (pairs + _PAIRS)
    return float(np.exp(trust * np.log(spread) + (1 - trust) * np.log(default)))


def _spread(wrong: Floats) -> float:
    """Returns the standard deviation of an image's similarities to wrong categories.

    If each image has only one wrong category, the standard deviation is taken over all images.
    """
    several = np.flatnonzero((~np.isnan(wrong)).sum(axis=1) > 1)
    if several.size:
        return float(np.sqrt(np.mean([np.nanvar(wrong[row], dtype=np.float64) for row in several])))
    present = wrong[np.isfinite(wrong)]
    return float(present.std(dtype=np.float64)) if present.size else 0.0


def learn_coefficients(
    sample: LeftOut, fitted: Mapping[tuple[str, str], ExpertCalibration], aggregations: Mapping[str, Sequence[str]]
) -> LogLinear:
    """Learns a pool of some aggregations of each expert, without neutral evidence and thresholds.

    Args:
        sample: Left-out images.
        fitted: Temperature and spread, by expert and aggregation.
        aggregations: Names of the aggregations, by expert.
    """
    experts = list(aggregations)
    keys = [(expert, name) for expert, names in aggregations.items() for name in names]
    # Learned temperatures and spreads are different units: if any temperature cannot be learned, all units are spreads.
    # The exception is a learned temperature above the spread: it shows an expert worse than its spread suggests.
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
    learned = bool(tried.any()) and len(np.unique(labels)) > 1  # a choice needs two categories
    if learned:
        positive, free = np.split(tried, [len(keys)])
        logits = filled[np.ix_(tried, usable)]
        weights[positive], offsets[free], noise = least_cross_entropy(logits, labels, start[positive], _CLEAN_POOL)
    values: dict[str, dict[str, float]] = {}
    shares = dict.fromkeys(experts, 0.0)
    for (expert, name), weight, unit in zip(keys, weights, units, strict=True):
        values.setdefault(expert, {})[name] = float(weight / unit)
        shares[expert] += float(weight / unit) * fitted[expert, name].spread
    for (expert, name), offset in zip(counted, offsets, strict=True):
        values[expert][name] = float(offset)
    return LogLinear(values, learned=learned, noise=noise, shares=shares)


def _filled(features: Floats, sample: LeftOut, expert: Sequence[int]) -> tuple[Floats, NDArray[np.bool_]]:
    """Fills the columns of categories that an expert does not cover, in place.

    The value is the log-mean-exp of the feature over wrong categories.

    Returns:
        The features; and bool ``(n_features,)``, whether the feature has a value for any wrong category.
    """
    wrong = sample.labels[:, None] != np.arange(len(sample.categories))
    tried = np.zeros(len(features), dtype=bool)
    for row, coverage in enumerate(sample.coverage[list(expert)]):
        tried[row] = (wrong & ~np.isnan(features[row])).any()
        if tried[row] and not coverage.all():
            seen = features[row][wrong & ~np.isnan(features[row])].astype(np.float64)
            features[row][:, ~coverage] = logsumexp(seen) - np.log(seen.size)
    return features, tried


def fit_scale(evidence: Doubles, labels: NDArray[np.intp]) -> float:
    """Returns the factor of the evidence with the least cross-entropy, shrunk towards 1.

    Args:
        evidence: float64 ``(n_images, n_categories)``, nats.
        labels: int ``(n_images,)``, column index of each image's category.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and not needed to classify

    own = evidence[np.arange(len(labels)), labels]

    def cost(log_scale: float) -> float:
        scale = np.exp(log_scale)
        return float((logsumexp(scale * evidence) - scale * own).sum() + _SCALE_SHRINKAGE * log_scale**2)

    limit = np.log(_WIDEST_SCALE)
    return float(np.exp(minimize_scalar(cost, bounds=(-limit, limit), method="bounded").x))


def scaled(calibration: Calibration, factor: float) -> Calibration:
    """Returns a calibration with all evidence multiplied by a factor. Decisions on images and labels stay the same."""
    return replace(
        calibration,
        plain=_scaled_pool(calibration.plain, factor),
        aggregations=_scaled_pool(calibration.aggregations, factor),
        classwise=calibration.classwise and _scaled_pool(calibration.classwise, factor),
        scale=calibration.scale * factor,
        cascade={
            encoder: replace(one, calibration=scaled(one.calibration, factor))
            for encoder, one in calibration.cascade.items()
        },
    )


def _scaled_pool(pool: LogLinear, factor: float) -> LogLinear:
    return replace(
        pool,
        coefficients={expert: _times(names, factor) for expert, names in pool.coefficients.items()},
        neutral=_times(pool.neutral, factor),
        least=None if pool.least is None else factor * pool.least,
        thresholds=_times(pool.thresholds, factor),
        category_thresholds=_times(pool.category_thresholds, factor),
        early={name: [factor * threshold, share] for name, (threshold, share) in pool.early.items()},
        shares=_times(pool.shares, factor),
        quantiles={name: [factor * value for value in values] for name, values in pool.quantiles.items()},
        labels=pool.labels and _scaled_labels(pool.labels, factor),
    )


def _scaled_labels(model: LabelModel, factor: float) -> LabelModel:
    """Returns a model that gives the same probabilities for evidence that is multiplied by a factor."""
    return replace(model, own=model.own / factor, mean=model.mean / factor, largest=model.largest / factor)


def _times(values: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in values.items()}
