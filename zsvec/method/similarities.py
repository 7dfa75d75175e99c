"""References, and the similarities of a batch of images to them: the input of the method from a search."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats, Key, Product, product
from zsvec.method.calibration import Calibration
from zsvec.method.predict.background import FEWEST, Background, ClassMeans
from zsvec.types import Modality, Neighbor, encoder_and_modality

T = TypeVar("T")


@dataclass(frozen=True)
class References:
    """All references of one expert, ordered by category.

    After a commit, the next batch copies the whole matrix of each expert that the commit concerns (85 ms for 10⁵ rows
    of 512 numbers), because batches that are under way still read the former one.

    Attributes:
        names: The categories, ascending; category ``c`` has the rows ``starts[c]:starts[c + 1]``.
        vectors: float32 ``(n_references, dim)``, unit rows.
        starts: int ``(n_categories + 1,)``.
        norms: float32 ``(n_categories,)``; length of the mean of the category's references, 0 to 1.
        hashes: Content hash of each reference.
        sources: Source of each reference.
        groups: Name of the group of each reference within its category, such as a burst; empty without any group.
    """

    names: tuple[str, ...]
    vectors: Floats
    starts: NDArray[np.intp]
    norms: Floats
    hashes: tuple[str, ...]
    sources: tuple[str, ...]
    groups: tuple[str | None, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The category of each reference."""
        return [name for name, n in zip(self.names, np.diff(self.starts), strict=True) for _ in range(n)]

    @property
    def keys(self) -> list[Key]:
        """Category and hash of each reference."""
        return list(zip(self.labels, self.hashes, strict=True))

    @cached_property
    def class_means(self) -> ClassMeans:
        """Mean reference of each category."""
        return ClassMeans.of(self.names, self.vectors, self.starts)

    @cached_property
    def root_means(self) -> ClassMeans:
        """Mean of the roots of the references of each category."""
        return ClassMeans.of(self.names, self.vectors, self.starts, of_roots=True)

    def owners(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Position in `names` of the category of each row, int of the same shape."""
        owners: NDArray[np.intp] = np.searchsorted(self.starts, rows, side="right") - 1
        return owners

    def succeed(self, before: References, changed: Collection[str]) -> None:
        """Update the means that were already computed for the references before a change.

        Args:
            before: The references of the same expert before.
            changed: Names of the categories that are new, removed or different.
        """
        for name in ("class_means", "root_means"):
            if (means := before.__dict__.get(name)) is not None:
                self.__dict__[name] = means.changed(changed, self.names, self.vectors, self.starts)

    def sum_up(self, background: Background) -> ClassMeans:
        """The category means that a background describes."""
        return self.root_means if background.of_roots else self.class_means


def image_experts(by_expert: Mapping[str, T]) -> dict[str, T]:
    """The entries of the experts that compare images with images."""
    return {expert: value for expert, value in by_expert.items() if encoder_and_modality(expert)[1] == "image"}


def category_names(references: Mapping[str, References]) -> list[str]:
    """All categories of some experts, ascending."""
    return sorted({name for expert in references.values() for name in expert.names})


class Compared(Protocol):
    """Similarities of a batch of images to the references of one expert, on any device."""

    @property
    def counts(self) -> NDArray[np.intp]:
        """References of each category, int ``(n_categories,)``."""
        ...

    @property
    def exact(self) -> bool:
        """Whether every image was compared with every reference, and the lengths of the means are known."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def of(self, rows: slice) -> Self:
        """The similarities of some of the images."""
        ...

    def aggregate(self, method: str, m: int) -> Floats:
        """Similarity of each image to each category that the expert covers.

        Args:
            method: A name in `zsvec.method.predict.reference_aggregation.AGGREGATIONS`.
            m: References that ``top_mean`` averages; at least 1.

        Returns:
            float32 ``(n_images, n_covered)``, -1 to 1.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSimilarities:
    """Similarities of a batch of images to the references of one expert.

    Attributes:
        name: Name of the expert, such as ``clip:image``.
        coverage: int ``(n_covered,)``, ascending: the categories that the expert has references of, as positions
            in `SearchResult.categories`.
        similarities: Similarities to the references, grouped by category in the order of the coverage.
        nearest: The nearest references of each image, nearest first.
        class_means: Gives the means of the covered categories that a background describes, in the order of the
            coverage; ``None`` where the search did not read the vectors of every category.
        product: Matrix product with the threads of the search.
    """

    name: str
    coverage: NDArray[np.intp]
    similarities: Compared
    nearest: Sequence[tuple[Neighbor, ...]]
    class_means: Callable[[Background], ClassMeans | None] = field(default=lambda _: None, compare=False, repr=False)
    product: Product = field(default=product, compare=False, repr=False)

    @property
    def encoder(self) -> str:
        """The encoder of images and references."""
        return encoder_and_modality(self.name)[0]

    @property
    def modality(self) -> Modality:
        """Modality of the references."""
        return encoder_and_modality(self.name)[1]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search.

    Attributes:
        categories: The committed categories, by name.
        experts: Each expert that has references.
        queries: The vectors of the images, by encoder: float32 ``(n_images, dim)``.
        calibration: The stored calibration, if any.
        stale: Whether categories have changed since the calibration was made.
        incomplete: Committed categories that cannot be read completely now: answered from their former state or
            left out.
        stale_seconds: Seconds since the store was read, while the store is away; else 0.
    """

    categories: tuple[str, ...]
    experts: tuple[ExpertSimilarities, ...]
    queries: Mapping[str, Floats] = field(default_factory=dict, compare=False)
    calibration: Calibration | None = None
    stale: bool = False
    incomplete: tuple[str, ...] = ()
    stale_seconds: float = 0.0

    def __len__(self) -> int:
        """Number of images."""
        return len(self.experts[0].similarities)

    def of(self, rows: slice) -> SearchResult:
        """The result for some of the images."""
        if rows == slice(0, len(self)):
            return self
        experts = [
            replace(expert, similarities=expert.similarities.of(rows), nearest=expert.nearest[rows])
            for expert in self.experts
        ]
        queries = {encoder: vectors[rows] for encoder, vectors in self.queries.items()}
        return replace(self, experts=tuple(experts), queries=queries)

    def summed_up(self, backgrounds: Mapping[str, Background]) -> bool:
        """Whether every image expert has a background, the mean of every category, and `FEWEST` references of each.

        Args:
            backgrounds: By expert; from the store, so their dimension may be wrong.
        """
        images = [expert for expert in self.experts if expert.modality == "image"]
        for expert in images:
            known = backgrounds.get(expert.name)
            if known is None or len(known.mean) != self.queries[expert.encoder].shape[1]:
                return False
            if len(expert.coverage) < len(self.categories) or expert.similarities.counts.min() < FEWEST:
                return False
        return all(expert.class_means(backgrounds[expert.name]) is not None for expert in images)

    @property
    def exact(self) -> bool:
        """Whether every image was compared with every reference, and the lengths of the means are known."""
        return all(expert.similarities.exact for expert in self.experts)
