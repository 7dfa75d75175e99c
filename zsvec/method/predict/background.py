"""The background of an image expert, and the category means relative to the background.

The background describes images regardless of their category: the average of the category means, and the precision
(inverse covariance) of images around the mean of their category.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats

FEWEST = 3
"""Least number of references of the largest category from which a background is learned."""
_SHORTEST = np.float32(1e-12)  # length below which a vector has no direction
_LARGEST_RANK = 256  # maximum rank of the basis of a stored background
_GROWTH = 0.1  # relative change in the number of references above which a background is outdated


def roots(vectors: Floats) -> Floats:
    """Returns the signed square roots of the components of vectors, as unit rows; float32 of the same shape.

    Outputs of a network that ends with an averaged ReLU are skewed: most are near zero, few are large. Their roots are
    closer to the normal distribution that a discriminant assumes (Yang, Liu & Xu, "Free lunch for few-shot learning:
    distribution calibration", ICLR 2021, equation 3, with λ = 1/2).

    Args:
        vectors: float32 ``(..., dim)``.
    """
    found = np.copysign(np.sqrt(np.abs(vectors)), vectors)
    found /= np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), _SHORTEST)
    return found


def features(vectors: Floats, *, of_roots: bool) -> Floats:
    """Returns the vectors of images, or their `roots`. Input and output are float32 ``(..., dim)``, unit rows."""
    return roots(vectors) if of_roots else vectors


def mean_reference(vectors: Floats) -> Floats:
    """Returns the mean of a category's references, float32 ``(dim,)``, summed in double precision."""
    mean: Floats = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """Average of the category means, and precision of images around the mean of their category.

    The basis holds the directions in which images of one category differ most. In every direction orthogonal to the
    basis, the precision is `elsewhere`.

    Attributes:
        mean: float32 ``(dim,)``, average of the category means, weighted by the inverse of their variance.
        basis: float32 ``(rank, dim)``, orthonormal rows. The variance within a category increases from the first row to
            the last.
        along: float32 ``(rank,)``, precision in the directions of the basis.
        elsewhere: Precision in all other directions.
        weight: Factor of the scatter in the covariance, (1 - λ) / (N - C) in `gda.learn_background`.
        within: Mean squared Mahalanobis distance of a reference from the mean of its category.
        between: Mean squared Mahalanobis distance of category means from `mean`, minus the part that is due to chance.
        references: Number of references that the background was learned from.
        of_roots: Whether images are represented by the `roots` of their vectors.
    """

    mean: Floats
    basis: Floats
    along: Floats
    elsewhere: float
    weight: float
    within: float
    between: float
    references: int
    of_roots: bool = False

    def features(self, vectors: Floats) -> Floats:
        """Returns the `features` that this background describes: the vectors or their roots."""
        return features(vectors, of_roots=self.of_roots)

    def trust(self, counts: NDArray[Any] | int) -> NDArray[Any] | float:
        """Returns the factor that shrinks the mean of n references towards the background's mean, 0 to 1.

        If category means are normally distributed around the background's mean, the shrunk mean is the posterior mean
        of the category (empirical Bayes).

        Args:
            counts: Number of references, at least 1.
        """
        return self.between / (self.between + self.within / counts)

    def outdated(self, references: int) -> bool:
        """Returns whether the number of references has changed by more than a tenth since learning."""
        return abs(references - self.references) > _GROWTH * self.references

    def kept(self) -> Background:
        """Returns the background as the store keeps it: rounded, with a basis of at most 256 directions.

        The kept directions are the directions in which images of one category differ most. All other directions get
        their mean precision. The stored record takes about a megabyte. The result must not be used to leave a reference
        out, because the reference has influenced the choice of directions.
        """
        dropped, dim = self.along[:-_LARGEST_RANK], len(self.mean)
        unused = dim - len(self.along)  # directions without any reference
        elsewhere = (float(dropped.sum()) + unused * self.elsewhere) / max(1, dim - _LARGEST_RANK)
        short = replace(
            self,
            basis=self.basis[-_LARGEST_RANK:],
            along=self.along[-_LARGEST_RANK:],
            elsewhere=elsewhere if len(dropped) else self.elsewhere,
        )
        return self.from_dict(short.to_dict())

    def square(self, offsets: NDArray[Any]) -> NDArray[Any]:
        """Returns the squared Mahalanobis lengths, float ``(...,)``, of offsets, float ``(..., dim)``."""
        gains = self.along - np.float32(self.elsewhere)
        precise = np.float32(self.elsewhere) * offsets + (offsets @ self.basis.T * gains) @ self.basis
        squared: NDArray[Any] = (offsets * precise).sum(axis=-1)
        return squared

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON object. Arrays are base64 of little-endian numbers; the basis has half precision."""
        arrays = {name: b64encode(getattr(self, name).astype(_ARRAYS[name]).tobytes()).decode() for name in _ARRAYS}
        return {**arrays, **{name: getattr(self, name) for name in _NUMBERS}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Background:
        """Reads the output of `to_dict`.

        Equal values return the same cached object while it is among the last 16, so the result cached by
        `ClassMeans.seen_from` stays valid.

        Raises:
            AttributeError, KeyError, OverflowError, TypeError, ValueError: The values do not describe a background.
        """
        return _read(*(values[name] for name in (*_ARRAYS, *_NUMBERS)))


_ARRAYS = {"mean": "<f4", "basis": "<f2", "along": "<f4"}
_NUMBERS = ("elsewhere", "weight", "within", "between", "references", "of_roots")
_LARGEST = 1e20  # precision, weight or distance; float32 has the sums of products with it


@lru_cache(maxsize=16)
def _read(*values: Any) -> Background:
    kept = dict(zip((*_ARRAYS, *_NUMBERS), values, strict=True))
    arrays = {name: np.frombuffer(b64decode(kept[name]), _ARRAYS[name]).astype(np.float32) for name in _ARRAYS}
    fields: dict[str, Any] = {name: float(kept[name]) for name in _NUMBERS}
    of_unit_rows = np.abs(np.concatenate([arrays["mean"], arrays["basis"]]))
    positive = np.append(arrays["along"], list(fields.values()))
    if not (of_unit_rows.max() <= 2 and positive.min() >= 0 and positive.max() <= _LARGEST):  # false for NaN
        raise ValueError("the numbers of a background must not be so large that a distance overflows, nor negative")
    if fields["within"] < 1 / _LARGEST:
        raise ValueError("the references of a category must differ")
    fields |= arrays | {"references": int(kept["references"]), "of_roots": bool(kept["of_roots"])}
    fields["basis"] = arrays["basis"].reshape(len(arrays["along"]), len(arrays["mean"]))
    return Background(**fields)


@dataclass(frozen=True, slots=True)
class Seen:
    """Category means relative to a background.

    The offset of a category is its mean minus the mean of the background.

    Attributes:
        background: The background.
        lengths: float32 ``(n_categories,)``, Euclidean length of each offset.
        along: float32 ``(n_categories, rank)``, coordinates of each offset in the basis.
        trust: float32 ``(n_categories,)``, `Background.trust` of each mean.
        halves: float32 ``(n_categories,)``, half the squared Mahalanobis length of (offset × trust), nats.
    """

    background: Background
    lengths: Floats
    along: Floats
    trust: Floats
    halves: Floats

    @classmethod
    def of(cls, means: Floats, counts: NDArray[np.intp], background: Background) -> Seen:
        """Returns category means relative to a background; ``counts`` is the number of references of each category."""
        offsets: Floats = means - background.mean
        trust = np.asarray(background.trust(counts), dtype=np.float32)
        return cls(
            background,
            lengths=np.linalg.norm(offsets, axis=1),
            along=offsets.dot(background.basis.T),
            trust=trust,
            halves=0.5 * trust**2 * background.square(offsets),
        )


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Mean references of the categories of one expert.

    Attributes:
        names: The categories, ascending.
        means: float32 ``(n_categories, dim)``, mean of each category's references, or of their `roots`.
        counts: int ``(n_categories,)``, number of references of each category, at least 1.
        of_roots: Whether the means are means of roots.
    """

    names: Sequence[str]
    means: Floats
    counts: NDArray[np.intp]
    of_roots: bool = False

    @classmethod
    def of(
        cls, names: Sequence[str], vectors: Floats, starts: NDArray[np.intp], *, of_roots: bool = False
    ) -> ClassMeans:
        """Computes the means of references.

        Args:
            names: The categories, ascending.
            vectors: float32 ``(n_references, dim)``; category ``c`` has the rows ``starts[c]:starts[c + 1]``.
            starts: int ``(n_categories + 1,)``.
            of_roots: Whether to average the roots of the references.
        """
        means = _means(vectors, starts, range(len(names)), of_roots)
        return cls(names, means, np.diff(starts), of_roots)

    def changed(
        self, changed: Collection[str], names: Sequence[str], vectors: Floats, starts: NDArray[np.intp]
    ) -> ClassMeans:
        """Returns the means after a change, equal to the result of `of`. Only means of changed categories are computed.

        Args:
            changed: Names of the categories that are new, removed or different.
            names: The categories after the change, ascending; at least one.
            vectors: As in `of`, after the change.
            starts: As in `of`, after the change.
        """
        row = {name: i for i, name in enumerate(self.names)}
        others = [place for place, name in enumerate(names) if name in changed]
        # Rows of changed categories are placeholders, replaced below.
        kept = np.array([0 if name in changed else row[name] for name in names], dtype=np.intp)
        means = self.means.take(kept, axis=0)
        means[others] = _means(vectors, starts, others, self.of_roots)
        return ClassMeans(names, means, np.diff(starts), self.of_roots)

    def seen_from(self, background: Background) -> Seen:
        """Returns the means relative to a background; the result for the last background is cached."""
        seen: Seen | None = self.__dict__.get("_seen")
        if seen is None or seen.background is not background:
            seen = Seen.of(self.means, self.counts, background)
            self.__dict__["_seen"] = seen
        return seen

    def __len__(self) -> int:
        """Number of categories."""
        return len(self.counts)


def _means(vectors: Floats, starts: NDArray[np.intp], categories: Sequence[int], of_roots: bool) -> Floats:
    # One category at a time: each mean is independent of other categories, and no double-precision copy is made.
    means = np.empty((len(categories), vectors.shape[1]), dtype=np.float32)
    for mean, category in zip(means, categories, strict=True):
        mean[:] = mean_reference(features(vectors[starts[category] : starts[category + 1]], of_roots=of_roots))
    return means
