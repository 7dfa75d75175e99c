"""Similarities between images and the references of each expert, in a store that may change at any time.

Two ways with one contract:

- the *mirror* holds the vectors in this process: one matrix product a batch, every reference seen;
- *qdrant* asks the database for the nearest references; of the others it knows a bound.

Before each batch the catalog is asked what was committed since the last, and the batch is answered
from one state of it: a category is seen whole, or not at all.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from zsvec.aggregate import Similarities
from zsvec.errors import StoreError
from zsvec.store import Hit, Store
from zsvec.types import Category, Neighbor

Vectors = NDArray[np.float32]

_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSimilarities:
    """What the references of one expert say of a batch of images.

    Attributes:
        name: Of the expert, such as ``clip:image``.
        categories: int ``(n_known,)``, ascending: the categories it has references of, as positions
            in `Found.categories`.
        similarities: To their references, grouped by category in this order.
        nearest: For each image its nearest references, nearest first.
    """

    name: str
    categories: NDArray[np.intp]
    similarities: Similarities
    nearest: Sequence[tuple[Neighbor, ...]]


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a search: the committed categories by name, and each expert that has references."""

    categories: tuple[str, ...]
    experts: tuple[ExpertSimilarities, ...]


class _Incomplete(Exception):  # noqa: N818 - a signal within this module, not an error
    """References that a manifest counts are not there, most likely because it has just been replaced."""


class _View(Protocol):
    """An immutable state of the store, ready to be searched.

    ``may_tear``: whether a search reads the store, and so may meet a later state than this one.
    """

    may_tear: ClassVar[bool]

    def updated(self, catalog: Mapping[str, Category], changed: Sequence[_Change]) -> _View: ...
    def search(self, queries: Mapping[str, Vectors], nearest: int) -> Found: ...


@dataclass(frozen=True, slots=True)
class _Change:
    """A category before (``None``: unknown) and after a commit; removed, it has no generations."""

    before: Category | None
    after: Category

    @property
    def grew(self) -> bool:
        return self.before is not None and set(self.before.gens) <= set(self.after.gens)

    @property
    def new_gens(self) -> set[str]:
        return set(self.after.gens) - set(self.before.gens if self.before else ())


class Searcher:
    """Searches a store, in step with its catalog.

    Args:
        store: To search.
        method: ``mirror``, ``qdrant``, or ``auto``: the mirror while the references fit the budget.
        budget: Vectors that ``auto`` holds in this process.
        limit: References that one Qdrant query fetches for one image and expert.
        norms: Whether the lengths of the mean references are needed (for `aggregate.prototype`).
    """

    def __init__(self, store: Store, *, method: str, budget: int, limit: int, norms: bool) -> None:
        self._store = store
        self._budget = {"auto": budget, "mirror": np.inf, "qdrant": -1}[method]
        self._mirror = _Mirror(store)
        self._qdrant = _Qdrant(store, limit, norms_wanted=norms)
        self._view: _View = self._mirror
        self._catalog: Mapping[str, Category] = {}
        self._seen = 0
        self._lock = threading.Lock()

    def method_for(self, size: int) -> str:
        """How a store of so many references is searched: ``mirror`` or ``qdrant``."""
        return "mirror" if size <= self._budget else "qdrant"

    @property
    def method(self) -> str:
        """How the last batch was searched: ``mirror`` or ``qdrant``."""
        return "mirror" if isinstance(self._view, _Mirror) else "qdrant"

    def search(self, queries: Mapping[str, Vectors], nearest: int) -> Found:
        """Compare images with all committed references.

        Args:
            queries: By encoder, float32 ``(n_images, dim)``, unit rows; the same images in each.
            nearest: How many nearest references to name for each image and expert.

        Raises:
            StoreError: References that were committed are lost.
        """
        problem = "many categories"
        for _ in range(_ATTEMPTS):
            try:
                view, catalog = self._refresh()
                found = view.search(queries, nearest)
                if not (view.may_tear and _lost_gens(catalog, self._refresh()[1])):
                    return found
            except _Incomplete as exc:  # noqa: PERF203 - another attempt is the point
                problem = str(exc)
        raise StoreError(
            f"{self._store.location} lacks references of {problem} that it counts, again and again: "
            "if nobody is writing to it, they are lost; remove the category and add it again"
        )

    def _refresh(self) -> tuple[_View, Mapping[str, Category]]:
        with self._lock:
            self._take_over(self._store.categories_after(self._seen))
            return self._view, self._catalog

    def _take_over(self, later: Sequence[Category]) -> None:
        changed = []
        for category in later:
            known = self._catalog.get(category.name)
            if known.version < category.version if known else category.gens:
                changed.append(_Change(known, category))
        catalog = {**self._catalog, **{change.after.name: change.after for change in changed}}
        catalog = {name: category for name, category in catalog.items() if category.gens}
        size = sum(sum(category.references.values()) for category in catalog.values())
        view: _View = self._mirror if self.method_for(size) == "mirror" else self._qdrant
        if type(view) is type(self._view):
            view = self._view
        else:  # nothing of the other way is known, so everything is new to it
            changed = [_Change(None, category) for category in catalog.values()]
        if changed:
            self._view, self._catalog = view.updated(catalog, changed), catalog
        self._seen = max([self._seen, *(category.rev for category in later)])


