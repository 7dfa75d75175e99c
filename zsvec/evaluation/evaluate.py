"""How good the fusion and each expert are, and how well novelty tells the unknown from the known."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from zsvec.classifier import Classifier
from zsvec.errors import InvalidInputError, StoreError
from zsvec.evaluation.metrics import blind_auroc, calibration_floor
from zsvec.inputs.categories import checked_name
from zsvec.inputs.folders import find_images
from zsvec.method.fit import expected_calibration_error
from zsvec.types import Prediction, Ranking

_TOP = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What counts of the answer for one image: far less than a ranking of all categories.

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
class Accuracy:
    """How good answers are.

    Attributes:
        top1: Fraction of the images whose category is the most probable, 0 to 1.
        top3: Fraction of the images whose category is among the first 3.
        top5: Fraction of the images whose category is among the first 5.
        nll: Negative log-likelihood: mean of -ln(probability of the true category), nats. ``None`` where it is
            infinite: a true category has probability 0, as where an expert has no reference of it.
        brier: Mean Brier score, the squared error summed over the categories, 0 to 2.
        ece: Expected calibration error of the largest probability, 0 to 1.
        ece_floor: What that would be for perfectly calibrated answers of the same confidence, by chance alone.
    """

    top1: float
    top3: float
    top5: float
    nll: float | None
    brier: float
    ece: float
    ece_floor: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Accuracy:
        """Of the answers for some images, at least one."""
        top1, top3, top5 = (fmean(outcome.rank < k for outcome in outcomes) for k in (1, 3, _TOP))
        own = [outcome.probability for outcome in outcomes]
        confidence = np.array([outcome.confidence for outcome in outcomes])
        return cls(
            top1,
            top3,
            top5,
            nll=-fmean(map(math.log, own)) if all(own) else None,
            brier=fmean(outcome.brier for outcome in outcomes),
            ece=expected_calibration_error(confidence, [outcome.rank == 0 for outcome in outcomes]),
            ece_floor=calibration_floor(confidence),
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        n: Images with a known category that could be read.
        accuracy: Of the fused ranking.
        experts: Of each expert alone.
        auroc: Area under the ROC curve of novelty, or of distance without a calibration, unknown against known
            images; 0.5 is chance. ``None`` without unknown images.
        detected: Fraction of the unknown images that were called unknown; ``None`` without unknown images.
        false_unknown_rate: Fraction of the known images that were called unknown; ``None`` without unknown images.
        fusion: Name of the strategy that ran.
    """

    n: int
    accuracy: Accuracy
    experts: Mapping[str, Accuracy]
    auroc: float | None
    detected: float | None
    false_unknown_rate: float | None
    fusion: str

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec evaluate --json`` prints."""
        unknown = {"auroc": self.auroc, "detected": self.detected, "false_unknown_rate": self.false_unknown_rate}
        auroc = {} if self.auroc is None else unknown
        experts = {name: asdict(accuracy) for name, accuracy in self.experts.items()}
        return {"n": self.n, **asdict(self.accuracy), **auroc, "fusion": self.fusion, "experts": experts}


def labelled_images(folder: Path) -> list[tuple[Path, str]]:
    """Images of a folder with a sub-folder per category, each with its category.

    Raises:
        InvalidInputError: It is no folder, or has no image in a sub-folder.
    """
    paths = [path for path in find_images(folder) if path.parent != folder]
    if not paths:
        raise InvalidInputError(
            f"{folder} has no images in sub-folders: give a folder with one sub-folder per category"
        )
    return [(path, checked_name(path.relative_to(folder).parts[0])) for path in paths]


def check_labels(categories: Collection[str], labels: Iterable[str], *, images: str, location: str) -> None:
    """Refuse images of categories that a store does not have.

    Args:
        categories: Of the store.
        labels: Of the images.
        images: What to call the images.
        location: Of the store.

    Raises:
        StoreError: The store has no category.
        InvalidInputError: A label is no category.
    """
    if not categories:
        raise StoreError(f"{location} has no category yet: add one with `zsvec add` or `zsvec import`")
    if missing := sorted(set(labels) - set(categories)):
        shown = ", ".join(map(repr, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise InvalidInputError(
            f"{len(missing)} of the labels in {images} {'is' if len(missing) == 1 else 'are'} no category of "
            f"{location}: {shown}; add them, or name the sub-folders as `zsvec list` does"
        )


def evaluate(
    classifier: Classifier,
    folder: Path,
    unknown: Path | None = None,
    *,
    on_error: Callable[[Prediction], None] = lambda prediction: None,
    track: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> Evaluation:
    """Classify labelled images, in random order, and count.

    The AUROC is that of the novelty. Where an image has none, as without a calibration, it is that of the distance to
    the nearest reference, for all images.

    Args:
        classifier: Whose categories include every label.
        folder: A sub-folder of images per category.
        unknown: Images of no category.
        on_error: Called for each image that cannot be read; it does not count.
        track: Wraps the images, to show progress.

    Raises:
        StoreError: The store has no category.
        InvalidInputError: A folder has no images, or a label is no category of the store.
    """
    labelled = labelled_images(folder)
    strangers = find_images(unknown) if unknown else []
    if unknown and not strangers:
        raise InvalidInputError(f"{unknown} has no images")
    categories = [category.name for category in classifier.categories()]
    check_labels(categories, [label for _, label in labelled], images=str(folder), location=classifier.store.location)
    images = [*labelled, *((path, None) for path in strangers)]
    # In any other order than that of the folders: a strategy may take it from a batch that its images are alike.
    images = [images[i] for i in np.random.default_rng(0).permutation(len(images))]
    paths, labels = [path for path, _ in images], [label for _, label in images]
    known: list[Prediction] = []
    foreign: list[Prediction] = []
    fused: list[Outcome] = []
    experts: dict[str, list[Outcome]] = defaultdict(list)
    with classifier.classify_stream(track(paths), top_k=len(categories)) as stream:
        for prediction, label in zip(stream, labels, strict=True):
            if prediction.error is not None:
                on_error(prediction)
                continue
            (foreign if label is None else known).append(replace(prediction, ranking=(), experts={}))
            if label is not None:
                fused.append(Outcome.of(prediction.ranking, label))
                for name, expert in prediction.experts.items():
                    experts[name].append(Outcome.of(expert.ranking, label))
    if not known:
        raise InvalidInputError(f"no image in {folder} can be read")
    if unknown and not foreign:
        raise InvalidInputError(f"no image in {unknown} can be read")
    return Evaluation(
        n=len(known),
        accuracy=Accuracy.of(fused),
        experts={name: Accuracy.of(outcomes) for name, outcomes in experts.items()},
        auroc=_auroc(known, foreign) if unknown else None,
        detected=_called_unknown(foreign) if unknown else None,
        false_unknown_rate=_called_unknown(known) if unknown else None,
        fusion=str(known[0].fusion),
    )


def _auroc(known: Sequence[Prediction], unknown: Sequence[Prediction]) -> float:
    predictions = [*known, *unknown]
    scores = [prediction.novelty for prediction in predictions]
    if None in scores:
        scores = [prediction.distance for prediction in predictions]
    return blind_auroc(np.array(scores, dtype=np.float64), np.arange(len(scores)) >= len(known))


def _called_unknown(predictions: Sequence[Prediction]) -> float:
    return fmean(prediction.unknown for prediction in predictions)
