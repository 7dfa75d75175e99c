"""The catalog of a store: its records, read whole and replaced by compare-and-set.

A category is committed by its manifest: references that no manifest names are not there.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zsvec.errors import CategoryNotFoundError, StoreError
from zsvec.store.base import Backend, Where
from zsvec.store.schema import (
    CATALOG,
    CATALOG_INDEXES,
    SCHEMA,
    calibrated_revision,
    calibration_payload,
    category_from,
    collection_name,
    manifest_payload,
    record_id,
    store_payload,
)
from zsvec.types import CalibrationState, Category, Fingerprint

LATE = 120_000_000  # microseconds that a commit may take, with the difference of its writer's clock


class Catalog:
    """The records of one namespace.

    Args:
        backend: Where the collections are.
        namespace: Prefix of their names.

    Attributes:
        collection: Name of the collection of the records.
        location: Folder or URL, and namespace.
        exclusive: Whether no other process can write.
    """

    def __init__(self, backend: Backend, namespace: str) -> None:
        self._backend = backend
        self.collection = collection_name(namespace, CATALOG)
        self.location = f"{backend.location} (namespace {namespace})"
        self.exclusive = backend.exclusive

    # The store

    def create(self, fingerprints: Mapping[str, Fingerprint]) -> None:
        """Make the catalog, and the record of the store unless another writer has just made it."""
        self._backend.create(self.collection, 1, CATALOG_INDEXES)
        self._backend.put(self.collection, {record_id("store"): store_payload(fingerprints)})

    def exists(self) -> bool:
        """Whether the store has its record.

        Raises:
            StoreError: The store has another schema.
        """
        return self._store() is not None

    def encoders(self) -> dict[str, Fingerprint]:
        """Fingerprint of each encoder whose vectors are stored; empty before the first write.

        Raises:
            StoreError: The store has another schema.
        """
        store = self._store()
        return {name: Fingerprint(**fields) for name, fields in store["encoders"].items()} if store else {}

    def _store(self) -> Mapping[str, Any] | None:
        record = self._record(record_id("store"))
        if record and record["schema"] != SCHEMA:
            raise StoreError(
                f"{self.location} has schema {record['schema']} and this version of zsvec knows {SCHEMA}: "
                "use the version it was made with"
            )
        return record

    # Categories

    def categories(self, since: int | None = None) -> list[Category]:
        """Committed categories, by name.

        Args:
            since: Only commits of this ``rev`` or later, removals included: those categories have no write ids.
        """
        found = map(category_from, self._scroll(Where(match={"kind": "category"}, since=since)))
        return _by_name(category for category in found if since is not None or category.write_ids)

    def changes_after(self, rev: int) -> tuple[list[Category], Mapping[str, Any] | None]:
        """Commits after one of this ``rev`` was seen, and possibly a few from before.

        Where others write as well, a commit that was late may have a smaller ``rev`` than one that was seen.

        Returns:
            The categories, the removed ones without write ids; and the record of the calibration, if it is new.
        """
        since = rev + 1 if self.exclusive else max(0, rev - LATE)
        records = self._scroll(Where(match={"kind": ["category", "calibration"]}, since=since))
        calibrations = [record for record in records if record["kind"] == "calibration"]
        categories = _by_name(category_from(record) for record in records if record["kind"] == "category")
        return categories, calibrations[0] if calibrations else None

    def latest(self, names: Iterable[str]) -> dict[str, Category]:
        """The last commit of each category that was ever committed; a removed one has no write ids."""
        return {name: category_from(manifest) for name, manifest in self._manifests(names).items()}

    def find(self, name: str) -> Category | None:
        """The committed category of this name, if there is one."""
        category = self.latest([name]).get(name)
        return category if category and category.write_ids else None

    def category(self, name: str) -> Category:
        """The committed category of this name.

        Raises:
            CategoryNotFoundError: There is none.
        """
        category = self.find(name)
        if category is None:
            raise CategoryNotFoundError(
                f"there is no category {name!r} in {self.location}: `zsvec list` shows those there are"
            )
        return category

    def commit(self, categories: Sequence[Category]) -> dict[str, Category]:
        """Commit categories by compare-and-set of their manifests.

        Args:
            categories: Each with the version above the one that it replaces; the commit sets its ``rev``.

        Returns:
            Those whose commit won, by name, as committed. The others had been changed by somebody else.
        """
        if not categories:
            return {}
        names = [category.name for category in categories]
        writer = uuid.uuid4().hex
        before = self._manifests(names)
        rev = self._next_rev()
        stamped = [replace(category, rev=rev + i) for i, category in enumerate(categories)]
        manifests = {
            record_id("category", category.name): manifest_payload(category, writer, before.get(category.name))
            for category in stamped
        }
        self._backend.put(self.collection, manifests)
        after = self._manifests(names)
        return {
            category.name: category
            for category in stamped
            if (found := after.get(category.name))
            # The write id outlives the token where many have written since.
            and (writer in found["writers"] or set(category.write_ids[-1:]) & set(found["gen"]))
        }

    # The calibration

    def calibration(self) -> Mapping[str, Any] | None:
        """The calibration that is kept; ``None``, or empty, if there is none."""
        record = self._record(record_id("calibration"))
        return record["calibration"] if record else None

    def calibration_state(self) -> CalibrationState:
        """Whether categories have changed since the calibration was made."""
        revision = calibrated_revision(self.calibration())
        if revision is None:
            return "none"
        return "stale" if self.categories(revision + 1) else "current"

    def commit_calibration(self, calibration: Mapping[str, Any]) -> bool:
        """Commit a calibration by compare-and-set, unless the one that is kept was made from a later state.

        Returns:
            False if somebody else committed one at the same time.
        """
        identifier = record_id("calibration")
        before = self._record(identifier)
        kept = calibrated_revision(before["calibration"]) if before else None
        if kept is not None and calibration and kept > calibration.get("revision", kept):
            return True
        writer = uuid.uuid4().hex
        record = calibration_payload(calibration, writer, self._next_rev(), before)
        self._backend.put(self.collection, {identifier: record})
        after = self._record(identifier)
        return after is not None and after["writer"] == writer

    # Records

    def _next_rev(self) -> int:
        """Microseconds now, and above the newest commit, whatever the clocks of other writers say."""
        return max(time.time_ns() // 1000, self._backend.newest(self.collection) + 1)

    def _record(self, identifier: str) -> Mapping[str, Any] | None:
        if not self._backend.exists(self.collection):
            return None
        return self._backend.retrieve(self.collection, [identifier]).get(identifier)

    def _manifests(self, names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        if not self._backend.exists(self.collection):
            return {}
        found = self._backend.retrieve(self.collection, [record_id("category", name) for name in names])
        return {manifest["category"]: manifest for manifest in found.values()}

    def _scroll(self, where: Where) -> list[Mapping[str, Any]]:
        if not self._backend.exists(self.collection):
            return []
        return [record for page in self._backend.scroll(self.collection, where) for record in page.payloads]


def _by_name(categories: Iterable[Category]) -> list[Category]:
    return sorted(categories, key=lambda category: category.name)
