"""Forgetting an image: no reference, no copy, no change keeps it, in no collection.

Who asks for that wants it done at once and for good. So the categories that have the image are committed without it;
the changes that can be taken back count it no more; and then all of its points are deleted, also those of writes that
were replaced, and of writers at work. These are fenced (`zsvec.store.collector`): what they were about to commit is
lost, and they plan again on what is there then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tenacity import RetryError, Retrying, retry_if_not_result, stop_after_attempt, wait_random_exponential

from zsvec.errors import CategoryNotFoundError, ConflictError, InvalidInputError
from zsvec.store.backends.base import Put, Where
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.history import FORGET, History, Record
from zsvec.store.catalog.schema import IMAGES, category_from, expected, is_reference
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.collector import Collector
from zsvec.store.mending import remove_references
from zsvec.store.transfer import settled
from zsvec.store.writing import remove_category
from zsvec.types import Forgotten, expert_name

_ATTEMPTS = 12


@dataclass(frozen=True, slots=True)
class _Place:
    """A point that has the image: of which encoder, or `IMAGES`, and of which category and write."""

    encoder: str
    id: str
    category: str
    write_id: str


def forget(catalog: Catalog, references: ReferenceCollections, collector: Collector, content_hash: str) -> Forgotten:
    """As `zsvec.store.store.Store.forget`."""
    collector.cause = replace(collector.cause, what=FORGET)
    changed: set[str] = set()
    deleted: set[tuple[str, str]] = set()

    def attempt() -> bool:
        found = list(_places(catalog, references, content_hash))
        if not found:
            return True
        names = {place.category for place in found}
        before = settled(catalog, names)
        live = {name: set(category.write_ids) for name, category in before.categories().items()}
        for name in {place.category for place in found if place.write_id in live.get(place.category, ())}:
            _take_out(catalog, references, collector, name, content_hash)
            changed.add(name)
        now = collector.fence(names, settled(catalog, names).manifests)
        if now is None:
            return False
        named = {w for manifest in now.values() for w in category_from(manifest).write_ids}
        dead = [place for place in found if place.write_id not in named]
        _discount(catalog, dead)
        _delete(catalog, references, dead)
        deleted.update((place.encoder, place.id) for place in dead)
        return False  # until none is found: others may have been at work

    retrying = Retrying(
        retry=retry_if_not_result(bool),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.01, max=1.0),
    )
    try:
        retrying(attempt)
    except RetryError as exc:
        raise ConflictError(
            f"others add the image {content_hash[:12]} to {catalog.location} again and again: stop them, and forget it "
            "once more"
        ) from exc
    for name in catalog.collections():  # again, if a process was killed before it had come so far
        catalog.backend.rewrite(references.collection(name))
    return Forgotten(tuple(sorted(changed)), len(deleted))


def _places(catalog: Catalog, references: ReferenceCollections, content_hash: str) -> Iterator[_Place]:
    """All of them. Collections are read as a whole: a server may refuse to look for what it has no index of."""
    fields = ("category", "gen", "hash", "modality")
    for name in catalog.collections():
        collection = references.collection(name)
        for page in catalog.backend.scroll(collection, Where(), fields=fields):
            for identifier, payload in zip(page.ids, page.payloads, strict=True):
                has_it = payload.get("hash") == content_hash and (name == IMAGES or payload.get("modality") == "image")
                if has_it and is_reference(payload, ("category", "gen")):
                    yield _Place(name, identifier, str(payload["category"]), str(payload["gen"]))


def _take_out(
    catalog: Catalog, references: ReferenceCollections, collector: Collector, name: str, content_hash: str
) -> None:
    """Commit a category without the image; one that has nothing else is removed."""
    category = catalog.find(name)
    if category is None:
        return
    keys = references.keys(category)
    if not any(digest == content_hash for _, _, digest in keys):
        return
    try:
        if all(digest == content_hash for _, _, digest in keys):
            remove_category(catalog, references, collector, name)
        else:
            remove_references(catalog, references, collector, name, [content_hash])
    except (CategoryNotFoundError, InvalidInputError):
        return  # somebody else has changed it: the next attempt looks again


def _discount(catalog: Catalog, found: Collection[_Place]) -> None:
    """Let the changes that can be taken back not expect the image of their writes."""
    counted = [place for place in found if place.encoder != IMAGES]
    for _ in range(_ATTEMPTS):
        puts = [
            Put(record["id"], discounted, expected(record))
            for record in History(catalog).records.values()
            if (discounted := _discounted(record, counted)) is not None
        ]
        if not puts:
            return
        catalog.put(puts)


def _discounted(record: Record, places: Iterable[_Place]) -> dict[str, Any] | None:
    """A change without these references; ``None`` if it counts none of them."""
    forgotten = set(record.get("forgotten", ()))  # a reference is not to be taken off twice
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


def _delete(catalog: Catalog, references: ReferenceCollections, places: Sequence[_Place]) -> None:
    ids: dict[str, list[str]] = {}
    for place in places:
        ids.setdefault(place.encoder, []).append(place.id)
    for name, some in ids.items():
        catalog.backend.drop(references.collection(name), some)