def _lost_gens(before: Mapping[str, Category], after: Mapping[str, Category]) -> bool:
    """Whether references that were there before may have been deleted meanwhile."""
    return any(name not in after or set(old.gens) - set(after[name].gens) for name, old in before.items())


@dataclass(frozen=True, slots=True)
class _Part:
    """The references of one category to one expert."""

    vectors: Vectors
    sources: tuple[str, ...]

    def __add__(self, other: _Part) -> _Part:
        return _Part(np.concatenate([self.vectors, other.vectors]), self.sources + other.sources)

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.vectors.mean(axis=0, dtype=np.float64)))


def _fetch(store: Store, gens: Sequence[str]) -> Iterator[tuple[str, dict[str, _Part]]]:
    """The references of these generations: each expert, and its part of each category."""
    for encoder in store.encoders() if gens else ():
        rows: dict[str, dict[str, tuple[list[Vectors], list[str]]]] = {}
        for page in store.references(encoder, gens):
            for payload, vector in zip(page.payloads, page.vectors, strict=True):
                of = rows.setdefault(payload["modality"], {})
                vectors, sources = of.setdefault(payload["category"], ([], []))
                vectors.append(vector)
                sources.append(payload["source"])
        for modality, of in rows.items():
            parts = {name: _Part(np.stack(vectors), tuple(sources)) for name, (vectors, sources) in of.items()}
            yield f"{encoder}:{modality}", parts


@dataclass(frozen=True, slots=True)
class _Matrix:
    """All references of one expert, those of a category adjacent, categories by name."""

    names: tuple[str, ...]
    vectors: Vectors
    sources: tuple[str, ...]
    starts: NDArray[np.intp]
    norms: Vectors

    @classmethod
    def of(cls, parts: Mapping[str, _Part]) -> _Matrix:
        names = tuple(sorted(parts))
        return cls(
            names=names,
            vectors=np.concatenate([parts[name].vectors for name in names]),
            sources=tuple(source for name in names for source in parts[name].sources),
            starts=np.cumsum([0, *(len(parts[name].sources) for name in names)], dtype=np.intp),
            norms=np.array([parts[name].norm for name in names], dtype=np.float32),
        )

    def parts(self) -> dict[str, _Part]:
        return {
            name: _Part(self.vectors[start:end], self.sources[start:end])
            for name, start, end in zip(self.names, self.starts, self.starts[1:], strict=False)
        }


@dataclass(frozen=True, slots=True)
class _Mirror:
    may_tear: ClassVar[bool] = False

    store: Store
    names: tuple[str, ...] = ()
    matrices: Mapping[str, _Matrix] = field(default_factory=dict)

    def updated(self, catalog: Mapping[str, Category], changed: Sequence[_Change]) -> _Mirror:
        """Fetch the generations that are new, drop what is gone, and lay the vectors out again."""
        dropped = {change.after.name for change in changed if not change.grew}
        parts = {expert: matrix.parts() for expert, matrix in self.matrices.items()}
        touched = set()
        for expert, of in parts.items():
            for name in dropped & of.keys():
                del of[name]
                touched.add(expert)
        for expert, fetched in _fetch(self.store, [gen for change in changed for gen in change.new_gens]):
            of = parts.setdefault(expert, {})
            for name, part in fetched.items():
                of[name] = of[name] + part if name in of else part
            touched.add(expert)
        for change in changed:
            name = change.after.name
            counts = {expert: len(of[name].sources) for expert, of in parts.items() if name in of}
            if counts != dict(change.after.references):
                raise _Incomplete(repr(name))
        matrices = {
            expert: _Matrix.of(of) if expert in touched else self.matrices[expert] for expert, of in parts.items() if of
        }
        return replace(self, names=tuple(sorted(catalog)), matrices=matrices)

    def search(self, queries: Mapping[str, Vectors], nearest: int) -> Found:
        position = {name: i for i, name in enumerate(self.names)}
        experts = []
        for expert, matrix in sorted(self.matrices.items()):
            query = queries[expert.rsplit(":", 1)[0]]
            values = query @ matrix.vectors.T
            counts = np.diff(matrix.starts)
            floor = np.full(len(query), -1, dtype=np.float32)
            experts.append(
                ExpertSimilarities(
                    name=expert,
                    categories=np.array([position[name] for name in matrix.names], dtype=np.intp),
                    similarities=Similarities(values, matrix.starts, counts, matrix.norms, floor),
                    nearest=[
                        tuple(
                            Neighbor(
                                matrix.names[np.searchsorted(matrix.starts, column, side="right") - 1],
                                float(row[column]),
                                matrix.sources[column],
                            )
                            for column in columns
                        )
                        for row, columns in zip(values, _largest(values, nearest), strict=True)
                    ],
                )
            )
        return Found(self.names, tuple(experts))


