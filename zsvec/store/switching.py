"""Switches a store to the namespace of a re-embedded copy, and back (protocol: `zsvec.store.catalog.successor`)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from zsvec.errors import ConflictError, InvalidInputError, StoreError
from zsvec.store import transfer
from zsvec.store.backends.base import Put, Where
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.commit import UnknownError, attempts
from zsvec.store.catalog.schema import ERASURE, UNDO, expected
from zsvec.store.catalog.successor import Successor, is_dropped, is_emptied, joined_namespace, successor_from
from zsvec.store.names import IMAGES, INBOX, collection_name, record_id
from zsvec.types import SWITCH, Change


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed record of a store, and its successor."""

    record: Mapping[str, Any]
    successor: Successor


def current(catalog: Catalog) -> tuple[Catalog, list[Catalog]]:
    """Returns the catalog of the current namespace of a store, and those before it, oldest first.

    Raises:
        StoreError: A record of the store is damaged or has another schema.
    """
    before: list[Catalog] = []
    while (found := catalog.successor()) is not None and found.done and found.to > catalog.number:
        if (following := catalog.beside(found.to)).store() is None:
            break
        before.append(catalog)
        catalog = following
    return catalog, before


@contextmanager
def closed(catalog: Catalog, to: int, *, identifier: str | None = None) -> Iterator[Closed]:
    """Closes a store for a switch in a block, so that writers wait. Afterwards opens it, unless the switch is done.

    Args:
        catalog: Catalog of the current namespace.
        to: Number of the other namespace.
        identifier: Id of the switch; by default a new one.

    Raises:
        ConflictError: Another process has closed the store, or has changed its record.
        StoreError: The other namespace was deleted.
    """
    successor = Successor(id=identifier or str(uuid.uuid4()), to=to)
    catalog.check_current()
    before = catalog.store() or {}
    if successor_from(before, catalog.number) is not None:
        raise _conflict(catalog)
    record = {**before, "version": before["version"] + 1, "successor": successor.to_dict()}
    if not _replaced(catalog, before, record):
        raise _conflict(catalog)
    try:
        _claim(catalog.beside(to))
        yield Closed(record, successor)
    finally:
        catalog.clear_successor(successor)


def finish(catalog: Catalog, closing: Closed, *, rev: int, window_s: float, by: str | None) -> Successor:
    """Switches a closed store: writers of this namespace are refused from now on.

    Args:
        catalog: Catalog of the closed namespace.
        closing: The closed record.
        rev: Newest ``rev`` in the other namespace.
        window_s: Undo window, in seconds.
        by: Author of the switch.

    Raises:
        ConflictError: A writer has opened the store again, or has changed its record.
    """
    at = time.time_ns() // 1000
    done = replace(closing.successor, done=True, at=at, until=at + round(window_s * 1e6), rev=rev, by=by)
    record = {**closing.record, "version": closing.record["version"] + 1, "successor": done.to_dict()}
    if not _replaced(catalog, closing.record, record):
        raise _conflict(catalog)
    return done


def is_in_motion(catalog: Catalog) -> bool:
    """Returns whether a transfer between categories, an undo or an erasure is unfinished."""
    store = catalog.state([]).store
    found = catalog.scroll(Where(match={"kind": [ERASURE, UNDO]}))
    return transfer.is_running(catalog) or any(record["store"] == store for record in found)


def last_switch(before: Catalog) -> tuple[Successor, Change] | None:
    """Returns the switch away from a namespace, also as a change; ``None`` if it was undone."""
    found = successor_from(before.store(), before.number)
    if found is None or not found.done or found.to < before.number:
        return None
    return found, as_change(found)


def as_change(switch: Successor) -> Change:
    """Returns a switch as a change of the history."""
    at = datetime.fromtimestamp(min(switch.at / 1e6, _LATEST_S), tz=UTC)
    return Change(id=switch.id, what=SWITCH, at=at, begun=at, by=switch.by)


def switch_back(catalog: Catalog, before: Catalog, switch: Successor, by: str | None) -> None:
    """Undoes a switch, if nothing has changed since.

    Args:
        catalog: Catalog of the current namespace.
        before: Catalog of the namespace before it.
        switch: The switch, from `last_switch`.
        by: Author of the undo.

    Raises:
        InvalidInputError: The switch is too old, the namespace before was deleted, or a category has changed since.
        ConflictError: Another process is switching the store.
    """
    if is_dropped(before.store()) or time.time_ns() // 1000 > switch.until:
        why = "the state before it was deleted" if is_dropped(before.store()) else "the undo time is over"
        raise InvalidInputError(
            f"the change {switch.id[:8]} ({SWITCH}) cannot be undone, because {why}: re-embed with the other encoders "
            "instead (`zsvec reembed --profile NAME`)"
        )
    with closed(catalog, before.number, identifier=switch.id) as closing:
        changed = sorted(str(one["category"]) for one in catalog.manifests() if one["rev"] > switch.rev)
        if changed or is_in_motion(catalog):
            raise InvalidInputError(
                f"{', '.join(map(repr, changed[:5])) or 'a category'} must be unchanged since the switch to undo it: "
                "re-embed with the other encoders instead (`zsvec reembed --profile NAME`), which keeps the changes"
            )
        finish(catalog, closing, rev=0, window_s=0, by=by)
    before.successor()  # deletes the successor there


