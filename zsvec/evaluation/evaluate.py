"""Accuracy of the fusion and of each expert, and open-set rejection, on labelled images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from zsvec.classifier import Classifier
from zsvec.errors import InvalidInputError, StoreError, shown
from zsvec.evaluation.metrics import Accuracy, CategoryScore, auroc, by_category, confusion, mean_score
from zsvec.inputs.categories import (
    CategoryInput,
    ReferenceImage,
    checked_category,
    checked_images,
    checked_name,
    is_several,
)
from zsvec.inputs.folders import OnOutside, read_categories, refused
from zsvec.inputs.images import ImageInput
from zsvec.types import Prediction, Ranking

_TOP = 5


class Outcome(NamedTuple):
    """The numbers of one image that `Accuracy` needs. They take far less memory than a ranking of all categories.

    Attributes:
        rank: Rank of the true category, 0 for the most probable; at least `_TOP` if the ranking lacks the category.
        probability: Probability of the true category, 0 to 1.
        confidence: The largest probability.
        brier: Brier score of the image, 0 to 2.
    """

    rank: int
    probability: float
    confidence: float
    brier: float

    @classmethod
    def of(cls, ranking: Ranking, label: str) -> Outcome:
        """Returns the numbers of a ranking, which begins with the best category. A missing label has probability 0."""
        missing = (max(_TOP, len(ranking)), 0.0)
        rank, own = next(((rank, p) for rank, (name, p) in enumerate(ranking) if name == label), missing)
        confidence = ranking[0][1] if ranking else 0.0
        return cls(rank, own, confidence, sum(p * p for _, p in ranking) - 2 * own + 1)


@dataclass(frozen=True, slots=True)
class Judged:
    """The answer for one image, with the true category.

    Attributes:
        source: Path, URL or kind of the image.
        truth: True category; ``None`` for an image that belongs to no category.
        nearest: The most probable category, even if the image was called unknown.
        probability: Fused probability of `nearest`, 0 to 1.
        unknown: Whether the image was called unknown.
        novelty: Novelty, 0 to 1; ``None`` without a calibration.
        distance: Distance, 0 to 2, as in `Prediction`.
    """

    source: str
    truth: str | None
    nearest: str
    probability: float
    unknown: bool
    novelty: float | None
    distance: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        n: Number of readable images with a category.
        accuracy: Accuracy of the fused ranking.
        experts: Accuracy of each expert alone.
        auroc: How well novelty separates unknown from known images: area under the ROC curve, 0.5 is chance. If any
            image has no novelty, distance is used for all images. ``None`` without unknown images.
        detected: Fraction of the unknown images that were called unknown; ``None`` without unknown images.
        false_unknown_rate: Fraction of the known images that were called unknown.
        fusion: Name of the fusion strategy.
        judged: All readable images: first those with a category, then those without, each in the given order.
    """

    n: int
    accuracy: Accuracy
    experts: Mapping[str, Accuracy]
    auroc: float | None
    detected: float | None
    false_unknown_rate: float
    fusion: str
    judged: tuple[Judged, ...]

    @property
    def truth(self) -> list[str]:
        """True category of each image that has a category. scikit-learn's metrics take `truth` and `answers`."""
        return [image.truth for image in self.judged if image.truth is not None]

    @property
    def answers(self) -> list[str]:
        """The most probable category of each image in `truth`, in the same order."""
        return [image.nearest for image in self.judged[: self.n]]

    @property
    def categories(self) -> dict[str, CategoryScore]:
        """Scores of each category in `truth` or `answers`, sorted by name."""
        return by_category(self.truth, self.answers, [image.unknown for image in self.judged[: self.n]])

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix, int64 ``(n, n)``: rows are true categories, columns answers, ordered as `categories`."""
        return confusion(self.truth, self.answers, list(self.categories))

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that ``zsvec evaluate --json`` prints. ``confusion`` has only the non-zero counts."""
        categories = self.categories
        names = list(categories)
        return {
            "n": self.n,
            **asdict(self.accuracy),
            **({} if self.auroc is None else {"auroc": self.auroc, "detected": self.detected}),
            "false_unknown_rate": self.false_unknown_rate,
            "fusion": self.fusion,
            "experts": {name: asdict(accuracy) for name, accuracy in self.experts.items()},
            "macro": asdict(mean_score(categories)),
            "categories": {name: asdict(score) for name, score in categories.items()},
            "confusion": {
                true: {answer: n for answer, n in zip(names, counts, strict=True) if n}
                for true, counts in zip(names, self.confusion.tolist(), strict=True)
                if any(counts)
            },
        }


def labelled_images(
    folder: Path, *, follow_links: bool = False, on_outside: OnOutside = refused
) -> list[tuple[Path, str]]:
    """Returns pairs of image and category from a folder with one sub-folder per category.

    Args:
        folder: The folder.
        follow_links: As in `zsvec.read_categories`.
        on_outside: As in `zsvec.read_categories`.

    Raises:
        InvalidInputError: The folder does not exist, has no image in a sub-folder, or a link is refused.
    """
    found = read_categories(folder, follow_links=follow_links, on_outside=on_outside)
    return [(cast("Path", path), category.name) for category in found for path in category.images or ()]


