"""The mean reference of each category, and what an image is compared with: these means as seen from a background."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats
from zsvec.method.predict.background import Background, features


@dataclass(frozen=True, slots=True)
class Seen:
    """The mean references of some categories, as seen from a background.

    Attributes:
        background: The background.
        lengths: float32 ``(n_categories,)``, length of each offset.
        along: float32 ``(n_categories, rank)``, the offsets along the basis.
        trust: float32 ``(n_categories,)``, how far each is drawn towards the mean of the background, 0 to 1.
        halves: float32 ``(n_categories,)``, half of the squared Mahalanobis length of what remains, nats.
    """

    background: Background
    lengths: Floats
    along: Floats
    trust: Floats
    halves: Floats

    @classmethod
    def of(cls, means: Floats, counts: NDArray[np.intp], background: Background) -> Seen:
        """Mean references, and of how many references each is the mean."""
        offsets: Floats = means - background.mean
        trust = np.asarray(background.trust(counts), dtype=np.float32)
        return cls(
            background,
            lengths=np.linalg.norm(offsets, axis=1),
            along=offsets.dot(background.basis.T),
            trust=trust,
            halves=0.5 * trust**2 * background.square(offsets),
        )


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """The mean references of the categories of one expert.

    Attributes:
        names: The categories, ascending.
        means: float32 ``(n_categories, dim)``, the mean reference of each category, or the mean of the `roots` of its
            references; shorter than 1 where they differ.
        counts: int ``(n_categories,)``, references of each, at least 1.
        of_roots: Whether they are means of roots.
    """

    names: Sequence[str]
    means: Floats
    counts: NDArray[np.intp]
    of_roots: bool = False

    @classmethod
    def of(
        cls, names: Sequence[str], vectors: Floats, starts: NDArray[np.intp], *, of_roots: bool = False
    ) -> ClassMeans:
        """Of references.

        Args:
            names: The categories, ascending.
            vectors: float32 ``(n_references, dim)``; category ``c`` has the rows ``starts[c]:starts[c + 1]``.
            starts: int ``(n_categories + 1,)``.
            of_roots: Whether to take the roots of the references.
        """
        means = _means(vectors, starts, range(len(names)), of_roots)
        return cls(names, means, np.diff(starts), of_roots)

    def changed(
        self, changed: Collection[str], names: Sequence[str], vectors: Floats, starts: NDArray[np.intp]
    ) -> ClassMeans:
        """Those of the references after a change, as `of` would make them; only the means that differ are computed.

        Args:
            changed: Names of the categories that are new, gone or different; all others are as they were.
            names: As `of`, after the change; at least one.
            vectors: Likewise.
            starts: Likewise.
        """
        row = {name: i for i, name in enumerate(self.names)}
        others = [place for place, name in enumerate(names) if name in changed]
        # Rows of the changed categories are replaced afterwards, so that any row serves for them here.
        kept = np.array([0 if name in changed else row[name] for name in names], dtype=np.intp)
        counts, means = np.diff(starts), self.means.take(kept, axis=0)
        means[others] = _means(vectors, starts, others, self.of_roots)
        return ClassMeans(names, means, counts, self.of_roots)

    def seen_from(self, background: Background) -> Seen:
        """Computed when first asked for, and kept until another background is asked for."""
        seen: Seen | None = self.__dict__.get("_seen")
        if seen is None or seen.background is not background:
            seen = Seen.of(self.means, self.counts, background)
            self.__dict__["_seen"] = seen
        return seen

    def __len__(self) -> int:
        """Number of categories."""
        return len(self.counts)


def _means(vectors: Floats, starts: NDArray[np.intp], categories: Sequence[int], of_roots: bool) -> Floats:
    # One after the other: each is the same whatever is beside it, and no copy of all in double precision is made.
    means = np.empty((len(categories), vectors.shape[1]), dtype=np.float32)
    for mean, category in zip(means, categories, strict=True):
        mean[:] = mean_reference(features(vectors[starts[category] : starts[category + 1]], of_roots=of_roots))
    return means


def mean_reference(vectors: Floats) -> Floats:
    """Mean of the references of a category, float32 ``(dim,)``; summed up in double precision."""
    mean: Floats = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean
