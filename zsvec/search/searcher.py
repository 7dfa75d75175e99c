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
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from zsvec.errors import StoreError
from zsvec.method.calibration import Calibration
from zsvec.method.similarities import References, SearchResult
from zsvec.search.base import ATTEMPTS, NUMPY, QDRANT, Change, Incomplete, IndexSpec, Snapshot, Vectors
from zsvec.search.in_process import InProcess
from zsvec.search.qdrant_index import QdrantSnapshot
from zsvec.store import Store
from zsvec.types import Category, Fingerprint

Answer = TypeVar("Answer")


class Searcher:
    """Searches a store, in step with its catalog.

    Args:
        store: To search.
        kind: ``memory``, ``qdrant``, or ``auto``: in memory while the references fit the budget.
        budget: References of all experts that ``auto`` keeps in memory at most.
        neighbors: References that one query of Qdrant fetches for one image and expert.
        norms: Whether the means of all categories are needed (for `zsvec.method.aggregation.prototype`).
    """

    def __init__(
        self,
        store: Store,
        *,
        kind: Literal["auto", "memory", "qdrant"],
        budget: int,
        neighbors: int,
        norms: bool,
    ) -> None:
        self._store = store
        self._budget = {"auto": budget, "memory": math.inf, "qdrant": -1}[kind]
        self._qdrant = QdrantSnapshot(store, neighbors, norms)
        self._size = 0  # references that the catalog counts
        self._spec = NUMPY  # of references in memory
        self._snapshot = self._empty(NUMPY if self._budget >= 0 else QDRANT)
        self._calibration: Calibration | None = None
        self._calibrated = 0  # the ``rev`` of its commit
        self._seen = 0  # the largest `rev` of the catalog, and
        self._changed = 0  # of its categories
        self._unchecked = False  # whether categories have changed since the fingerprints were checked
        self._lock = threading.Lock()

    @property
    def kind(self) -> Literal["memory", "qdrant"]:
        """How the last batch was searched."""
        return "qdrant" if self._snapshot.spec == QDRANT else "memory"

    def search(
        self,
        queries: Mapping[str, Vectors],
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
            StoreError: Committed references are lost, or do not fit the memory of the device.
        """

        def answer() -> SearchResult:
            snapshot, calibration, changed = self._refresh(spec, fingerprints)
            names, experts = snapshot.search(queries, nearest, lambda: self._refresh(spec, fingerprints)[0])
            stale = calibration is not None and calibration.revision < changed
            return SearchResult(names, experts, queries, calibration, stale)

        return self._until_whole(answer)

    def references(self) -> tuple[Mapping[str, References], int]:
        """All references, by expert, and the largest ``rev`` of the categories they belong to.

        Raises:
            StoreError: Committed references are lost.
        """

        def answer() -> tuple[Mapping[str, References], int]:
            snapshot, _, changed = self._refresh(None)
            return snapshot.references(), changed

        return self._until_whole(answer)

    def _until_whole(self, answer: Callable[[], Answer]) -> Answer:
        """Try again while references that are counted are not there."""
        problem = ""
        for _ in range(ATTEMPTS):
            try:
                return answer()
            except Incomplete as exc:
                problem = str(exc)
        raise StoreError(
            f"references of {problem} in {self._store.location} are still missing after {ATTEMPTS} attempts: if no "
            "writer is active, they were lost; remove the category and add it again"
        )

    def _refresh(
        self, spec: IndexSpec | None, fingerprints: Mapping[str, Fingerprint] | None = None
    ) -> tuple[Snapshot, Calibration | None, int]:
        """The store as it is now: to search, how it is calibrated, and the largest ``rev`` of its categories.

        Args:
            spec: How references in memory are indexed; ``None``: as for the last batch.
            fingerprints: As in `search`.
        """
        with self._lock:
            later, calibration = self._store.changes_after(self._seen)
            self._spec = spec or self._spec
            changes = self._changes(later)
            self._unchecked = self._unchecked or bool(changes)
            if self._unchecked and fingerprints is not None:
                self._store.check_fingerprints(fingerprints)
                self._unchecked = False
            self._take_over(changes)
            self._changed = max([self._changed, *(category.rev for category in later)])
            self._seen = max(self._seen, self._changed)
            if calibration is not None and calibration["rev"] != self._calibrated:
                self._calibrated = calibration["rev"]
                self._calibration = Calibration.from_dict(calibration["calibration"])  # of another format: none
                self._seen = max(self._seen, calibration["rev"])
            return self._snapshot, self._calibration, self._changed

    def _take_over(self, changes: list[Change]) -> None:
        """Bring the snapshot to the newest catalog, indexed as it shall be.

        Raises:
            Incomplete: References of some categories are not there. The snapshot lacks these categories, so they are
                taken over next time; the others are done.
        """
        snapshot, catalog = self._snapshot, self._snapshot.catalog
        if changes:
            catalog = {**catalog, **{change.after.name: change.after for change in changes}}
            catalog = {name: category for name, category in catalog.items() if category.write_ids}
            self._size = sum(sum(category.references.values()) for category in catalog.values())
        spec = self._spec if self._size <= self._budget and self._spec.kind != "qdrant" else QDRANT
        if spec != snapshot.spec:
            if isinstance(snapshot, InProcess) and spec != QDRANT:
                snapshot = snapshot.moved(spec)
            else:  # nothing of the other way is known, so everything is new to it
                snapshot = self._empty(spec)
                changes = [Change(None, category) for category in catalog.values()]
        torn: set[str] = set()
        if changes:
            snapshot, torn = snapshot.updated(catalog, changes)
        self._snapshot = snapshot
        if torn:
            raise Incomplete(torn)

    def _changes(self, later: Sequence[Category]) -> list[Change]:
        """What a look at the catalog found that the snapshot does not have."""
        changes = []
        for category in later:
            before = self._snapshot.catalog.get(category.name)
            if before.version < category.version if before else category.write_ids:
                changes.append(Change(before, category))
        return changes

    def _empty(self, spec: IndexSpec) -> Snapshot:
        """A store without categories."""
        return self._qdrant if spec == QDRANT else InProcess(self._store, spec)
