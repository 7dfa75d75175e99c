"""The mean reference of each category, in blocks: where a category changes, only what is of its block is copied."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.method.predict.background import Background, features
from zsvec.method.rows import Rows

Floats = NDArray[np.float32]

_BLOCK = 2048  # categories of a block; of one that has grown to twice as many, several are made


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
    def of(cls, block: Block, background: Background) -> Seen:
        """A block, as seen from there."""
        offsets: Floats = block.means - background.mean
        trust = np.asarray(background.trust(block.counts), dtype=np.float32)
        return cls(
            background,
            lengths=np.linalg.norm(offsets, axis=1),
            along=offsets.dot(background.basis.T),
            trust=trust,
            halves=0.5 * trust**2 * background.square(offsets),
        )

    def with_others(self, order: Order, others: Seen) -> Seen:
        """As `Block.with_others`."""
        arrays = ("lengths", "along", "trust", "halves")
        return Seen(self.background, **{name: order.of(getattr(self, name), getattr(others, name)) for name in arrays})


@dataclass(frozen=True, eq=False)
class Order:
    """Where rows come from.

    Attributes:
        kept: int ``(n,)``, the rows of one array; any, where the other array has them.
        places: int ``(m,)``, where all rows of the other array go.
    """

    kept: NDArray[np.intp]
    places: NDArray[np.intp]

    def of(self, array: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
        """The rows."""
        found: NDArray[Any] = array.take(self.kept, axis=0)
        found[self.places] = others
        return found


@dataclass(frozen=True, eq=False)
class Block:
    """Categories that are adjacent by name.

    Attributes:
        names: Theirs, ascending.
        means: float32 ``(n_categories, dim)``, the mean reference of each category, or the mean of the roots of its
            references; shorter than 1 where they differ.
        counts: int ``(n_categories,)``, references of each, at least 1.
    """

    names: Sequence[str]
    means: Floats
    counts: NDArray[np.intp]

    def seen_from(self, background: Background) -> Seen:
        """Computed when first asked for, and kept until another background is asked for."""
        seen: Seen | None = self.__dict__.get("_seen")
        if seen is None or seen.background is not background:
            seen = Seen.of(self, background)
            self.__dict__["_seen"] = seen
        return seen

    def with_others(self, names: Sequence[str], others: Block) -> Block:
        """Some categories of this block, and others in the place of those of the same name.

        Args:
            names: All of them, ascending.
            others: The others; all are among the names.
        """
        row = {name: i for i, name in enumerate(self.names)}
        place = {name: i for i, name in enumerate(names)}
        kept = np.array([row.get(name, 0) for name in names], dtype=np.intp)
        order = Order(kept, np.array([place[name] for name in others.names], dtype=np.intp))
        block = Block(names, order.of(self.means, others.means), order.of(self.counts, others.counts))
        seen: Seen | None = self.__dict__.get("_seen")
        if seen is not None:
            block.__dict__["_seen"] = seen.with_others(order, Seen.of(others, seen.background))
        return block


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """The mean reference of a category whose references do not all count the same.

    Attributes:
        mean: float32 ``(dim,)``.
        count: As how many references it counts: the sum of the weights, rounded, at least 1.
    """

    mean: Floats
    count: int

    @classmethod
    def of(cls, vectors: Floats, weights: Floats, *, of_roots: bool) -> Weighed:
        """Of references.

        Args:
            vectors: float32 ``(n_references, dim)``.
            weights: float32 ``(n_references,)``, above 0 to 1.
            of_roots: Whether to take the roots of the references.
        """
        summed_up = features(vectors, of_roots=of_roots).astype(np.float64)
        mean: Floats = np.average(summed_up, axis=0, weights=weights).astype(np.float32)
        return cls(mean, max(1, round(float(weights.sum()))))


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """The mean references of the categories of one expert, by name ascending.

    Attributes:
        blocks: One or more, none of them empty.
        of_roots: Whether they are means of the `roots` of the references.
    """

    blocks: tuple[Block, ...]
    of_roots: bool = False

    @classmethod
    def of(cls, names: Sequence[str], rows: Rows, starts: NDArray[np.intp], *, of_roots: bool = False) -> ClassMeans:
        """Of references.

        Args:
            names: The categories, ascending.
            rows: Their vectors; category ``c`` has the rows ``starts[c]:starts[c + 1]``.
            starts: int ``(n_categories + 1,)``.
            of_roots: Whether to take the roots of the references.
        """
        return cls(tuple(_blocks(names, rows, starts, 0, len(names), of_roots)), of_roots)

    def changed(
        self, changed: Collection[str], names: Sequence[str], rows: Rows, starts: NDArray[np.intp]
    ) -> ClassMeans:
        """Those of the references after a change, as `of` would make them.

        Args:
            changed: Names of the categories that are new, gone or different; all others are as they were.
            names: As `of`, after the change; at least one.
            rows: Likewise.
            starts: Likewise.
        """
        firsts = [block.names[0] for block in self.blocks]
        bounds = [0, *(bisect_left(names, first) for first in firsts[1:]), len(names)]
        stale = {max(0, bisect_right(firsts, name) - 1) for name in changed}
        blocks: list[Block] = []
        for i, (block, first, last) in enumerate(zip(self.blocks, bounds, bounds[1:], strict=False)):
            if i not in stale:
                blocks.append(block)
                continue
            others = [place for place in range(first, last) if names[place] in changed]
            if last - first >= 2 * _BLOCK or len(others) == last - first:
                blocks += _blocks(names, rows, starts, first, last, self.of_roots)
            else:
                made = _block(names, rows, starts, others, self.of_roots)
                blocks.append(block.with_others(names[first:last], made))
        return ClassMeans(tuple(blocks), self.of_roots)

    def weighed(self, weights: Mapping[int, Floats], rows: Rows, starts: NDArray[np.intp]) -> ClassMeans:
        """With weighted means of some categories.

        Args:
            weights: By category, as a position: float32 ``(n_references,)``, above 0 to 1, of its references.
            rows: As `of`.
            starts: As `of`.
        """
        return self.replaced(
            {
                category: Weighed.of(
                    rows.take(int(starts[category]), int(starts[category + 1])), given, of_roots=self.of_roots
                )
                for category, given in weights.items()
            }
        )

    def replaced(self, others: Mapping[int, Weighed]) -> ClassMeans:
        """With other means of some categories, by position."""
        blocks, first = [], 0
        for block in self.blocks:
            inside = range(first, first + len(block.counts))
            chosen = [category for category in inside if category in others]
            if chosen:
                names = [block.names[category - first] for category in chosen]
                means = np.stack([others[category].mean for category in chosen])
                counts = np.array([others[category].count for category in chosen], dtype=np.intp)
                block = block.with_others(block.names, Block(names, means, counts))
            blocks.append(block)
            first = inside.stop
        return ClassMeans(tuple(blocks), self.of_roots)

    def __len__(self) -> int:
        """Number of categories."""
        return len(self.counts)

    @cached_property
    def counts(self) -> NDArray[np.intp]:
        """References of each category, int ``(n_categories,)``, at least 1."""
        return np.concatenate([block.counts for block in self.blocks])

    def take(self, category: int) -> Floats:
        """One of them, float32 ``(dim,)``."""
        for block in self.blocks:
            if category < len(block.counts):
                mean: Floats = block.means[category]
                return mean
            category -= len(block.counts)
        raise IndexError(category)

    def dot(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Dot products with each mean, float ``(n_vectors, n_categories)``.

        Args:
            vectors: float ``(n_vectors, dim)``.
        """
        return np.concatenate([vectors @ block.means.T for block in self.blocks], axis=1)


