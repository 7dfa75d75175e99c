"""Metrics of answers: accuracy, quality of probabilities, AUROC of unknown images, confusions, scores by category.

Images are rows, categories are columns, and a label is the index of a column. The order of the images changes nothing.
The calibration error itself is in `zsvec.method.calibrate.fit`. This module does not import scikit-learn, because plain
``zsvec evaluate`` also runs in the installation without torch, which has no scikit-learn. `scipy.stats` is avoided
because its import takes a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.calibrate.fit import calibration_floor, expected_calibration_error

Labels = NDArray[np.intp]
Flags = NDArray[np.bool_]

_MISSED = np.iinfo(np.intp).max
_INTERVAL = (0.025, 0.975)
_SAMPLES = 10_000


# ---- accuracy and probabilities


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy and calibration of answers.

    Attributes:
        top1: Fraction of the images whose true category is the most probable, 0 to 1.
        top3: Fraction of the images whose true category is among the 3 most probable.
        top5: Fraction of the images whose true category is among the 5 most probable.
        nll: Negative log-likelihood: mean of -ln(probability of the true category), nats. ``None`` if a true category
            has probability 0, for example because an expert has no reference of the category.
        brier: Mean Brier score, the squared error summed over the categories, 0 to 2.
        ece: Expected calibration error of the largest probability, 0 to 1.
        ece_floor: Mean `ece` that perfectly calibrated answers of the same confidence have by chance alone.
    """

    top1: float
    top3: float
    top5: float
    nll: float | None
    brier: float
    ece: float
    ece_floor: float

    @classmethod
    def of(cls, rank: ArrayLike, probability: ArrayLike, confidence: ArrayLike, brier: ArrayLike) -> Accuracy:
        """Returns the accuracy over one or more images.

        Args:
            rank: Rank of each image's true category, int ``(n_images,)``, 0 for the most probable. All ranks from 5 up
                have the same effect.
            probability: Probability of each image's true category, float64 ``(n_images,)``, 0 to 1.
            confidence: Largest probability of each image, float64 ``(n_images,)``.
            brier: Brier score of each image, float64 ``(n_images,)``.
        """
        ranks, own = np.asarray(rank), np.asarray(probability, dtype=np.float64)
        largest, errors = (np.asarray(values, dtype=np.float64) for values in (confidence, brier))
        top1, top3, top5 = (float(np.mean(ranks < k)) for k in (1, 3, 5))
        return cls(
            top1,
            top3,
            top5,
            nll=float(-np.log(own).mean()) if own.all() else None,
            brier=float(errors.mean()),
            ece=expected_calibration_error(largest, ranks == 0),
            ece_floor=calibration_floor(largest),
        )


def ranks(probabilities: Doubles, truth: Labels) -> Labels:
    """Returns the rank of each image's category, 0 for the most probable, as int ``(n_images,)``.

    If probabilities are equal, the first column has the better rank, as in ``zsvec classify``, which sorts columns by
    name.

    Args:
        probabilities: Probabilities or any other scores, float64 ``(n_images, n_categories)``, finite.
        truth: Column of each image's category, int ``(n_images,)``; -1 for a category without a column. The rank is
            then the largest int.

    Source: Yin & Jiang (2024), section 4.2 (counts of the ranks below 1, 3 and 5).
    """
    own = np.take_along_axis(probabilities, np.maximum(truth, 0)[:, None], axis=1)
    earlier = np.arange(probabilities.shape[1]) < truth[:, None]
    before = np.count_nonzero((probabilities > own) | (earlier & (probabilities == own)), axis=1)
    return np.where(truth >= 0, before, _MISSED)


def true_probability(probabilities: Doubles, truth: Labels) -> Doubles:
    """Returns the probability of each image's category, float64 ``(n_images,)``; 0 for a category without a column.

    Arguments as in `ranks`.
    """
    own = np.take_along_axis(probabilities, np.maximum(truth, 0)[:, None], axis=1)[:, 0]
    return np.where(truth < 0, 0.0, own)


def brier_score(probabilities: Doubles, truth: Labels) -> Doubles:
    """Returns the squared error of each image's probabilities, summed over the categories, 0 to 2.

    float64 ``(n_images,)``; arguments as in `ranks`.

    Source: Brier (1950), for several classes.
    """
    score: Doubles = (probabilities**2).sum(axis=1) - 2 * true_probability(probabilities, truth) + 1
    return score


def interval_of_share(hits: Flags) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of the share of hits: lower and upper end, 0 to 1.

    The number of hits in a bootstrap sample is binomial, so that only this number is drawn.

    Args:
        hits: Whether each image is a hit, bool ``(n_images,)``, one or more.

    Source: Efron & Tibshirani (1993), chapter 13.
    """
    shares = np.random.default_rng(0).binomial(len(hits), hits.mean(), _SAMPLES) / len(hits)
    low, high = np.quantile(shares, _INTERVAL)
    return float(low), float(high)


def interval_of_difference(hits: Flags, others: Flags) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of the difference of two shares of hits on the same images.

    Images on which both agree do not matter. The numbers of the others in a bootstrap sample are multinomial.

    Args:
        hits: Whether each image is a hit of the first, bool ``(n_images,)``, one or more.
        others: Whether each image is a hit of the second, in the same order.

    Returns:
        Lower and upper end of the share of the second less the share of the first, -1 to 1.

    Source: Efron & Tibshirani (1993), chapter 13.
    """
    gained, lost = np.mean(others & ~hits), np.mean(hits & ~others)
    drawn = np.random.default_rng(0).multinomial(len(hits), [gained, lost, 1 - gained - lost], _SAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / len(hits), _INTERVAL)
    return float(low), float(high)


# ---- the unknown


def auroc(novelty: Doubles, is_unknown: Flags) -> float:
    """Returns the probability that a random unknown image has a higher novelty than a random known image.

    Ties count half.

    Args:
        novelty: float64 ``(n_images,)``, finite; larger is more likely unknown.
        is_unknown: bool ``(n_images,)``, at least one True and one False.

    Returns:
        0 to 1; 0.5 is chance.

    Source: Hanley & McNeil (1982), the area as the Mann–Whitney statistic.
    """
    return _area(*_places(novelty, is_unknown))


def interval_of_auroc(novelty: Doubles, is_unknown: Flags, draws: int = 1000) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of `auroc`: lower and upper end, 0 to 1.

    Known and unknown images are sampled separately, so that their numbers stay the same. The same images have the same
    interval in any order.

    Args:
        novelty: float64 ``(n_images,)``, finite; larger is more likely unknown.
        is_unknown: bool ``(n_images,)``, at least one True and one False.
        draws: Number of bootstrap samples.

    Source: the two-sample form of Efron & Tibshirani (1993), chapter 8.
    """
    known, unknown = _places(novelty, is_unknown)
    rng = np.random.default_rng(0)
    areas = [_area(rng.choice(known, len(known)), rng.choice(unknown, len(unknown))) for _ in range(draws)]
    low, high = np.quantile(areas, _INTERVAL)
    return float(low), float(high)


def paper_unknown_score(probabilities: Doubles, known: Flags) -> Doubles:
    """Returns the share of the unknown categories in each image's scores, computed as the paper's authors do.

    Each row is scaled to [0, 1] by the minimum and maximum of the row, then divided by the sum. The result is 1 minus
    the share of the known categories. In a row of equal values, all columns have equal shares. Unknown categories have
    columns too. So the images that count as unknown belong to *named* categories.

    Args:
        probabilities: Fused scores, float64 ``(n_images, n_categories)``, finite.
        known: Whether each category is known, bool ``(n_categories,)``.

    Returns:
        float64 ``(n_images,)``, 0 (known) to 1.

    Source: Yin & Jiang (2024), section 4.1, and their public code, 1134112149/MICW-ZIC.
    """
    above = probabilities - probabilities.min(axis=1, keepdims=True)
    widest = above.max(axis=1, keepdims=True)
    scaled = np.divide(above, widest, out=np.ones_like(above), where=widest > 0)
    share = scaled / scaled.sum(axis=1, keepdims=True)
    score: Doubles = np.clip(1 - share[:, known].sum(axis=1), 0.0, 1.0)  # rounding can leave this range
    return score


def _places(score: Doubles, is_unknown: Flags) -> tuple[Labels, Labels]:
    """Returns the sorted ranks of the known and of the unknown images; equal scores have the same rank."""
    _, place = np.unique(score, return_inverse=True)
    return np.sort(place[~is_unknown]), np.sort(place[is_unknown])


def _area(known: Labels, unknown: Labels) -> float:
    """Returns the share of (known, unknown) pairs in which the unknown image ranks higher. Ties count half."""
    counts = np.bincount(known, minlength=int(unknown.max()) + 1)
    below = np.cumsum(counts) - counts / 2
    return float(below[unknown].sum()) / (len(known) * len(unknown))


# ---- several labels an image


def average_precision(score: Doubles, yes: Flags) -> float:
    """Returns the mean precision at the ranks of the images with a label; equal scores have one rank. 0 to 1.

    Args:
        score: float64 ``(n_images,)``; larger is more likely a yes.
        yes: bool ``(n_images,)``, whether the image has the label; at least one has.

    Source: ``average_precision_score`` of scikit-learn, without interpolation.
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) < 0, True)
    hits, told = np.cumsum(yes[order])[last], np.flatnonzero(last) + 1
    return float(np.diff(hits, prepend=0) @ (hits / told) / yes.sum())


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Scores of one label, or mean scores of several labels. Scores are fractions, 0 to 1.

    Attributes:
        images: Number of images with the label; of mean scores, the number of all images.
        average_precision: Mean precision at the ranks of the images with the label.
        precision: Fraction of the images that were given the label which have it; ``None`` without such images.
        recall: Fraction of the images with the label that were given it.
        f1: Harmonic mean of precision and recall.
        false_positives: Fraction of the images without the label that were given it; ``None`` without such images.
        ece: Expected calibration error of the probability of a yes.
    """

    images: int
    average_precision: float
    precision: float | None
    recall: float
    f1: float
    false_positives: float | None
    ece: float

    @classmethod
    def of(cls, probability: Doubles, given: Flags, yes: Flags) -> LabelScore:
        """Returns the scores of one label.

        Args:
            probability: float64 ``(n_images,)``, 0 to 1, of a yes.
            given: bool ``(n_images,)``, whether the image was given the label.
            yes: bool ``(n_images,)``, whether the image has the label; at least one has.
        """
        right, n_given, n_yes = (int(np.count_nonzero(flags)) for flags in (given & yes, given, yes))
        return cls(
            images=n_yes,
            average_precision=average_precision(probability, yes),
            precision=_share(right, n_given),
            recall=right / n_yes,
            f1=2 * right / (n_given + n_yes),
            false_positives=_share(n_given - right, len(yes) - n_yes),
            ece=expected_calibration_error(probability, yes),
        )


def mean_label_score(scores: Mapping[str, LabelScore], images: int) -> LabelScore:
    """Returns the unweighted mean ("macro") over labels.

    A label that no image was given has precision 0 in the mean, as in scikit-learn. A label that every image has counts
    in no mean of false positives.

    Args:
        scores: Scores by label, at least one.
        images: Number of all images. An image with several labels counts once.
    """
    names = ("average_precision", "precision", "recall", "f1", "ece")
    means = {name: fmean(getattr(score, name) or 0.0 for score in scores.values()) for name in names}
    wrong = [score.false_positives for score in scores.values() if score.false_positives is not None]
    return LabelScore(images=images, false_positives=fmean(wrong) if wrong else None, **means)


# ---- by category


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """Scores of one category, or mean scores of several categories. Scores are fractions, 0 to 1.

    Attributes:
        images: Number of images of the category.
        precision: Fraction of right answers among all answers with the category; ``None`` without such answers.
        recall: Fraction of right answers among the images of the category; ``None`` without images.
        f1: Harmonic mean of precision and recall; 0 without right answers, ``None`` without images and answers.
        called_unknown: Fraction of the images of the category that were called unknown; ``None`` without images.
    """

    images: int
    precision: float | None
    recall: float | None
    f1: float | None
    called_unknown: float | None


def confusion(truth: Sequence[str], answers: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Returns the confusion matrix.

    Args:
        truth: Category of each image.
        answers: Answered category of each image.
        names: Names of all categories, in the order of rows and columns.

    Returns:
        Numbers of images, int64 ``(n, n)``: a row for each true category, a column for each answer.
    """
    column = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for (true, answer), number in Counter(zip(truth, answers, strict=True)).items():
        counts[column[true], column[answer]] = number
    return counts


