"""Search by Qdrant, which returns the nearest references and so an upper bound of the similarity to all others.

A category must be complete for all experts, but the database may change between two queries. So all experts are
queried first. Then the catalog is read again, and categories that have lost references meanwhile are queried again.

If the store is optimised for approximate search (`SearchParams`), a query may miss some of the nearest references. The
bound is then an estimate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats
from zsvec.method.predict.background import Background, ClassMeans, mean_reference, roots
from zsvec.method.predict.reference_aggregation import Similarities
from zsvec.method.similarities import ExpertSimilarities, References
from zsvec.search.base import ATTEMPTS, QDRANT, Change, Expert, Incomplete, IndexSpec, Snapshot
from zsvec.search.layout import parts_of, read, renewed
from zsvec.store import EXACT, Hit, Store
from zsvec.store.attached.parts import PartsChanged, own_writes
from zsvec.types import Category, Neighbor, SearchParams, is_attached


@dataclass(frozen=True, slots=True)
class Hits:
    """Result of a query for the references of one expert.

    Attributes:
        rows: The nearest references of each image, nearest first.
        bound: float32 ``(n_images,)``, upper bound of the similarity to references outside the image's row. After an
            approximate search, some missed references may be more similar.
        everything: Whether the row of every image has all references.
        attached: Whether the row of every image has all points of attached collections.
    """

    rows: Sequence[Sequence[Hit]]
    bound: Floats
    everything: bool
    attached: bool = True

    @classmethod
    def of(cls, rows: Sequence[Sequence[Hit]], limit: int, *, exact: bool = True) -> Hits:
        """Returns the hits of a query for at most `limit` references per image.

        Args:
            rows: The nearest references of each image, nearest first.
            limit: The limit of the query.
            exact: Whether every reference was compared. Otherwise, a shorter row may lack references, too.
        """
        complete = [exact and len(row) < limit for row in rows]
        last = [row[-1].similarity if row else -1.0 for row in rows]
        return cls(rows, np.where(complete, -1, last).astype(np.float32), all(complete))

    def merged(self, hits: Hits) -> Hits:
        """Returns these hits and those of another collection, as if found by a single query."""
        bound = np.maximum(self.bound, hits.bound)
        rows = []
        for row, others, least in zip(self.rows, hits.rows, bound, strict=True):
            both = [hit for hit in (*row, *others) if hit.similarity >= least]
            rows.append(sorted(both, key=lambda hit: -hit.similarity))
        return Hits(rows, bound, self.everything and hits.everything, self.attached and hits.attached)

    def with_attached(self, rows: Sequence[Sequence[Hit]], limit: int) -> Hits:
        """Returns these hits and the hits of an attached collection, of a query for at most `limit` points."""
        hits = Hits.of(rows, limit)
        return self.merged(replace(hits, attached=hits.everything))

    def among(self, categories: Collection[str]) -> Hits:
        """Returns the hits that are references of given categories, with the same bound."""
        return replace(self, rows=[[hit for hit in row if hit.payload["category"] in categories] for row in self.rows])

    def with_others(self, names: set[str], hits: Hits) -> Hits:
        """Returns hits in which `hits` replaces the hits of the categories `names`, as if found by a single query."""
        kept = [[hit for hit in row if hit.payload["category"] not in names] for row in self.rows]
        return replace(self, rows=kept).merged(hits)


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of a category's references of one expert.

    Attributes:
        vector: float32 ``(dim,)``.
        norm: Length of the mean, 0 to 1.
        of_roots: float32 ``(dim,)``, mean of the references after `zsvec.method.predict.background.roots`; ``None`` if
            a reference has negative components.
    """

    vector: Floats
    norm: float
    of_roots: Floats | None

    @classmethod
    def of(cls, part: References) -> Mean:
        """Returns the mean of the references of one category."""
        of_roots = mean_reference(roots(part.vectors)) if part.vectors.min(initial=0) >= 0 else None
        return cls(mean_reference(part.vectors), float(part.norms[0]), of_roots)


