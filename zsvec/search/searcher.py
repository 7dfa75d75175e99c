"""Searches the references of each expert, in a store that may change at any time.

Two kinds of search share one interface:

- *memory*: the vectors are in this process, or on the device of the encoders. Every reference is compared.
- *qdrant*: the database returns the nearest references, and with them an upper bound for all other references.

Before each batch, the searcher reads commits since the last batch from the catalog. The whole batch is answered from
one snapshot, which contains a category completely or not at all.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeVar

from zsvec.errors import StoreUnavailableError
from zsvec.inputs.categories import as_words
from zsvec.method.arrays import Floats
from zsvec.method.calibration import Calibration
from zsvec.method.predict.tree import Tree
from zsvec.method.similarities import References, SearchResult
from zsvec.search.base import ATTEMPTS, NUMPY, QDRANT, Change, Incomplete, IndexSpec, Snapshot
from zsvec.search.cache import WORTH, Kept, ReferenceCache
from zsvec.search.in_process import InProcess
from zsvec.search.qdrant_index import QdrantSnapshot
from zsvec.store import Cursor, Store
from zsvec.store.attached.parts import Parts, with_parts
from zsvec.types import Category, Fingerprint, encoder_and_modality

Answer = TypeVar("Answer")

COMPARED = 120.0
"""Seconds between reads of the whole catalog, which also find commits of writers that died before publishing."""

_RENEWED = 0.1  # minimum share of new references for which the cache is written again
_STORE_TIMEOUT_S = 1.0  # of a request, if references in memory may answer without the store


@dataclass(frozen=True, slots=True)
class _Made:
    """The tree and the described categories of a catalog, and the names, catalog and parents they were made from."""

    names: tuple[str, ...] = ()
    catalog: Mapping[str, Category] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    tree: Tree | None = None
    described: frozenset[str] = frozenset()


class Searcher:
    """Searches a store, always in the newest state of its catalog.

    Args:
        store: The store to search.
        kind: ``memory``, ``qdrant``, or ``auto``: in memory while the references fit the budget.
        budget: Maximum number of references, of all experts together, that ``auto`` keeps in memory.
        neighbors: Number of references that one query of Qdrant fetches for one image and expert.
        norms: Whether the means of all categories are needed (for the aggregation `prototype`).
        max_staleness: Seconds for which references in memory answer unchanged while the store cannot be reached.
        cached: Whether references in memory are cached on disk for the next process, if there are many.
    """

    def __init__(
        self,
        store: Store,
        *,
        kind: Literal["auto", "memory", "qdrant"],
        budget: int,
        neighbors: int,
        norms: bool,
        max_staleness: float = 0.0,
        cached: bool = False,
    ) -> None:
        self._store = store
        self._budget = {"auto": budget, "memory": math.inf, "qdrant": -1}[kind]
        self._qdrant = QdrantSnapshot(store, neighbors, norms)
        self._max_staleness = max_staleness
        self._cache = ReferenceCache() if cached and store.place else None
        self._keeping: threading.Thread | None = None
        self._spec = NUMPY  # specification of the index in memory
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        """Resets the state, as if the store had never been read."""
        self._snapshot = self._empty(NUMPY if self._budget >= 0 else QDRANT)
        self._made = _Made()
        self._size = 0  # number of references in the catalog of the snapshot
        self._unkept = 0  # number of references read since the cache was written
        self._dropped = b""  # id of the last drop of the cache, taken before the catalog was read
        self._calibration: Calibration | None = None
        self._cursor = Cursor()
        self._versions: dict[str, int] = {}  # of every category ever seen
        self._attached = Parts()  # points of attached collections in the snapshot
        self._changed = 0  # the largest rev of the catalog's categories
        self._unchecked = False  # whether categories have changed since the fingerprints were checked
        self._compared = time.monotonic()  # when the whole catalog was last read
        self._lacking: dict[str, Category] = {}  # committed categories with missing references
        self._given_up: set[str] = set()  # names in `_lacking` that searches no longer wait for
        self._unreadable: set[str] = set()
        self._read = -math.inf  # time of the last read of the store
        self._ask_again = -math.inf  # time from which a store that did not answer is tried again

    @property
    def kind(self) -> Literal["memory", "qdrant"]:
        """The kind of search that answered the last batch."""
        return "qdrant" if self._snapshot.spec == QDRANT else "memory"

    @property
    def calibration(self) -> Calibration | None:
        """The stored calibration that the last batch was answered with, if any."""
        return self._calibration

    @property
    def stale(self) -> bool:
        """Whether categories have changed since the calibration, as of the last batch."""
        return _is_stale(self._calibration, self._changed, self._attached.digest)

    def close(self) -> None:
        """Caches the references for the next process if many of them are new."""
        with self._lock:
            self._keep()
            if self._keeping is not None:
                self._keeping.join()

    def forget(self) -> None:
        """Drops all references from memory and from the user's cache. The next search reads all references again.

        Raises:
            StoreError: The store cannot be read.
            StoreUnavailableError: The cached references cannot be deleted.
        """
        with self._lock:
            if self._keeping is not None:
                self._keeping.join()
            try:
                stores = self._store.places()  # another namespace may have the image, too
                if stores and self._cursor.store:
                    stores.add(f"{self._store.place} {self._cursor.store}")
                for store in sorted(stores):
                    ReferenceCache().drop(store)
            finally:
                self._begin()

    def search(
        self,
        queries: Mapping[str, Floats],
        nearest: int,
        spec: IndexSpec = NUMPY,
        fingerprints: Mapping[str, Fingerprint] | None = None,
    ) -> SearchResult:
        """Compares images with all committed references.

        Args:
            queries: By encoder, float32 ``(n_images, dim)``, unit rows; the same images in each. References of other
                encoders are not compared.
            nearest: Number of nearest references to return for each image and expert.
            spec: Specification of the index in memory. If it changes, the references are indexed again.
            fingerprints: Fingerprints of the encoders of the queries, checked against the store when categories change.

        Raises:
            EncoderMismatchError: The references were embedded by other encoders.
            InvalidInputError: The device is not available.
            StoreError: The references do not fit the memory of the device.
        """

        def answer() -> SearchResult:
            snapshot, calibration, changed, attached = self._refresh(spec, fingerprints)
            names, experts = snapshot.search(queries, nearest, lambda: self._refresh(spec, fingerprints)[0])
            stale = _is_stale(calibration, changed, attached)
            unreadable = self._store.attached_parts().unreadable
            incomplete = tuple(sorted({*self._given_up, *self._unreadable, *unreadable}))
            made = self._made_of(names, snapshot)
            return SearchResult(
                *(names, experts, queries, calibration, stale, incomplete, self._staleness()),
                *(made.tree, made.described),
                revision=changed,
            )

        return self._until_whole(answer)

    def _made_of(self, names: tuple[str, ...], snapshot: Snapshot) -> _Made:
        """Returns the tree, made again when names or parents have changed, and the described categories."""
        made = self._made
        if made.names is not names or made.catalog is not snapshot.catalog:
            parents = {name: category.parent for name, category in snapshot.catalog.items() if category.parent}
            is_same = (made.names, made.parents) == (names, parents)
            tree = made.tree if is_same else Tree.of(names, parents)
            described = frozenset(name for name, category in snapshot.catalog.items() if _is_described(category))
            made = self._made = _Made(names, snapshot.catalog, parents, tree, described)
        return made

    def references(self) -> tuple[Mapping[str, References], int]:
        """Returns all references, by expert, and the largest ``rev`` of their categories."""

        def answer() -> tuple[Mapping[str, References], int]:
            snapshot, _, changed, _ = self._refresh(None)
            return snapshot.references(), changed

        return self._until_whole(answer)

    def _until_whole(self, answer: Callable[[], Answer]) -> Answer:
        """Retries while references are missing. After `ATTEMPTS` retries, stops waiting for the affected categories."""
        for attempt in range(3 * ATTEMPTS):
            try:
                return answer()
            except Incomplete as exc:
                if attempt < ATTEMPTS:
                    time.sleep(0.001 * 2**attempt)
                else:
                    with self._lock:
                        self._given_up |= exc.names
        raise StoreUnavailableError(
            f"categories of {self._store.location} are replaced faster than they can be read: "
            "try again when it is less busy"
        )

    def _refresh(
        self, spec: IndexSpec | None, fingerprints: Mapping[str, Fingerprint] | None = None
    ) -> tuple[Snapshot, Calibration | None, int, str]:
        """Returns the newest snapshot, the calibration, the largest ``rev``, and the digest of attached points.

        Args:
            spec: Specification of the index in memory; ``None`` keeps the last one.
            fingerprints: As in `search`.

        Raises:
            Incomplete: References of some categories are missing. The other categories are up to date.
        """
        with self._lock:
            begun = time.monotonic()
            may_go_on = self._may_go_on(begun)
            if not may_go_on or begun >= self._ask_again:
                try:
                    with self._store.within(_STORE_TIMEOUT_S) if may_go_on else nullcontext():
                        self._catch_up(spec, fingerprints)
                    self._read, self._ask_again = begun, -math.inf
                except StoreUnavailableError:
                    if not self._may_go_on(begun):
                        raise
                    self._ask_again = time.monotonic() + 2 * _STORE_TIMEOUT_S
            return self._snapshot, self._calibration, self._changed, self._attached.digest

    def _may_go_on(self, now: float) -> bool:
        """Returns whether references in memory may answer without the store."""
        return self.kind == "memory" and now - self._read < self._max_staleness

    def _staleness(self) -> float:
        """Returns the seconds since the last read of a store that cannot be reached; else 0."""
        return 0.0 if self._ask_again == -math.inf else time.monotonic() - self._read

    def _catch_up(self, spec: IndexSpec | None, fingerprints: Mapping[str, Fingerprint] | None) -> None:
        """Updates the state to the newest catalog. Arguments and errors are as in `_refresh`."""
        self._keep()
        dropped = self._cache.dropped() if self._cache else b""
        whole = time.monotonic() - self._compared >= COMPARED
        look = self._store.look(self._cursor, self._versions, whole=whole, removed=False)
        if look.reset:
            self._begin()
        if whole:
            self._compared, self._given_up = time.monotonic(), set()
        self._spec = spec or self._spec
        later = {category.name: category for category in look.categories}
        versions = {name: category.version for name, category in later.items()}
        self._changed = max(self._changed, look.revision)
        attached = self._store.attached_parts()
        later = self._with_attached(later, attached)
        if self._cache and self._cursor.store is None and look.cursor.store:
            later = self._recall(self._cache, look.cursor.store, later)
        changes = self._changes({**self._lacking, **later}.values())
        self._unchecked = self._unchecked or bool(changes)
        if self._unchecked and fingerprints is not None:
            self._store.check_fingerprints(fingerprints)
            self._unchecked = False
        self._given_up -= later.keys()
        torn = self._take_over(changes)
        self._dropped = dropped
        self._lacking = {change.after.name: change.after for change in changes if change.after.name in torn}
        if self.kind == "memory":
            self._given_up &= torn
        self._unreadable = (self._unreadable - later.keys()) | set(look.unreadable)
        self._versions.update(versions)
        self._attached = attached
        self._cursor = look.cursor
        if look.search is not None and look.search != self._qdrant.params:
            self._qdrant = replace(self._qdrant, params=look.search)
            if isinstance(self._snapshot, QdrantSnapshot):
                self._snapshot = replace(self._snapshot, params=look.search)
        if look.calibration is not None:
            self._calibration = Calibration.from_dict(look.calibration)  # None for another format
        self._unkept += sum(change.gained.total() for change in changes)
        if torn - self._given_up:
            raise Incomplete(torn - self._given_up)

    def _with_attached(self, later: Mapping[str, Category], attached: Parts) -> dict[str, Category]:
        """Returns changed categories with the points of attached collections.

        Categories of which only these points have changed are added.
        """
        before, now = self._attached.by_category, attached.by_category
        names = {*before, *now} if attached is not self._attached else set()
        changed = {name for name in names if before.get(name) != now.get(name)}
        present = {**self._snapshot.catalog, **self._lacking} if changed else {}
        return {
            name: with_parts(later.get(name, present.get(name)), name, now.get(name, ())) for name in {*later, *changed}
        }

    def _recall(self, cache: ReferenceCache, store: str, later: Mapping[str, Category]) -> dict[str, Category]:
        """Starts from cached references. Returns `later`, and an entry without write ids for each removed category."""
        kept = cache.load(f"{self._store.place} {store}") if WORTH <= _size(later) <= self._budget else None
        if kept is None or not isinstance(self._snapshot, InProcess) or not self._fits(kept):
            return dict(later)
        # Write ids are random, so writes with the same id have the same references.
        catalog = {
            name: now if now.write_ids == was.write_ids else was
            for name, was in kept.catalog.items()
            for now in [later.get(name, was)]
        }
        gone = {
            name: replace(kept.catalog[name], write_ids=(), references={}) for name in catalog.keys() - later.keys()
        }
        self._snapshot, self._size = self._snapshot.holding(catalog, kept.references), _size(catalog)
        return {**later, **gone}

    def _fits(self, kept: Kept) -> bool:
        """Returns whether cached vectors have the dimensions of the store's encoders."""
        dims = {name: fingerprint.dim for name, fingerprint in self._store.encoders().items()}
        of_kept = {expert: found.vectors.shape[1] for expert, found in kept.references.items()}
        return all(dims.get(encoder_and_modality(expert)[0]) == dim for expert, dim in of_kept.items())

    def _keep(self) -> None:
        """Writes the cache in a background thread if many references were read since the last time."""
        store, many = self._cursor.store, self._unkept >= max(WORTH, _RENEWED * self._size)
        whole = not self._lacking and not self._attached.unreadable
        if self._cache and store and many and whole and isinstance(self._snapshot, InProcess):
            if self._keeping is not None:
                self._keeping.join()
            kept = self._snapshot.references(), self._snapshot.catalog, self._dropped
            save = partial(self._cache.save, f"{self._store.place} {store}", *kept)
            self._keeping = threading.Thread(target=save, name="zsvec-keep")
            self._keeping.start()
            self._unkept = 0

    def _take_over(self, changes: list[Change]) -> set[str]:
        """Updates the snapshot. Returns the names of categories with missing references, as `Snapshot.updated` does."""
        snapshot, catalog = self._snapshot, self._snapshot.catalog
        if changes:
            catalog = {**catalog, **{change.after.name: change.after for change in changes}}
            for change in changes:
                if not change.after.write_ids:
                    del catalog[change.after.name]
            self._size += sum(_count(change.after) - _count(change.before) for change in changes)
        spec = self._spec if self._size <= self._budget and self._spec.kind != "qdrant" else QDRANT
        if spec != snapshot.spec:
            if isinstance(snapshot, InProcess) and spec != QDRANT:
                snapshot = InProcess(self._store, spec).holding(snapshot.catalog, snapshot.references())
            else:  # another kind of search starts with an empty snapshot
                snapshot = self._empty(spec)
                changes = [Change(None, category) for category in catalog.values()]
        if spec == QDRANT and self._given_up & catalog.keys():
            changes = [*changes, *(Change(None, catalog[name]) for name in self._given_up & catalog.keys())]
            catalog = {name: category for name, category in catalog.items() if name not in self._given_up}
        torn: set[str] = set()
        if changes:
            snapshot, torn = snapshot.updated(catalog, changes)
        self._snapshot = snapshot
        if torn or self._given_up:
            self._size = _size(snapshot.catalog)
        return torn

    def _changes(self, later: Iterable[Category]) -> list[Change]:
        changes = []
        for category in later:
            before = self._snapshot.catalog.get(category.name)
            now = (category.version, category.write_ids)
            if (before.version, before.write_ids) != now if before else category.write_ids:
                changes.append(Change(before, category))
        return changes

    def _empty(self, spec: IndexSpec) -> Snapshot:
        return self._qdrant if spec == QDRANT else InProcess(self._store, spec)


def _is_stale(calibration: Calibration | None, changed: int, attached: str) -> bool:
    return calibration is not None and (calibration.revision < changed or calibration.attached != attached)


def _size(catalog: Mapping[str, Category]) -> int:
    return sum(map(_count, catalog.values()))


def _count(category: Category | None) -> int:
    return sum(category.references.values()) if category else 0


def _is_described(category: Category) -> bool:
    """Returns whether a category has texts beside its name: definition texts, or texts of attached collections."""
    attached = any(encoder_and_modality(expert)[1] == "text" for expert in category.attached)
    return attached or category.texts not in ((), (as_words(category.name),))
