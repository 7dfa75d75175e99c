"""Erasure of an image from all categories, small copies, changes and collections, at once and permanently.

The boxes that were cut from the image, or from such a box, are erased with it. A record of the erasure has the content
hashes of them all.
It is written first, and deleted last, so any process can finish the erasure. Every process does so before it writes,
whether the process that began the erasure still runs or was killed.

Categories are committed without the image, and changes that can be undone no longer count the image. Then all points of
the image are deleted, including points of replaced writes and of writes in progress. The writers in progress are fenced
(`zsvec.store.collector`): their commits are lost, and they plan again. Last, the marks of the image are deleted from
manifests and changes (`zsvec.store.catalog.marks`), and the hash from the changes that name the image as an example, so
that not even a part of the hash stays.

An undo reads replaced references. So it reads the records of erasures after the state from which it plans, and before
the references. If it has missed a record, the fence makes its commit lost.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from zsvec.errors import ConflictError, InvalidInputError, VersionConflictError
from zsvec.store import switching
from zsvec.store.backends.base import Put, Where
from zsvec.store.catalog.catalog import Catalog, id_of
from zsvec.store.catalog.history import FORGET, Cause, History, Record
from zsvec.store.catalog.marks import without_marks
from zsvec.store.catalog.schema import ERASURE, Reference, category_from, expected, is_reference
from zsvec.store.catalog.successor import is_dropped
from zsvec.store.names import IMAGES
from zsvec.store.transfer import settled
from zsvec.store.writing import EXPECTED, Writer, until_won
from zsvec.types import Forgotten, expert_name


@dataclass(frozen=True, slots=True)
class _Place:
    """A point of the image. `encoder` is the name of an encoder, or `IMAGES` for a small copy."""

    encoder: str
    id: str
    category: str
    write_id: str


def forget(writer: Writer, content_hash: str) -> Forgotten:
    """As `zsvec.store.store.Store.forget`."""
    catalog, cause = writer.catalog, writer.collector.cause
    record: dict[str, Any] = {
        "kind": ERASURE,
        "id": str(uuid.uuid4()),
        "store": catalog.state([]).store,
        "version": 1,
        "rev": time.time_ns() // 1000,
        "change": cause.id,
        "image": content_hash,
        "boxes": [],
        **({"by": cause.by} if cause.by else {}),
    }
    catalog.put([Put(record["id"], record)])
    try:
        return finish(writer, record)
    except VersionConflictError:  # the caller expects another version of a category
        catalog.drop([record["id"]])
        raise


def finish(writer: Writer, record: Record) -> Forgotten:
    """Carries out a recorded erasure, or the rest of it, and deletes the record. Raises as `forget`."""
    catalog, references = writer.catalog, writer.references
    writer.collector.cause = Cause(what=FORGET, by=record.get("by"), id=record["change"])
    found = Forgotten((), 0)
    if record["image"]:
        found = _Erasure(writer, record).carry_out()
        # Only files are left to be rewritten, which then have no hash of the record.
        there = catalog.retrieve([record["id"]]).get(record["id"], record)
        nameless = {**there, "version": there["version"] + 1, "image": "", "boxes": []}
        catalog.put([Put(record["id"], nameless, expected(there))])
    for collection in (*map(references.collection, catalog.collections()), catalog.collection):
        catalog.backend.rewrite(collection)
    catalog.drop([record["id"]])
    return found


def in_progress(catalog: Catalog) -> Callable[[Reference], bool]:
    """Returns a function that tells whether a reference is being erased now, by any process."""
    records = catalog.scroll(Where(match={"kind": ERASURE}))
    hashes = {digest for record in records for digest in (record["image"], *record["boxes"])} - {""}
    return lambda one: one.modality == "image" and not hashes.isdisjoint((one.hash, one.cut_from))


class _Erasure:
    """The erasure of an image and of the boxes that were cut from it."""

    def __init__(self, writer: Writer, record: Record) -> None:
        self._writer = writer
        self._catalog = writer.catalog
        self._record = record
        self._image: str = record["image"]
        self._boxes = set(record["boxes"])
        self._changed: set[str] = set()
        self._deleted: set[tuple[str, str]] = set()

    def carry_out(self) -> Forgotten:
        """Erases all but the record of the erasure. Raises as `forget`."""
        inbox = self._writer.inbox
        self._find_in_inbox()
        until_won(self._attempt, self._lost)
        until_won(lambda: not _drop_marks(self._catalog, self._hashes), self._lost)
        points = len(self._deleted) + inbox.forget(self._hashes)
        while self._find_in_inbox():  # boxes may have come meanwhile
            points += inbox.forget(self._hashes)
        # A run of `zsvec reembed` that has read the image before is refused by its next commit.
        token = str(uuid.uuid4())
        self._catalog.change_store(lambda record: {"copying": token} if "copying" in record else {})
        self._catalog.check_current()  # or it has switched before
        if points and not self._changed:
            self._writer.collector.note(str(uuid.uuid4()))
        for one in switching.siblings(self._catalog):
            if is_dropped(one.store()) or switching.has_image(one, self._image, self._boxes):
                switching.drop(one, self._catalog)
        return Forgotten(tuple(sorted(self._changed)), points, len(self._boxes))

    @property
    def _hashes(self) -> set[str]:
        return {self._image, *self._boxes}

    def _find_in_inbox(self) -> bool:
        """Remembers boxes of the inbox, and returns whether there were new ones."""
        before = len(self._boxes)
        self._boxes.update(one.hash for one in self._writer.inbox.read(labelled=True) if one.cut_from in self._hashes)
        self._remember_boxes()
        return len(self._boxes) > before

    def _lost(self) -> str:
        return (
            f"others add the image {self._image[:12]} to {self._catalog.location} again and again: stop them, and "
            "forget it once more"
        )

    def _attempt(self) -> bool:
        """Erases the points that are there now, and returns whether there were none."""
        catalog, references, collector = self._catalog, self._writer.references, self._writer.collector
        found = list(self._places())
        if not found:
            return True
        self._remember_boxes()
        names = {place.category for place in found}
        before = settled(catalog, names)
        live = {name: set(category.write_ids) for name, category in before.categories().items()}
        present = {place.category for place in found if place.write_id in live.get(place.category, ())}
        expecting = EXPECTED.get()
        for name in sorted(present, key=lambda name: expecting is None or name != expecting.name):  # conflicts first
            self._take_out(name)
            self._changed.add(name)
        now = collector.fence(names, settled(catalog, names).manifests)
        if now is None:
            return False
        named = {w for manifest in now.values() for w in category_from(manifest).write_ids}
        dead = [place for place in found if place.write_id not in named]
        _discount(catalog, dead)
        for encoder in {place.encoder for place in dead}:
            catalog.backend.drop(references.collection(encoder), [one.id for one in dead if one.encoder == encoder])
        self._deleted.update((place.encoder, place.id) for place in dead)
        return False  # repeat until none is found, since other writers may add the image

    def _places(self) -> Iterator[_Place]:
        """Yields all points, and notes new boxes. Reads every point, so that a damaged index hides none."""
        fields = ("category", "gen", "hash", "modality", "cut_from")
        for name in sorted(self._catalog.collections(), key=lambda name: name == IMAGES):  # last: it shows no boxes
            for page in self._catalog.backend.scroll(self._writer.references.collection(name), Where(), fields=fields):
                for identifier, payload in zip(page.ids, page.payloads, strict=True):
                    if not is_reference(payload, ("category", "gen", "hash")):
                        continue
                    if name != IMAGES and payload.get("modality") != "image":
                        continue
                    if payload.get("cut_from") in self._hashes:
                        self._boxes.add(payload["hash"])
                    if payload["hash"] in self._hashes:
                        yield _Place(name, identifier, payload["category"], payload["gen"])

    def _remember_boxes(self) -> None:
        """Adds the boxes to the record of the erasure, before any trace of them is deleted."""

        def attempt() -> bool:
            there = self._catalog.retrieve([self._record["id"]]).get(self._record["id"])
            if there is None or self._boxes <= set(there["boxes"]):
                return True
            boxes = sorted(self._boxes.union(there["boxes"]))
            changed = {**there, "version": there["version"] + 1, "boxes": boxes}
            self._catalog.put([Put(there["id"], changed, expected(there))])
            return False

        until_won(attempt, self._lost)

    def _take_out(self, name: str) -> None:
        """Commits a category without the images, or removes a category that has no other reference."""
        category = self._catalog.find(name)
        there = {digest for _, _, digest in self._writer.references.keys(category)} if category else set()
        gone = there & self._hashes
        if not gone:
            return
        try:
            if gone == there:
                self._writer.remove(name, withdraw=False)
            else:
                self._writer.remove_references(name, gone, withdraw=False)
        except VersionConflictError:
            raise  # the caller expects another version
        except (ConflictError, InvalidInputError):
            return  # changed or removed by another writer: the next attempt looks again


def _drop_marks(catalog: Catalog, hashes: Collection[str]) -> bool:
    """Deletes the marks and the hashes of images from manifests and records; returns False if there were none."""
    concerned = [m["category"] for m in catalog.manifests() if without_marks(m, hashes) != m or "transfer" in m]
    puts = []
    for manifest in settled(catalog, concerned).manifests.values():
        left = without_marks(manifest, hashes)
        left.pop("transfer", None)  # of a transfer that is over, and may have been cancelled
        if left != manifest:
            puts.append(Put(id_of(manifest), {**left, "version": manifest["version"] + 1}, expected(manifest)))
    for record in History(catalog).records.values():
        changed = dict(record)
        changed["before"] = {n: was and without_marks(was, hashes) for n, was in record["before"].items()}
        if images := record.get("images"):
            changed["images"] = {**images, "hashes": [one for one in images["hashes"] if one not in hashes]}
        if changed != record:
            puts.append(Put(record["id"], {**changed, "version": record["version"] + 1}, expected(record)))
    if puts:
        catalog.put(puts)
    return bool(puts)


def _discount(catalog: Catalog, found: Collection[_Place]) -> None:
    """Subtracts these points from the numbers of references in change records.

    Raises:
        ConflictError: Others replaced the records at every attempt.
    """
    counted = [place for place in found if place.encoder != IMAGES]

    def attempt() -> bool:
        puts = [
            Put(record["id"], discounted, expected(record))
            for record in History(catalog).records.values()
            if (discounted := _discounted(record, counted)) is not None
        ]
        if puts:
            catalog.put(puts)
        return not puts

    until_won(
        attempt, lambda: f"others change the history of {catalog.location} again and again: forget the image again"
    )


def _discounted(record: Record, places: Iterable[_Place]) -> dict[str, Any] | None:
    """Returns a change record that no longer counts these references; ``None`` if `record` counts none of them."""
    forgotten = set(record.get("forgotten", ()))  # ids of points that are already subtracted
    before = dict(record["before"])
    for place in places:
        was = before.get(place.category)
        if was and place.write_id in was["writes"] and place.id not in forgotten:
            fewer = Counter(was["references"])
            fewer[expert_name(place.encoder, "image")] -= 1
            before[place.category] = {**was, "references": dict(+fewer)}
            forgotten.add(place.id)
    if len(forgotten) == len(record.get("forgotten", ())):
        return None
    return {**record, "version": record["version"] + 1, "before": before, "forgotten": sorted(forgotten)}
