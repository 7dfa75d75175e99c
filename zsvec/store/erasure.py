"""Erasure of an image from all categories, small copies, changes and collections, at once and permanently.

Categories are committed without the image, and changes that can be undone no longer count the image. Then all points of
the image are deleted, including points of replaced writes and of writes in progress. The writers in progress are fenced
(`zsvec.store.collector`): their commits are lost, and they plan again. Last, the marks of the image are deleted from
manifests and changes (`zsvec.store.catalog.marks`), and the hash from the changes that name the image as an example, so
that not even a part of the hash stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from zsvec.errors import ConflictError, InvalidInputError, VersionConflictError
from zsvec.store.backends.base import Put, Where
from zsvec.store.catalog.catalog import Catalog, id_of
from zsvec.store.catalog.history import FORGET, History, Record
from zsvec.store.catalog.marks import without_marks
from zsvec.store.catalog.schema import category_from, expected, is_reference
from zsvec.store.names import IMAGES
from zsvec.store.transfer import settled
from zsvec.store.writing import Writer, until_won
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
    catalog, references, collector = writer.catalog, writer.references, writer.collector
    collector.cause = replace(collector.cause, what=FORGET)
    changed: set[str] = set()
    deleted: set[tuple[str, str]] = set()

    def attempt() -> bool:
        found = list(_places(writer, content_hash))
        if not found:
            return True
        names = {place.category for place in found}
        before = settled(catalog, names)
        live = {name: set(category.write_ids) for name, category in before.categories().items()}
        for name in {place.category for place in found if place.write_id in live.get(place.category, ())}:
            _take_out(writer, name, content_hash)
            changed.add(name)
        now = collector.fence(names, settled(catalog, names).manifests)
        if now is None:
            return False
        named = {w for manifest in now.values() for w in category_from(manifest).write_ids}
        dead = [place for place in found if place.write_id not in named]
        _discount(catalog, dead)
        for encoder in {place.encoder for place in dead}:
            catalog.backend.drop(references.collection(encoder), [one.id for one in dead if one.encoder == encoder])
        deleted.update((place.encoder, place.id) for place in dead)
        return False  # repeat until none is found, since other writers may add the image

    def message() -> str:
        return (
            f"others add the image {content_hash[:12]} to {catalog.location} again and again: stop them, and forget it "
            "once more"
        )

    until_won(attempt, message)
    until_won(lambda: not _drop_marks(catalog, content_hash), message)
    # Even if no point was found: an earlier call may have been killed before this.
    for collection in (*map(references.collection, catalog.collections()), catalog.collection):
        catalog.backend.rewrite(collection)
    return Forgotten(tuple(sorted(changed)), len(deleted))


def _places(writer: Writer, content_hash: str) -> Iterator[_Place]:
    """Yields all points of the image. Reads every point, so that a damaged index hides none."""
    fields = ("category", "gen", "hash", "modality")
    for name in writer.catalog.collections():
        for page in writer.catalog.backend.scroll(writer.references.collection(name), Where(), fields=fields):
            for identifier, payload in zip(page.ids, page.payloads, strict=True):
                has_it = payload.get("hash") == content_hash and (name == IMAGES or payload.get("modality") == "image")
                if has_it and is_reference(payload, ("category", "gen")):
                    yield _Place(name, identifier, str(payload["category"]), str(payload["gen"]))


def _take_out(writer: Writer, name: str, content_hash: str) -> None:
    """Commits a category without the image, or removes a category that has no other reference."""
    category = writer.catalog.find(name)
    hashes = {digest for _, _, digest in writer.references.keys(category)} if category else set()
    if content_hash not in hashes:
        return
    try:
        if hashes == {content_hash}:
            writer.remove(name, withdraw=False)
        else:
            writer.remove_references(name, [content_hash], withdraw=False)
    except VersionConflictError:
        raise  # the caller expects another version
    except (ConflictError, InvalidInputError):
        return  # changed or removed by another writer: the next attempt looks again


def _drop_marks(catalog: Catalog, content_hash: str) -> bool:
    """Deletes the marks and the hash of an image from manifests and records; returns False if there were none."""
    concerned = [m["category"] for m in catalog.manifests() if without_marks(m, content_hash) != m or "transfer" in m]
    puts = []
    for manifest in settled(catalog, concerned).manifests.values():
        left = without_marks(manifest, content_hash)
        left.pop("transfer", None)  # of a transfer that is over, and may have been cancelled
        if left != manifest:
            puts.append(Put(id_of(manifest), {**left, "version": manifest["version"] + 1}, expected(manifest)))
    for record in History(catalog).records.values():
        changed = dict(record)
        changed["before"] = {n: was and without_marks(was, content_hash) for n, was in record["before"].items()}
        if images := record.get("images"):
            changed["images"] = {**images, "hashes": [one for one in images["hashes"] if one != content_hash]}
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
