"""References, and the similarities between a batch of images and references: the result of a search."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats, Key, Product, product
from zsvec.method.calibration import CENTRED, GDA, Calibration, LogLinear
from zsvec.method.predict.background import Background, ClassMeans
from zsvec.method.predict.tree import Tree
from zsvec.types import Modality, Neighbor, encoder_and_modality

T = TypeVar("T")


@dataclass(frozen=True)
class References:
    """All references of one expert, ordered by category.

    The arrays are never modified, because batches in progress still read them. So the first batch after a commit copies
    the whole matrix of each expert with changed references (85 ms for 10⁵ rows of 512 numbers).

    Attributes:
        names: The categories, ascending. The rows of category ``c`` are ``starts[c]:starts[c + 1]``.
        vectors: float32 ``(n_references, dim)``, unit rows.
        starts: int ``(n_categories + 1,)``.
        norms: float32 ``(n_categories,)``, norm of the mean of each category's references, 0 to 1.
        hashes: Content hash of each reference.
        sources: Source of each reference.
        groups: Name of each reference's group within its category, such as a burst, or ``None``. Empty if no reference
            has a group.
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
        """Mean of the roots of each category's references; see `background.roots`."""
        return ClassMeans.of(self.names, self.vectors, self.starts, of_roots=True)

    def owners(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Returns the position in `names` of each row's category, int of the same shape as ``rows``."""
        owners: NDArray[np.intp] = np.searchsorted(self.starts, rows, side="right") - 1
        return owners

    def succeed(self, before: References, changed: Collection[str]) -> None:
        """Reuses the means that were already computed before a change, and updates the changed categories.

        Args:
            before: The references of the same expert before the change.
            changed: Names of the categories that are new, removed or different.
        """
        for name in ("class_means", "root_means"):
            if (means := before.__dict__.get(name)) is not None:
                self.__dict__[name] = means.changed(changed, self.names, self.vectors, self.starts)

    def sum_up(self, background: Background) -> ClassMeans:
        """Returns the category means of the features that a background describes: vectors or roots."""
        return self.root_means if background.of_roots else self.class_means


def laid_out(vectors: Floats, labels: Sequence[str], hashes: Sequence[str], sources: Sequence[str]) -> References:
    """Returns the references of one expert from rows in any order.

    Args:
        vectors: float32 ``(n_references, dim)``, unit rows.
        labels: Category of each row.
        hashes: Content hash of each row, unique within the category.
        sources: Source of each row.
    """
    order = sorted(range(len(labels)), key=lambda row: labels[row])
    names, starts = np.unique([labels[row] for row in order], return_index=True)
    bounds = np.append(starts, len(order)).astype(np.intp)
    sorted_vectors = vectors[order]
    norms = [np.linalg.norm(part.mean(axis=0)) for part in np.split(sorted_vectors, bounds[1:-1])]
    return References(
        names=tuple(names.tolist()),
        vectors=sorted_vectors,
        starts=bounds,
        norms=np.array(norms, dtype=np.float32),
        hashes=tuple(hashes[row] for row in order),
        sources=tuple(sources[row] for row in order),
    )


def image_experts(by_expert: Mapping[str, T]) -> dict[str, T]:
    """Returns the entries whose expert compares images with reference images."""
    return {expert: value for expert, value in by_expert.items() if encoder_and_modality(expert)[1] == "image"}


def category_names(references: Mapping[str, References]) -> list[str]:
    """Returns the names of all categories that have references, ascending."""
    return sorted({name for expert in references.values() for name in expert.names})


class Compared(Protocol):
    """Similarities of a batch of images to the references of one expert, on any device."""

    @property
    def counts(self) -> NDArray[np.intp]:
        """Number of references of each category, int ``(n_categories,)``."""
        ...

    @property
    def exact(self) -> bool:
        """Whether every image was compared with every reference, and the norm of each category mean is known.

        False for every approximate search.
        """
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def of(self, rows: slice) -> Self:
        """Returns the similarities of a slice of the images."""
        ...

    def aggregate(self, method: str, m: int) -> Floats:
        """Returns the similarity of each image to each category that the expert covers.

        Args:
            method: A name in `zsvec.method.predict.reference_aggregation.AGGREGATIONS`.
            m: Number of references that ``top_mean`` averages; at least 1.

        Returns:
            float32 ``(n_images, n_covered)``, -1 to 1.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSimilarities:
    """Similarities of a batch of images to the references of one expert.

    Attributes:
        name: Name of the expert, such as ``clip:image``.
        coverage: int ``(n_covered,)``, ascending: positions in `SearchResult.categories` of the categories that have
            references of this expert.
        similarities: Similarities to the references, grouped by category in the order of `coverage`.
        nearest: The nearest references of each image, nearest first.
        class_means: Function that takes a background and returns the means of the covered categories in the order of
            `coverage`. Returns ``None`` if the search did not read the vectors of every category.
        product: Function for matrix products; it uses the threads of the search.
    """

    name: str
    coverage: NDArray[np.intp]
    similarities: Compared
    nearest: Sequence[tuple[Neighbor, ...]]
    class_means: Callable[[Background], ClassMeans | None] = field(default=lambda _: None, compare=False, repr=False)
    product: Product = field(default=product, compare=False, repr=False)

    @property
    def encoder(self) -> str:
        """Name of the encoder of images and references."""
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
        experts: Similarities of each expert that has references.
        queries: By encoder, the vectors of the images: float32 ``(n_images, dim)``.
        calibration: The stored calibration, if any.
        stale: Whether categories have changed since the calibration was made.
        incomplete: Committed categories with references that cannot be read now, and attached collections. The search
            uses the former references of such a category, or leaves the category out.
        stale_seconds: Seconds since the store was last read if the store is unreachable, else 0.
        tree: The tree over the categories, if any of them has a parent.
        described: Categories with texts beside their name.
        words: By encoder, vectors of words for everyday things: float32 ``(n_words, dim)``, unit rows. Novelty compares
            images with these words where references are missing; empty if the words were not embedded.
        revision: Largest ``rev`` of a category in the catalog.
    """

    categories: tuple[str, ...]
    experts: tuple[ExpertSimilarities, ...]
    queries: Mapping[str, Floats] = field(default_factory=dict, compare=False)
    calibration: Calibration | None = None
    stale: bool = False
    incomplete: tuple[str, ...] = ()
    stale_seconds: float = 0.0
    tree: Tree | None = None
    described: frozenset[str] = frozenset()
    words: Mapping[str, Floats] = field(default_factory=dict, compare=False)
    revision: int | None = field(default=None, compare=False)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.experts[0].similarities)

    def of(self, rows: slice) -> SearchResult:
        """Returns the result for a slice of the images."""
        if rows == slice(0, len(self)):
            return self
        experts = [
            replace(expert, similarities=expert.similarities.of(rows), nearest=expert.nearest[rows])
            for expert in self.experts
        ]
        queries = {encoder: vectors[rows] for encoder, vectors in self.queries.items()}
        return replace(self, experts=tuple(experts), queries=queries)

    def summed_up(self, pool: LogLinear, backgrounds: Mapping[str, Background]) -> bool:
        """Returns whether the category means that a pool uses are known.

        Args:
            pool: Pool of a calibration.
            backgrounds: By expert. Backgrounds come from the store, so one may be missing, or its dimension wrong.
        """
        for expert in self.experts:
            if {CENTRED, GDA}.isdisjoint(pool.coefficients[expert.name]):
                continue
            known = backgrounds.get(expert.name)
            if known is None or len(known.mean) != self.queries[expert.encoder].shape[1]:
                return False
            if expert.class_means(known) is None:
                return False
        return True

    @property
    def exact(self) -> bool:
        """Whether `Compared.exact` holds for every expert."""
        return all(expert.similarities.exact for expert in self.experts)
