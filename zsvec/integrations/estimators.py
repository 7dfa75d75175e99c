"""Estimators of scikit-learn: images to vectors, and a classifier of vectors by reference.

```python
from sklearn.pipeline import make_pipeline
from zsvec.integrations.estimators import ImageEmbedder, ReferenceClassifier

embedder = ImageEmbedder("offline")
pipeline = make_pipeline(embedder, ReferenceClassifier(dims=embedder.dims))
pipeline.fit(paths, labels).predict(["photo.jpg"])
```
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from numbers import Integral, Number
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.preprocessing import normalize
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

import zsvec
from zsvec.encoders.spec import TEMPERATURES
from zsvec.errors import ImageError, InvalidInputError, shown
from zsvec.method.arrays import slices
from zsvec.method.calibrate.fit import FALSE_UNKNOWN_RATE, fit_calibration
from zsvec.method.calibration import GDA, Calibration
from zsvec.method.predict.reference_aggregation import AGGREGATIONS
from zsvec.method.predict.scoring import Scores, Scoring
from zsvec.method.similarities import References, laid_out
from zsvec.search.in_process import compare
from zsvec.types import encoder_and_modality, expert_name

_AGGREGATIONS = (GDA, *AGGREGATIONS)
_BLOCK = 2**24  # similarities in memory at once
_LOADED = 2  # sets of encoders that stay loaded


class ImageEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Embeds images with the encoders of a profile. Nothing is learned.

    Encoders are loaded on first use, with your settings of that moment, and stay loaded: clones share them.

    Args:
        profile: Name of a profile, or folder of exported encoders, as for `zsvec.open`. By default the encoders of your
            settings.
        encoder: Name of one encoder, to get the vectors of this encoder alone. The other encoders of the profile are
            loaded, but do not run. By default, the vectors of all encoders are concatenated.
        device: Device of the encoders; by default, the setting.
        batch_size: Maximum number of images in a batch of an encoder; by default, the setting.
    """

    def __init__(
        self,
        profile: str | None = None,
        *,
        encoder: str | None = None,
        device: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.profile = profile
        self.encoder = encoder
        self.device = device
        self.batch_size = batch_size

    def fit(self, X: Iterable[zsvec.ImageInput], y: object = None) -> Self:  # noqa: N803
        """Returns the embedder itself."""
        return self

    def transform(self, X: Iterable[zsvec.ImageInput]) -> NDArray[np.float32]:  # noqa: N803
        """Embeds images.

        Args:
            X: Paths, bytes, PIL images or arrays, as for `Classifier.classify`; or a batch of images as one array.

        Returns:
            float32 ``(n_images, sum(dims))``. The part of each encoder has unit norm.

        Raises:
            ImageError: An image is unreadable.
            InvalidInputError: `X` is not several images, or a parameter is unusable.
            WeightsUnavailableError: The weights of an encoder are missing.
        """
        classifier = self._classifier()
        names, rows = list(classifier.encoders.fingerprints), []
        for image in classifier.embed_stream(X, batch_size=self.batch_size):
            if image.error is not None:
                raise ImageError(image.error)
            rows.append(np.concatenate([image.vectors[name] for name in names]))
        return np.stack(rows) if rows else np.empty((0, sum(self.dims)), np.float32)

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimension of each encoder, in the order of the columns, for `ReferenceClassifier`. Loads the encoders."""
        return tuple(one.dim for one in self._classifier().encoders.fingerprints.values())

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Returns the names of the columns, such as ``clip_0``."""
        encoders = self._classifier().encoders.fingerprints.items()
        return np.array([f"{name}_{i}" for name, one in encoders for i in range(one.dim)], dtype=object)

    def _classifier(self) -> zsvec.Classifier:
        if self.encoder is None:
            return _opened(os.getpid(), self.profile, self.device)
        return _with_one_encoder(os.getpid(), self.profile, self.device, self.encoder)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        tags.requires_fit = False
        return tags


@lru_cache(maxsize=_LOADED)
def _opened(pid: int, profile: str | None, device: Any) -> zsvec.Classifier:
    """Returns a classifier with the encoders. A process of another `pid` is a fork, which needs its own."""
    return zsvec.open(":memory:", profile=profile, device=device)


@lru_cache(maxsize=_LOADED)
def _with_one_encoder(pid: int, profile: str | None, device: Any, encoder: str) -> zsvec.Classifier:
    return zsvec.open(":memory:", encoders=[_opened(pid, profile, device).encoders[encoder]])


class ReferenceClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifies vectors by labelled reference vectors, as a store does, without a store.

    Vectors are scaled to unit norm, and compared by cosine. Every reference is left out once and compared with the
    others; from these comparisons, the classifier learns how much the similarities are worth, so that probabilities are
    calibrated (`Classifier.calibrate`).

    Args:
        aggregation: How similarities to references become the score of a class. ``gda``: Gaussian discriminant analysis
            and centred prototypes, if a class has three references; otherwise the nearest references and prototypes.
            Or one of ``top_mean``, ``mean``, ``max`` and ``prototype`` alone.
        top_m: Number of nearest references that ``top_mean`` averages, at least 1.
        dims: Numbers of columns of each encoder, if rows are concatenated vectors of several encoders
            (`ImageEmbedder.dims`). The part of each encoder is scaled and compared alone, and weighted by coefficients
            that are learned from the references. By default, a row is one vector.

    Attributes:
        classes_: The classes, ascending.
        n_features_in_: Number of columns.
        references_: The references by part, as `zsvec.method` arranges them. Categories are positions in `classes_`.
        calibration_: The `zsvec.Calibration`; ``None`` if there are fewer than two classes.
    """

    classes_: NDArray[Any]
    references_: dict[str, References]
    calibration_: Calibration | None

    def __init__(self, aggregation: str = GDA, *, top_m: int = 5, dims: Sequence[int] | None = None) -> None:
        self.aggregation = aggregation
        self.top_m = top_m
        self.dims = dims

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Makes the rows the references of their classes, in place of earlier references.

        Args:
            X: Numbers ``(n_references, n_features)``, rows of any norm. A row of zeros is like no other.
            y: Class of each row. Equal rows of a class are one reference, as in a store.

        Raises:
            InvalidInputError: A parameter is unusable.
            ValueError: The shapes do not fit, or a number is not finite.
        """
        return self._learn(X, y, anew=True)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:  # noqa: N803
        """Adds references, also of new classes. References that are already there stay as they are.

        The calibration is learned anew. But category means and their background are reused while the number of
        references is about the same, as in a store.

        Args:
            X: As for `fit`, with the same number of columns as before.
            y: Class of each row.
            classes: Classes that have no reference yet, which have probability 0. Need not be given.

        Raises:
            InvalidInputError: As `fit`.
            ValueError: As `fit`, or some classes are numbers and others are texts. The references stay as they are.
        """
        return self._learn(X, y, classes, anew=not hasattr(self, "classes_"))

    def _learn(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None, *, anew: bool) -> Self:  # noqa: N803
        rows, labels = validate_data(self, X, y, reset=anew, dtype=np.float64)
        check_classification_targets(labels)
        known = [labels, *([] if classes is None else [np.asarray(classes)]), *([] if anew else [self.classes_])]
        if len({_kind(label) for part in known for label in part.tolist()}) > 1:
            raise ValueError("the classes must be all numbers or all texts, got both. Convert them to one type")
        merged = np.unique(np.concatenate(known))
        names = _names(np.searchsorted(merged, labels))
        keys = [(name, sha256(row.tobytes()).hexdigest()) for name, row in zip(names, rows, strict=True)]
        parts = {expert: vectors.astype(np.float32) for expert, vectors in self._parts(rows).items()}
        if not anew:
            moved = _names(np.searchsorted(merged, self.classes_))
            before = next(iter(self.references_.values()))
            keys = [*((moved[int(name)], digest) for name, digest in before.keys), *keys]
            parts = {expert: np.concatenate([self.references_[expert].vectors, new]) for expert, new in parts.items()}
        _, kept = np.unique([name + digest for name, digest in keys], return_index=True)
        keys = [keys[row] for row in kept.tolist()]
        names, hashes = [name for name, _ in keys], [digest for _, digest in keys]
        references = {
            expert: laid_out(vectors[kept], names, hashes, [""] * len(names)) for expert, vectors in parts.items()
        }
        scoring = self._scoring(references)
        made = fit_calibration(
            references,
            scoring.temperatures,
            revision=0,
            aggregation=scoring.aggregation,
            top_m=scoring.top_m,
            false_unknown_rate=FALSE_UNKNOWN_RATE,
            former=None if anew else self.calibration_,
        )
        self.classes_ = merged
        self.references_, self.calibration_ = references, made[0] if made else None
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Returns the most probable class of each row, ``(n_rows,)``. Raises as `predict_proba`."""
        probabilities = self.predict_proba(X)
        found: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return found

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Returns the probability of each class, float64 ``(n_rows, n_classes)``, columns in the order of `classes_`.

        Raises:
            NotFittedError: There are no references.
            InvalidInputError: As `fit`.
            ValueError: As `fit`.
        """
        return np.concatenate([scores.fused for scores in self._scores(X)])

    def novelty(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Returns how far each row is from every class, float64 ``(n_rows,)``, 0 to 1; NaN without a calibration.

        About 5 % of new rows of known classes have more than 0.5 (`Prediction.novelty`). Raises as `predict_proba`.
        """
        return np.concatenate([scores.novelty for scores in self._scores(X)])

    def _scores(self, X: ArrayLike) -> list[Scores]:  # noqa: N803
        """Returns the scores of blocks of rows for all classes, in the order of `classes_`."""
        check_is_fitted(self)
        parts = self._parts(validate_data(self, X, reset=False, dtype=np.float64))
        scoring, names = self._scoring(self.references_), _names(range(len(self.classes_)))
        n_rows, n_references = len(next(iter(parts.values()))), len(next(iter(self.references_.values())).vectors)
        scores = []
        for rows in slices(n_rows, max(1, _BLOCK // n_references)):
            queries = {encoder_and_modality(expert)[0]: vectors[rows] for expert, vectors in parts.items()}
            found = compare(self.references_, names, queries, nearest=1)
            scores.append(scoring.scores(replace(found, calibration=self.calibration_)))
        return scores

    def _parts(self, rows: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """Returns the vectors of each encoder by expert, float64 ``(n_rows, dim)``, unit rows, or zero as given.

        A product in float32 may depend on the other rows of its block, in the last digits. scikit-learn wants the same
        answer for a row alone, so queries stay in float64.
        """
        n_features = rows.shape[1]
        dims = [n_features] if self.dims is None else list(self.dims)
        if sum(dims) != n_features or min(dims) < 1:
            raise InvalidInputError(
                f"dims must be positive and add up to the number of columns, {n_features}. Got {shown(self.dims)}"
            )
        parts = np.split(rows, np.cumsum(dims)[:-1], axis=1)
        return {expert_name(f"part {number}", "image"): _unit(part) for number, part in enumerate(parts)}

    def _scoring(self, experts: Iterable[str]) -> Scoring:
        if self.aggregation not in _AGGREGATIONS:
            raise InvalidInputError(
                f"aggregation must be one of {', '.join(_AGGREGATIONS)}. Got {shown(self.aggregation)}"
            )
        if not (isinstance(self.top_m, Integral) and self.top_m >= 1):
            raise InvalidInputError(f"top_m must be an integer of at least 1. Got {shown(self.top_m)}")
        temperatures = dict.fromkeys(experts, TEMPERATURES["image"])
        if self.aggregation == GDA:
            return Scoring(temperatures=temperatures, top_m=int(self.top_m))
        return Scoring(
            temperatures=temperatures, top_m=int(self.top_m), aggregation=self.aggregation, fusion="log_linear"
        )


def _unit(rows: NDArray[np.float64]) -> NDArray[Any]:
    """Returns unit rows. Squares of very small and very large numbers are 0 or infinite, so the largest becomes 1."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    return np.asarray(normalize(np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)))


def _kind(label: object) -> type:
    return next(kind for kind in (Number, str, object) if isinstance(label, kind))


def _names(positions: Iterable[int]) -> list[str]:
    """Returns names of categories for positions of classes, in the same order: classes need not be texts."""
    return [f"{position:09d}" for position in positions]