def _blocks(
    names: Sequence[str], rows: Rows, starts: NDArray[np.intp], first: int, last: int, of_roots: bool
) -> list[Block]:
    """Blocks of the categories ``first`` to ``last``."""
    n_blocks = max(1, (last - first) // _BLOCK) if last > first else 0
    edges = np.linspace(first, last, n_blocks + 1).astype(int).tolist()
    return [_block(names, rows, starts, range(a, b), of_roots) for a, b in pairwise(edges)]


def _block(
    names: Sequence[str], rows: Rows, starts: NDArray[np.intp], categories: Sequence[int], of_roots: bool
) -> Block:
    # One after the other: each is the same whatever is beside it, and no copy of all in double precision is made.
    means = np.empty((len(categories), rows.dim), dtype=np.float32)
    for mean, category in zip(means, categories, strict=True):
        vectors = rows.take(int(starts[category]), int(starts[category + 1]))
        mean[:] = mean_reference(features(vectors, of_roots=of_roots))
    counts = np.diff(starts)[np.array(categories, dtype=np.intp)]
    return Block([names[category] for category in categories], means, counts)


def mean_reference(vectors: Floats) -> Floats:
    """Mean of the references of a category, float32 ``(dim,)``; summed up in double precision."""
    mean: Floats = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean
