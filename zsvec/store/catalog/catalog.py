"""The catalog of a store: its records, read and replaced by compare-and-set.

A category is committed by its manifest: references that no manifest names are not there. Clocks are not trusted: what
orders the commits for readers is their ``rev``, which grows with every commit that its writer has seen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from zsvec.errors import CategoryNotFoundError, StoreError
from zsvec.store.backends.base import Backend, Put, Where
from zsvec.store.catalog.records import damaged_manifest, is_believed, is_record, place_of
from zsvec.store.catalog.schema import (
    CATALOG,
    CATALOG_INDEXES,
    IMAGES,
    LATEST,
    NO_CALIBRATION,
    OWN_KINDS,
    PAST,
    SCHEMA,
    calibrated_revision,
    calibration_from,
    category_from,
    collection_name,
    expected,
    keeps_images,
    record_id,
    store_payload,
)
from zsvec.types import CALIBRATION_FORMAT, CalibrationState, Category, Fingerprint, KeepImages

SLACK = 1_000_000
"""How much smaller than the newest the ``rev`` of a commit may be that is acknowledged."""
PAUSES = (0.01, 0.05, 0.2)
"""Seconds before a record is asked for again that must be there, and does not show since replicas differ."""
COMMITS = Where(match={"kind": ["manifest", "calibration"]})
STORE = {"kind": "store"}


@dataclass(frozen=True, slots=True)
class State:
    """Records that were read in one request.

    Attributes:
        store: Id of the store; empty without one.
        manifests: Of categories that were ever committed, by name.
        foreign: Records in the places of manifests that belong to a store that was dropped.
        images: Whether the store keeps small copies of images.
    """

    store: str
    manifests: Mapping[str, Mapping[str, Any]]
    foreign: Mapping[str, Mapping[str, Any]]
    images: bool

    def categories(self) -> dict[str, Category]:
        """The last commit of each category, by name; a removed one has no write ids.

        Raises:
            StoreError: This version cannot read a manifest.
        """
        return {name: category_from(manifest) for name, manifest in self.manifests.items()}

    def only(self, names: Container[str]) -> State:
        """Without the manifests of other categories than these."""
        return replace(self, manifests={name: one for name, one in self.manifests.items() if name in names})


class Catalog:
    """The records of one namespace.

    Args:
        backend: Where the collections are.
        namespace: Prefix of their names.

    Attributes:
        backend: Where the collections are.
        collection: Name of the collection of the records.
        exclusive: Whether no other process can write.
        counts: How often what is rare has happened, by its name: see `zsvec.store.store.Store.stats`.
    """

    def __init__(self, backend: Backend, namespace: str) -> None:
        self.backend = backend
        self.collection = collection_name(namespace, CATALOG)
        self._namespace = namespace
        self.exclusive = backend.exclusive
        self.counts: Counter[str] = Counter(second_stamps=0, unknown_outcomes=0, healed_records=0)

    @property
    def location(self) -> str:
        """Folder or URL, and namespace."""
        return f"{self.backend.location} (namespace {self._namespace})"

    # The store

    def create(self, fingerprints: Mapping[str, Fingerprint], images: KeepImages) -> None:
        """Make the catalog, and the record of the store unless another writer has just made it."""
        self.backend.create(self.collection, 1, CATALOG_INDEXES, ordered=True)
        self.backend.put(self.collection, [Put(record_id("store"), store_payload(fingerprints, images))])

    def keep_images(self, images: KeepImages) -> None:
        """Say in the record of the store whether it keeps small copies of images."""
        while (store := self.store()) is not None and store.get("images") != images:
            new = {**store, "version": store["version"] + 1, "images": images}
            self.put([Put(record_id("store"), new, expected(store))])

    def store(self) -> Mapping[str, Any] | None:
        """The record of the store, if there is one.

        Raises:
            StoreError: The store has a schema that this version does not know.
        """
        record = self.retrieve([record_id("store")]).get(record_id("store"))
        if record is None:
            return None
        self.check_schema(record)
        return record

    def check_schema(self, store: Mapping[str, Any]) -> None:
        """Refuse the record of a store that another version wrote.

        Raises:
            StoreError: It has a schema that this version does not know.
        """
        if store["schema"] != SCHEMA:
            action = "upgrade zsvec" if store["schema"] > SCHEMA else "import its images again into another store"
            raise StoreError(
                f"{self.location} has schema {store['schema']} and this version of zsvec knows {SCHEMA}: {action}"
            )

    def encoders(self) -> dict[str, Fingerprint]:
        """Fingerprint of each encoder whose vectors are stored; empty before the first write.

        Raises:
            StoreError: The store has a schema that this version does not know.
        """
        store = self.store()
        try:
            return {name: Fingerprint(**fields) for name, fields in store["encoders"].items()} if store else {}
        except (KeyError, TypeError, AttributeError) as exc:
            raise StoreError(
                f"the encoders of {self.location} cannot be read ({exc!r}): its catalog is damaged; restore the store "
                "from a copy, or import again into another"
            ) from exc

    def collections(self) -> list[str]:
        """What has the points of writes: the encoders, and `IMAGES` where there may be any; raises as `encoders`."""
        return [*self.encoders(), *([IMAGES] if self.had_images() else [])]

    def had_images(self) -> bool:
        """Whether there may be small copies of images. Else a collection of their name is somebody else's."""
        return "images" in (self.store() or ())

    # Reading

    def categories(self) -> tuple[list[Category], list[str]]:
        """Committed categories, by name, and the names of those whose manifest this version cannot read."""
        categories, unreadable = readable(self.manifests())
        return [category for category in categories if category.write_ids], unreadable

    def manifests(self) -> list[Mapping[str, Any]]:
        """The manifests of all categories that were ever committed.

        Raises:
            StoreError: The store has a schema that this version does not know, or its catalog is damaged.
        """
        records = self.scroll_all(Where(match={"kind": "manifest"}, or_match=STORE))
        stores = [record for record in records if record["kind"] == "store"]
        if stores:
            self.check_schema(stores[0])
        else:
            self.check_not_lost(records)
        store = store_id(records)
        return [record for record in records if record["kind"] != "store" and belongs(record, store)]

    def find(self, name: str) -> Category | None:
        """The committed category of this name, if there is one."""
        category = self.state([name]).categories().get(name)
        return category if category and category.write_ids else None

    def category(self, name: str) -> Category:
        """The committed category of this name.

        Raises:
            CategoryNotFoundError: There is none.
        """
        category = self.find(name)
        if category is None:
            raise self.not_found(name)
        return category

    def not_found(self, name: str) -> CategoryNotFoundError:
        """The error of who asks for a category that is not there."""
        error = CategoryNotFoundError(
            f"there is no category {name!r} in {self.location}: `zsvec list` shows those there are"
        )
        error.name = name
        return error

    def state(self, names: Iterable[str]) -> State:
        """The manifests of some categories, and the store they are in."""
        places = {record_id("category", name): name for name in names}
        found = self.retrieve([record_id("store"), *places])
        store = store_id(found.values())
        named = {places[place]: record for place, record in found.items() if place in places}
        return State(
            store,
            {name: record for name, record in named.items() if belongs(record, store)},
            {name: record for name, record in named.items() if not belongs(record, store)},
            keeps_images(found.get(record_id("store"))),
        )

    # The calibration

    def calibration(self) -> Mapping[str, Any] | None:
        """The calibration that is kept; ``None``, or empty, if there is none."""
        record = self.calibration_record()[1]
        return calibration_from(record) if record else None

    def calibration_state(self) -> CalibrationState | Literal["damaged"]:
        """Whether categories have changed since the calibration was made; a damaged one is used as none."""
        kept = self.calibration()
        revision = calibrated_revision(kept)
        if revision is None:
            return "damaged" if self._is_calibration_damaged(kept) else "none"
        categories, _ = readable(self.manifests())
        return "stale" if any(category.rev > revision for category in categories) else "current"

    def _is_calibration_damaged(self, kept: Mapping[str, Any] | None) -> bool:
        if kept:
            made = kept.get("format")
            return not isinstance(made, int) or made == CALIBRATION_FORMAT  # else another version has made it
        place = record_id("calibration")
        found = self.backend.retrieve(self.collection, [place]).values()
        return not all(is_record(place, record) and calibration_from(record) is not NO_CALIBRATION for record in found)

    def calibration_record(self) -> tuple[str, Mapping[str, Any] | None]:
        """The id of the store, and the record of the calibration."""
        found = self.retrieve([record_id("store"), record_id("calibration")])
        store = store_id(found.values())
        record = found.get(record_id("calibration"))
        return store, record if record and belongs(record, store) else None

    def drop_damaged_calibration(self) -> None:
        """Delete the record of the calibration if it cannot be read, so that another can be committed."""
        place = record_id("calibration")
        found = self.backend.retrieve(self.collection, [place])
        if any(not is_record(place, record) for record in found.values()):
            self.drop([place])

    # Records

    def put(self, puts: Sequence[Put]) -> None:
        """Write records, each by compare-and-set."""
        self.backend.put(self.collection, puts)

    def drop(self, ids: Sequence[str]) -> None:
        """Delete records."""
        self.backend.drop(self.collection, ids)

    def heal(self, names: Iterable[str]) -> int:
        """Make the copies of the manifests of categories agree: how many did not.

        What copies differ in shows to nobody. That a node died at the wrong moment can leave it so.
        """
        healed = self.backend.heal(self.collection, [record_id("category", name) for name in names])
        self.counts["healed_records"] += healed
        return healed

    def newest(self) -> int:
        """The largest ``rev`` of a commit; 0 if there is none."""
        return self.backend.newest(self.collection, replace(COMMITS, until=LATEST - 1))

    def next_rev(self) -> int:
        """Microseconds now, and above the newest commit, whatever the clocks of other writers say."""
        return max(time.time_ns() // 1000, self.newest() + 1)

    def scroll(self, where: Where, fields: Sequence[str] | None = None) -> list[Mapping[str, Any]]:
        """Returns all matching records, checked by `_read`."""
        return self._read(self._found(where, fields))

    def scroll_all(self, where: Where) -> list[Mapping[str, Any]]:
        """All records of kinds that are most of a catalog: where files can be damaged, without their index.

        Raises:
            StoreError: A later version has written them, or the record of the store cannot be read.
        """
        if not self.exclusive:
            return self.scroll(where)
        kinds = [kind for match in (where.match, where.or_match or {}) for kind in _listed(match["kind"])]
        records = list(self._found(replace(where, match={}, without=PAST)))
        for identifier, record in records:
            if record.get("kind") == "store" and is_record(identifier, record):
                self.check_schema(record)  # a later version may have records of other kinds
        return [record for record in self._read(records) if record["kind"] in kinds]

    def retrieve(self, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Returns the records of these ids that exist, by id, checked by `_read`."""
        found = self.backend.retrieve(self.collection, ids)
        return {identifier: read for identifier, record in found.items() for read in self._read([(identifier, record)])}

    def unreadable(self) -> list[str]:
        """Returns the ids of damaged records that are not used, sorted. Damaged manifests are not among them."""
        return sorted(identifier for identifier, record in self._found(Where()) if not is_believed(identifier, record))

    def _found(self, where: Where, fields: Sequence[str] | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yields the ids and the unchecked records of all pages."""
        for page in self.backend.scroll(self.collection, where, fields=fields):
            yield from zip(page.ids, page.payloads, strict=True)

    def _read(self, records: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
        """Returns records that have all required fields.

        A damaged record of a write, an undo or a calibration is left out. Any other one is replaced by a
        `damaged_manifest`.

        Raises:
            StoreError: The record of the store is damaged; or, in a folder, a record of an unknown category.
        """
        read: list[Mapping[str, Any]] = []
        for identifier, record in records:
            if is_record(identifier, record):
                read.append(record)
            elif identifier == record_id("calibration") or record.get("kind") in OWN_KINDS:
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
        """Refuse commits of no store, where nobody can just be making it.

        Args:
            records: Of one scroll that asked for the record of the store as well, and found none.

        Raises:
            StoreError: There are some.
        """
        if self.exclusive and records:
            raise StoreError(
                f"the catalog of {self.location} has lost the record of its store, or is not zsvec's: restore the "
                "store from a copy, import again into another, or choose another namespace"
            )


def _listed(value: str | int | Sequence[str]) -> Sequence[str | int]:
    return [value] if isinstance(value, str | int) else value


def store_id(records: Iterable[Mapping[str, Any]]) -> str:
    """Id of the store whose record is among these; empty without one."""
    return next((record.get("id", "") for record in records if record["kind"] == "store"), "")


def belongs(record: Mapping[str, Any], store: str) -> bool:
    """Whether a record is of this store; a damaged one may not say whose it is."""
    return bool(record.get("store", store) == store)


def id_of(record: Mapping[str, Any]) -> str:
    """Where a manifest or a calibration is kept."""
    return record_id("calibration") if record["kind"] == "calibration" else record_id("category", record["category"])


def readable(manifests: Iterable[Mapping[str, Any]]) -> tuple[list[Category], list[str]]:
    """The categories of some manifests, by name, and the names of those whose manifest cannot be read."""
    categories, unreadable = [], []
    for manifest in manifests:
        try:
            categories.append(category_from(manifest))
        except StoreError:
            unreadable.append(str(manifest["category"]))
    return sorted(categories, key=lambda category: category.name), sorted(unreadable)
