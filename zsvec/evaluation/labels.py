"""Accuracy of the labels of images, in a store whose images may belong to several categories."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.classifier import Classifier
from zsvec.classifier.facade import label_scores
from zsvec.errors import ImageError, InvalidInputError, StoreError, shown
from zsvec.evaluation.evaluate import check_labels
from zsvec.evaluation.metrics import LabelScore, mean_label_score
from zsvec.inputs.categories import checked_images, checked_name, is_several
from zsvec.inputs.images import ImageInput, content_hash
from zsvec.method.arrays import Doubles
from zsvec.types import Prediction

_BATCH = 256  # images that are compared at once


@dataclass(frozen=True, slots=True)
class LabelEvaluation:
    """Result of `evaluate_labels`.

    Attributes:
        n: Number of readable images, each counted once.
        mean_average_precision: Mean of the average precision over the labels, 0 to 1.
        micro_f1: F1 score over all pairs of image and label, 0 to 1.
        macro: Mean scores over the labels.
        labels: Scores of each label that an image has, sorted by name.
        exact: Fraction of the images that were given all their labels and no other.
        mean_labels: Mean number of labels of an image.
    """

    n: int
    mean_average_precision: float
    micro_f1: float
    macro: LabelScore
    labels: Mapping[str, LabelScore]
    exact: float
    mean_labels: float

    @classmethod
    def of(
        cls, names: Collection[str], probabilities: Doubles, given: NDArray[np.bool_], truth: NDArray[np.bool_]
    ) -> LabelEvaluation:
        """Returns the evaluation of answers.

        Args:
            names: Names of the columns.
            probabilities: float64 ``(n_images, n_labels)``, 0 to 1, of a yes.
            given: bool ``(n_images, n_labels)``, whether the image was given the label.
            truth: bool ``(n_images, n_labels)``, whether the image has the label; at least one pair is a yes.
        """
        scores = {
            name: LabelScore.of(probability, said, yes)
            for name, probability, said, yes in zip(names, probabilities.T, given.T, truth.T, strict=True)
            if yes.any()
        }
        macro = mean_label_score(scores)
        return cls(
            n=len(truth),
            mean_average_precision=macro.average_precision,
            micro_f1=float(2 * (given & truth).sum() / (given.sum() + truth.sum())),
            macro=macro,
            labels=dict(sorted(scores.items())),
            exact=float((given == truth).all(axis=1).mean()),
            mean_labels=float(truth.sum(axis=1).mean()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that ``zsvec evaluate --json`` prints."""
        return asdict(self)


def evaluate_labels(
    classifier: Classifier,
    images: Iterable[ImageInput],
    labels: Iterable[Collection[str]],
    *,
    on_error: Callable[[Prediction], None] = lambda prediction: None,
    track: Callable[[Iterable[ImageInput]], Iterable[ImageInput]] = iter,
) -> LabelEvaluation:
    """Decides which categories labelled images belong to, and compares the decisions with their labels.

    Args:
        classifier: Classifier of a store whose images may belong to several categories, with every label as a category.
        images: Images. An image that is given again counts once, with all of its labels.
        labels: For each image, the names of its categories.
        on_error: Called with the error of each unreadable image, which is left out.
        track: Wraps the images, to show progress.

    Raises:
        StoreError: The store has no category, or its calibration decides on no labels.
        InvalidInputError: There are no images, the numbers of images and labels differ, a label is not a category of
            the store, or all images are unreadable.
    """
    if not is_several(labels):
        raise InvalidInputError(f"labels must be a list of lists of category names. Got {shown(labels)} instead")
    given, wanted = list(checked_images(images)), [list(map(checked_name, own)) for own in labels]
    if len(given) != len(wanted) or not any(wanted):
        raise InvalidInputError(f"give one or more images, and labels for each. Got {len(given)} and {len(wanted)}")
    names = [category.name for category in classifier.categories()]
    check_labels(names, {name for own in wanted for name in own}, images="the images", location=classifier.location)
    truth: dict[str, set[str]] = {}
    first: dict[str, ImageInput] = {}
    limits = classifier.settings.image_limits()
    for image, own in zip(given, wanted, strict=True):
        try:
            digest = content_hash(image, **limits)
        except ImageError as exc:
            on_error(Prediction(source=str(exc).partition(":")[0], error=str(exc)))
            continue
        first.setdefault(digest, image)
        truth.setdefault(digest, set()).update(own)
    rows: list[Mapping[str, NDArray[np.float32]]] = []
    read: list[str] = []
    for digest, embedding in zip(first, classifier.embed_stream(track(first.values())), strict=True):
        if embedding.error is None:
            read.append(digest)
            rows.append(embedding.vectors)
        else:
            on_error(Prediction(source=embedding.source, error=embedding.error))
    if not rows:
        raise InvalidInputError("no image with a label can be read: `zsvec classify` says why")
    probabilities, thresholds = np.zeros((len(rows), len(names))), np.ones((len(rows), len(names)))
    column = {name: i for i, name in enumerate(names)}
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        found = label_scores(classifier, {encoder: np.stack([row[encoder] for row in some]) for encoder in some[0]})
        if found is None:
            raise StoreError(
                f"{classifier.location} has not learned which categories an image belongs to: run `zsvec calibrate`, "
                "after categories have two images or more"
            )
        there, said, limit = found
        columns = [(column[name], i) for i, name in enumerate(there) if name in column]
        into, of = (list(part) for part in zip(*columns, strict=True))
        probabilities[start : start + len(some), into] = said[:, of]
        thresholds[start : start + len(some), into] = limit[of]
    is_true = np.array([[name in truth[digest] for name in names] for digest in read])
    return LabelEvaluation.of(names, probabilities, (probabilities >= thresholds) & (probabilities > 0), is_true)
