"""The inbox of a store: images that wait for a label, each with its vectors by encoder and a small copy.

Each image is one point, identified by content hash. Classification does not read the inbox, and no record of the
catalog mentions it. Each point has the id of the store. So a later store of the same namespace does not show the images
of a dropped store.

An image that is labelled or dismissed stays in the collection, with its copy, until the change can no longer be undone
(`InboxCollection.settle`). The image has the record of the change, but not the other way round. So an undo finds the
images of a change, and erasing an image leaves no trace in the history.

Writers change fields of images, and never write an image again that they have read. Each change of an image has its own
field, under the id of its record. So concurrent changes of an image keep each other, and no change restores an image
that another writer has deleted.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args
from uuid import UUID

from zsvec.errors import StoreError
from zsvec.store.backends.base import Points, Where
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.schema import (
    LONGEST_SOURCE,
    cut_from_of,
    is_content_hash,
    keeps_images,
    text_from,
    time_from,
)
from zsvec.store.collections.images import small_images
from zsvec.store.names import INBOX, collection_name, point_id
from zsvec.types import SmallImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zsvec.store.source import Source

INBOX_INDEXES: Mapping[str, str] = {"hash": "keyword", "store": "keyword"}

Why: TypeAlias = Literal["asked", "uncertain", "all"]
"""Why an image was kept: on request, because its prediction is uncertain, or because all images are kept."""

_FIELDS = ("hash", "source", "added", "width", "height", "cut_from", "why", "removals")
_AT_ONCE = 256  # images in one request

How: TypeAlias = Literal["labelled", "dismissed"]
"""How an image was removed from the inbox."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Removal of an image from the inbox.

    Attributes:
        how: Whether the image was labelled or dismissed.
        record: Id of the record of the change; empty if the removal cannot be undone.
        undone: Whether the change is undone.
    """

    how: How
    record: str = ""
    undone: bool = False


FOR_GOOD = Removal("dismissed")  # a dismissal that cannot be undone


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxImage:
    """An image that waits for a label, or waited for one.

    Attributes:
        hash: Content hash of the image.
        source: Origin of the image.
        added: Time of addition (UTC).
        width: Width of the upright image, in pixels; 0 if unknown.
        height: Height of the upright image, in pixels; 0 if unknown.
        cut_from: Content hash of the image that this image was cut from, if it is a box.
        why: Why the image was kept.
        removals: Removals from the inbox, in no particular order, undone ones included.
        vectors: By encoder, float32 ``(dim,)``, unit norm; empty unless requested.
        content: The small copy, a JPEG file; ``None`` if missing or not requested.
    """

    hash: str
    source: str
    added: datetime
    width: int = 0
    height: int = 0
    cut_from: str | None = None
    why: Why = "asked"
    removals: tuple[Removal, ...] = ()
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    content: bytes | None = None

    @property
    def state(self) -> Literal["waiting", "labelled", "dismissed"]:
        """Whether the image waits, has become a reference, or was dismissed, so that near-duplicates are not kept.

        An image that was both labelled and dismissed, such as by two users at once, has become a reference.
        """
        hows = {removal.how for removal in self.removals if not removal.undone}
        return "labelled" if "labelled" in hows else "dismissed" if hows else "waiting"


class InboxCollection:
    """The inbox of one namespace."""

    def __init__(self, catalog: Catalog, namespace: str) -> None:
        self._backend = catalog.backend
        self._catalog = catalog
        self._made = ""  # id of the store for which the collection was made
        self.name = collection_name(namespace, INBOX)

    def create(self) -> None:
        """Creates the collection, unless it exists.

        Raises:
            StoreError: There is no store yet, or zsvec did not make the existing collection.
        """
        if self._made == (store := self._store_id()):
            return
        if not store:
            raise StoreError(f"{self._backend.location} is no store of this version yet: add a category first")
        stores = set(self._stores())
        if stores and store not in stores:  # all points are of dropped stores, which may have had other encoders
            self._backend.remove(self.name)
        elif others := stores - {store}:
            self._backend.delete(self.name, Where(match={"store": sorted(others)}))
        self._backend.create(self.name, self._dims(), INBOX_INDEXES, memory="cold")
        self._made = store

    def _dims(self) -> dict[str, int]:
        return {name: fingerprint.dim for name, fingerprint in self._catalog.encoders().items()}

    def _stores(self) -> Iterator[str]:
        """Yields the ids of the stores of all points; raises StoreError for a point that zsvec did not write."""
        for page in self._backend.scroll(self.name, Where(), fields=("store", "hash")):
            for place, payload in zip(page.ids, page.payloads, strict=True):
                store, content_hash = payload.get("store"), payload.get("hash")
                if not isinstance(store, str) or place != _place(store, str(content_hash)):
                    raise StoreError(
                        f"{self._backend.location} already has a collection {self.name!r} that zsvec did not make: "
                        "choose another namespace"
                    )
                yield store

    def _store_id(self) -> str:
        identifier: str = (self._catalog.store() or {}).get("id", "")
        return identifier

    def read(
        self, hashes: Sequence[str] | None = None, *, vectors: bool = False, labelled: bool = False
    ) -> list[InboxImage]:
        """Returns the readable images of this store, dismissed ones included, without small copies.

        Args:
            hashes: Content hashes of the images to read; ``None`` for all.
            vectors: Whether to read the vectors. An image that lacks a vector is left out.
            labelled: Whether to include labelled images.
        """
        found = self._read(hashes, vectors=vectors, fields=_FIELDS)
        return [image for image in found if labelled or image.state != "labelled"]

    def _read(self, hashes: Sequence[str] | None, *, vectors: bool, fields: Sequence[str]) -> Iterator[InboxImage]:
        if not (store := self._store_id()):
            return
        dims = self._dims() if vectors else {}
        for where in _parts(store, hashes):
            for page in self._backend.scroll(self.name, where, vectors=vectors, fields=fields):
                for row, payload in zip(page.rows, page.payloads, strict=True):
                    if image := image_from(payload, row if vectors else {}, dims):
                        yield image

    def small(self, content_hash: str) -> SmallImage | None:
        """Returns the small copy of an image, if a readable one exists."""
        if not (store := self._store_id()):
            return None
        return next(small_images(self._backend.scroll(self.name, _parts(store, [content_hash])[0])), None)

    def put(self, images: Sequence[InboxImage]) -> None:
        """Writes images, and replaces images with the same hash; raises as `create`."""
        self.create()
        for first in range(0, len(images), _AT_ONCE):
            some = images[first : first + _AT_ONCE]
            points = Points(
                ids=[_place(self._made, image.hash) for image in some],
                rows=[dict(image.vectors) for image in some],
                payloads=[_payload(image, self._made) for image in some],
            )
            self._backend.upsert(self.name, points)
        self._catalog.check_current()  # images that are too late for a switch to other encoders are not acknowledged

    def remove(self, hashes: Collection[str], removal: Removal) -> None:
        """Removes images from the inbox.

        If the removal cannot be undone, labelled images and the copies of dismissed ones are deleted.
        """
        if removal.how == "labelled" and not removal.record:
            self.delete(hashes)
            return

        if not removal.record:
            self._set(hashes, {"small": None})
        self._set(hashes, _stored([removal]), "removals")

    def switch(self, record: str, *, undone: bool) -> None:
        """Undoes or redoes the removals of a change. Idempotent.

        Args:
            record: Id of the record of the change.
            undone: Whether the images become as they were before the change.
        """
        every = self.read(labelled=True)
        for how in get_args(How):
            found = [image.hash for image in every if Removal(how, record, not undone) in image.removals]
            self._set(found, _stored([Removal(how, record, undone)]), "removals")

    def settle(self, images: Iterable[InboxImage]) -> None:
        """Deletes what an undo no longer needs, of images as read: labelled images, and copies of dismissed ones."""
        removed = {
            image.hash: [removal for removal in image.removals if removal.record and not removal.undone]
            for image in images
            if image.state == "labelled" or (image.state == "dismissed" and FOR_GOOD not in image.removals)
        }
        if not removed:
            return
        there = self._catalog.retrieve(sorted({removal.record for some in removed.values() for removal in some}))
        final = {digest: {one.how for one in some if one.record not in there} for digest, some in removed.items()}
        self.delete([digest for digest, hows in final.items() if "labelled" in hows])
        self.remove([digest for digest, hows in final.items() if hows == {"dismissed"}], FOR_GOOD)

    def ask(self, content_hash: str) -> None:
        """Marks an image as kept on request, if it exists."""
        self._set([content_hash], {"why": "asked"})

    def drop_copies(self) -> None:
        """Deletes all small copies. An embedded store also rewrites its files."""
        for where in self._there(None):
            if self._backend.count(self.name, where):
                self._backend.set_payload(self.name, where, {"small": None})
                self._backend.rewrite(self.name)

    def _set(self, hashes: Collection[str], fields: Mapping[str, Any], key: str = "") -> None:
        for where in self._there(hashes):
            self._backend.set_payload(self.name, where, fields, key)

    def _there(self, hashes: Collection[str] | None) -> list[Where]:
        """Returns filters for images; `None` stands for all. There is no filter without images or collection."""
        some = None if hashes is None else sorted(hashes)
        if some == [] or not (store := self._store_id()) or not self._backend.exists(self.name):
            return []
        return _parts(store, some)

    def copies(self, without: Collection[str], *, small: bool) -> Iterator[InboxImage]:
        """As `zsvec.store.source.Source.inbox_images`."""
        hashes = [one.hash for one in self.read() if one.hash not in without and is_content_hash(one.hash)]
        for first in range(0, len(hashes), _AT_ONCE):
            for image in self.read(hashes[first : first + _AT_ONCE], vectors=True):
                if len(image.source) > LONGEST_SOURCE:
                    continue
                if image.state == "dismissed":  # for good, since the history stays behind
                    yield replace(image, removals=(FOR_GOOD,))
                else:
                    found = self.small(image.hash) if small else None
                    yield replace(image, removals=(), content=found.content if found else None)

    def copy_from(self, source: Source) -> int:
        """Adds the readable images of another inbox that are missing here, and returns their number.

        The encoders of both stores must have the same fingerprints. Small copies are left out unless this store keeps
        small copies of images. Raises as `create`.
        """
        there = {image.hash for image in self.read(labelled=True)}
        images = source.inbox_images(there, small=keeps_images(self._catalog.store()))
        copied = 0
        while some := list(islice(images, _AT_ONCE)):
            self.put(some)
            copied += len(some)
        return copied

    def delete(self, hashes: Collection[str]) -> None:
        """Deletes images, if they exist."""
        for where in self._there(hashes):
            self._backend.delete(self.name, where)

    def forget(self, hashes: Collection[str]) -> int:
        """Deletes images, and returns the number of deleted points. An embedded store also rewrites its files."""
        found = len(self.read(sorted(hashes), labelled=True))
        self.delete(hashes)
        if self._is_own():
            self._backend.rewrite(self.name)
        return found

    def _is_own(self) -> bool:
        try:
            return set(self._stores()) <= {self._store_id()}
        except StoreError:
            return False

    def clear(self) -> None:
        """Deletes all images of this store. An embedded store also deletes the files."""
        store = self._store_id()
        if not store or not self._backend.exists(self.name):
            return
        if self._backend.exclusive:  # deleted points stay in the files
            list(self._stores())  # refuses foreign points
            self._backend.remove(self.name)
            self._made = ""
        else:
            self._backend.delete(self.name, Where(match={"store": store}))


def _place(store: str, content_hash: str) -> str:
    return point_id(INBOX, store, "image", "", content_hash)


def _parts(store: str, hashes: Sequence[str] | None) -> list[Where]:
    if hashes is None:
        return [Where(match={"store": store})]
    starts = range(0, len(hashes), _AT_ONCE)
    return [Where(match={"store": store, "hash": list(hashes[first : first + _AT_ONCE])}) for first in starts]


def _payload(image: InboxImage, store: str) -> dict[str, Any]:
    payload = {
        "store": store,
        "hash": image.hash,
        "source": image.source,
        "added": image.added.isoformat(timespec="milliseconds"),
        "width": image.width,
        "height": image.height,
        "why": image.why,
        "removals": _stored(image.removals),
    }
    optional = {
        "cut_from": image.cut_from,
        "small": None if image.content is None else b64encode(image.content).decode(),
    }
    return payload | {name: value for name, value in optional.items() if value is not None}


def image_from(payload: Mapping[str, Any], row: Any, dims: Mapping[str, int]) -> InboxImage | None:
    """Returns the image of a point; ``None`` for an invalid point, which an untrusted writer may have written."""
    content_hash, why, added = text_from(payload, "hash"), text_from(payload, "why"), time_from(payload)
    vectors = _vectors(row, dims)
    if content_hash is None or added is None or vectors is None:
        return None
    width, height = (value if isinstance(value := payload.get(key), int) else 0 for key in ("width", "height"))
    return InboxImage(
        hash=content_hash,
        source=text_from(payload, "source") or "",
        added=min(added.astimezone(UTC), datetime.now(UTC)),  # a time in the future would never expire
        width=width,
        height=height,
        cut_from=cut_from_of(payload),
        why="uncertain" if why == "uncertain" else "all" if why == "all" else "asked",
        removals=tuple(_removals(payload)),
        vectors=vectors,
        content=_content(payload),
    )


def _stored(removals: Iterable[Removal]) -> dict[str, Any]:
    return {removal.record: {"how": removal.how, "undone": removal.undone} for removal in removals}


def _removals(payload: Mapping[str, Any]) -> Iterator[Removal]:
    """Yields the valid removals of a payload."""
    found = payload.get("removals")
    for record, given in found.items() if isinstance(found, Mapping) else ():
        if _is_id(record) and isinstance(given, Mapping) and given.get("how") in get_args(How):
            yield Removal(given["how"], record, given.get("undone") is True)


def _is_id(record: str) -> bool:
    """Returns whether a text can be the id of a record, or is empty. Qdrant refuses to look for any other text."""
    try:
        return not record or str(UUID(record)) == record
    except ValueError:
        return False


def _content(payload: Mapping[str, Any]) -> bytes | None:
    try:
        return b64decode(payload["small"], validate=True)
    except (KeyError, TypeError, ValueError):
        return None


def _vectors(row: Any, dims: Mapping[str, int]) -> dict[str, NDArray[np.float32]] | None:
    """Returns the vectors of a point; ``None`` if one is missing, has another dimension, or is far from unit norm."""
    import numpy as np  # slow to import, and not needed to list categories

    if not isinstance(row, Mapping):
        return None
    found = {name: np.asarray(row[name], dtype=np.float32) for name in dims if name in row}
    for name, dim in dims.items():
        if name not in found or found[name].shape != (dim,) or not 0.5 < float(np.linalg.norm(found[name])) < 2:
            return None
    return found
