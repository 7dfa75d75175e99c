"""References, and the similarities of a batch of images to them: what a search hands to the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zsvec.method.calibration import Calibration
from zsvec.types import Neighbor

Floats = NDArray[np.float32]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class References:
    """All references of one expert, those of a category adjacent.

    Attributes:
        names: The categories, ascending; category ``c`` has the rows ``starts[c]:starts[c + 1]``.
        vectors: float32 ``(n_references, dim)``, unit rows.
        starts: int ``(n_categories + 1,)``.
        norms: float32 ``(n_categories,)``; length of the mean of the category's references, 0 to 1.
        hashes: Of their contents.
        sources: Where they come from.
    """

    names: tuple[str, ...]
    vectors: Floats
    starts: NDArray[np.intp]
    norms: Floats
    hashes: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """The category of each reference."""
        return [name for name, n in zip(self.names, np.diff(self.starts), strict=True) for _ in range(n)]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """What makes each the same reference under every encoder: category and hash."""
        return list(zip(self.labels, self.hashes, strict=True))


def category_names(references: Mapping[str, References]) -> list[str]:
    """All categories of some experts, by name."""
    return sorted({name for of in references.values() for name in of.names})


class Compared(Protocol):
    """What is known of the similarity of a batch of images to the references of one expert, wherever it is kept."""

    @property
    def counts(self) -> NDArray[np.intp]:
        """References of each category, int ``(n_categories,)``."""
        ...

    @property
    def present(self) -> NDArray[np.intp]:
        """Of how many of them the similarity is known, int ``(n_categories,)``."""
        ...

    @property
    def norms(self) -> Floats:
        """Length of the mean of each category's references, float32 ``(n_categories,)``; NaN if unknown."""
        ...

    @property
    def floor(self) -> Floats:
        """The most that the similarity to one of the others can be, float32 ``(n_images,)``."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def aggregate(self, method: str, m: int) -> Floats:
        """What the function `aggregate` returns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSimilarities:
    """What the references of one expert say of a batch of images.

    Attributes:
        name: Of the expert, such as ``clip:image``.
        coverage: int ``(n_covered,)``, ascending: the categories it has references of, as positions
            in `Found.categories`.
        similarities: To their references, grouped by category in this order.
        nearest: For each image its nearest references, nearest first.
    """

    name: str
    coverage: NDArray[np.intp]
    similarities: Compared
    nearest: Sequence[tuple[Neighbor, ...]]


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a search.

    Attributes:
        categories: The committed ones, by name.
        experts: Each that has references.
        queries: The vectors that were searched for, by encoder.
        calibration: The one that is kept with the store, if there is any.
        stale: Whether categories have changed since it was made.
    """

    categories: tuple[str, ...]
    experts: tuple[ExpertSimilarities, ...]
    queries: Mapping[str, Vectors] = field(default_factory=dict, compare=False)
    calibration: Calibration | None = None
    stale: bool = False

    @property
    def exact(self) -> bool:
        """Whether every image was compared with every reference, and the norms are known."""
        return all(
            np.array_equal(of.counts, of.present) and (of.floor == -1).all() and np.isfinite(of.norms).all()
            for of in (expert.similarities for expert in self.experts)
        )