@dataclass(frozen=True)
class QdrantIndex:
    """The references of one expert in the database.

    Attributes:
        expert: The expert.
        catalog: All categories, by name.
        counts: Number of references of each category that the expert covers, ascending by name.
        means: Means by expert and category, for the categories whose references were read.
        norms: float32 ``(n_covered,)``, `Mean.norm` of each category; NaN for a category without a mean in `means`.
    """

    expert: Expert
    catalog: Mapping[str, Category]
    counts: Mapping[str, int]
    means: Mapping[tuple[str, str], Mean]
    norms: Floats

    @classmethod
    def of(
        cls,
        name: str,
        catalog: Mapping[str, Category],
        means: Mapping[tuple[str, str], Mean],
        names: Sequence[str],
    ) -> QdrantIndex:
        """Returns the index of one expert.

        Args:
            name: Name of the expert.
            catalog: All categories, by name.
            means: Means by expert and category; see the attribute.
            names: Names of all categories, ascending.
        """
        counts = {category: n for category in names if (n := catalog[category].references.get(name, 0))}
        norms = [means[name, category].norm if (name, category) in means else np.nan for category in counts]
        position = {category: i for i, category in enumerate(names)}
        expert = Expert.of(name, tuple(counts), position)
        return cls(expert, catalog, counts, means, np.array(norms, dtype=np.float32))

    def committed(self, hit: Hit) -> bool:
        """Returns whether a reference is in the catalog. Other references were replaced, or are uncommitted.

        A point of an attached collection counts if its category has such points.
        """
        category = self.catalog.get(hit.payload["category"])
        if category is None:
            return False
        if is_attached(hit.payload["hash"]):  # may have changed since the catalog was read
            return self.expert.name in category.attached
        return hit.payload["gen"] in category.write_ids

    def search(self, hits: Hits, nearest: int) -> ExpertSimilarities:
        """Compares images with all references. The result has columns for the committed references among the hits.

        Args:
            hits: Result of the query. The bound replaces similarities to references outside the image's row.
            nearest: Number of nearest references to return for each image.

        Raises:
            Incomplete: A category has more or fewer references than the catalog says.
        """
        live = [[hit for hit in row if self.committed(hit)] for row in hits.rows]
        columns = sorted({(hit.payload["category"], hit.id) for row in live for hit in row})
        column = {identifier: i for i, (_, identifier) in enumerate(columns)}
        present = Counter(category for category, _ in columns)
        own, counts = present, self._counts()
        if self.attached:  # points of others may change at any time, so only our own references are counted
            own = Counter(category for category, identifier in columns if not is_attached(identifier))
            counts = self._present_counts(present - own, stated=not hits.attached)
        torn = {name for name, n in own.items() if n > self.own_counts.get(name, 0)}
        if live and hits.everything:
            torn |= {name for name, n in self.own_counts.items() if own[name] < n}
        if torn:
            raise Incomplete(torn)
        values = np.repeat(hits.bound[:, None], len(columns), axis=1)
        for row, found in zip(values, live, strict=True):
            row[[column[hit.id] for hit in found]] = [hit.similarity for hit in found]
        return ExpertSimilarities(
            name=self.expert.name,
            coverage=self.expert.coverage,
            similarities=Similarities(
                values=values,
                starts=np.cumsum([0, *(present[name] for name in self.counts)], dtype=np.intp),
                counts=counts,
                norms=self.norms,
                bound=hits.bound,
            ),
            nearest=[tuple(_neighbor(hit) for hit in found[:nearest]) for found in live],
            class_means=self.sum_up,
        )

    def sum_up(self, background: Background) -> ClassMeans | None:
        """Returns `root_means` for a background of roots, else `class_means`; ``None`` unless all means are known."""
        return self.root_means if background.of_roots else self.class_means

    @cached_property
    def class_means(self) -> ClassMeans | None:
        """The mean reference of each category; ``None`` unless all means are known."""
        return self._class_means(of_roots=False)

    @cached_property
    def root_means(self) -> ClassMeans | None:
        """The `Mean.of_roots` of each category; ``None`` unless all means are known."""
        return self._class_means(of_roots=True)

    def _class_means(self, *, of_roots: bool) -> ClassMeans | None:
        found = [self.means.get((self.expert.name, category)) for category in self.counts]
        vectors = [mean.of_roots if of_roots else mean.vector for mean in found if mean]
        known = [vector for vector in vectors if vector is not None]
        if len(known) < len(found):
            return None
        return ClassMeans(tuple(self.counts), np.stack(known), self._counts(), of_roots)

    @cached_property
    def own_counts(self) -> Mapping[str, int]:
        """Number of references of each category that are in the collection of the store."""
        if not self.attached:
            return self.counts
        return {name: self.catalog[name].own.get(self.expert.name, 0) for name in self.counts}

    def _present_counts(self, attached: Mapping[str, int], *, stated: bool) -> NDArray[np.intp]:
        """Returns the number of references of each category, with the points of attached collections among the hits.

        Args:
            attached: Number of these points, by category.
            stated: Whether there may be as many points as the catalog says.
        """
        counts = []
        for name, own in self.own_counts.items():
            points = attached.get(name, 0)
            counts.append(max(1, own + points, self.counts[name] if stated else 0))
        return np.array(counts, dtype=np.intp)

    @cached_property
    def attached(self) -> bool:
        """Whether a category has references in an attached collection."""
        return any(self.expert.name in category.attached for category in self.catalog.values())

    @cached_property
    def size(self) -> int:
        """Number of references of the expert."""
        return sum(self.counts.values())

    def _counts(self) -> NDArray[np.intp]:
        return np.array(list(self.counts.values()), dtype=np.intp)


