"""Reduces the similarities of an image to references to one similarity per category (paper, section 3.2).

Aggregations differ in the references of a category that they average: all references, the nearest, or the ``m``
nearest. The prototype compares the image with the mean reference. The input is the similarities of one expert, grouped
by category; the output is float32 ``(n_images, n_categories)``. A search that fetches only the nearest references omits
the rest. Each omitted reference then counts with the largest similarity that it can have, the *bound*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats, slices
from zsvec.method.calibration import CENTRED, GDA, LOG_COUNT
from zsvec.method.predict.background import Background, ClassMeans
from zsvec.method.predict.gda import class_similarities
from zsvec.method.similarities import Compared, ExpertSimilarities, References, SearchResult

_CACHED = 2**18  # similarities that fit a core's cache
_LONG = 64  # above this number of references of a category, a partition is faster than comparing columns


@dataclass(frozen=True, slots=True)
class Similarities:
    """Cosines between images and the references of one expert.

    Attributes:
        values: float32 ``(n_images, n_references)``; the references of a category are adjacent.
        starts: int ``(n_categories + 1,)``; category ``c`` has the columns ``starts[c]:starts[c + 1]``.
        counts: int ``(n_categories,)``, at least 1. Number of references of each category, including references omitted
            from `values`.
        norms: float32 ``(n_categories,)``, norm of the mean of each category's references, 0 to 1; NaN if unknown.
        bound: float32 ``(n_images,)``, upper bound of the similarity to an omitted reference. An estimate if the search
            was approximate.
    """

    values: Floats
    starts: NDArray[np.intp]
    counts: NDArray[np.intp]
    norms: Floats
    bound: Floats

    @classmethod
    def of_all(cls, values: Floats, references: References) -> Similarities:
        """Wraps the similarities to all references of an expert, float32 ``(n_images, n_references)``."""
        bound = np.full(len(values), -1, dtype=np.float32)
        return cls(values, references.starts, np.diff(references.starts), references.norms, bound)

    @property
    def present(self) -> NDArray[np.intp]:
        """Number of references of each category in `values`, int ``(n_categories,)``."""
        return np.diff(self.starts)

    @property
    def exact(self) -> bool:
        """See `zsvec.method.similarities.Compared.exact`."""
        complete = np.array_equal(self.counts, self.present) and (self.bound == -1).all()
        return bool(complete and np.isfinite(self.norms).all())

    def __len__(self) -> int:
        return len(self.values)

    def of(self, rows: slice) -> Similarities:
        """See `zsvec.method.similarities.Compared.of`."""
        return replace(self, values=self.values[rows], bound=self.bound[rows])

    def aggregate(self, method: str, m: int) -> Floats:
        """See `zsvec.method.similarities.Compared.aggregate`."""
        return AGGREGATIONS[method].function(self, m)


def maximum(similarities: Similarities, m: int) -> Floats:
    """Returns the similarity to the nearest reference of each category."""
    present = similarities.present
    filled = present > 0
    out = np.where(similarities.counts > present, similarities.bound[:, None], np.float32(-np.inf))
    if filled.any():
        nearest = np.maximum.reduceat(similarities.values, similarities.starts[:-1][filled], axis=1)
        out[:, filled] = np.maximum(out[:, filled], nearest)
    return out


def mean(similarities: Similarities, m: int) -> Floats:
    """Returns the mean similarity to all references of each category: the paper's sum, divided by the count."""
    present, counts = similarities.present, similarities.counts
    if size := _common(present):
        total: Floats = np.einsum("icr->ic", similarities.values.reshape(len(similarities), len(counts), size))
    else:
        filled = np.flatnonzero(present)
        total = np.zeros((len(similarities), len(counts)), dtype=np.float32)
        total[:, filled] = np.add.reduceat(similarities.values, similarities.starts[filled], axis=1)
    absent = (counts - present).astype(np.float32)
    if absent.any():
        total += absent * similarities.bound[:, None]
    return np.divide(total, counts.astype(np.float32), out=total)


