"""References, and the similarities of a batch of images to them: what a search hands to the method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats
from zsvec.method.calibration import Calibration
from zsvec.method.predict.background import FEWEST, Background
from zsvec.method.predict.class_means import ClassMeans
from zsvec.types import Modality, Neighbor, encoder_and_modality

T = TypeVar("T")


class Product(Protocol):
    """Multiplies matrices."""

    def __call__(self, a: Floats, b: Floats) -> Floats:
        """Dot products of all rows of two matrices, float32 ``(n, m)``.

        Args:
            a: float32 ``(n, dim)``.
            b: float32 ``(m, dim)``.
        """
        ...


def product(a: Floats, b: Floats) -> Floats:
    """A `Product` by numpy."""
    found: Floats = a @ b.T
    return found


@dataclass(frozen=True)
class References:
    """All references of one expert, those of a category adjacent.

    Attributes:
        names: The categories, ascending; category ``c`` has the rows ``starts[c]:starts[c + 1]``.
        vectors: float32 ``(n_references, dim)``, unit rows.
        starts: int ``(n_categories + 1,)``.
        norms: float32 ``(n_categories,)``; length of the mean of the category's references, 0 to 1.
        hashes: Content hash of each reference.
        sources: Where each reference comes from.
        groups: What each reference is known to belong together with, within its category; empty where none is.
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
    def keys(self) -> list[tuple[str, str]]:
        """What makes each the same reference under every encoder: category and hash."""
        return list(zip(self.labels, self.hashes, strict=True))

    @cached_property
    def class_means(self) -> ClassMeans:
        """The mean reference of each category; computed when first asked for."""
        return ClassMeans.of(self.names, self.vectors, self.starts)

    @cached_property
    def root_means(self) -> ClassMeans:
        """The same of the roots of the references."""
        return ClassMeans.of(self.names, self.vectors, self.starts, of_roots=True)

    def succeed(self, before: References, changed: Collection[str]) -> None:
        """Take the means over from the references before a change, where they were asked for.

        Args:
            before: The references of the same expert before.
            changed: Names of the categories that are new, gone or different; all others are as they were.
        """
        for name in ("class_means", "root_means"):
            if (means := before.__dict__.get(name)) is not None:
                self.__dict__[name] = means.changed(changed, self.names, self.vectors, self.starts)

    def sum_up(self, background: Background) -> ClassMeans:
        """The mean reference of each category, as a background takes them."""
        return self.root_means if background.of_roots else self.class_means


def image_experts(by_expert: Mapping[str, T]) -> dict[str, T]:
    """What there is of the experts that compare images with images."""
    return {expert: value for expert, value in by_expert.items() if encoder_and_modality(expert)[1] == "image"}


def category_names(references: Mapping[str, References]) -> list[str]:
    """All categories of some experts, by name."""
    return sorted({name for expert in references.values() for name in expert.names})


class Compared(Protocol):
    """What is known of the similarity of a batch of images to the references of one expert, on whichever device."""

    @property
    def counts(self) -> NDArray[np.intp]:
        """References of each category, int ``(n_categories,)``."""
        ...

    @property
    def present(self) -> NDArray[np.intp]:
        """How many of the references of each category were compared, int ``(n_categories,)``."""
        ...

    @property
    def norms(self) -> Floats:
        """Length of the mean of each category's references, float32 ``(n_categories,)``; NaN if unknown."""
        ...

    @property
    def bound(self) -> Floats:
        """The most that the similarity to one of the other references can be, float32 ``(n_images,)``."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def of(self, rows: slice) -> Self:
        """The same of some of the images."""
        ...

    def aggregate(self, method: str, m: int) -> Floats:
        """Similarity of each image to each category that the expert covers.

        Args:
            method: A name in `zsvec.method.predict.aggregation.AGGREGATIONS`.
            m: References that ``top_mean`` averages; at least 1.

        Returns:
            float32 ``(n_images, n_covered)``, -1 to 1.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSimilarities:
    """What the references of one expert say of a batch of images.

    Attributes:
        name: Name of the expert, such as ``clip:image``.
        coverage: int ``(n_covered,)``, ascending: the categories that the expert has references of, as positions
            in `SearchResult.categories`.
        similarities: Similarities to the references, grouped by category in the order of the coverage.
        nearest: For each image its nearest references, nearest first.
        class_means: Gives the mean references of the covered categories, as a background takes them, in the order of
            the coverage; ``None`` where the search did not read the vectors of every category.
        product: Multiplies matrices by the threads that the search takes.
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
        return self.name.rpartition(":")[0]

    @property
    def modality(self) -> Modality:
        """What the references are."""
        return "text" if self.name.endswith(":text") else "image"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer to a search.

    Attributes:
        categories: The committed categories, by name.
        experts: Each expert that has references.
        queries: The vectors of the images, by encoder: float32 ``(n_images, dim)``.
        calibration: The calibration that is kept with the store, if there is one.
        stale: Whether categories have changed since the calibration was made.
        incomplete: Committed categories of which not all can be read now: they are as they were before, or not there.
        stale_seconds: How long ago the store was read, because it is away; 0 if it is not.
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
        """The same of some of the images."""
        if rows == slice(0, len(self)):
            return self
        experts = [
            replace(expert, similarities=expert.similarities.of(rows), nearest=expert.nearest[rows])
            for expert in self.experts
        ]
        return replace(
            self, experts=tuple(experts), queries={name: vectors[rows] for name, vectors in self.queries.items()}
        )

    def summed_up(self, backgrounds: Mapping[str, Background]) -> bool:
        """Whether every image expert has the mean reference of every category, and enough references of each.

        Args:
            backgrounds: By expert. Others may have kept them: without one of each image expert, of its dimension, it
                is not.
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
        """Whether every image was compared with every reference, and the norms are known."""
        return all(
            np.array_equal(compared.counts, compared.present)
            and (compared.bound == -1).all()
            and np.isfinite(compared.norms).all()
            for compared in (expert.similarities for expert in self.experts)
        )
