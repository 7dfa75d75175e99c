"""Similarities between images and the references of each expert, in a store that may change at any time.

Two ways with one contract:

- *memory*: the vectors are in this process, or on the device of the encoders; every reference is compared;
- *qdrant*: the database gives the nearest references; of the others it knows a bound.

Before each batch the catalog is asked what was committed since the last one, and the batch is answered from one
snapshot: a category is seen whole, or not at all.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

from zsvec.errors import StoreUnavailableError
from zsvec.method.arrays import Floats
from zsvec.method.calibration import Calibration
from zsvec.method.similarities import References, SearchResult
from zsvec.search.base import ATTEMPTS, NUMPY, QDRANT, Change, Incomplete, IndexSpec, Snapshot
from zsvec.search.cache import WORTH, Kept, ReferenceCache
from zsvec.search.in_process import InProcess
from zsvec.search.qdrant_index import QdrantSnapshot
from zsvec.store import Cursor, Store
from zsvec.types import Category, Fingerprint, encoder_and_modality

Answer = TypeVar("Answer")

COMPARED = 120.0
"""Seconds after which the whole catalog is looked at again, for commits whose writer died before it published them."""

_RENEWED = 0.1  # of the references, from where on all are kept anew
_PATIENCE = 1.0  # seconds that a store has for an answer where the references in memory may answer without it


class Searcher:
    """Searches a store, in step with its catalog.

    Args:
        store: To search.
        kind: ``memory``, ``qdrant``, or ``auto``: in memory while the references fit the budget.
        budget: References of all experts that ``auto`` keeps in memory at most.
        neighbors: References that one query of Qdrant fetches for one image and expert.
        norms: Whether the means of all categories are needed (for `zsvec.method.predict.aggregation.prototype`).
        max_staleness: Seconds for which references in memory answer as they are while the store is away.
        cached: Whether references in memory are kept for the next process, if they are many.
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
        self._spec = NUMPY  # of references in memory
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        """Know nothing of the store."""
        self._snapshot = self._empty(NUMPY if self._budget >= 0 else QDRANT)
        self._size = 0  # references that the catalog of the snapshot counts
        self._unkept = 0  # that were read since they were kept
        self._dropped = b""  # the last drop of the cache before the catalog was looked at
        self._calibration: Calibration | None = None
        self._cursor = Cursor()
        self._versions: dict[str, int] = {}  # of all categories that were ever seen
        self._changed = 0  # the largest rev of the catalog's categories
        self._unchecked = False  # whether categories have changed since the fingerprints were checked
        self._compared = time.monotonic()  # when the whole catalog was last looked at
        self._lacking: dict[str, Category] = {}  # committed, and not all references are there
        self._given_up: set[str] = set()  # of those, what no answer waits for
        self._unreadable: set[str] = set()
        self._read = -math.inf  # when the store was last read
        self._ask_again = -math.inf  # when, if it did not answer

    @property
    def kind(self) -> Literal["memory", "qdrant"]:
        """How the last batch was searched."""
        return "qdrant" if self._snapshot.spec == QDRANT else "memory"

    def close(self) -> None:
        """Keep references for the next process, where that is worth it."""
        with self._lock:
            self._keep()
            if self._keeping is not None:
                self._keeping.join()

    def forget(self) -> None:
        """Keep no reference that was read, neither here nor in the user's cache: the next search reads all anew.

        Raises:
            StoreError: The store cannot be read.
            StoreUnavailableError: What is in the cache cannot be deleted.
        """
        with self._lock:
            if self._keeping is not None:
                self._keeping.join()
            try:
                store = self._cursor.store or self._store.look(Cursor(), {}).cursor.store
                if self._store.place and store:
                    ReferenceCache().drop(f"{self._store.place} {store}")
            finally:
                self._begin()

    def search(
        self,
        queries: Mapping[str, Floats],
        nearest: int,
        spec: IndexSpec = NUMPY,
        fingerprints: Mapping[str, Fingerprint] | None = None,
    ) -> SearchResult:
        """Compare images with all committed references.

        Args:
            queries: By encoder, float32 ``(n_images, dim)``, unit rows; the same images in each.
            nearest: How many nearest references to name for each image and expert.
            spec: How references in memory are indexed; another one than that of the batch before indexes them anew.
            fingerprints: Of the encoders that made the queries; the store is checked for them when categories change.

        Raises:
            EncoderMismatchError: The references come from other encoders.
            InvalidInputError: The device is not there.
            StoreError: References do not fit the memory of the device.
        """

        def answer() -> SearchResult:
            snapshot, calibration, changed = self._refresh(spec, fingerprints)
            names, experts = snapshot.search(queries, nearest, lambda: self._refresh(spec, fingerprints)[0])
            stale = calibration is not None and calibration.revision < changed
            incomplete = tuple(sorted({*self._given_up, *self._unreadable}))
            return SearchResult(names, experts, queries, calibration, stale, incomplete, self._staleness())

        return self._until_whole(answer)

    def references(self) -> tuple[Mapping[str, References], int]:
        """All references, by expert, and the largest ``rev`` of the categories they belong to."""

        def answer() -> tuple[Mapping[str, References], int]:
            snapshot, _, changed = self._refresh(None)
            return snapshot.references(), changed

        return self._until_whole(answer)

    def _until_whole(self, answer: Callable[[], Answer]) -> Answer:
        """Try again while references that are counted are not there; then answer without what they belong to."""
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
    ) -> tuple[Snapshot, Calibration | None, int]:
        """The store as it is now: to search, how it is calibrated, and the largest ``rev`` of its categories.

        Args:
            spec: How references in memory are indexed; ``None``: as for the last batch.
            fingerprints: As in `search`.

        Raises:
            Incomplete: References of some categories are not there. The others are done.
        """
        with self._lock:
            begun = time.monotonic()
            may_go_on = self._may_go_on(begun)
            if not may_go_on or begun >= self._ask_again:
                try:
                    with self._store.within(_PATIENCE) if may_go_on else nullcontext():
                        self._catch_up(spec, fingerprints)
                    self._read, self._ask_again = begun, -math.inf
                except StoreUnavailableError:
                    if not self._may_go_on(begun):
                        raise
                    self._ask_again = time.monotonic() + 2 * _PATIENCE
            return self._snapshot, self._calibration, self._changed

    def _may_go_on(self, now: float) -> bool:
        """Whether what is in memory may answer without the store."""
        return self.kind == "memory" and now - self._read < self._max_staleness

    def _staleness(self) -> float:
        """Seconds since the store was read, while it is away; else 0."""
        return 0.0 if self._ask_again == -math.inf else time.monotonic() - self._read

    def _catch_up(self, spec: IndexSpec | None, fingerprints: Mapping[str, Fingerprint] | None) -> None:
        """As `_refresh`."""
        self._keep()
        dropped = self._cache.dropped() if self._cache else b""
        whole = time.monotonic() - self._compared >= COMPARED
        look = self._store.look(self._cursor, self._versions, whole=whole)
        if look.reset:
            self._begin()
        if whole:
            self._compared, self._given_up = time.monotonic(), set()
        self._spec = spec or self._spec
        later = {category.name: category for category in look.categories}
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
        self._versions.update((name, category.version) for name, category in later.items())
        self._changed = max([self._changed, *(category.rev for category in later.values())])
        self._cursor = look.cursor
        if look.calibration is not None:
            self._calibration = Calibration.from_dict(look.calibration)  # of another format: none
        self._unkept += sum(change.gained.total() for change in changes)
        if torn - self._given_up:
            raise Incomplete(torn - self._given_up)

    def _recall(self, cache: ReferenceCache, store: str, later: Mapping[str, Category]) -> dict[str, Category]:
        """Begin with the references that were kept of an earlier state of the store.

        Args:
            cache: Where they are.
            store: Id of the store.
            later: The categories that there are now, by name.

        Returns:
            These, and as removed the others that there were.
        """
        kept = cache.load(f"{self._store.place} {store}") if WORTH <= _size(later) <= self._budget else None
        if kept is None or not isinstance(self._snapshot, InProcess) or not self._fits(kept):
            return dict(later)
        # The ids of a write are random, so those that there were have the references that they had.
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
        """Whether vectors that were kept are of the encoders of the store."""
        dims = {name: fingerprint.dim for name, fingerprint in self._store.encoders().items()}
        of_kept = {expert: found.vectors.shape[1] for expert, found in kept.references.items()}
        return all(dims.get(encoder_and_modality(expert)[0]) == dim for expert, dim in of_kept.items())

    def _keep(self) -> None:
        """Keep the references, if many were read since that was done; nobody waits for it."""
        store, many = self._cursor.store, self._unkept >= max(WORTH, _RENEWED * self._size)
        if self._cache and store and many and not self._lacking and isinstance(self._snapshot, InProcess):
            if self._keeping is not None:
                self._keeping.join()
            kept = self._snapshot.references(), self._snapshot.catalog, self._dropped
            save = partial(self._cache.save, f"{self._store.place} {store}", *kept)
            self._keeping = threading.Thread(target=save, name="zsvec-keep")
            self._keeping.start()
            self._unkept = 0

    def _take_over(self, changes: list[Change]) -> set[str]:
        """Bring the snapshot to the newest catalog, indexed as it shall be.

        Returns:
            The categories whose references are not all there: they are as they were before, or missing.
        """
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
                snapshot = snapshot.moved(spec)
            else:  # nothing of the other way is known, so everything is new to it
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
        """What a look at the catalog found that the snapshot does not have."""
        changes = []
        for category in later:
            before = self._snapshot.catalog.get(category.name)
            if before.version != category.version if before else category.write_ids:
                changes.append(Change(before, category))
        return changes

    def _empty(self, spec: IndexSpec) -> Snapshot:
        """A store without categories."""
        return self._qdrant if spec == QDRANT else InProcess(self._store, spec)


def _size(catalog: Mapping[str, Category]) -> int:
    return sum(map(_count, catalog.values()))


def _count(category: Category | None) -> int:
    return sum(category.references.values()) if category else 0
