"""Incremental reads of the catalog: each finds every commit that was acknowledged before the read began.

Such a read is called a *look*. A look asks for all commits from a certain ``rev`` on: the newest ``rev`` that the
reader knew when the *previous* look began, less `SLACK`. The newest ``rev`` at the end of the previous look would be
too high: while a look reads page by page, a commit can land on an earlier page, and a later page can show a newer
commit. Then the next look would not ask for the commit that this look has missed.

Clocks do not matter, because a writer acknowledges a commit only if its ``rev`` is close to the newest
(`zsvec.store.catalog.commit.publish`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zsvec.store.catalog.catalog import COMMITS, PAUSES, SLACK, STORE, Catalog, belongs, id_of, readable, store_id
from zsvec.store.catalog.schema import (
    LOOK_FIELDS,
    attachments_from,
    calibration_from,
    dims_from,
    is_damaged,
    requirements,
    search_params_from,
)
from zsvec.types import Attachment, Category, SearchParams


@dataclass(frozen=True, slots=True)
class Cursor:
    """Position of a reader in the commits of a store.

    Attributes:
        store: Id of the store; ``None`` until a look has found a store.
        newest: Largest ``rev`` that the reader has seen.
        before: Largest ``rev`` that the reader had seen when the last look began.
        calibration: Version of the calibration that the reader has seen; 0 for none.
        writes: Number of finished writes when the last look began, if no other process can write.
    """

    store: str | None = None
    newest: int = 0
    before: int = 0
    calibration: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """Result of one incremental read of the catalog.

    Attributes:
        cursor: Cursor for the next look.
        categories: Changed categories, sorted by name. A removed category has no write ids.
        calibration: The calibration if changed, an empty mapping if removed, ``None`` if unchanged.
        reset: Whether the store of the previous look was dropped, so that the reader must discard all categories.
        unreadable: Names of categories with a manifest that this version of zsvec cannot read.
        search: How a server searches the references; ``None`` if the record of the store was not read.
        attachments: What is attached to the store; ``None`` if the record of the store was not read.
        dims: Dimension of the vectors of each encoder; empty if the record of the store was not read.
        record: Id of the store, and version of its record.
        revision: Largest ``rev`` of a category of the look, or of a removed category that the look leaves out.
    """

    cursor: Cursor
    categories: Sequence[Category] = ()
    calibration: Mapping[str, Any] | None = None
    reset: bool = False
    unreadable: Sequence[str] = ()
    search: SearchParams | None = None
    attachments: Sequence[Attachment] | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    record: tuple[str, int] = ("", 0)
    revision: int = 0


def look(
    catalog: Catalog, cursor: Cursor, known: Mapping[str, int], *, whole: bool = False, removed: bool = True
) -> Look:
    """As `zsvec.store.store.Store.look`."""
    fresh, writes = cursor.store is None, catalog.backend.writes
    whole = whole and (removed or not catalog.exclusive)  # an embedded store has no commit that a look has missed
    if catalog.exclusive and not (fresh or whole) and writes == cursor.writes:
        catalog.backend.exists(catalog.collection)  # raises if the folder is gone
        return Look(cursor, [])
    present = fresh and catalog.exclusive and not removed
    # The next look need not find the tombstones that this look leaves out.
    newest = catalog.newest() if present and catalog.store() else 0
    where = COMMITS if fresh or whole else replace(COMMITS, since=_since(catalog, cursor))
    at_once = catalog.exclusive or fresh  # otherwise most records are known: read fields first, then changed records
    where = replace(where, or_match=STORE)
    if at_once and where.since is None:
        records = catalog.scroll_all(where, removed=removed)
    else:
        records = catalog.scroll(where, fields=None if at_once else LOOK_FIELDS)
    stores = [record for record in records if record["kind"] == "store"]
    if not stores:
        catalog.check_not_lost(records)
        return Look(Cursor(), reset=not fresh)
    catalog.check_readable(stores[0])
    store = store_id(stores)
    if cursor.store and cursor.store != store:
        return replace(look(catalog, Cursor(), {}, removed=removed), reset=True)
    records = [record for record in records if record["kind"] != "store" and belongs(record, store)]
    damaged = {record["category"] for record in records if is_damaged(record)}
    records = [record for record in records if not is_damaged(record)]
    changed: Sequence[Mapping[str, Any]] = [
        record for record in records if _version_seen(record, known, cursor) != record["version"]
    ]
    seen = max([cursor.newest, newest, *(record["rev"] for record in records)])
    after = Cursor(store, seen, cursor.newest, writes=writes)
    listed = len(changed)
    if not at_once:
        changed = _retrieved(catalog, changed)
    complete = len(changed) == listed
    changed, has_required = _with_required(catalog, changed, known)
    if not (complete and has_required):
        after = cursor  # so that the next look asks for the missing records again
    calibrations = [record for record in changed if record["kind"] == "calibration"]
    after = replace(after, calibration=calibrations[0]["version"] if calibrations else cursor.calibration)
    categories, unreadable = readable(record for record in changed if record["kind"] != "calibration")
    unreadable = sorted({*damaged, *unreadable})
    fitted = calibration_from(calibrations[0]) if calibrations else None
    revision = max((category.rev for category in categories), default=0)
    if present:
        revision = catalog.revision(store, categories, newest)
        if catalog.backend.writes != writes:  # a removal came between the requests: a list with tombstones shows it
            return look(catalog, cursor, known)
    return Look(
        after,
        categories,
        fitted,
        unreadable=unreadable,
        search=search_params_from(stores[0]),
        attachments=attachments_from(stores[0]),
        dims=dims_from(stores[0]),
        record=(store, stores[0]["version"]),
        revision=revision,
    )


def _retrieved(catalog: Catalog, changed: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the records with all fields, without those that no replica has at the moment."""
    places = [id_of(record) for record in changed]
    found = catalog.retrieve(places) if places else {}
    for pause in PAUSES:
        if len(found) == len(places):
            break
        time.sleep(pause)  # replicas differ at the moment
        found = {**found, **catalog.retrieve([place for place in places if place not in found])}
    return list(found.values())


def _with_required(
    catalog: Catalog, changed: Sequence[Mapping[str, Any]], known: Mapping[str, int]
) -> tuple[Sequence[Mapping[str, Any]], bool]:
    """Adds the manifests that changed manifests require (`zsvec.store.transfer`).

    A category that has lost references requires a version of the category that has gained these references. The gaining
    category may have lost references to a third category, so the search repeats.

    Returns:
        The records, and whether all required manifests were found. A known category whose required manifest was not
        found is left out, so that the reader keeps the known version.
    """
    pauses = list(PAUSES)
    while True:
        manifests = [record for record in changed if record["kind"] != "calibration"]
        seen = {record["category"]: record["version"] for record in manifests}
        lacking = {
            record["category"]: {
                name
                for name, version in requirements(record).items()
                if version > max(seen.get(name, 0), known.get(name, 0))
            }
            for record in manifests
        }
        wanted = set().union(*lacking.values())
        if not wanted:
            return changed, True
        found = catalog.state(wanted).manifests
        newer = {name: record for name, record in found.items() if record["version"] > seen.get(name, 0)}
        if newer:
            changed = [*(record for record in changed if record.get("category") not in newer), *newer.values()]
        elif pauses:
            time.sleep(pauses.pop(0))  # replicas differ at the moment
        else:
            late = {name for name, required in lacking.items() if required and name in known}
            return [record for record in changed if record.get("category") not in late], False


def _since(catalog: Catalog, cursor: Cursor) -> int:
    # If no other process can write, each rev is above all earlier ones, and a look reads a single state.
    return cursor.newest + 1 if catalog.exclusive else max(0, cursor.before - SLACK)


def _version_seen(record: Mapping[str, Any], known: Mapping[str, int], cursor: Cursor) -> int:
    return cursor.calibration if record["kind"] == "calibration" else known.get(record["category"], 0)
