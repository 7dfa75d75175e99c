"""References in the memory of this process, compared with images by one matrix product a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats, largest
from zsvec.method.predict.aggregation import Similarities
from zsvec.method.similarities import ExpertSimilarities, Product, References, SearchResult, product
from zsvec.search.base import Expert, IndexSpec
from zsvec.types import Neighbor


@dataclass(frozen=True, slots=True)
class NumpyIndex:
    """References that numpy compares with images. Implements `zsvec.search.base.Index`.

    Attributes:
        references: The indexed references.
        product: Gives the dot products of all rows of two matrices.
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


def build(references: References, spec: IndexSpec) -> NumpyIndex:
    """Index references."""
    return NumpyIndex(references)


def neighbors(references: References, rows: NDArray[np.intp], cosines: Floats) -> list[tuple[Neighbor, ...]]:
    """The nearest references of each image.

    Args:
        references: Of one expert.
        rows: int ``(n_images, k)``, which of them, nearest first.
        cosines: float32 ``(n_images, k)``, their similarities.
    """
    owners = (np.searchsorted(references.starts, rows, side="right") - 1).tolist()
    names, sources, hashes = (table.__getitem__ for table in (references.names, references.sources, references.hashes))
    return [
        tuple(map(Neighbor, map(names, owner), cosine, map(sources, row), map(hashes, row)))
        for owner, cosine, row in zip(owners, cosines.tolist(), rows.tolist(), strict=True)
    ]


def compare(
    references: Mapping[str, References], names: Sequence[str], queries: Mapping[str, Floats], nearest: int
) -> SearchResult:
    """Compare images with references in the memory of this process, without a store.

    Args:
        references: By expert.
        names: All categories, ascending.
        queries: By encoder, float32 ``(n_images, dim)``, unit rows; the same images in each.
        nearest: How many nearest references to name for each image and expert.
    """
    position = {name: i for i, name in enumerate(names)}
    found = []
    for name, indexed in sorted(references.items()):
        expert = Expert.of(name, indexed.names, position)
        found.append(NumpyIndex(indexed).search(queries[expert.encoder], nearest, expert))
    return SearchResult(tuple(names), tuple(found), queries=queries)
