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
from zsvec.inputs.folders import OnOutside, find_images, refused
from zsvec.inputs.images import ImageInput
from zsvec.types import Prediction, Ranking

_TOP = 5


class Outcome(NamedTuple):
    """The numbers that `Accuracy` is computed from: far less than a ranking of all categories.

    Attributes:
        rank: Of the true category, 0 for the best; `_TOP` or more for a miss.
        probability: Of the true category, 0 to 1.
        confidence: The largest probability.
        brier: Brier score of the image, 0 to 2.
    """

    rank: int
    probability: float
    confidence: float
    brier: float

    @classmethod
    def of(cls, ranking: Ranking, label: str) -> Outcome:
        """From a ranking, best first, of all categories. A label that is missing from it has probability 0."""
        missing = (max(_TOP, len(ranking)), 0.0)
        rank, own = next(((rank, p) for rank, (name, p) in enumerate(ranking) if name == label), missing)
        confidence = ranking[0][1] if ranking else 0.0
        return cls(rank, own, confidence, sum(p * p for _, p in ranking) - 2 * own + 1)


@dataclass(frozen=True, slots=True)
class Judged:
    """The answer for one image, beside the truth.

    Attributes:
        source: Path, URL or kind of the image.
        truth: Its category; ``None`` for an image of no category.
        nearest: The most probable category, also where the image was called unknown.
        probability: Its fused probability, 0 to 1.
        unknown: Whether the image was called unknown.
        novelty: 0 to 1; ``None`` without a calibration.
        distance: As of `Prediction`.
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
        n: Images with a known category that could be read.
        accuracy: Of the fused ranking.
        experts: Of each expert alone.
        auroc: Area under the ROC curve that separates unknown from known images by novelty; by distance, if an image
            has no novelty. 0.5 is chance. ``None`` without unknown images.
        detected: Fraction of the unknown images that were called unknown; ``None`` without unknown images.
        false_unknown_rate: Fraction of the known images that were called unknown.
        fusion: Name of the strategy.
        judged: Each image that could be read, in the order given, images of no category last.
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
        """Category of each image that has one; with `answers`, the arguments of scikit-learn's metrics."""
        return [image.truth for image in self.judged if image.truth is not None]

    @property
    def answers(self) -> list[str]:
        """The most probable category of each image that has one, in the order of `truth`."""
        return [image.nearest for image in self.judged[: self.n]]

    @property
    def categories(self) -> dict[str, CategoryScore]:
        """Scores of each category among the true and the answered ones, sorted by name."""
        return by_category(self.truth, self.answers, [image.unknown for image in self.judged[: self.n]])

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix, int64 ``(n, n)``: true categories × answers, both in the order of `categories`."""
        return confusion(self.truth, self.answers, list(self.categories))

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec evaluate --json`` prints; its confusions are the non-zero ones."""
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


def labelled_images(folder: Path, *, on_outside: OnOutside = refused) -> list[tuple[Path, str]]:
    """Returns the images of a folder with a sub-folder per category, each with its category.

    Args:
        folder: The folder.
        on_outside: Called with the error of each image or sub-folder that leads out of the folder by a link, and is
            left out; by default, the first is raised.

    Raises:
        InvalidInputError: The folder does not exist, or has no image in a sub-folder.
    """
    paths = [path for path in find_images(folder, on_outside=on_outside) if path.parent != folder]
    if not paths:
        raise InvalidInputError(
            f"{folder} has no images in sub-folders: give a folder with one sub-folder per category"
        )
    return [(path, checked_name(path.relative_to(folder).parts[0])) for path in paths]


def labelled_images_of(categories: Iterable[CategoryInput]) -> list[tuple[ImageInput, str]]:
    """Returns pairs of image and category name, for example of categories from `zsvec.inputs.tables.from_csv`.

    Raises:
        InvalidInputError: There is no image.
    """
    if not is_several(categories):
        raise InvalidInputError(f"categories must be a list of CategoryInput. Got {shown(categories)} instead")
    found = [
        (given.image if isinstance(given, ReferenceImage) else given, category.name)
        for category in map(checked_category, categories)
        for given in category.images
    ]
    if not found:
        raise InvalidInputError("none of the categories has an image: give one or more")
    return found


def check_labels(categories: Collection[str], labels: Iterable[str], *, images: str, location: str) -> None:
    """Refuses images of categories that a store does not have.

    Args:
        categories: Of the store.
        labels: Of the images.
        images: Name of the images in the error.
        location: Of the store.

    Raises:
        StoreError: The store has no category.
        InvalidInputError: A label is no category.
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
        classifier: Its categories include every label.
        images: Images with a category: a list, or another sequence that makes each image on access. Any other iterable
            is turned into a list.
        labels: The category of each.
        unknown: Images of no category, to measure open-set rejection.
        on_error: Called for each image that cannot be read, and is left out.
        track: Wraps the images, to show progress.

    Raises:
        StoreError: The store has no category.
        InvalidInputError: There are no images, or not as many labels, or none can be read; or a label is no category of
            the store.
    """
    images, strangers = _sequence(images), _sequence(unknown)
    if not is_several(labels):
        raise InvalidInputError(f"labels must be a list of category names. Got {shown(labels)} instead")
    names = [checked_name(label) for label in labels]
    if len(names) != len(images) or not names:
        raise InvalidInputError(f"give one or more images, and a label for each. Got {len(images)} and {len(names)}")
    categories = [category.name for category in classifier.categories()]
    check_labels(categories, names, images="the images", location=classifier.location)
    # In random order: a strategy may infer from a batch that its images are alike.
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
    """Returns the AUROC of the novelty, or of the distance where an image has no novelty."""
    scores = [image.novelty for image in judged]
    if None in scores:
        scores = [image.distance for image in judged]
    return auroc(np.array(scores, dtype=np.float64), np.array([image.truth is None for image in judged]))
