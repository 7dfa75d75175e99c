"""What an experiment reports: accuracy, quality of probabilities, AUROC of unknown images, confusions, and intervals.

Pure functions of arrays; the order of the images does not matter to any of them. Calibration error is in
`zsvec.method.calibrate.fit`, its floor here. Images are rows, categories columns, and a label is the number of its
column.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zsvec.errors import InvalidInputError
from zsvec.method.calibrate.fit import expected_calibration_error

Doubles = NDArray[np.float64]
Labels = NDArray[np.intp]
Flags = NDArray[np.bool_]

_AT_ONCE = 2**16  # numbers that a bootstrap draws at once
_ROUNDING = 1e-6


def top_k(probabilities: Doubles, truth: Labels, k: int) -> Flags:
    """Whether the category of each image is among the first k of its ranking; the mean is the accuracy.

    Of equal probabilities the first column comes first. So does ``zsvec classify`` rank, whose columns
    are sorted by name: what it would print decides, and not the mean over the orders that a tie allows.

    Args:
        probabilities: float64 ``(n_images, n_categories)``, finite; any scores will do.
        truth: int ``(n_images,)``; -1 for a category that has no column, which is a miss.
        k: 1 or more.

    Returns:
        bool ``(n_images,)``.

    Source: Yin & Jiang (2024), section 4.2, with k of 1, 3 and 5.

    Raises:
        InvalidInputError: There are no images, the shapes differ, or a value is out of range.
    """
    if k < 1:
        raise InvalidInputError(f"k must be 1 or more. Got {k} instead")
    _check(probabilities, truth)
    own = np.take_along_axis(probabilities, np.maximum(truth, 0)[:, None], axis=1)
    earlier = np.arange(probabilities.shape[1]) < truth[:, None]
    before = np.count_nonzero((probabilities > own) | (earlier & (probabilities == own)), axis=1)
    hits: Flags = (before < k) & (truth >= 0)
    return hits


def negative_log_likelihood(probabilities: Doubles, truth: Labels) -> Doubles:
    """How surprising the category of each image is: -ln of its probability, in nats. Smaller is better.

    The mean over images judges probabilities as a whole: it is least where they are those of the categories.

    Args:
        probabilities: float64 ``(n_images, n_categories)``, 0 to 1; rows sum to 1.
        truth: int ``(n_images,)``; -1 for a category that has no column, whose probability is 0.

    Returns:
        float64 ``(n_images,)``, 0 to infinity, which is that of probability 0.

    Source: the logarithmic score of Good (1952); "NLL" of Guo et al. (2017).

    Raises:
        InvalidInputError: As `top_k`.
    """
    with np.errstate(divide="ignore"):
        surprise: Doubles = -np.log(true_probability(probabilities, truth))
    return surprise


def brier_score(probabilities: Doubles, truth: Labels) -> Doubles:
    """Squared distance of each image's probabilities from those of one who knows its category. Smaller is better.

    Args:
        probabilities: float64 ``(n_images, n_categories)``, 0 to 1; rows sum to 1.
        truth: int ``(n_images,)``; -1 for a category that has no column, whose probability is 0.

    Returns:
        float64 ``(n_images,)``, 0 to 2: the sum over the categories.

    Source: Brier (1950), of several classes.

    Raises:
        InvalidInputError: As `top_k`.
    """
    score: Doubles = (probabilities**2).sum(axis=1) - 2 * true_probability(probabilities, truth) + 1
    return score


def true_probability(probabilities: Doubles, truth: Labels) -> Doubles:
    """Probability of each image's category, float64 ``(n_images,)``; 0 where it has no column.

    Args:
        probabilities: float64 ``(n_images, n_categories)``, finite.
        truth: int ``(n_images,)``; -1 for a category that has no column.

    Raises:
        InvalidInputError: As `top_k`.
    """
    _check(probabilities, truth)
    own = np.take_along_axis(probabilities, np.maximum(truth, 0)[:, None], axis=1)[:, 0]
    return np.where(truth < 0, 0.0, own)


def calibration_floor(confidence: Doubles, simulations: int = 200, seed: int = 0) -> float:
    """Expected calibration error of answers that are right exactly as often as they are confident, by chance alone.

    An error of few images is never 0: this is what there would be of it if nothing were wrong with the
    probabilities. Each simulation draws for each image whether its answer is right, by its confidence.

    Args:
        confidence: float64 ``(n_images,)``, probabilities of the answers, 0 to 1.
        simulations: How many are averaged, 1 or more.
        seed: Of the draws: the same confidences, in whatever order, have the same floor.

    Returns:
        0 to 1; 0 where all answers are certain.

    Source: the consistency resampling of Bröcker & Smith (2007), for the error of Guo et al. (2017).

    Raises:
        InvalidInputError: There are no images, or an argument is out of range.
    """
    within = (confidence >= 0) & (confidence <= 1 + _ROUNDING)
    if confidence.ndim != 1 or not confidence.size or not within.all():
        raise InvalidInputError(f"confidence must be of shape (n_images,), from 0 to 1. Got {confidence} instead")
    if simulations < 1:
        raise InvalidInputError(f"simulations must be 1 or more. Got {simulations} instead")
    ordered, rng = np.sort(confidence), np.random.default_rng(seed)
    draws = (rng.random(len(ordered)) < ordered for _ in range(simulations))
    return float(np.mean([expected_calibration_error(ordered, right) for right in draws]))


def paper_unknown_score(probabilities: Doubles, known: Flags) -> Doubles:
    """How much of an image's probability lies on unknown categories, as the authors of the paper count it.

    Each row is scaled to [0, 1] by its least and its greatest value and divided by its sum; the score is 1 less what
    the known categories have of it. In a row of equal values all have equal shares. The names of the
    unknown categories are among the columns: it tells the known from the *named* unknown, see `blind_auroc`.

    Args:
        probabilities: float64 ``(n_images, n_categories)``, finite: fused scores.
        known: bool ``(n_categories,)``.

    Returns:
        float64 ``(n_images,)``, 0 (known) to 1.

    Source: Yin & Jiang (2024), section 4.1, and their public code, 1134112149/MICW-ZIC.

    Raises:
        InvalidInputError: The shapes differ, or a value is not finite.
    """
    if probabilities.ndim != 2 or not known.size or known.shape != probabilities.shape[1:] or known.dtype != np.bool_:
        raise InvalidInputError(
            f"known, {known.dtype} {known.shape}, does not fit probabilities {probabilities.shape}; "
            "give a bool for each category"
        )
    _check_finite(probabilities)
    above = probabilities - probabilities.min(axis=1, keepdims=True)
    widest = above.max(axis=1, keepdims=True)
    scaled = np.divide(above, widest, out=np.ones_like(above), where=widest > 0)
    share = scaled / scaled.sum(axis=1, keepdims=True)
    score: Doubles = np.clip(1 - share[:, known].sum(axis=1), 0.0, 1.0)  # but for rounding it is within
    return score


def paper_auroc(probabilities: Doubles, truth: Labels, known: Flags) -> float:
    """AUROC of `paper_unknown_score`, images of unknown categories against those of known ones; 0.5 is chance.

    Args:
        probabilities: float64 ``(n_images, n_categories)``, of known and unknown categories.
        truth: int ``(n_images,)``; an image of -1, whose category has no column, is left out.
        known: bool ``(n_categories,)``.

    Source: Yin & Jiang (2024), section 4.1. Not a blind test: the unknown categories are named.

    Raises:
        InvalidInputError: As `top_k`, or the other images are all of known, or all of unknown categories.
    """
    _check(probabilities, truth)
    score = paper_unknown_score(probabilities, known)
    named = truth >= 0
    return blind_auroc(score[named], ~known[truth[named]])


def blind_auroc(novelty: Doubles, is_unknown: Flags) -> float:
    """Chance that an unknown image is scored above a known one, ties counting half; 0 to 1, 0.5 is chance.

    Blind if the novelty comes from a store that knows nothing of the unknown categories, as in
    ``zsvec evaluate --unknown``.

    Args:
        novelty: float64 ``(n_images,)``, finite; larger is more likely unknown.
        is_unknown: bool ``(n_images,)``.

    Source: Hanley & McNeil (1982), the area as the Mann–Whitney statistic.

    Raises:
        InvalidInputError: The shapes differ, a value is not finite, or the images are all known or all unknown.
    """
    _check_scores(novelty, is_unknown)
    known, unknown = np.sort(novelty[~is_unknown]), novelty[is_unknown]
    below, up_to = (int(np.searchsorted(known, unknown, side).sum()) for side in ("left", "right"))
    return (below + up_to) / (2 * len(known) * len(unknown))  # of whole numbers: rounded once


def confusion(truth: Labels, answers: Labels, n: int) -> NDArray[np.int64]:
    """How many images of one category were answered as another.

    Args:
        truth: int ``(n_images,)``.
        answers: int ``(n_images,)``.
        n: Categories.

    Returns:
        int64 ``(n, n)``: a row for each true category, a column for each answer.

    Raises:
        InvalidInputError: The shapes differ, or a label is not from 0 to n - 1.
    """
    if truth.ndim != 1 or truth.shape != answers.shape:
        raise InvalidInputError(f"answers of shape {answers.shape} do not fit truth {truth.shape}")
    _check_labels(truth, n)
    _check_labels(answers, n)
    counts = np.zeros((n, n), dtype=np.int64)
    np.add.at(counts, (truth, answers), 1)
    return counts


def bootstrap(values: Doubles, draws: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean: the middle of the means of samples drawn from the values, with repetition.

    Such as ``bootstrap(top_k(probabilities, truth, 1).astype(float))``.

    Args:
        values: float64 ``(n_images,)``, finite, one or more.
        draws: Samples, each as large as the set.
        seed: Of the draws: the same values, in whatever order, have the same interval.
        level: Fraction of the means inside the interval, between 0 and 1.

    Returns:
        Its lower and its upper end, in the unit of the values.

    Source: Efron (1979); the percentile interval of Efron & Tibshirani (1993), chapter 13.

    Raises:
        InvalidInputError: There are no values, one is not finite, or an argument is out of range.
    """
    if values.ndim != 1 or not values.size:
        raise InvalidInputError(f"values must be of shape (n_images,), with one or more. Got {values.shape} instead")
    _check_finite(values)
    ordered, rng = np.sort(values.astype(np.float64)), np.random.default_rng(seed)
    n = len(ordered)
    at_once = max(1, _AT_ONCE // n)
    means = (
        float(mean)
        for first in range(0, draws, at_once)
        for mean in ordered[rng.integers(n, size=(min(at_once, draws - first), n))].mean(axis=1)
    )
    return _middle(means, draws, level)


def bootstrap_auroc(
    score: Doubles, is_unknown: Flags, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the AUROC. Known and unknown images are drawn apart, so that each sample has as many of each.

    Args:
        score: float64 ``(n_images,)``, finite; larger is more likely unknown.
        is_unknown: bool ``(n_images,)``.
        draws: Samples.
        seed: Of the draws: the same images, in whatever order, have the same interval.
        level: Fraction of the areas inside the interval, between 0 and 1.

    Returns:
        Its lower and its upper end, 0 to 1.

    Source: as `bootstrap`; the two-sample form, Efron & Tibshirani (1993), chapter 8.

    Raises:
        InvalidInputError: As `blind_auroc`, or an argument is out of range.
    """
    _check_scores(score, is_unknown)
    # An area is determined by how many of each there are at every value.
    distinct, at = np.unique(score, return_inverse=True)
    unknown, known = np.sort(at[is_unknown]), np.sort(at[~is_unknown])
    rng = np.random.default_rng(seed)

    def sampled(values: Labels) -> Labels:
        counts: Labels = np.bincount(values[rng.integers(len(values), size=len(values))], minlength=len(distinct))
        return counts

    def area() -> float:
        known_counts, unknown_counts = sampled(known), sampled(unknown)
        below = np.cumsum(known_counts) - known_counts / 2  # a tie counts half
        return float(unknown_counts @ below) / (len(known) * len(unknown))

    return _middle((area() for _ in range(draws)), draws, level)


def _middle(statistics: Iterator[float], draws: int, level: float) -> tuple[float, float]:
    if draws < 1 or not 0 < level < 1:
        raise InvalidInputError(
            f"draws must be 1 or more, and level between 0 and 1. Got draws={draws}, level={level} instead"
        )
    low, high = np.quantile(np.fromiter(statistics, np.float64, draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(probabilities: Doubles, truth: Labels) -> None:
    if probabilities.ndim != 2 or truth.shape != probabilities.shape[:1]:
        raise InvalidInputError(f"truth of shape {truth.shape} does not fit probabilities {probabilities.shape}")
    if not len(truth):
        raise InvalidInputError("there are no images; give one or more")
    _check_finite(probabilities)
    _check_labels(truth, probabilities.shape[1], least=-1)


def _check_labels(labels: Labels, n: int, least: int = 0) -> None:
    if labels.dtype.kind not in "iu" or ((labels < least) | (labels >= n)).any():
        raise InvalidInputError(f"labels must be int, from {least} to {n - 1}. Got {labels.dtype} {labels} instead")


def _check_scores(score: Doubles, is_unknown: Flags) -> None:
    if score.ndim != 1 or score.shape != is_unknown.shape or is_unknown.dtype != np.bool_:
        raise InvalidInputError(
            f"is_unknown, {is_unknown.dtype} {is_unknown.shape}, does not fit scores {score.shape}; give a bool each"
        )
    _check_finite(score)
    if is_unknown.all() or not is_unknown.any():
        raise InvalidInputError("an AUROC compares unknown with known images; give some of both")


def _check_finite(values: Doubles) -> None:
    if not np.isfinite(values).all():
        raise InvalidInputError("a value is NaN or infinite; give finite ones")