def labelled_images_of(categories: Iterable[CategoryInput]) -> list[tuple[ImageInput, str]]:
    """Returns pairs of image and category name, for example of categories from `zsvec.inputs.tables.from_csv`.

    Raises:
        InvalidInputError: `categories` is invalid or has no image.
    """
    if not is_several(categories):
        raise InvalidInputError(f"categories must be a list of CategoryInput. Got {shown(categories)} instead")
    found = [
        (given.image if isinstance(given, ReferenceImage) else given, category.name)
        for category in map(checked_category, categories)
        for given in (() if category.images is None else category.images)
    ]
    if not found:
        raise InvalidInputError("none of the categories has an image: give one or more")
    return found


def check_labels(categories: Collection[str], labels: Iterable[str], *, images: str, location: str) -> None:
    """Checks that every label is a category of the store.

    Args:
        categories: Categories of the store.
        labels: Labels of the images.
        images: Name of the images in the error message.
        location: Location of the store, for the error message.

    Raises:
        StoreError: The store has no category.
        InvalidInputError: A label is not a category of the store.
    """
    if not categories:
        raise StoreError(f"{location} has no category yet: add one with `zsvec add` or `zsvec import`")
    if missing := sorted(set(labels) - set(categories)):
        some = ", ".join(map(repr, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise InvalidInputError(
            f"{len(missing)} of the labels in {images} {'is' if len(missing) == 1 else 'are'} no category of "
            f"{location}: {some}; add them, or use the names that `zsvec list` shows"
        )


def evaluate(
    classifier: Classifier,
    images: Iterable[ImageInput],
    labels: Iterable[str],
    unknown: Iterable[ImageInput] = (),
    *,
    on_error: Callable[[Prediction], None] = lambda prediction: None,
    track: Callable[[Iterable[ImageInput]], Iterable[ImageInput]] = iter,
) -> Evaluation:
    """Classifies labelled images in random order, and compares the answers with the labels.

    Args:
        classifier: Classifier of a store that has every label as a category.
        images: Images with a category. A sequence may load each image on access; any other iterable is first turned
            into a list.
        labels: Category of each image.
        unknown: Images that belong to no category, to measure open-set rejection.
        on_error: Called with the prediction of each unreadable image. The image is left out.
        track: Wraps the images, to show progress.

    Raises:
        StoreError: The store has no category.
        InvalidInputError: There are no images, the numbers of images and labels differ, a label is not a category of
            the store, or all of `images` or all of `unknown` are unreadable.
    """
    images, strangers = _sequence(images), _sequence(unknown)
    if not is_several(labels):
        raise InvalidInputError(f"labels must be a list of category names. Got {shown(labels)} instead")
    names = [checked_name(label) for label in labels]
    if len(names) != len(images) or not names:
        raise InvalidInputError(f"give one or more images, and a label for each. Got {len(images)} and {len(names)}")
    categories = [category.name for category in classifier.categories()]
    check_labels(categories, names, images="the images", location=classifier.location)
    # In random order, because a strategy may exploit that the images of a batch are similar.
    order = np.random.default_rng(0).permutation(len(images) + len(strangers)).tolist()
    given = (images[i] if i < len(images) else strangers[i - len(images)] for i in order)
    found: dict[int, Judged] = {}
    fused: list[Outcome] = []
    experts: dict[str, list[Outcome]] = defaultdict(list)
    fusion = ""
    with classifier.classify_stream(track(given), top_k=len(categories)) as stream:
        for prediction, i in zip(stream, order, strict=True):
            if prediction.error is not None:
                on_error(prediction)
                continue
            label = names[i] if i < len(names) else None
            found[i] = Judged(
                prediction.source,
                label,
                str(prediction.nearest),
                cast("float", prediction.probability),
                prediction.unknown,
                prediction.novelty,
                cast("float", prediction.distance),
            )
            if label is not None:
                fusion = str(prediction.fusion)
                fused.append(Outcome.of(prediction.ranking, label))
                for name, expert in prediction.experts.items():
                    experts[name].append(Outcome.of(expert.ranking, label))
    judged = tuple(found[i] for i in sorted(found))
    known, foreign = judged[: len(fused)], judged[len(fused) :]
    if not known:
        raise InvalidInputError("no image with a label can be read: `zsvec classify` says why")
    if strangers and not foreign:
        raise InvalidInputError("no image of no category can be read: `zsvec classify` says why")
    return Evaluation(
        n=len(known),
        accuracy=Accuracy.of(*zip(*fused, strict=True)),
        experts={name: Accuracy.of(*zip(*outcomes, strict=True)) for name, outcomes in experts.items()},
        auroc=_auroc(judged) if foreign else None,
        detected=fmean(image.unknown for image in foreign) if foreign else None,
        false_unknown_rate=fmean(image.unknown for image in known),
        fusion=fusion,
        judged=judged,
    )


def _sequence(images: Iterable[ImageInput]) -> Sequence[ImageInput]:
    given = checked_images(images)
    return given if isinstance(given, Sequence | np.ndarray) else list(given)  # type: ignore[return-value]


def _auroc(judged: Sequence[Judged]) -> float:
    """Returns the AUROC of novelty, or of distance if any image has no novelty."""
    scores = [image.novelty for image in judged]
    if None in scores:
        scores = [image.distance for image in judged]
    return auroc(np.array(scores, dtype=np.float64), np.array([image.truth is None for image in judged]))
