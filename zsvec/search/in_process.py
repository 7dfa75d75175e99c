"""Search with references in the memory of this process or on a device. Every reference is compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats, Product, largest, product
from zsvec.method.predict.reference_aggregation import Similarities
from zsvec.method.similarities import ExpertSimilarities, References, SearchResult
from zsvec.search.base import Change, Expert, Index, IndexSpec, Snapshot
from zsvec.search.layout import renewed
from zsvec.store import Store
from zsvec.types import Category, Neighbor


@dataclass(frozen=True, slots=True)
class NumpyIndex:
    """Compares images with references by one matrix product per batch. Implements `zsvec.search.base.Index`.

    Attributes:
        references: The indexed references.
        product: Function that computes the matrix product.
    """

    references: References
    product: Product = product

    def updated(self, references: References, changed: Collection[str]) -> NumpyIndex:
        """See `Index`."""
        return replace(self, references=references)

    def search(self, queries: Floats, nearest: int, expert: Expert) -> ExpertSimilarities:
        """See `Index`."""
        references = self.references
        values = self.product(queries, references.vectors)
        rows = largest(values, nearest)
        cosines = np.take_along_axis(values, rows, axis=1)
        return ExpertSimilarities(
            name=expert.name,
            coverage=expert.coverage,
            similarities=Similarities.of_all(values, references),
            nearest=neighbors(references, rows, cosines),
            class_means=references.sum_up,
            product=self.product,
        )


def neighbors(references: References, rows: NDArray[np.intp], cosines: Floats) -> list[tuple[Neighbor, ...]]:
    """Returns the nearest references of each image.

    Args:
        references: References of one expert.
        rows: int ``(n_images, k)``, rows of the nearest references, nearest first.
        cosines: float32 ``(n_images, k)``, similarities of the nearest references.
    """
    owners = references.owners(rows).tolist()
    names, sources, hashes = (table.__getitem__ for table in (references.names, references.sources, references.hashes))
    return [
        tuple(map(Neighbor, map(names, owner), cosine, map(sources, row), map(hashes, row)))
        for owner, cosine, row in zip(owners, cosines.tolist(), rows.tolist(), strict=True)
    ]


def compare(
    references: Mapping[str, References], names: Sequence[str], queries: Mapping[str, Floats], nearest: int
) -> SearchResult:
    """Compares images with references in memory, without a store.

    Args:
        references: References by expert.
        names: Names of all categories, ascending.
        queries: By encoder, float32 ``(n_images, dim)``, unit rows; the same images in each.
        nearest: Number of nearest references to return for each image and expert.
    """
    position = {name: i for i, name in enumerate(names)}
    found = []
    for name, indexed in sorted(references.items()):
        expert = Expert.of(name, indexed.names, position)
        found.append(NumpyIndex(indexed).search(queries[expert.encoder], nearest, expert))
    return SearchResult(tuple(names), tuple(found), queries=queries)


def build(references: References, spec: IndexSpec) -> Index:
    """Indexes the references of one expert.

    Raises:
        InvalidInputError: The device is not available.
        StoreError: The references do not fit the memory of the device.
    """
    if spec.kind == "numpy":
        return NumpyIndex(references)
    from zsvec.search import torch_index  # slow to import

    return torch_index.build(references, spec)


@dataclass(frozen=True, slots=True)
class InProcess:
    """A snapshot with all references in memory. Implements `zsvec.search.base.Snapshot`.

    Attributes:
        store: The store of the references.
        spec: The kind of index.
        catalog: The categories, by name.
        names: Names of the categories, ascending.
        indexes: The index of each expert that has references, ascending by name.
    """

    store: Store
    spec: IndexSpec
    catalog: Mapping[str, Category] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    indexes: Sequence[tuple[Expert, Index]] = ()

    def references(self) -> Mapping[str, References]:
        """See `Snapshot`."""
        return {expert.name: index.references for expert, index in self.indexes}

    def holding(self, catalog: Mapping[str, Category], references: Mapping[str, References]) -> InProcess:
        """Returns a snapshot of given references, with the same kind of index.

        Args:
            catalog: The categories, by name.
            references: References of the categories, by expert.

        Raises:
            InvalidInputError: The device is not available.
            StoreError: The references do not fit the memory of the device.
        """
        return self._with(catalog, references, lambda _, found: build(found, self.spec))

    def updated(self, catalog: Mapping[str, Category], changes: Sequence[Change]) -> tuple[InProcess, set[str]]:
        """See `Snapshot`. Reads only the references of new writes, and lays out only the experts that change."""
        before = {expert.name: index for expert, index in self.indexes}
        after, torn = renewed(self.store, self.references(), changes, keep=True)
        changed = {change.after.name for change in changes}

        def indexed(name: str, references: References) -> Index:
            index = before.get(name)
            if index is None:
                return build(references, self.spec)
            return index if index.references is references else index.updated(references, changed)

        if torn:
            was = {name: self.catalog[name] for name in torn & self.catalog.keys()}
            catalog = {name: category for name, category in catalog.items() if name not in torn} | was
        return self._with(catalog, after, indexed), torn

    def _with(
        self,
        catalog: Mapping[str, Category],
        references: Mapping[str, References],
        indexed: Callable[[str, References], Index],
    ) -> InProcess:
        names = tuple(sorted(catalog))
        position = {name: i for i, name in enumerate(names)}
        indexes = [
            (Expert.of(name, found.names, position), indexed(name, found)) for name, found in sorted(references.items())
        ]
        return replace(self, catalog=catalog, names=names, indexes=indexes)

    def search(
        self, queries: Mapping[str, Floats], nearest: int, newest: Callable[[], Snapshot]
    ) -> tuple[tuple[str, ...], tuple[ExpertSimilarities, ...]]:
        """See `Snapshot`."""
        asked = [(expert, index) for expert, index in self.indexes if expert.encoder in queries]
        return self.names, tuple(index.search(queries[expert.encoder], nearest, expert) for expert, index in asked)
