"""Accuracy of the labels of images, in a store whose images may belong to several categories."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.classifier import Classifier
from zsvec.classifier.facade import scores_of
from zsvec.errors import ImageError, InvalidInputError, StoreError, shown
from zsvec.evaluation.evaluate import check_labels
from zsvec.evaluation.metrics import LabelScore, auroc, mean_label_score
from zsvec.inputs.categories import checked_images, checked_name, is_several
from zsvec.inputs.images import ImageInput, content_hash
from zsvec.method.arrays import Doubles
from zsvec.types import Prediction

_BATCH = 256  # images that are compared at once
_OF_UNKNOWN = ("unknown_images", "auroc", "detected", "given_labels", "false_unknown_rate")


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
        unknown_images: Number of readable images that belong to no category. Without such images, the following are
            ``None``.
        auroc: How well novelty separates these from the other images: area under the ROC curve, 0.5 is chance.
        detected: Fraction of these that were called unknown.
        given_labels: Fraction of these that were given a label.
        false_unknown_rate: Fraction of the other images that were called unknown.
    """

    n: int
    mean_average_precision: float
    micro_f1: float
    macro: LabelScore
    labels: Mapping[str, LabelScore]
    exact: float
    mean_labels: float
    unknown_images: int = 0
    auroc: float | None = None
    detected: float | None = None
    given_labels: float | None = None
    false_unknown_rate: float | None = None

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
        macro = mean_label_score(scores, len(truth))
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
        values = asdict(self)
        return values if self.unknown_images else {name: values[name] for name in values if name not in _OF_UNKNOWN}


def evaluate_labels(
    classifier: Classifier,
    images: Iterable[ImageInput],
    labels: Iterable[Collection[str]],
    unknown: Iterable[ImageInput] = (),
    *,
    on_error: Callable[[Prediction], None] = lambda prediction: None,
    track: Callable[[Iterable[ImageInput]], Iterable[ImageInput]] = iter,
) -> LabelEvaluation:
    """Decides which categories labelled images belong to, and compares the decisions with their labels.

    Args:
        classifier: Classifier of a store whose images may belong to several categories, with every label as a category.
        images: Images. An image that is given again counts once, with all of its labels.
        labels: For each image, the names of its categories.
        unknown: Images that belong to no category, to measure open-set rejection.
        on_error: Called with the error of each unreadable image, which is left out.
        track: Wraps the images, to show progress.

    Raises:
        StoreError: The store has no category, or its calibration decides on no labels.
        InvalidInputError: There are no images, the numbers of images and labels differ, a label is not a category of
            the store, or all of `images` or all of `unknown` are unreadable.
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
    strangers = list(checked_images(unknown))
    rows: list[Mapping[str, NDArray[np.float32]]] = []
    read: list[str | None] = []  # by row, the hash of an image with labels
    digests = [*first, *[None] * len(strangers)]
    embeddings = classifier.embed_stream(track([*first.values(), *strangers]))
    for known_as, embedding in zip(digests, embeddings, strict=True):
        if embedding.error is None:
            read.append(known_as)
            rows.append(embedding.vectors)
        else:
            on_error(Prediction(source=embedding.source, error=embedding.error))
    known = np.array([digest is not None for digest in read], dtype=bool)
    if not known.any():
        raise InvalidInputError("no image with a label can be read: `zsvec classify` says why")
    if strangers and known.all():
        raise InvalidInputError("no image of no category can be read: `zsvec classify` says why")
    probabilities, given_labels, novelty, is_unknown = _decisions(classifier, rows, names)
    is_true = np.array([[name in truth[digest] for name in names] for digest in read if digest is not None])
    found = LabelEvaluation.of(names, probabilities[known], given_labels[known], is_true)
    if not strangers:
        return found
    return replace(
        found,
        unknown_images=int(np.count_nonzero(~known)),
        auroc=auroc(novelty, ~known),
        detected=fmean(is_unknown[~known]),
        given_labels=fmean(given_labels[~known].any(axis=1)),
        false_unknown_rate=fmean(is_unknown[known]),
    )


def _decisions(
    classifier: Classifier, rows: Sequence[Mapping[str, NDArray[np.float32]]], names: Sequence[str]
) -> tuple[Doubles, NDArray[np.bool_], Doubles, NDArray[np.bool_]]:
    """Returns the decisions on embedded images.

    Args:
        classifier: The classifier.
        rows: Vectors of each image by encoder, at least one image.
        names: Names of the columns.

    Returns:
        float64 ``(n_images, n_labels)``, the probabilities of a yes; bool of the same shape, whether the image was
        given the label; float64 ``(n_images,)``, novelty; bool ``(n_images,)``, whether the image was called unknown.

    Raises:
        StoreError: The calibration decides on no labels.
    """
    shape = (len(rows), len(names))
    probabilities, given = np.zeros(shape), np.zeros(shape, dtype=bool)
    novelty, unknown = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
    column = {name: i for i, name in enumerate(names)}
    for start in range(0, len(rows), _BATCH):
        some = slice(start, start + _BATCH)
        vectors = {encoder: np.stack([row[encoder] for row in rows[some]]) for encoder in rows[start]}
        there, scores = scores_of(classifier, vectors)
        if scores.label_probabilities is None or scores.label_thresholds is None:
            raise StoreError(
                f"{classifier.location} has not learned which categories an image belongs to: open it with "
                'labels="many", and run `zsvec calibrate` after categories have two images or more'
            )
        columns = [(column[name], i) for i, name in enumerate(there) if name in column]
        into, of = (list(part) for part in zip(*columns, strict=True))
        own = scores.label_probabilities[:, of]
        probabilities[some, into] = own
        given[some, into] = (own >= scores.label_thresholds[of]) & (own > 0)
        novelty[some], unknown[some] = scores.novelty, scores.unknown
    return probabilities, given, novelty, unknown
