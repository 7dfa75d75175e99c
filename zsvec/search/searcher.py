"""Similarities between images and the references of each expert, in a store that may change at any time.

Two ways with one contract:

- the *mirror* holds the vectors in this process, or on the device of the encoders: one matrix product
  a batch, every reference seen;
- *qdrant* asks the database for the nearest references; of the others it knows a bound.

Before each batch the catalog is asked what was committed since the last, and the batch is answered
from one state of it: a category is seen whole, or not at all.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from zsvec.errors import StoreError
from zsvec.method.aggregation import Similarities
from zsvec.method.calibration import Calibration
from zsvec.method.linalg import largest
from zsvec.method.similarities import Compared, ExpertSimilarities, Found, References
from zsvec.store import Hit, Store
from zsvec.types import Category, Modality, Neighbor, encoder_and_modality, expert_name

Answer = TypeVar("Answer")
Vectors = NDArray[np.float32]

_ATTEMPTS = 10


class Held(Protocol):
    """The references of one expert, held where they are compared with images. Immutable."""

    @property
    def references(self) -> References:
        """The same in this process."""
        ...

    def updated(self, references: References, changed: Collection[str]) -> Held:
        """Others in their place, which differ in no category but those that are named."""

    def compare(self, queries: Vectors, nearest: int) -> tuple[Compared, NDArray[np.intp], Vectors]:
        """Compare images with all of them.

        Args:
            queries: float32 ``(n_images, dim)``, unit rows.
            nearest: How many nearest references to find for each image.

        Returns:
            The similarities; the rows of the nearest references, int ``(n_images, min(nearest, n_references))``,
            nearest first; their similarities, float32.
        """
        ...


Hold: TypeAlias = Callable[[References], Held]
"""Puts references where they will be compared."""


@dataclass(frozen=True, slots=True)
class InProcess:
    """References that are compared in this process.

    Attributes:
        references: They.
        product: Gives the dot products of all rows of two matrices.
    """

    references: References
    product: Callable[[Vectors, Vectors], Vectors] = lambda a, b: a @ b.T

    def updated(self, references: References, changed: Collection[str]) -> InProcess:
        """See `Held`."""
        return replace(self, references=references)

    def compare(self, queries: Vectors, nearest: int) -> tuple[Similarities, NDArray[np.intp], Vectors]:
        """See `Held`."""
        of = self.references
        values = self.product(queries, of.vectors)
        floor = np.full(len(queries), -1, dtype=np.float32)
        columns = largest(values, nearest)
        similarities = Similarities(values, of.starts, np.diff(of.starts), of.norms, floor)
        return similarities, columns, np.take_along_axis(values, columns, axis=1)


class _Incomplete(Exception):  # noqa: N818 - a signal within this module, not an error
    """References that a manifest counts are not there, most likely because it has just been replaced."""


class _View(Protocol):
    """An immutable state of the store, ready to be searched."""

    def mirrored(self) -> _Mirror:
        """The same state with all its references in this process."""

    def updated(self, catalog: Mapping[str, Category], changed: Sequence[_Change]) -> tuple[_View, set[str]]:
        """The state after some changes, without those categories, named, whose references are not all there."""

    def search(self, queries: Mapping[str, Vectors], nearest: int, newest: Callable[[], _View]) -> Found:
        """Answer from this state; of what is no longer there, from the newest."""


@dataclass(frozen=True, slots=True)
class _Change:
    """A category before (``None``: unknown) and after a commit; removed, it has no generations."""

    before: Category | None
    after: Category

    @property
    def grew(self) -> bool:
        return self.before is not None and set(self.before.write_ids) <= set(self.after.write_ids)

    @property
    def new_write_ids(self) -> set[str]:
        return set(self.after.write_ids) - set(self.before.write_ids if self.before else ())


class Searcher:
    """Searches a store, in step with its catalog.

    Args:
        store: To search.
        method: ``mirror``, ``qdrant``, or ``auto``: the mirror while the references fit the budget.
        budget: Vectors that ``auto`` holds in this process.
        limit: References that one Qdrant query fetches for one image and expert.
        norms: Whether the lengths of the mean references are needed (for `aggregate.prototype`).
        hold: Says where the mirror has its references; asked before every batch, as the answer may change.
    """

    def __init__(
        self,
        store: Store,
        *,
        method: str,
        budget: int,
        limit: int,
        norms: bool,
        hold: Callable[[], Hold] = lambda: InProcess,
    ) -> None:
        self._store = store
        self._budget = {"auto": budget, "mirror": np.inf, "qdrant": -1}[method]
        self._hold = hold
        self._mirror = _Mirror(store, InProcess)
        self._qdrant = _Qdrant(store, limit, norms_wanted=norms)
        self._view: _View = self._mirror if self.method_for(0) == "mirror" else self._qdrant
        self._catalog: Mapping[str, Category] = {}
        self._calibration: Calibration | None = None
        self._calibrated = 0  # the ``rev`` of its commit
        self._seen = 0  # the largest `rev` of the catalog, and
        self._changed = 0  # of its categories
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

        def answer() -> Found:
            view, calibration, changed = self._refresh()
            found = view.search(queries, nearest, lambda: self._refresh()[0])
            stale = calibration is not None and calibration.revision < changed
            return replace(found, queries=queries, calibration=calibration, stale=stale)

        return self._until_whole(answer)

    def references(self) -> tuple[Mapping[str, References], int]:
        """All references, by expert, and the largest ``rev`` of the categories they belong to.

        Raises:
            StoreError: References that were committed are lost.
        """

        def answer() -> tuple[Mapping[str, References], int]:
            view, _, changed = self._refresh()
            return {expert: held.references for expert, held in view.mirrored().held.items()}, changed

        return self._until_whole(answer)

    def _until_whole(self, answer: Callable[[], Answer]) -> Answer:
        """Try again while references that are counted are not there."""
        problem = ""
        for _ in range(_ATTEMPTS):
            try:
                return answer()
            except _Incomplete as exc:  # noqa: PERF203 - another attempt is the point
                problem = str(exc)
        raise StoreError(
            f"{self._store.location} lacks references of {problem} that it counts, again and again: "
            "if nobody is writing to it, they are lost; remove the category and add it again"
        )

    def _refresh(self) -> tuple[_View, Calibration | None, int]:
        """The store as it is now: to search, how it is calibrated, and the largest ``rev`` of its categories."""
        with self._lock:
            later, calibration = self._store.changes_after(self._seen)
            self._move(self._hold())
            self._take_over(later)
            if calibration is not None and calibration["rev"] != self._calibrated:
                self._calibrated = calibration["rev"]
                self._calibration = Calibration.from_dict(calibration["calibration"])  # of another format: none
                self._seen = max(self._seen, calibration["rev"])
            return self._view, self._calibration, self._changed

    def _move(self, hold: Hold) -> None:
        if hold != self._mirror.hold:
            if isinstance(self._view, _Mirror):
                self._view = self._view.moved(hold)
            self._mirror = _Mirror(self._store, hold)

    def _take_over(self, later: Sequence[Category]) -> None:
        changed = []
        for category in later:
            known = self._catalog.get(category.name)
            if known.version < category.version if known else category.write_ids:
                changed.append(_Change(known, category))
        if changed:
            self._change(changed)
        self._changed = max([self._changed, *(category.rev for category in later)])
        self._seen = max(self._seen, self._changed)

    def _change(self, changed: list[_Change]) -> None:
        catalog = {**self._catalog, **{change.after.name: change.after for change in changed}}
        catalog = {name: category for name, category in catalog.items() if category.write_ids}
        size = sum(sum(category.references.values()) for category in catalog.values())
        view: _View = self._mirror if self.method_for(size) == "mirror" else self._qdrant
        if type(view) is type(self._view):
            view = self._view
        else:  # nothing of the other way is known, so everything is new to it
            changed = [_Change(None, category) for category in catalog.values()]
        self._view, torn = view.updated(catalog, changed)
        self._catalog = _without(catalog, torn)
        if torn:  # they are unknown now, and so taken over next time; the others are done
            raise _Incomplete(", ".join(map(repr, sorted(torn))))


def _without(catalog: Mapping[str, Category], names: set[str]) -> dict[str, Category]:
    return {name: category for name, category in catalog.items() if name not in names}


def _lost(before: Mapping[str, Category], after: Mapping[str, Category]) -> set[str]:
    """Names of the categories whose references of before may have been deleted meanwhile."""
    return {
        name for name, old in before.items() if name not in after or set(old.write_ids) - set(after[name].write_ids)
    }


@dataclass(frozen=True, slots=True)
class _Part:
    """The references of one category to one expert."""

    vectors: Vectors
    hashes: tuple[str, ...]
    sources: tuple[str, ...]
    norm: float

    @classmethod
    def of(cls, vectors: Vectors, hashes: tuple[str, ...], sources: tuple[str, ...]) -> _Part:
        return cls(vectors, hashes, sources, float(np.linalg.norm(vectors.mean(axis=0, dtype=np.float64))))

    def __add__(self, other: _Part) -> _Part:
        vectors = np.concatenate([self.vectors, other.vectors])
        return _Part.of(vectors, self.hashes + other.hashes, self.sources + other.sources)


def _fetch(store: Store, write_ids: Sequence[str]) -> Iterator[tuple[str, dict[str, _Part]]]:
    """The references of these generations: each expert, and its part of each category."""
    for encoder in store.encoders() if write_ids else ():
        rows: dict[Modality, dict[str, list[tuple[Vectors, str, str]]]] = {}
        for page in store.references(encoder, write_ids):
            for payload, vector in zip(page.payloads, page.vectors, strict=True):
                of = rows.setdefault(payload["modality"], {})
                of.setdefault(payload["category"], []).append((vector, payload["hash"], payload["source"]))
        for modality, of in rows.items():
            parts = {}
            for name, found in of.items():
                vectors, hashes, sources = zip(*found, strict=True)
                parts[name] = _Part.of(np.stack(vectors), hashes, sources)
            yield expert_name(encoder, modality), parts


def _joined(parts: Mapping[str, _Part]) -> References:
    names = tuple(sorted(parts))
    return References(
        names=names,
        vectors=np.concatenate([parts[name].vectors for name in names]),
        starts=np.cumsum([0, *(len(parts[name].hashes) for name in names)], dtype=np.intp),
        norms=np.array([parts[name].norm for name in names], dtype=np.float32),
        hashes=tuple(chain.from_iterable(parts[name].hashes for name in names)),
        sources=tuple(chain.from_iterable(parts[name].sources for name in names)),
    )


def _parts(of: References) -> dict[str, _Part]:
    return {
        name: _Part(of.vectors[start:end], of.hashes[start:end], of.sources[start:end], float(norm))
        for name, start, end, norm in zip(of.names, of.starts, of.starts[1:], of.norms, strict=False)
    }


@dataclass(frozen=True, slots=True)
class _Mirror:
    store: Store
    hold: Hold
    names: tuple[str, ...] = ()
    held: Mapping[str, Held] = field(default_factory=dict)
    known: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)

    def mirrored(self) -> _Mirror:
        return self

    def moved(self, hold: Hold) -> _Mirror:
        """The same, held elsewhere."""
        return replace(self, hold=hold, held={expert: hold(of.references) for expert, of in self.held.items()})

    def updated(self, catalog: Mapping[str, Category], changed: Sequence[_Change]) -> tuple[_Mirror, set[str]]:
        """Fetch the generations that are new, drop what is gone, and lay the vectors out again."""
        dropped = {change.after.name for change in changed if not change.grew}
        parts = {expert: _parts(held.references) for expert, held in self.held.items()}
        touched = set()
        for expert, of in parts.items():
            for name in dropped & of.keys():
                del of[name]
                touched.add(expert)
        for expert, fetched in _fetch(self.store, [gen for change in changed for gen in change.new_write_ids]):
            of = parts.setdefault(expert, {})
            for name, part in fetched.items():
                of[name] = of[name] + part if name in of else part
            touched.add(expert)
        torn = set()
        for change in changed:
            name = change.after.name
            counts = {expert: len(of[name].hashes) for expert, of in parts.items() if name in of}
            if counts != dict(change.after.references):
                torn.add(name)
                for expert in counts:
                    del parts[expert][name]
                    touched.add(expert)
        renewed = {change.after.name for change in changed}
        held = {expert: of for expert, of in self.held.items() if expert not in touched}
        for expert in touched:
            if parts[expert]:
                joined = _joined(parts[expert])
                held[expert] = self.held[expert].updated(joined, renewed) if expert in self.held else self.hold(joined)
        names = tuple(sorted(_without(catalog, torn)))
        return replace(self, names=names, held=held, known=_known(held, names)), torn

    def search(self, queries: Mapping[str, Vectors], nearest: int, newest: Callable[[], _View]) -> Found:
        return _compared(self.held, self.names, self.known, queries, nearest)


def compare(
    references: Mapping[str, References], names: Sequence[str], queries: Mapping[str, Vectors], nearest: int
) -> Found:
    """Compare images with references that are held in this process.

    Args:
        references: By expert.
        names: All categories, ascending.
        queries: By encoder, float32 ``(n_images, dim)``, unit rows; the same images in each.
        nearest: How many nearest references to name for each image and expert.
    """
    held = {expert: InProcess(of) for expert, of in references.items()}
    return _compared(held, names, _known(held, names), queries, nearest)


def _known(experts: Mapping[str, Held], names: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """By expert, the positions among all categories of those that it has references of."""
    position = {name: i for i, name in enumerate(names)}
    return {
        expert: np.array([position[name] for name in held.references.names], dtype=np.intp)
        for expert, held in experts.items()
    }


def _compared(
    experts: Mapping[str, Held],
    names: Sequence[str],
    known: Mapping[str, NDArray[np.intp]],
    queries: Mapping[str, Vectors],
    nearest: int,
) -> Found:
    found = []
    for expert, held in sorted(experts.items()):
        of = held.references
        similarities, rows, cosines = held.compare(queries[encoder_and_modality(expert)[0]], nearest)
        owners = (np.searchsorted(of.starts, rows, side="right") - 1).tolist()
        found.append(
            ExpertSimilarities(
                name=expert,
                coverage=known[expert],
                similarities=similarities,
                nearest=[
                    tuple(map(Neighbor, map(of.names.__getitem__, owner), cosine, map(of.sources.__getitem__, row)))
                    for owner, cosine, row in zip(owners, cosines.tolist(), rows.tolist(), strict=True)
                ],
            )
        )
    return Found(tuple(names), tuple(found), queries=queries)


@dataclass(frozen=True, slots=True)
class _Hits:
    """What one expert found for each image, nearest first, and of how much of the rest it knows only a bound."""

    rows: Sequence[Sequence[Hit]]
    floor: Vectors
    everything: bool

    @classmethod
    def of(cls, rows: Sequence[Sequence[Hit]], limit: int) -> _Hits:
        floor = [row[-1].similarity if len(row) == limit else -1.0 for row in rows]
        return cls(rows, np.array(floor, dtype=np.float32), all(len(row) < limit for row in rows))

    def with_others(self, names: set[str], hits: _Hits) -> _Hits:
        """These hits, but those of some categories from another query; as one query would have found them."""
        floor = np.maximum(self.floor, hits.floor)
        rows = []
        for row, others, least in zip(self.rows, hits.rows, floor, strict=True):
            both = [*(hit for hit in row if hit.payload["category"] not in names), *others]
            rows.append(sorted((hit for hit in both if hit.similarity >= least), key=lambda hit: -hit.similarity))
        return _Hits(rows, floor, self.everything and hits.everything)


@dataclass(frozen=True, slots=True)
class _Qdrant:
    store: Store
    limit: int
    norms_wanted: bool
    catalog: Mapping[str, Category] = field(default_factory=dict)
    norms: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def mirrored(self) -> _Mirror:
        everything = [_Change(None, category) for category in self.catalog.values()]
        mirror, torn = _Mirror(self.store, InProcess).updated(self.catalog, everything)
        if torn:
            raise _Incomplete(", ".join(map(repr, sorted(torn))))
        return mirror

    def updated(self, catalog: Mapping[str, Category], changed: Sequence[_Change]) -> tuple[_Qdrant, set[str]]:
        """Take the catalog over, and the norms, where they are wanted or every reference will be seen."""
        total: Counter[str] = Counter()
        for category in catalog.values():
            total.update(category.references)
        wanted = self.norms_wanted or all(count < self.limit for count in total.values())
        renewed = {change.after.name for change in changed}
        norms = {key: norm for key, norm in self.norms.items() if key[1] in catalog and key[1] not in renewed}
        normed = {name for _, name in norms}
        write_ids = [gen for name, category in catalog.items() if name not in normed for gen in category.write_ids]
        for expert, parts in _fetch(self.store, write_ids if wanted else []):
            norms.update({(expert, name): part.norm for name, part in parts.items()})
        return replace(self, catalog=catalog, norms=norms), set()

    def search(self, queries: Mapping[str, Vectors], nearest: int, newest: Callable[[], _View]) -> Found:
        state, hits = self, self._ask(queries, self.catalog)
        if any(
            len(row) == self.limit and not all(map(self._committed, row)) for of in hits.values() for row in of.rows
        ):
            # References that nobody may see, of a writer at work or dead, take the places of those that count.
            hits = self._ask(queries, self.catalog, [gen for c in self.catalog.values() for gen in c.write_ids])
        for _ in range(_ATTEMPTS):
            now = newest()
            if not isinstance(now, _Qdrant):
                return now.search(queries, nearest, newest)
            lost = _lost(state.catalog, now.catalog)
            if not lost:
                return state._answer(hits, nearest)
            # Replaced or removed since, they may have been seen in part: they alone are asked for again.
            again = {name: now.catalog[name] for name in lost & now.catalog.keys()}
            catalog = {**_without(state.catalog, lost), **again}
            norms = {**state.norms, **{key: norm for key, norm in now.norms.items() if key[1] in lost}}
            state = replace(state, catalog=catalog, norms=norms)
            write_ids = [gen for category in again.values() for gen in category.write_ids]
            nothing = {expert: _Hits.of([[] for _ in of.rows], self.limit) for expert, of in hits.items()}
            others = {**nothing, **self._ask(queries, again, write_ids)}
            hits = {expert: hits.get(expert, of).with_others(lost, of) for expert, of in others.items()}
        raise _Incomplete(", ".join(map(repr, sorted(lost))))

    def _ask(
        self, queries: Mapping[str, Vectors], catalog: Mapping[str, Category], write_ids: Sequence[str] | None = None
    ) -> dict[str, _Hits]:
        """The nearest references of every expert that has any of these categories."""
        found = {}
        for expert in sorted({expert for category in catalog.values() for expert in category.references}):
            encoder, modality = encoder_and_modality(expert)
            rows = self.store.query(encoder, modality, queries[encoder], self.limit, write_ids)
            found[expert] = _Hits.of(rows, self.limit)
        return found

    def _answer(self, hits: Mapping[str, _Hits], nearest: int) -> Found:
        names = tuple(sorted(self.catalog))
        experts = sorted({expert for category in self.catalog.values() for expert in category.references})
        return Found(names, tuple(self._similarities(expert, names, hits[expert], nearest) for expert in experts))

    def _similarities(self, expert: str, names: Sequence[str], hits: _Hits, nearest: int) -> ExpertSimilarities:
        counts = {name: self.catalog[name].references.get(expert, 0) for name in names}
        known = [position for position, name in enumerate(names) if counts[name]]
        live = [[hit for hit in row if self._committed(hit)] for row in hits.rows]
        # Each reference that any image found is a column; an image that did not find it knows a bound.
        columns = sorted({(hit.payload["category"], hit.id) for row in live for hit in row})
        column = {identifier: i for i, (_, identifier) in enumerate(columns)}
        present = Counter(category for category, _ in columns)
        for name in names if live else ():
            if present[name] > counts[name] or (hits.everything and present[name] < counts[name]):
                raise _Incomplete(repr(name))
        values = np.repeat(hits.floor[:, None], len(columns), axis=1)
        for row, found in zip(values, live, strict=True):
            row[[column[hit.id] for hit in found]] = [hit.similarity for hit in found]
        return ExpertSimilarities(
            name=expert,
            coverage=np.array(known, dtype=np.intp),
            similarities=Similarities(
                values=values,
                starts=np.cumsum([0, *(present[names[i]] for i in known)], dtype=np.intp),
                counts=np.array([counts[names[i]] for i in known], dtype=np.intp),
                norms=np.array([self.norms.get((expert, names[i]), np.nan) for i in known], dtype=np.float32),
                floor=hits.floor,
            ),
            nearest=[
                tuple(
                    Neighbor(hit.payload["category"], hit.similarity, hit.payload["source"]) for hit in found[:nearest]
                )
                for found in live
            ],
        )

    def _committed(self, hit: Hit) -> bool:
        category = self.catalog.get(hit.payload["category"])
        return category is not None and hit.payload["gen"] in category.write_ids
