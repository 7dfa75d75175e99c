"""Similarities of an image to references → one similarity per category (paper, section 3.2).

Each aggregation says which references of a category count as evidence: all of them, the nearest, the ``m``
nearest, or their mean. It takes the similarities of one expert with the references of a category side by
side, and gives float32 ``(n_images, n_categories)``. A search that fetches only the nearest references
leaves some out; each of those counts as the largest similarity that it can have, the *bound*. With every
reference present, nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats
from zsvec.method.calibration import CENTRED, GDA, LOG_COUNT
from zsvec.method.linalg import slices
from zsvec.method.predict.background import Background
from zsvec.method.predict.class_means import ClassMeans
from zsvec.method.predict.gda import class_similarities
from zsvec.method.similarities import References, SearchResult

T = TypeVar("T")

_CACHED = 2**18  # similarities that are worked on at once, so that they stay in a core's cache
_LONG = 64  # references of a category beyond which picking its best by partition beats comparing columns


@dataclass(frozen=True, slots=True)
class Similarities:
    """Cosines between images and the references of one expert.

    Attributes:
        values: float32 ``(n_images, n_references)``; the references of a category are adjacent.
        starts: int ``(n_categories + 1,)``; category ``c`` has the columns ``starts[c]:starts[c + 1]``.
        counts: int ``(n_categories,)``; references that the category has, present or not; at least 1.
        norms: float32 ``(n_categories,)``; length of the mean of the category's references, 0 to 1; NaN if unknown.
        bound: float32 ``(n_images,)``; the most that the similarity to an absent reference can be.
    """

    values: Floats
    starts: NDArray[np.intp]
    counts: NDArray[np.intp]
    norms: Floats
    bound: Floats

    @classmethod
    def of_all(cls, values: Floats, references: References) -> Similarities:
        """To all references of an expert.

        Args:
            values: float32 ``(n_images, n_references)``.
            references: Of the expert.
        """
        bound = np.full(len(values), -1, dtype=np.float32)
        return cls(values, references.starts, np.diff(references.starts), references.norms, bound)

    @property
    def present(self) -> NDArray[np.intp]:
        """References of each category that are in ``values``, int ``(n_categories,)``."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.values)

    def of(self, rows: slice) -> Similarities:
        """See `zsvec.method.similarities.Compared.of`."""
        return replace(self, values=self.values[rows], bound=self.bound[rows])

    def aggregate(self, method: str, m: int) -> Floats:
        """See `zsvec.method.similarities.Compared.aggregate`."""
        return AGGREGATIONS[method].function(self, m)


def maximum(similarities: Similarities, m: int) -> Floats:
    """Similarity of the nearest reference of each category."""
    present = similarities.present
    filled = present > 0
    out = np.where(similarities.counts > present, similarities.bound[:, None], np.float32(-np.inf))
    if filled.any():
        nearest = np.maximum.reduceat(similarities.values, similarities.starts[:-1][filled], axis=1)
        out[:, filled] = np.maximum(out[:, filled], nearest)
    return out


def mean(similarities: Similarities, m: int) -> Floats:
    """Mean similarity over all references of each category (the paper's sum, without favour for many)."""
    present, counts = similarities.present, similarities.counts
    n_images, n_categories = len(similarities), len(counts)
    if _as_many(present):
        total: Floats = np.einsum("icr->ic", similarities.values.reshape(n_images, n_categories, present[0]))
    else:
        filled = np.flatnonzero(present)
        total = np.zeros((n_images, n_categories), dtype=np.float32)
        total[:, filled] = np.add.reduceat(similarities.values, similarities.starts[filled], axis=1)
    absent = (counts - present).astype(np.float32)
    if absent.any():
        total += absent * similarities.bound[:, None]
    return np.divide(total, counts.astype(np.float32), out=total)


