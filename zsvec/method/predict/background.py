"""The background of an image expert: what its images are like whatever they show."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats

FEWEST = 3
"""References that every category has where a background is learned."""
_SHORTEST = np.float32(1e-12)  # length of a vector that has a direction
_LARGEST_RANK = 256  # of a background that is kept with a store
_GROWTH = 0.1  # of the number of references, from where on it is learned anew


def roots(vectors: Floats) -> Floats:
    """The square roots of the components of vectors, each with its sign, as unit rows; float32 of the same shape.

    What networks end with that have no negative outputs (after a ReLU, averaged) is skew: most are near zero, few are
    large. Their roots are more like normally distributed, which is what a discriminant takes them for (Yang, Liu & Xu,
    "Free lunch for few-shot learning: distribution calibration", ICLR 2021, equation 3, with λ = 1/2).

    Args:
        vectors: float32 ``(..., dim)``.
    """
    found = np.copysign(np.sqrt(np.abs(vectors)), vectors)
    found /= np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), _SHORTEST)
    return found


def features(vectors: Floats, *, of_roots: bool) -> Floats:
    """What images are, by their vectors: these, or their `roots`; both float32 ``(..., dim)``, unit rows."""
    return roots(vectors) if of_roots else vectors


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """The mean of the categories, and the precision (the inverse covariance) of images around the mean of theirs.

    Images are their vectors, or the `roots` of these.

    The precision is ``elsewhere`` in all directions but those of the basis, in which images of a category differ most.

    Attributes:
        mean: float32 ``(dim,)``, the mean of the mean references of the categories.
        basis: float32 ``(rank, dim)``, orthonormal rows; last those in which images of a category differ most.
        along: float32 ``(rank,)``, the precision in the directions of the basis.
        elsewhere: The precision in all others.
        weight: What a unit of scatter along the basis adds to the covariance.
        within: Mean squared Mahalanobis distance of a reference from the mean of its category.
        between: Mean squared Mahalanobis distance of that from the mean of the categories.
        references: Number of references that it was learned from.
        of_roots: Whether images are the roots of their vectors.
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
        """The `features` of vectors, as this background takes them."""
        return features(vectors, of_roots=self.of_roots)

    def trust(self, counts: NDArray[Any] | int) -> NDArray[Any] | float:
        """How much of a mean reference's distance from the centre is not chance, 0 to 1.

        So far a mean of n references is drawn towards the centre: it is the mean of the category given these, where
        categories are normally distributed around the centre (empirical Bayes).

        Args:
            counts: Number of references, at least 1.
        """
        return self.between / (self.between + self.within / counts)

    def outdated(self, references: int) -> bool:
        """Whether so many references are a tenth more or fewer than it was learned from."""
        return abs(references - self.references) > _GROWTH * self.references

    def kept(self) -> Background:
        """The same as a store keeps it: rounded, in the directions in which images of a category differ most.

        So it takes a megabyte. All other directions get the mean of their precisions. It is no good for leaving a
        reference out: the directions would have been chosen with it.
        """
        dropped, dim = self.along[:-_LARGEST_RANK], len(self.mean)
        nowhere = dim - len(self.along)  # directions that no reference has
        elsewhere = (float(dropped.sum()) + nowhere * self.elsewhere) / max(1, dim - _LARGEST_RANK)
        short = replace(
            self,
            basis=self.basis[-_LARGEST_RANK:],
            along=self.along[-_LARGEST_RANK:],
            elsewhere=elsewhere if len(dropped) else self.elsewhere,
        )
        return self.from_dict(short.to_dict())

    def precise(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Vectors times the precision, float ``(..., dim)``."""
        gains = self.along - np.float32(self.elsewhere)
        out: NDArray[Any] = np.float32(self.elsewhere) * vectors + (vectors @ self.basis.T * gains) @ self.basis
        return out

    def square(self, offsets: NDArray[Any]) -> NDArray[Any]:
        """Squared Mahalanobis length of each, float ``(...,)``.

        Args:
            offsets: float ``(..., dim)``.
        """
        squared: NDArray[Any] = (offsets * self.precise(offsets)).sum(axis=-1)
        return squared

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the store: arrays as base64 of little-endian numbers, half as long where these are many."""
        arrays = {name: b64encode(getattr(self, name).astype(_ARRAYS[name]).tobytes()).decode() for name in _ARRAYS}
        return {**arrays, **{name: getattr(self, name) for name in _NUMBERS}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Background:
        """Inverse of `to_dict`, but for rounding; the same object for equal values, so that no mean is seen anew.

        Raises:
            AttributeError, KeyError, OverflowError, TypeError, ValueError: They are no such dictionary.
        """
        return _read(*(values[name] for name in (*_ARRAYS, *_NUMBERS)))


_ARRAYS = {"mean": "<f4", "basis": "<f2", "along": "<f4"}
_NUMBERS = ("elsewhere", "weight", "within", "between", "references", "of_roots")


@lru_cache(maxsize=16)
def _read(*values: Any) -> Background:
    kept = dict(zip((*_ARRAYS, *_NUMBERS), values, strict=True))
    arrays = {name: np.frombuffer(b64decode(kept[name]), _ARRAYS[name]).astype(np.float32) for name in _ARRAYS}
    fields: dict[str, Any] = {name: float(kept[name]) for name in _NUMBERS}
    numbers = np.concatenate([*arrays.values(), list(fields.values())])
    if not np.isfinite(numbers).all() or min(fields.values()) < 0 or fields["within"] == 0:
        raise ValueError("a background has numbers that nobody can count with")
    fields |= arrays | {"references": int(kept["references"]), "of_roots": bool(kept["of_roots"])}
    fields["basis"] = arrays["basis"].reshape(len(arrays["along"]), len(arrays["mean"]))
    return Background(**fields)