def _largest(values: Vectors, k: int) -> NDArray[np.intp]:
    """Columns of the ``k`` largest values of each row, largest first, int ``(n, min(k, n_columns))``.

    For a few of many columns, ``k`` passes are faster than a partition.
    """
    rows = np.arange(len(values))
    columns = np.empty((len(values), min(k, values.shape[1])), dtype=np.intp)
    taken = np.empty(columns.shape, dtype=values.dtype)
    for rank in range(columns.shape[1]):
        columns[:, rank] = values.argmax(axis=1)
        taken[:, rank] = values[rows, columns[:, rank]]
        values[rows, columns[:, rank]] = -np.inf
    values[rows[:, None], columns] = taken
    return columns


@dataclass(frozen=True, slots=True)
class _Qdrant:
    may_tear: ClassVar[bool] = True

    store: Store
    limit: int
    norms_wanted: bool
    catalog: Mapping[str, Category] = field(default_factory=dict)
    norms: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def updated(self, catalog: Mapping[str, Category], changed: Sequence[_Change]) -> _Qdrant:
        """Take the catalog over, and where norms are wanted, those of the categories that changed."""
        norms = dict(self.norms)
        gens = [gen for change in changed for gen in change.after.gens] if self.norms_wanted else []
        for expert, parts in _fetch(self.store, gens):
            norms.update({(expert, name): part.norm for name, part in parts.items()})
        return replace(self, catalog=catalog, norms=norms)

    def search(self, queries: Mapping[str, Vectors], nearest: int) -> Found:
        names = tuple(sorted(self.catalog))
        experts = sorted({expert for category in self.catalog.values() for expert in category.references})
        return Found(names, tuple(self._ask(expert, names, queries, nearest) for expert in experts))

    def _ask(
        self, expert: str, names: Sequence[str], queries: Mapping[str, Vectors], nearest: int
    ) -> ExpertSimilarities:
        encoder, modality = expert.rsplit(":", 1)
        found = self.store.query(encoder, modality, queries[encoder], self.limit)  # type: ignore[arg-type]
        counts = {name: self.catalog[name].references.get(expert, 0) for name in names}
        known = [position for position, name in enumerate(names) if counts[name]]
        live = [[hit for hit in hits if self._committed(hit)] for hits in found]
        # Each reference that any image found is a column; an image that did not find it knows a bound.
        columns = sorted({(hit.payload["category"], hit.id) for hits in live for hit in hits})
        column = {identifier: i for i, (_, identifier) in enumerate(columns)}
        present = Counter(category for category, _ in columns)
        everything = all(len(hits) < self.limit for hits in found)
        for name in names:
            if present[name] > counts[name] or (everything and present[name] < counts[name]):
                raise _Incomplete(repr(name))
        floor = np.array([hits[-1].similarity if hits else -1.0 for hits in found], dtype=np.float32)
        values = np.repeat(floor[:, None], len(columns), axis=1)
        for row, hits in zip(values, live, strict=True):
            row[[column[hit.id] for hit in hits]] = [hit.similarity for hit in hits]
        return ExpertSimilarities(
            name=expert,
            categories=np.array(known, dtype=np.intp),
            similarities=Similarities(
                values=values,
                starts=np.cumsum([0, *(present[names[i]] for i in known)], dtype=np.intp),
                counts=np.array([counts[names[i]] for i in known], dtype=np.intp),
                norms=np.array([self.norms.get((expert, names[i]), 1.0) for i in known], dtype=np.float32),
                floor=floor,
            ),
            nearest=[
                tuple(
                    Neighbor(hit.payload["category"], hit.similarity, hit.payload["source"]) for hit in hits[:nearest]
                )
                for hits in live
            ],
        )

    def _committed(self, hit: Hit) -> bool:
        category = self.catalog.get(hit.payload["category"])
        return category is not None and hit.payload["gen"] in category.gens