def by_category(truth: Sequence[str], answers: Sequence[str], unknown: Sequence[bool]) -> dict[str, CategoryScore]:
    """Returns the scores of each category in `truth` or `answers`, sorted by name.

    Args:
        truth: Category of each image, at least one.
        answers: The most probable category of each image, even if the image was called unknown.
        unknown: Whether each image was called unknown.
    """
    names = sorted({*truth, *answers})
    counts = confusion(truth, answers, names)
    called = Counter(name for name, is_unknown in zip(truth, unknown, strict=True) if is_unknown)
    columns = zip(names, counts.sum(axis=1), counts.sum(axis=0), counts.diagonal(), strict=True)
    return {
        name: CategoryScore(
            int(images),
            precision=_share(right, answered),
            recall=_share(right, images),
            f1=_share(2 * right, images + answered),
            called_unknown=_share(called[name], images),
        )
        for name, images, answered, right in columns
    }


def mean_score(scores: Mapping[str, CategoryScore]) -> CategoryScore:
    """Returns the unweighted mean ("macro") over the categories that have images, and the sum of `images`.

    A category that was never answered has precision 0 in the mean, as in scikit-learn.
    """
    with_images = [score for score in scores.values() if score.images]
    precision, recall, f1, called = (
        fmean(getattr(score, name) or 0.0 for score in with_images)
        for name in ("precision", "recall", "f1", "called_unknown")
    )
    return CategoryScore(sum(score.images for score in with_images), precision, recall, f1, called)


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