def drop(catalog: Catalog, current: Catalog) -> None:
    """Deletes the contents of a namespace that is not current. Only the record of its store stays, as a link.

    If the process is killed, the next call finishes the deletion.

    A switch closes the current namespace, and then changes the record of the other one (`_claim`). Here, the current
    namespace is read between the read and the compare-and-set of that record. So one of the two processes is refused.

    Args:
        catalog: Catalog of the namespace.
        current: Catalog of the current namespace.

    Raises:
        StoreError: `current` is no longer current.
    """

    def dropped(_: Mapping[str, Any]) -> Mapping[str, Any]:
        current.check_current()
        return {"dropped": True}

    encoders = catalog.encoders()
    catalog.change_store(dropped)
    for name in (*encoders, IMAGES, INBOX):
        collection = collection_name(joined_namespace(catalog.base, catalog.number), name)
        if catalog.backend.exists(collection):
            catalog.backend.remove(collection)
    pages = catalog.backend.scroll(catalog.collection, Where(), fields=())
    catalog.drop([identifier for page in list(pages) for identifier in page.ids if identifier != _RECORD])
    catalog.backend.rewrite(catalog.collection)
    catalog.set_in_store(emptied=True)


def has_image(catalog: Catalog, image: str, boxes: Collection[str]) -> bool:
    """Returns whether a namespace has a reference, a small copy or an inbox image of an image or of boxes cut from it.

    Args:
        catalog: Catalog of the namespace.
        image: Content hash of the image.
        boxes: Content hashes of boxes that are known to be cut from it.
    """
    namespace = joined_namespace(catalog.base, catalog.number)
    names = [collection_name(namespace, name) for name in (*catalog.encoders(), IMAGES, INBOX)]
    pages = (catalog.backend.scroll(name, Where(), fields=("hash", "cut_from")) for name in names)
    return any(
        not {image, *boxes}.isdisjoint((payload.get("hash"), payload.get("cut_from")))
        for page in chain.from_iterable(pages)
        for payload in page.payloads
    )


def siblings(catalog: Catalog) -> Iterator[Catalog]:
    """Yields the catalogs of all other namespaces of a store, but for those that `drop` has emptied."""
    for one, record in namespaces(catalog):
        if one.number != catalog.number and not is_emptied(record):
            yield one


def namespaces(catalog: Catalog) -> Iterator[tuple[Catalog, Mapping[str, Any]]]:
    """Yields the catalogs of all namespaces of a store, each with the record of the store there.

    A key may have no rights on a namespace that does not exist. So the next one is read only if a copy was ever begun,
    which the record of an earlier namespace tells (``copying``).
    """
    base, number, is_begun = catalog.beside(0), 0, True
    while is_begun and (record := (one := base.beside(number)).store()) is not None:
        yield one, record
        is_begun = number > 0 or "copying" in record
        number += 1


def is_beside(catalog: Catalog, store: str) -> bool:
    """Returns whether another namespace of a store has this id, also if its contents were deleted."""
    return any(record["id"] == store for one, record in namespaces(catalog) if one.number != catalog.number)


_RECORD = record_id("store")
_LATEST_S = 253_000_000_000  # in the year 9987


def _claim(catalog: Catalog) -> None:
    """Changes the record of a namespace, so that a `drop` that has read the record before is lost.

    Raises:
        StoreError: The namespace was deleted.
    """
    token = str(uuid.uuid4())

    def claimed(store: Mapping[str, Any]) -> Mapping[str, Any]:
        if is_dropped(store):
            raise StoreError(f"{catalog.location} was deleted: re-embed with its encoders again (`zsvec reembed`)")
        return {"claimed": token}

    catalog.change_store(claimed)


def _replaced(catalog: Catalog, before: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Replaces the record of a store by compare-and-set, and returns whether this process has won."""
    won = False
    for attempt in attempts(catalog, ["the record of the store"]):
        with attempt:
            catalog.put([Put(_RECORD, record, expected(before))])
            now = catalog.store() or {}
            won = now.get("successor") == record["successor"]
            if not won and now.get("version", 0) < record["version"]:
                raise UnknownError
    return won


def _conflict(catalog: Catalog) -> ConflictError:
    return ConflictError(f"another process has changed {catalog.location} during the switch: repeat the command")