@dataclass(frozen=True, slots=True)
class QdrantSnapshot:
    """A snapshot with all references in Qdrant. Implements `zsvec.search.base.Snapshot`.

    Attributes:
        store: The store to search.
        limit: Number of references that one query fetches for one image and expert.
        norms_wanted: Whether to read the means of all categories.
        params: How the server searches an expert with more than `limit` references.
        catalog: The categories, by name.
        means: Means by expert and category, for the categories whose references were read.
        names: Names of the categories, ascending.
        indexes: The index of each expert, ascending by name.
    """

    store: Store
    limit: int
    norms_wanted: bool
    params: SearchParams = EXACT
    catalog: Mapping[str, Category] = field(default_factory=dict)
    means: Mapping[tuple[str, str], Mean] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    indexes: Mapping[str, QdrantIndex] = field(default_factory=dict)

    @property
    def spec(self) -> IndexSpec:
        """See `Snapshot`."""
        return QDRANT

    def references(self) -> Mapping[str, References]:
        """See `Snapshot`. Reads all references."""
        found, torn = renewed(self.store, {}, [Change(None, category) for category in self.catalog.values()])
        if torn:
            raise Incomplete(torn)
        return found

    def updated(self, catalog: Mapping[str, Category], changes: Sequence[Change]) -> tuple[QdrantSnapshot, set[str]]:
        """See `Snapshot`. Leaves out no category. Reads means if wanted, or if each query finds all references."""
        total: Counter[str] = Counter()
        for category in catalog.values():
            total.update(category.references)
        wanted = self.norms_wanted or all(count < self.limit for count in total.values())
        changed = {change.after.name for change in changes}
        means = {key: mean for key, mean in self.means.items() if key[1] in catalog and key[1] not in changed}
        averaged = {name for _, name in means}
        return self._averaging(catalog, means, catalog.keys() - averaged if wanted else set()), set()

    def search(
        self, queries: Mapping[str, Floats], nearest: int, newest: Callable[[], Snapshot]
    ) -> tuple[tuple[str, ...], tuple[ExpertSimilarities, ...]]:
        """See `Snapshot`. Uses the newest state of categories that have lost references meanwhile."""
        state, hits = self, self._ask(self.indexes.values(), queries)
        if any(self._crowded(self.indexes[name], found) for name, found in hits.items()):
            hits = self._ask(self.indexes.values(), queries, self.catalog)
        for _ in range(ATTEMPTS):
            now = newest()
            if not isinstance(now, QdrantSnapshot):
                return now.search(queries, nearest, newest)
            lost = _lost(state.catalog, now.catalog)
            if not lost:
                asked = [(index, hits[name]) for name, index in state.indexes.items() if name in hits]
                return state.names, tuple(index.search(found, nearest) for index, found in asked)
            # The queries may have seen replaced or removed categories in part, so these categories are queried again.
            again = {name: now.catalog[name] for name in lost & now.catalog.keys()}
            kept = {name: category for name, category in state.catalog.items() if name not in lost}
            means = {key: mean for key, mean in now.means.items() if key[1] in lost}
            state = state._with({**kept, **again}, {**state.means, **means})
            indexes = [now.indexes[expert] for expert in _experts(again)]
            nothing = {expert: Hits.of([[] for _ in found.rows], self.limit) for expert, found in hits.items()}
            others = {**nothing, **self._ask(indexes, queries, again, exact=True)}
            hits = {expert: hits.get(expert, found).with_others(lost, found) for expert, found in others.items()}
        raise Incomplete(lost)

    def _averaging(
        self, catalog: Mapping[str, Category], means: Mapping[tuple[str, str], Mean], names: Collection[str]
    ) -> QdrantSnapshot:
        """Reads the references of categories. Returns a snapshot that has the means of these references, too."""
        found = dict(means)
        for expert, references in read(self.store, [Change(None, catalog[name]) for name in sorted(names)]):
            parts = parts_of(references, references.names)
            found.update({(expert, name): Mean.of(part) for name, part in parts.items()})
        return self._with(catalog, found)

    def _with(self, catalog: Mapping[str, Category], means: Mapping[tuple[str, str], Mean]) -> QdrantSnapshot:
        names = tuple(sorted(catalog))
        indexes = {expert: QdrantIndex.of(expert, catalog, means, names) for expert in _experts(catalog)}
        return replace(self, catalog=catalog, means=means, names=names, indexes=indexes)

    def _crowded(self, index: QdrantIndex, hits: Hits) -> bool:
        """Returns whether uncommitted references may displace committed references from the hits."""
        return any(
            least > -1 and not all(is_attached(hit.id) or index.committed(hit) for hit in row)
            for row, least in zip(hits.rows, hits.bound, strict=True)
        )

    def _ask(
        self,
        indexes: Iterable[QdrantIndex],
        queries: Mapping[str, Floats],
        categories: Mapping[str, Category] | None = None,
        *,
        exact: bool = False,
    ) -> dict[str, Hits]:
        """Returns the nearest references of each expert with a query.

        Args:
            indexes: Indexes of the experts.
            queries: As in `search`.
            categories: Categories to search; ``None`` searches all writes.
            exact: Whether to compare every reference, whatever `params` say. So are experts with few references.
        """
        found = {}
        for index in (index for index in indexes if index.expert.encoder in queries):
            expert, vectors = index.expert, queries[index.expert.encoder]
            params = EXACT if exact or index.size <= self.limit else self.params
            write_ids = None if categories is None else _write_ids(categories)
            rows = self.store.query(expert.encoder, expert.modality, vectors, self.limit, write_ids, params)
            hits = Hits.of(rows, self.limit, exact=params.exact)
            if index.attached:
                try:
                    attached = self.store.query_attached(expert.encoder, expert.modality, vectors, self.limit)
                except PartsChanged as exc:
                    raise Incomplete([]) from exc
                for others in attached:
                    hits = hits.with_attached(others, self.limit)
                if categories is not None:
                    hits = hits.among(categories)
            found[expert.name] = hits
        return found


def _neighbor(hit: Hit) -> Neighbor:
    return Neighbor(hit.payload["category"], hit.similarity, hit.payload["source"], hit.payload["hash"])


def _experts(catalog: Mapping[str, Category]) -> list[str]:
    return sorted({expert for category in catalog.values() for expert in category.references})


def _write_ids(catalog: Mapping[str, Category]) -> list[str]:
    return [write_id for category in catalog.values() for write_id in own_writes(category)]


def _lost(before: Mapping[str, Category], after: Mapping[str, Category]) -> set[str]:
    """Returns the names of categories that may have lost references between two states of the catalog."""
    return {
        name
        for name, old in before.items()
        if (new := after.get(name)) is not old and (new is None or not set(own_writes(old)) <= set(own_writes(new)))
    }