def top_mean(similarities: Similarities, m: int) -> Floats:
    """Mean similarity of the ``m`` nearest references of each category, or of all where it has fewer."""
    values, starts, present = similarities.values, similarities.starts, similarities.present
    absent = np.minimum(similarities.counts - present, m)
    out = np.empty((len(values), len(present)), dtype=np.float32)
    long = present > max(m, _LONG)
    for category in np.flatnonzero(long):
        parts = [values[:, starts[category] : starts[category + 1]]]
        parts += [similarities.bound[:, None]] * int(absent[category])
        best = np.sort(np.partition(np.concatenate(parts, axis=1), -m, axis=1)[:, -m:], axis=1)[:, ::-1]
        out[:, category] = _total(best.T) / np.float32(m)
    for group in _groups(present, np.where(long, 0, present + absent)):
        wanted = np.minimum(similarities.counts[group], m)
        for rows in slices(len(values), max(1, _CACHED // int((present + absent)[group].sum()))):
            columns = _columns(values[rows], starts[:-1][group], present[group])
            columns += [
                np.where(absent[group] > rank, similarities.bound[rows, None], np.float32(-np.inf))
                for rank in range(int(absent[group].max()))
            ]
            chosen = _best(columns, m)
            for rank in range(int(wanted.min()), len(chosen)):
                chosen[rank][:, wanted <= rank] = 0
            out[rows, group] = _total(chosen) / wanted.astype(np.float32)
    return out


def _as_many(counts: NDArray[np.intp]) -> bool:
    """Whether all categories have as many references, and some."""
    return bool(len(counts) and counts[0] and (counts == counts[0]).all())


def _groups(present: NDArray[np.intp], counts: NDArray[np.intp]) -> Iterator[slice | NDArray[np.intp]]:
    """Categories of about as many references each, more than half of the most; those of none are in no group.

    Args:
        present: int ``(n_categories,)``, those that are there; most first.
        counts: int ``(n_categories,)``, all.
    """
    if _as_many(counts) and _as_many(present):
        yield slice(None)
        return
    sizes = np.ceil(np.log2(np.maximum(counts, 1)))
    for size in np.unique(sizes[counts > 0]):
        found = np.flatnonzero((sizes == size) & (counts > 0))
        yield found[np.argsort(-present[found], kind="stable")]


def _columns(values: Floats, firsts: NDArray[np.intp], counts: NDArray[np.intp]) -> list[Floats]:
    """The first reference of each category, the second, and so on, float32 ``(n_images, n)``; -inf for none.

    Args:
        values: float32 ``(n_images, n_references)``.
        firsts: int ``(n,)``, the first reference of each category.
        counts: int ``(n,)``, how many there are; if not all as many, descending.
    """
    if _as_many(counts) and counts[0] * len(counts) == values.shape[1]:
        return list(values.reshape(len(values), len(counts), counts[0]).transpose(2, 0, 1).copy())
    columns = []
    for rank in range(int(counts.max())):
        n = np.count_nonzero(counts > rank)
        column = np.full((len(values), len(counts)), -np.inf, dtype=np.float32)
        column[:, :n] = values.take(firsts[:n] + rank, axis=1)
        columns.append(column)
    return columns


def _best(columns: list[Floats], m: int) -> list[Floats]:
    """The ``m`` largest numbers in each place, or all, largest first; takes the arrays for itself.

    The best of two sorted lists are the larger ones of the first of one and the last of the other, the second and the
    last but one, and so on (Batcher, 1968): fewer comparisons than insertion.
    """
    best = _sorted(columns[:m])
    for first in range(m, len(columns), m):
        for one, other in zip(reversed(best), _sorted(columns[first : first + m]), strict=False):
            np.maximum(one, other, out=one)
        best = _sorted(best)
    return best


def _total(columns: Iterable[Floats]) -> Floats:
    """The sum, from the first to the last, so that the order of references does not even round differently."""
    first, *others = columns
    total = first.copy()
    for column in others:
        total += column
    return total


def _sorted(columns: list[Floats]) -> list[Floats]:
    """The largest number in each place, the second largest, and so on."""
    ordered = list(columns)
    for last in range(1, len(ordered)):
        for at in range(last, 0, -1):
            smaller = np.minimum(ordered[at - 1], ordered[at])
            np.maximum(ordered[at - 1], ordered[at], out=ordered[at - 1])
            ordered[at] = smaller
    return ordered


def prototype(similarities: Similarities, m: int) -> Floats:
    """Cosine of the image and the normalised mean of each category's references (Snell et al., 2017)."""
    return cosine_to_mean(mean(similarities, m), similarities.norms)


def cosine_to_mean(means: Floats, norms: Floats) -> Floats:
    """From mean similarities ``(n_images, n_categories)`` to the cosines with mean references of these lengths."""
    cosine = means / np.maximum(norms, np.float32(1e-12))
    return np.clip(cosine, -1, 1)  # a mean that counts absent references at the bound can be too long


@dataclass(frozen=True, slots=True)
class Aggregation:
    """A way from the similarities to a category's references to one number.

    Attributes:
        function: The way; takes the similarities and the ``m`` of ``top_mean``.
        summary: In one line, for help and documentation.
    """

    function: Callable[[Similarities, int], Floats]
    summary: str


AGGREGATIONS: Mapping[str, Aggregation] = {
    "mean": Aggregation(mean, "the mean over all references of a category (the paper's)"),
    "max": Aggregation(maximum, "the nearest reference of a category"),
    "top_mean": Aggregation(top_mean, "the mean over the nearest references of a category"),
    "prototype": Aggregation(prototype, "the cosine to the mean reference of a category"),
}
"""By name."""


def aggregate_experts(
    found: SearchResult, methods: Mapping[str, Iterable[str]], m: int, classwise: Mapping[str, Mapping[str, Floats]]
) -> dict[str, dict[str, Floats]]:
    """Similarity of each image to every category, for each expert.

    Args:
        found: The answer of a search.
        methods: By expert, names in `AGGREGATIONS`, or `LOG_COUNT`, `CENTRED` and `GDA`.
        m: References that ``top_mean`` averages; at least 1.
        classwise: `CENTRED` and `GDA` of the experts that need them.

    Returns:
        By expert, in the order of `found`, and aggregation: float32 ``(n_images, n_categories)``, NaN where the expert
        has no reference. Columns are in the order of `SearchResult.categories`.
    """
    out: dict[str, dict[str, Floats]] = {}
    for expert in found.experts:
        out[expert.name] = {}
        covered = dict(classwise.get(expert.name, {}))
        wanted = dict.fromkeys(methods[expert.name])
        if LOG_COUNT in wanted:
            counts = np.log(expert.similarities.counts).astype(np.float32)
            covered[LOG_COUNT] = np.broadcast_to(counts, (len(expert.similarities), len(counts)))
        for method in wanted:
            of_covered = covered[method] if method in covered else expert.similarities.aggregate(method, m)
            if len(expert.coverage) == len(found.categories):
                out[expert.name][method] = of_covered
                continue
            of_all = np.full((len(of_covered), len(found.categories)), np.nan, dtype=np.float32)
            of_all[:, expert.coverage] = of_covered
            out[expert.name][method] = of_all
    return out


def aggregate_in_parts(
    found: SearchResult,
    methods: Mapping[str, Iterable[str]],
    m: int,
    backgrounds: Mapping[str, Background],
    size: int | None,
    then: Callable[[slice, SearchResult, dict[str, dict[str, Floats]]], T],
) -> list[T]:
    """Aggregate some images after the other, and do what comes next with each part.

    Args:
        found: The answer of a search.
        methods: As `aggregate_experts`.
        m: Likewise.
        backgrounds: As `classwise_similarities`.
        size: Images of a part, at least 1; ``None``: all.
        then: Takes which images these are, what was found for them, and their similarities.
    """
    classwise = classwise_similarities(found, methods, backgrounds)  # of all: a product of few rows is slow

    def of_part(rows: slice) -> T:
        part = found.of(rows)
        means = {name: {how: said[rows] for how, said in one.items()} for name, one in classwise.items()}
        return then(rows, part, aggregate_experts(part, methods, m, means))

    return [of_part(rows) for rows in slices(len(found), size or len(found))]


def classwise_similarities(
    found: SearchResult, methods: Mapping[str, Iterable[str]], backgrounds: Mapping[str, Background]
) -> dict[str, dict[str, Floats]]:
    """`CENTRED` and `GDA` of the experts that need them, float32 ``(n_images, n_covered)``.

    Args:
        found: The answer of a search.
        methods: By expert, the names of aggregations.
        backgrounds: By expert, of those that need them, which then have means.
    """
    out = {}
    for expert in found.experts:
        if {CENTRED, GDA}.intersection(methods[expert.name]):
            background = backgrounds[expert.name]
            means = cast("ClassMeans", expert.class_means(background))  # where every reference was compared
            queries = found.queries[expert.encoder]
            centred, gda = class_similarities(queries, means, background, expert.product)
            out[expert.name] = {CENTRED: centred, GDA: gda}
    return out