def top_mean(similarities: Similarities, m: int) -> Floats:
    """Returns the mean similarity to the ``m`` nearest references of each category, or to all if there are fewer."""
    starts, present = similarities.starts, similarities.present
    n_images, n_references = similarities.values.shape
    usable = present + np.minimum(similarities.counts - present, m)
    if np.array_equal(usable, present) and 0 < (size := _common(present)) <= max(m, _LONG):
        return _top_mean_of_equal(similarities.values, size, m)
    out = np.empty((n_images, len(present)), dtype=np.float32)
    long = usable > max(m, _LONG)
    for category in np.flatnonzero(long):
        omitted = np.repeat(similarities.bound[:, None], usable[category] - present[category], axis=1)
        found = np.hstack([similarities.values[:, starts[category] : starts[category + 1]], omitted])
        found.partition(-m, axis=1)
        ascending = np.sort(found[:, -m:], axis=1)
        out[:, category] = _total(ascending.T[::-1]) / np.float32(m)
    if long.all():  # avoids the copy below
        return out
    none = np.full(n_images, -np.inf, dtype=np.float32)
    values = np.column_stack([similarities.values, similarities.bound, none])
    # Every category of a group has more than half as many references as the largest category of the group.
    group_of = np.where(long, -1, np.ceil(np.log2(usable)))
    for number in np.unique(group_of[~long]):
        group = np.flatnonzero(group_of == number)
        rank = np.arange(usable[group].max())[:, None]
        absent = np.where(rank < usable[group], n_references, n_references + 1)
        columns = np.where(rank < present[group], starts[:-1][group] + rank, absent)
        wanted = np.minimum(usable[group], m)
        for rows in slices(n_images, max(1, _CACHED // columns.size)):
            best = _largest([values[rows].take(places, axis=1) for places in columns], m)
            for place in range(int(wanted.min()), len(best)):
                best[place][:, wanted <= place] = 0
            out[rows, group] = _total(best) / wanted.astype(np.float32)
    return out


def _top_mean_of_equal(values: Floats, size: int, m: int) -> Floats:
    # A copy in another order takes a third of the time of gathering columns.
    out = np.empty((len(values), values.shape[1] // size), dtype=np.float32)
    for rows in slices(len(values), max(1, _CACHED // values.shape[1])):
        best = _largest(list(values[rows].reshape(-1, out.shape[1], size).transpose(2, 0, 1).copy()), m)
        out[rows] = _total(best) / np.float32(len(best))
    return out


def _common(counts: NDArray[np.intp]) -> int:
    """Returns the number of references if it is the same for all categories, else 0."""
    return int(counts[0]) if len(counts) and (counts == counts[0]).all() else 0


def _largest(columns: list[Floats], m: int) -> list[Floats]:
    """Returns the ``m`` largest numbers at each position (all if fewer), largest first; may modify the arrays.

    Merges descending lists of at most ``m`` arrays (Batcher, 1968): the last of one list is compared with the first of
    the other list, the second to last with the second, and so on. At each position, the larger number of a pair stays.
    This needs fewer comparisons than insertion.
    """
    best = _sorted(columns[:m])
    for first in range(m, len(columns), m):
        for one, other in zip(reversed(best), _sorted(columns[first : first + m]), strict=False):
            np.maximum(one, other, out=one)
        best = _sorted(best)
    return best


def _sorted(columns: list[Floats]) -> list[Floats]:
    """Returns arrays with the largest number at each position, the second largest, and so on."""
    ordered = list(columns)
    for last in range(1, len(ordered)):
        for at in range(last, 0, -1):
            smaller = np.minimum(ordered[at - 1], ordered[at])
            np.maximum(ordered[at - 1], ordered[at], out=ordered[at - 1])
            ordered[at] = smaller
    return ordered


def _total(columns: Iterable[Floats]) -> Floats:
    """Sums the arrays from first to last, so that rounding does not depend on the order of references."""
    first, *others = columns
    total = first.copy()
    for column in others:
        total += column
    return total


def prototype(similarities: Similarities, m: int) -> Floats:
    """Returns the cosine of the image and the mean of each category's references (Snell et al., 2017)."""
    return cosine_to_mean(mean(similarities, m), similarities.norms)


def cosine_to_mean(means: Floats, norms: Floats) -> Floats:
    """Converts mean similarities to cosines with the mean references, float32 ``(n_images, n_categories)``.

    Args:
        means: float32 ``(n_images, n_categories)``, mean similarities.
        norms: float32 ``(n_categories,)``, norm of each mean reference.
    """
    cosine = means / np.maximum(norms, np.float32(1e-12))
    return np.clip(cosine, -1, 1)  # omitted references that count with the bound can give more than 1


@dataclass(frozen=True, slots=True)
class Aggregation:
    """A function that reduces the similarities to a category's references to one number.

    Attributes:
        function: Takes the similarities and the ``m`` of ``top_mean``.
        summary: One line for help and documentation.
    """

    function: Callable[[Similarities, int], Floats]
    summary: str


AGGREGATIONS: Mapping[str, Aggregation] = {
    "mean": Aggregation(mean, "the mean over all references of a category (the paper's)"),
    "max": Aggregation(maximum, "the nearest reference of a category"),
    "top_mean": Aggregation(top_mean, "the mean over the nearest references of a category"),
    "prototype": Aggregation(prototype, "the cosine to the mean reference of a category"),
}
"""Aggregations by name."""


def aggregate(similarities: Compared, method: str, m: int) -> Floats:
    """Returns `Compared.aggregate`, or the logarithms of the counts for `LOG_COUNT`."""
    if method != LOG_COUNT:
        return similarities.aggregate(method, m)
    return np.repeat(np.log(similarities.counts).astype(np.float32)[None], len(similarities), axis=0)


def aggregate_experts(
    found: SearchResult, methods: Mapping[str, Iterable[str]], m: int, backgrounds: Mapping[str, Background]
) -> dict[str, dict[str, Floats]]:
    """Returns the similarity of each image to every category, by expert and aggregation.

    Args:
        found: The result of a search.
        methods: By expert, names in `AGGREGATIONS`, `LOG_COUNT`, `CENTRED` or `GDA`.
        m: Number of references that ``top_mean`` averages; at least 1.
        backgrounds: Background of each expert with `CENTRED` or `GDA`. For these experts, `found` must have the means
            of all categories that the expert covers.

    Returns:
        By expert, in the order of `found`, and by aggregation: float32 ``(n_images, n_categories)``. Columns are in the
        order of `SearchResult.categories`; NaN for categories that the expert does not cover.
    """
    out: dict[str, dict[str, Floats]] = {}
    for expert in found.experts:
        covered: dict[str, Floats] = {}
        wanted = dict.fromkeys(methods[expert.name])
        if {CENTRED, GDA}.intersection(wanted):
            background = backgrounds[expert.name]
            means = cast("ClassMeans", expert.class_means(background))
            queries = found.queries[expert.encoder]
            covered[CENTRED], covered[GDA] = class_similarities(queries, means, background, expert.product)
        for method in wanted.keys() - covered.keys():
            covered[method] = aggregate(expert.similarities, method, m)
        out[expert.name] = {method: _over_all(covered[method], expert, len(found.categories)) for method in wanted}
    return out


def _over_all(covered: Floats, expert: ExpertSimilarities, n_categories: int) -> Floats:
    """Expands similarities to all categories; NaN for categories that the expert does not cover."""
    if len(expert.coverage) == n_categories:
        return covered
    every = np.full((len(covered), n_categories), np.nan, dtype=np.float32)
    every[:, expert.coverage] = covered
    return every
