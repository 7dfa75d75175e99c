"""Similarities of an image to references → one similarity per category (paper, section 3.2).

Each aggregation says which references of a category count as evidence: all of them, the nearest, the ``m``
nearest, or their mean. It takes the similarities of one expert with the references of a category side by
side, and gives float32 ``(n_images, n_categories)``. A search that fetches only the nearest references
leaves some out; each of those counts as the largest similarity that it can have, the *bound*. With every
reference present, nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from zsvec.method.background import Background
from zsvec.method.calibration import CENTRED, GDA, LOG_COUNT
from zsvec.method.class_means import ClassMeans
from zsvec.method.gda import class_similarities
from zsvec.method.similarities import ExpertSimilarities, References, SearchResult

Floats = NDArray[np.float32]

_CACHED = 2**15  # similarities to categories that are worked on at once: with the best of each, they fit a core's cache
_LONG = 64  # references of a category beyond which picking its best by partition beats one pass per reference


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
    filled = np.flatnonzero(present)
    total = np.zeros((len(similarities), len(counts)), dtype=np.float32)
    total[:, filled] = np.add.reduceat(similarities.values, similarities.starts[filled], axis=1)
    absent = (counts - present).astype(np.float32)
    if absent.any():
        total += absent * similarities.bound[:, None]
    return np.divide(total, counts.astype(np.float32), out=total)


def top_mean(similarities: Similarities, m: int) -> Floats:
    """Mean similarity of the ``m`` nearest references of each category, or of all where it has fewer."""
    values, starts, present = similarities.values, similarities.starts, similarities.present
    absent = similarities.counts - present
    longest = int(present.max(initial=0))
    if longest > _LONG and m < longest:
        kept = [
            part if part.shape[1] <= m else np.partition(part, -m, axis=1)[:, -m:]
            for part in np.split(values, starts[1:-1], axis=1)
        ]
        values, present = np.concatenate(kept, axis=1), np.minimum(present, m)
        starts, longest = np.concatenate([[0], np.cumsum(present)]), int(present.max())
    # best[i] is the i-th largest of what has been seen; each pass inserts one more reference of
    # every category that has it. Categories with most references come first, so these are a prefix.
    order = np.argsort(-present, kind="stable")
    n_images, n_categories = len(values), len(present)
    wanted = np.minimum(similarities.counts, m)[order]
    seen = int(absent.max(initial=0))
    columns = [starts[order[: np.count_nonzero(present > rank)]] + rank for rank in range(longest)]
    alike = bool(n_categories) and int(present.min()) == longest
    out = np.empty((n_images, n_categories), dtype=np.float32)
    size = max(1, _CACHED // max(1, n_categories))
    for block in (slice(first, first + size) for first in range(0, n_images, size)):
        some = values[block]
        best = np.full((int(wanted.max(initial=1)), len(some), n_categories), -np.inf, dtype=np.float32)
        for rank, row in enumerate(best[:seen]):
            np.copyto(row, similarities.bound[block, None], where=absent[order] > rank)
        by_rank = some.reshape(len(some), n_categories, longest).transpose(2, 0, 1).copy() if alike else None
        for rank, places in enumerate(columns):
            candidate = some.take(places, axis=1) if by_rank is None else by_rank[rank]
            for row in best[: seen + rank + 1, :, : len(places)]:  # below is nothing yet
                smaller = np.minimum(row, candidate)
                np.maximum(row, candidate, out=row)
                candidate = smaller
        total, *others = best
        for rank, row in enumerate(others, start=1):
            np.add(total, row, out=total, where=wanted > rank)
        out[block, order] = total / wanted.astype(np.float32)
    return out


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
    found: SearchResult, methods: Mapping[str, Iterable[str]], m: int, backgrounds: Mapping[str, Background]
) -> dict[str, dict[str, Floats]]:
    """Similarity of each image to every category, for each expert.

    Args:
        found: The answer of a search.
        methods: By expert, names in `AGGREGATIONS`, or `LOG_COUNT`, `CENTRED` and `GDA`.
        m: References that ``top_mean`` averages; at least 1.
        backgrounds: By expert, of those with `CENTRED` and `GDA`, which then have means.

    Returns:
        By expert, in the order of `found`, and aggregation: float32 ``(n_images, n_categories)``, NaN where the expert
        has no reference. Columns are in the order of `SearchResult.categories`.
    """
    out: dict[str, dict[str, Floats]] = {}
    for expert in found.experts:
        out[expert.name] = {}
        wanted, covered = dict.fromkeys(methods[expert.name]), dict[str, Floats]()
        if {CENTRED, GDA} & wanted.keys():
            covered = _classwise(found, expert, backgrounds[expert.name])
        if LOG_COUNT in wanted:
            covered[LOG_COUNT] = np.log(expert.similarities.counts).astype(np.float32)
        for method in wanted:
            values = np.full((len(expert.similarities), len(found.categories)), np.nan, dtype=np.float32)
            whole = covered[method] if method in covered else expert.similarities.aggregate(method, m)
            values[:, expert.coverage] = whole
            out[expert.name][method] = values
    return out


def _classwise(found: SearchResult, expert: ExpertSimilarities, background: Background) -> dict[str, Floats]:
    means = cast("ClassMeans", expert.class_means(background))  # they are there where every reference was compared
    centred, gda = class_similarities(found.queries[expert.encoder], means, background, expert.product)
    return {CENTRED: centred, GDA: gda}
