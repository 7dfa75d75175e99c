"""The catalog of a store: its records, read and replaced by compare-and-set.

A manifest is the record that commits a category. Readers ignore references that no manifest names. Readers order
commits by ``rev``, not by a clock: the ``rev`` of a commit is larger than every ``rev`` that the writer has seen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from zsvec.errors import CategoryNotFoundError, ConflictError, StoreError, StoreUnavailableError
from zsvec.store.backends.base import Backend, Put, Where
from zsvec.store.catalog.schema import (
    CATALOG_INDEXES,
    LATEST,
    LOOK_FIELDS,
    NO_CALIBRATION,
    OWN_KINDS,
    PAST,
    REMOVED,
    SCHEMA,
    calibrated_revision,
    calibration_from,
    category_from,
    damaged_manifest,
    expected,
    fingerprints_from,
    has_own_id,
    is_believed,
    is_damaged,
    is_number,
    is_record,
    keeps_images,
    place_of,
    profile_from,
    store_payload,
    text_from,
)
from zsvec.store.catalog.successor import (
    LONGEST_CLOSED_S,
    Successor,
    is_dropped,
    joined_namespace,
    split_namespace,
    successor_from,
)
from zsvec.store.names import CATALOG, IMAGES, collection_name, record_id
from zsvec.types import CALIBRATION_FORMAT, CalibrationState, Category, Fingerprint, KeepImages, Labels

SLACK = 1_000_000
"""Maximum distance of a commit below the newest ``rev`` when the commit is acknowledged, in microseconds."""
PAUSES = (0.01, 0.05, 0.2)
"""Seconds to wait before each new read, if a read omits an existing record because replicas differ."""
COMMITS = Where(match={"kind": ["manifest", "calibration"]})
STORE = {"kind": "store"}

_ATTEMPTS = 100  # to change the record of the store


@dataclass(frozen=True, slots=True)
class State:
    """The record of the store and some manifests, read in one request.

    Attributes:
        store: Id of the store; empty if there is no store.
        manifests: Manifests by category name. Removed categories are included.
        foreign: Manifests, by category name, that a dropped store has left behind.
        images: Whether the store keeps small copies of images.
        closed: Whether a switch to other encoders has begun or is done, the namespace was deleted, or this process
            makes it a copy. Then the writer must ask whether it may commit (`Catalog.is_current`).
    """

    store: str
    manifests: Mapping[str, Mapping[str, Any]]
    foreign: Mapping[str, Mapping[str, Any]]
    images: bool
    closed: bool = False

    def categories(self) -> dict[str, Category]:
        """Returns each category as last committed, by name. A removed category has no write ids.

        Raises:
            StoreError: A manifest cannot be read.
        """
        return {name: category_from(manifest) for name, manifest in self.manifests.items()}

    def category(self, name: str) -> Category | None:
        """Returns a category as last committed, or ``None`` without a manifest; raises as `categories`."""
        return category_from(self.manifests[name]) if name in self.manifests else None


class Catalog:
    """The records of one namespace.

    Attributes:
        backend: Backend that holds the collections.
        collection: Name of the collection of the records.
        base: Namespace that the user has chosen.
        number: Number of this namespace of the store (`zsvec.store.catalog.successor`); 0 for `base` itself.
        exclusive: Whether no other process can write.
        counts: Counts of rare events, as `zsvec.store.store.Store.stats` returns them.
        copied_from: Catalog of the namespace of which this process makes this one a copy, and the token of the run;
            ``None`` for any other writer.
    """

    def __init__(self, backend: Backend, namespace: str) -> None:
        self.backend = backend
        self.collection = collection_name(namespace, CATALOG)
        self._namespace = namespace
        self.base, self.number = split_namespace(namespace)
        self.exclusive = backend.exclusive
        self.copied_from: tuple[Catalog, str] | None = None
        self.counts: Counter[str] = Counter(second_stamps=0, unknown_outcomes=0, healed_records=0)

    @property
    def location(self) -> str:
        """Folder or URL of the store, with the namespace."""
        return f"{self.backend.location} (namespace {self._namespace})"

    # The store

    def create(
        self, fingerprints: Mapping[str, Fingerprint], images: KeepImages, profile: str | None, labels: Labels
    ) -> None:
        """Creates the collection of records, and the record of the store unless another writer has created it."""
        self.backend.create(self.collection, 1, CATALOG_INDEXES, ordered=True)
        record = store_payload(fingerprints, images, profile, labels)
        self.backend.put(self.collection, [Put(record_id("store"), record)])

    def set_in_store(self, **fields: Any) -> None:
        """Sets fields in the record of the store, if there is a store.

        Fractions must have at most 15 digits. A server may round longer ones, and the record would never be as wanted.

        Raises:
            ConflictError: Other writers changed the record at every attempt.
        """
        self.change_store(lambda _: fields)

    def change_store(self, fields_of: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """Sets fields in the record of the store, as `set_in_store`, that depend on the present record."""
        for _ in range(_ATTEMPTS):
            store = self.store()
            fields = {} if store is None else fields_of(store)
            if store is None or all(store.get(name) == fields[name] for name in fields):
                return
            new = {**store, "version": store["version"] + 1, **fields}
            self.put([Put(record_id("store"), new, expected(store))])
        raise ConflictError(f"other writers changed the record of {self.location} at every attempt: try again")

    def store(self) -> Mapping[str, Any] | None:
        """Returns the record of the store, or ``None`` if there is no store.

        Raises:
            StoreError: The store has another schema, or the record of the store is damaged.
        """
        record = self.retrieve([record_id("store")]).get(record_id("store"))
        if record is None:
            return None
        self.check_schema(record)
        return record

    def check_schema(self, store: Mapping[str, Any]) -> None:
        """Raises StoreError if a store has another schema than this version writes, or has unreadable encoders."""
        if store["schema"] != SCHEMA:
            action = "upgrade zsvec" if store["schema"] > SCHEMA else "import its images again into another store"
            raise StoreError(
                f"{self.location} has schema {store['schema']} and this version of zsvec knows {SCHEMA}: {action}"
            )
        try:
            fingerprints_from(store)
        except (KeyError, TypeError, AttributeError) as exc:
            raise StoreError(
                f"the encoders of {self.location} cannot be read ({exc!r}): its catalog is damaged; restore the store "
                "from a copy, or import again into another"
            ) from exc

    def check_readable(self, store: Mapping[str, Any] | None) -> None:
        """Raises StoreError if a store has another schema, or if the contents of this namespace were deleted."""
        if store is not None:
            self.check_schema(store)
        if is_dropped(store):
            raise StoreError(
                f"{self.location} was deleted, as another namespace of the store is current: open the store again"
            )

    def encoders(self) -> dict[str, Fingerprint]:
        """Returns the fingerprints of the encoders of the store, by name. Empty before the first write.

        Raises:
            StoreError: The store has another schema, or the record of the store is damaged.
        """
        store = self.store()
        return fingerprints_from(store) if store else {}

    def profile(self) -> str | None:
        """Returns the name of the profile that the store was made with, if known. Raises as `store`."""
        return profile_from(self.store())

    def collections(self) -> list[str]:
        """Returns the collections that writes fill: the name of each encoder, and `IMAGES`. Raises as `encoders`."""
        encoders = self.encoders()
        return [*encoders, IMAGES] if encoders else []

    # Reading

    def categories(self) -> tuple[list[Category], list[str]]:
        """Returns the committed categories, sorted by name, and the names of categories with an unreadable manifest."""
        categories, unreadable = readable(self.manifests(removed=False))
        return [category for category in categories if category.write_ids], unreadable

    def manifests(self, *, removed: bool = True) -> list[Mapping[str, Any]]:
        """Returns the manifests of all categories. Without `removed`, tombstones may be left out.

        Raises:
            StoreError: The store has another schema, its catalog is damaged, or this namespace was deleted.
        """
        records = self.scroll_all(Where(match={"kind": "manifest"}, or_match=STORE), removed=removed)
        stores = [record for record in records if record["kind"] == "store"]
        if stores:
            self.check_readable(stores[0])
        else:
            self.check_not_lost(records)
        store = store_id(records)
        return [record for record in records if record["kind"] != "store" and belongs(record, store)]

    def revision(self, store: str, categories: Iterable[Category], until: int = LATEST - 1) -> int:
        """Returns the largest ``rev`` of these categories and of all removals, without reading all tombstones.

        Args:
            store: Id of the store.
            categories: The present categories.
            until: Largest ``rev`` of the tombstones to read.
        """
        known = max((category.rev for category in categories), default=0)
        tombstones = Where(match={"kind": "manifest", **REMOVED}, until=until)
        # First the tombstone that was written last, usually by the last removal; then any with a later removal.
        steps = (self.backend.newest(self.collection, tombstones), 0) if self.exclusive else (0,)
        for since in steps:
            where = Where(match={"kind": "manifest"}, since=max(since, known + 1), until=until)
            found = self.scroll(where, fields=(*LOOK_FIELDS, "changed"))
            valid = [record for record in found if belongs(record, store) and not is_damaged(record)]
            known = max([known, *(record["changed"] for record in valid if is_number(record.get("changed")))])
        return known

    def find(self, name: str) -> Category | None:
        """Returns the committed category of this name, or ``None`` if it does not exist."""
        category = self.state([name]).category(name)
        return category if category and category.write_ids else None

    def category(self, name: str) -> Category:
        """Returns the committed category of this name.

        Raises:
            CategoryNotFoundError: There is no such category.
        """
        return self.existing(name, self.find(name))

    def existing(self, name: str, category: Category | None) -> Category:
        """Returns `category`; raises CategoryNotFoundError if the category is ``None`` or was removed."""
        if category is not None and category.write_ids:
            return category
        error = CategoryNotFoundError(
            f"there is no category {name!r} in {self.location}: `zsvec list` shows those there are"
        )
        error.name = name
        raise error

    def state(self, names: Iterable[str]) -> State:
        """Reads the record of the store and the manifests of these categories in one request.

        Raises:
            StoreError: The store has another schema, its catalog is damaged, or this namespace was deleted.
        """
        places = {place: name for name in names if (place := place_of({"category": name}))}
        found = self.retrieve([record_id("store"), *places])
        self.check_readable(found.get(record_id("store")))
        store = store_id(found.values())
        named = {places[place]: record for place, record in found.items() if place in places}
        return State(
            store,
            {name: record for name, record in named.items() if belongs(record, store)},
            {name: record for name, record in named.items() if not belongs(record, store)},
            keeps_images(found.get(record_id("store"))),
            closed=self._is_closed(found.get(record_id("store"))),
        )

    # The switch to other encoders

    def beside(self, number: int) -> Catalog:
        """Returns the catalog of another namespace of this store."""
        return Catalog(self.backend, joined_namespace(self.base, number))

    def successor(self) -> Successor | None:
        """Returns the successor of this namespace, if a switch has begun, or is done and no later one led back.

        Raises:
            StoreError: As `store`.
        """
        return self._successor_in(self.store())

    def _successor_in(self, store: Mapping[str, Any] | None) -> Successor | None:
        found = successor_from(store, self.number)
        if found is None or not found.done:
            return found
        other = successor_from(self.beside(found.to).store(), found.to)
        if other is None or not other.done or other.to != self.number:
            return found
        # Both name each other. Of one switch, the undo is later; of two, the switch to the larger number.
        is_undone = other.id == found.id
        if is_undone == (found.to < self.number):
            return found
        with suppress(StoreUnavailableError):  # a reader may not be allowed to write
            self.clear_successor(found)
        return None

    def clear_successor(self, found: Successor) -> None:
        """Deletes a successor from the record of the store, unless the record has another one now."""

        def cleared(store: Mapping[str, Any]) -> Mapping[str, Any]:
            return {"successor": None} if successor_from(store, self.number) == found else {}

        self.change_store(cleared)

    def is_current(self) -> bool:
        """Returns whether writers may commit; False while a switch is in progress.

        Raises:
            StoreError: The store was switched to other encoders, this namespace was deleted, or another process has
                taken over making this copy, or has forgotten an image.
        """
        return self._closing() is None

    def check_current(self) -> None:
        """Waits while a switch is in progress; raises as `is_current`.

        After `LONGEST_CLOSED_S`, the process that has begun the switch counts as killed, and loses the switch.
        """
        waits_for, begun = None, 0.0
        while (found := self._closing()) is not None:
            if found != waits_for:
                waits_for, begun = found, time.monotonic()
            elif time.monotonic() - begun > LONGEST_CLOSED_S:
                self.clear_successor(found)
            time.sleep(PAUSES[1])

    def _closing(self) -> Successor | None:
        """Returns the successor of a switch in progress; raises as `is_current`."""
        store = self.store()
        if self.copied_from is None:
            found = self._successor_in(store)
        else:  # a link that an undo has left here refuses all other writers until the switch
            found = None
            source, token = self.copied_from
            before = source.store()
            successor = successor_from(before, source.number)
            if text_from(before or {}, "copying") != token or (successor is not None and successor.done):
                raise StoreError(
                    f"another process makes a copy of {source.location}, or has forgotten an image: repeat the command"
                )
        if is_dropped(store) or (found is not None and found.done):
            why = f"switched to {joined_namespace(self.base, found.to)!r}, other encoders" if found else "deleted"
            raise StoreError(f"{self.location} was {why}: open the store again, and repeat the change")
        return found

    def _is_closed(self, store: Mapping[str, Any] | None) -> bool:
        has_successor = successor_from(store, self.number) is not None
        return self.copied_from is not None or has_successor or is_dropped(store)

    # The calibration

    def calibration(self) -> Mapping[str, Any] | None:
        """Returns the stored calibration. Without one, returns ``None`` or an empty mapping."""
        record = self.calibration_record()[1]
        return calibration_from(record) if record else None

    def calibration_state(self) -> CalibrationState | Literal["damaged"]:
        """Returns whether the stored calibration is current, stale, damaged or missing (``none``).

        A calibration is stale if categories have changed since it was learned. A damaged calibration is not used.
        """
        kept = self.calibration()
        revision = calibrated_revision(kept)
        if revision is None:
            return "damaged" if self._is_calibration_damaged(kept) else "none"
        newest = self.revision(store_id([self.store() or {}]), self.categories()[0])
        return "stale" if newest > revision else "current"

    def _is_calibration_damaged(self, kept: Mapping[str, Any] | None) -> bool:
        if kept:
            made = kept.get("format")
            return not isinstance(made, int) or made == CALIBRATION_FORMAT  # another format is not damage
        place = record_id("calibration")
        found = self.backend.retrieve(self.collection, [place]).values()
        return not all(is_record(place, record) and calibration_from(record) is not NO_CALIBRATION for record in found)

    def calibration_record(self) -> tuple[str, Mapping[str, Any] | None]:
        """Returns the id of the store, and the record of the calibration or ``None``."""
        found = self.retrieve([record_id("store"), record_id("calibration")])
        store = store_id(found.values())
        record = found.get(record_id("calibration"))
        return store, record if record and belongs(record, store) else None

    def drop_damaged_calibration(self) -> None:
        """Deletes the record of the calibration if it is unreadable, so that a new one can be committed."""
        place = record_id("calibration")
        found = self.backend.retrieve(self.collection, [place])
        if any(not is_record(place, record) for record in found.values()):
            self.drop([place])

    # Records

    def put(self, puts: Sequence[Put]) -> None:
        """Writes records, each by compare-and-set."""
        self.backend.put(self.collection, puts)

    def drop(self, ids: Sequence[str]) -> None:
        """Deletes records."""
        self.backend.drop(self.collection, ids)

    def heal(self, names: Iterable[str]) -> int:
        """Makes the replicas of these categories' manifests agree, and returns how many manifests differed.

        A node that dies during a write can leave replicas that differ permanently. Reads omit a record whose replicas
        differ.
        """
        healed = self.backend.heal(self.collection, [record_id("category", name) for name in names])
        self.counts["healed_records"] += healed
        return healed

    def newest(self) -> int:
        """Returns the largest ``rev`` of a commit; 0 without commits."""
        return self.backend.newest(self.collection, replace(COMMITS, until=LATEST - 1))

    def next_rev(self) -> int:
        """Returns the ``rev`` for a new commit: microseconds since 1970, but at least the newest ``rev`` plus 1."""
        return max(time.time_ns() // 1000, self.newest() + 1)

    def scroll(self, where: Where, fields: Sequence[str] | None = None) -> list[Mapping[str, Any]]:
        """Returns all records of the kinds in `where`, validated by `_read`."""
        return _of_kinds(where, self._read(self._found(where, fields)))  # a server may send records of other kinds

    def scroll_all(self, where: Where, *, removed: bool = True) -> list[Mapping[str, Any]]:
        """Returns all records of the kinds in `where`.

        The records of an embedded store are read without the payload index, which may be damaged.

        Args:
            where: The kinds.
            removed: Whether to read the tombstones of an embedded store, which may be many. A server has no index of
                them, and is asked for all.

        Raises:
            StoreError: An embedded store has another schema, or the record of the store is damaged.
        """
        if not self.exclusive:
            return self.scroll(where)
        without = PAST if removed else {**PAST, **REMOVED}
        records = list(self._found(replace(where, match={}, without=without)))
        for identifier, record in records:
            if record.get("kind") == "store" and is_record(identifier, record):
                self.check_schema(record)  # a later version may have records of other kinds
        return _of_kinds(where, self._read(records))

    def retrieve(self, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Returns the existing records with these ids, by id, validated by `_read`."""
        found = self.backend.retrieve(self.collection, ids)
        found = {identifier: found[identifier] for identifier in ids if identifier in found}  # a server may send others
        return {identifier: read for identifier, record in found.items() for read in self._read([(identifier, record)])}

    def unreadable(self) -> list[str]:
        """Returns the sorted ids of damaged records that are ignored. Damaged manifests are not ignored."""
        return sorted(identifier for identifier, record in self._found(Where()) if not is_believed(identifier, record))

    def _found(self, where: Where, fields: Sequence[str] | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for page in self.backend.scroll(self.collection, where, fields=fields):
            yield from zip(page.ids, page.payloads, strict=True)

    def _read(self, records: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
        """Validates records, and returns the valid ones unchanged.

        Damaged records of writes, undos, erasures and the calibration are left out. A `damaged_manifest` replaces any
        other damaged record.

        Raises:
            StoreError: The record of the store is damaged, or a damaged record of an embedded store names no category.
        """
        read: list[Mapping[str, Any]] = []
        for identifier, record in records:
            if is_record(identifier, record):
                read.append(record)
            elif identifier == record_id("calibration") or (record.get("kind") in OWN_KINDS and has_own_id(identifier)):
                continue
            elif identifier == record_id("store") or (self.exclusive and place_of(record) != identifier):
                raise StoreError(
                    f"the catalog of {self.location} is damaged: the record {identifier} cannot be read; restore the "
                    "store from a copy, or import again into another"
                )
            else:
                read.append(damaged_manifest(identifier, record))
        return read

    def check_not_lost(self, records: Collection[Mapping[str, Any]]) -> None:
        """Raises StoreError if an embedded store has commits but no record of the store.

        On a server, nothing is raised, since another writer may be creating the store.
        """
        if self.exclusive and (records or self.scroll_all(COMMITS)):
            raise StoreError(
                f"the catalog of {self.location} has lost the record of its store, or is not zsvec's: restore the "
                "store from a copy, import again into another, or choose another namespace"
            )


def _of_kinds(where: Where, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    kinds = [kind for match in (where.match, where.or_match or where.match) for kind in _listed(match["kind"])]
    return [record for record in records if record["kind"] in kinds]


def _listed(value: str | int | Sequence[str]) -> Sequence[str | int]:
    return [value] if isinstance(value, str | int) else value


def store_id(records: Iterable[Mapping[str, Any]]) -> str:
    """Returns the id in the record of the store; empty if `records` lacks the record of the store."""
    return next((record.get("id", "") for record in records if record["kind"] == "store"), "")


def belongs(record: Mapping[str, Any], store: str) -> bool:
    """Returns whether a record belongs to this store; True also for a damaged record without the id of a store."""
    return bool(record.get("store", store) == store)


def id_of(record: Mapping[str, Any]) -> str:
    """Returns the id under which a manifest or the calibration is stored."""
    return record_id("calibration") if record["kind"] == "calibration" else record_id("category", record["category"])


def readable(manifests: Iterable[Mapping[str, Any]]) -> tuple[list[Category], list[str]]:
    """Returns the readable categories and the names of categories with an unreadable manifest, each sorted by name."""
    categories, unreadable = [], []
    for manifest in manifests:
        try:
            categories.append(category_from(manifest))
        except StoreError:
            unreadable.append(str(manifest["category"]))
    return sorted(categories, key=lambda category: category.name), sorted(unreadable)
