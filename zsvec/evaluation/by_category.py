"""How good the answers are for each category: precision, recall, F1, and what is taken for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from zsvec.evaluation import metrics


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """How good the answers are for one category, or on average. Fractions, 0 to 1.

    Attributes:
        images: Images of the category.
        precision: Fraction of the images answered as the category that are of it; ``None`` if none was.
        recall: Fraction of the images of the category that were answered as it; ``None`` if there is none.
        f1: Harmonic mean of precision and recall, 0 where one of them is; ``None`` where there is no image.
        called_unknown: Fraction of the images of the category that were called unknown; ``None`` if there is none.
    """

    images: int
    precision: float | None
    recall: float | None
    f1: float | None
    called_unknown: float | None


def by_category(truth: Sequence[str], answers: Sequence[str], unknown: Sequence[bool]) -> dict[str, CategoryScore]:
    """Scores of each category that an image is of, or was answered as, sorted by name.

    Args:
        truth: Category of each image, at least one.
        answers: The most probable category of each, whether or not it was called unknown.
        unknown: Whether it was called unknown.
    """
    names = names_in(truth, answers)
    true, answered = _columns(names, truth), _columns(names, answers)
    images, answered_as, right = (
        np.bincount(columns, minlength=len(names)) for columns in (true, answered, true[true == answered])
    )
    called = np.bincount(true, weights=unknown, minlength=len(names))
    return {
        name: CategoryScore(
            int(images[i]),
            precision=_share(right[i], answered_as[i]),
            recall=_share(right[i], images[i]),
            f1=_share(2 * right[i], images[i] + answered_as[i]),
            called_unknown=_share(called[i], images[i]),
        )
        for i, name in enumerate(names)
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def mean_score(scores: Mapping[str, CategoryScore]) -> CategoryScore:
    """The mean over the categories that have images ("macro"), of which none weighs more than another.

    A category that was never answered counts as one of precision 0, as scikit-learn counts it.
    """
    with_images = [score for score in scores.values() if score.images]
    precision, recall, f1, called = (
        fmean(getattr(score, name) or 0.0 for score in with_images)
        for name in ("precision", "recall", "f1", "called_unknown")
    )
    return CategoryScore(sum(score.images for score in with_images), precision, recall, f1, called)


def confusion(truth: Sequence[str], answers: Sequence[str]) -> NDArray[np.int64]:
    """How many images of one category were answered as another.

    Returns:
        int64 ``(n, n)``: a row for each true category, a column for each answer, both in the order of `names_in`.
    """
    names = names_in(truth, answers)
    return metrics.confusion(_columns(names, truth), _columns(names, answers), len(names))


def mistakes(truth: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str, int]]:
    """True category, answer and number of images of each mistake, the most frequent first."""
    pairs = Counter((true, answer) for true, answer in zip(truth, answers, strict=True) if true != answer)
    return [(*pair, number) for pair, number in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]


def names_in(truth: Sequence[str], answers: Sequence[str]) -> tuple[str, ...]:
    """The categories that images are of, or were answered as, sorted."""
    return tuple(sorted({*truth, *answers}))


def _columns(names: Sequence[str], labels: Sequence[str]) -> NDArray[np.intp]:
    column = {name: i for i, name in enumerate(names)}
    return np.array([column[label] for label in labels], dtype=np.intp)
