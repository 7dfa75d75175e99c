"""The inbox of a store: images that wait for a label, with their vectors, by encoder, and small copies.

There is one point an image, by its content hash. Nothing that classifies reads it, and no record of the catalog says
that it is there: each point has the id of its store. So points of a store that was dropped are told from those of the
one that has the namespace now.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zsvec.errors import ImageError, InvalidInputError, StoreError
from zsvec.store.backends.base import Backend, Points, Where
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.schema import collection_name, point_id, text_from, time_from
from zsvec.store.collections.images import small_image
from zsvec.types import Fingerprint, SmallImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INBOX = "inbox"
INBOX_INDEXES: Mapping[str, str] = {"hash": "keyword", "store": "keyword"}

Why: TypeAlias = Literal["asked", "uncertain", "all"]
"""Why an image was kept: somebody asked for it; it was uncertain; or all were to be kept."""

_FIELDS = ("hash", "source", "added", "width", "height", "why", "dismissed")
_AT_ONCE = 256  # images in one request


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxImage:
    """An image that waits for a label.

    Attributes:
        hash: Content hash of the image.
        source: Where it came from.
        added: When it was kept (UTC).
        width: Of the image itself, upright, in pixels.
        height: Likewise.
        why: Why it was kept.
        dismissed: Whether it waits no more, and is there so that nothing like it is kept again.
        vectors: By encoder, float32 ``(dim,)``, unit norm; empty if not asked for.
        content: Its small copy as a file, a JPEG; ``None`` without one, or if not asked for.
    """

    hash: str
    source: str
    added: datetime
    width: int = 0
    height: int = 0
    why: Why = "asked"
    dismissed: bool = False
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    content: bytes | None = None


class InboxCollection:
    """The inbox of one namespace.

    Args:
        backend: Where the collection is.
        catalog: Of the store.
        namespace: Prefix of its name.
    """

    def __init__(self, backend: Backend, catalog: Catalog, namespace: str) -> None:
        self._backend = backend
        self._catalog = catalog
        self._made = ""  # for which store
        self.name = collection_name(namespace, INBOX)

    def create(self) -> None:
        """Make the collection, unless it exists; the store is bound to its encoders.

        Raises:
            InvalidInputError: One of the encoders has the name of the collection.
            StoreError: The collection belongs to somebody else.
        """
        if self._made == (store := self._store_id()):
            return
        encoders = self._encoders()
        if not store:
            raise StoreError(f"{self._backend.location} is no store of this version yet: add a category first")
        stores = set(self._stores())
        if stores and store not in stores:  # all of a store that was dropped, which may have had other encoders
            self._backend.remove(self.name)
        elif others := stores - {store}:
            self._backend.delete(self.name, Where(match={"store": sorted(others)}))
        dims = {name: fingerprint.dim for name, fingerprint in encoders.items()}
        self._backend.create(self.name, dims, INBOX_INDEXES)
        self._made = store

    def _encoders(self) -> Mapping[str, Fingerprint]:
        encoders = self._catalog.encoders()
        if INBOX in encoders:  # of a version that did not reserve the name
            raise InvalidInputError(
                f"{self._catalog.location} cannot have an inbox, because one of its encoders is named {INBOX!r}: "
                "import again with another name"
            )
        return encoders

    def _stores(self) -> Iterator[str]:
        """Ids of the stores that the points belong to.

        Raises:
            StoreError: A point is not one of zsvec.
        """
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

    def read(self, hashes: Sequence[str] | None = None, *, vectors: bool = False) -> list[InboxImage]:
        """The images of this store that can be read, those that were dismissed too; none has its copy.

        Args:
            hashes: Only these.
            vectors: Whether to read the vectors; an image that lacks one is then left out.
        """
        if INBOX in (encoders := self._catalog.encoders()) or not (store := self._store_id()):
            return []
        dims = {name: fingerprint.dim for name, fingerprint in encoders.items()} if vectors else {}
        return [
            image
            for where in _parts(store, hashes)
            for page in self._backend.scroll(self.name, where, vectors=vectors, fields=_FIELDS)
            for row, payload in zip(page.rows, page.payloads, strict=True)
            if (image := _image(payload, row if vectors else {}, dims))
        ]

    def small(self, content_hash: str) -> SmallImage | None:
        """The small copy of an image, if there is one that can be read."""
        if INBOX in self._catalog.encoders() or not (store := self._store_id()):
            return None
        for where in _parts(store, [content_hash]):
            for page in self._backend.scroll(self.name, where):
                for payload in page.payloads:
                    with suppress(ImageError):
                        return small_image(payload)
        return None

    def put(self, images: Sequence[InboxImage]) -> None:
        """Write images, in the place of those of the same hash; raises as `create`."""
        self.create()
        for first in range(0, len(images), _AT_ONCE):
            some = images[first : first + _AT_ONCE]
            points = Points(
                ids=[_place(self._made, image.hash) for image in some],
                rows=[dict(image.vectors) for image in some],
                payloads=[_payload(image, self._made) for image in some],
            )
            self._backend.upsert(self.name, points)

    def delete(self, hashes: Collection[str]) -> None:
        """Delete images, those that are there."""
        if hashes and (store := self._store_id()) and self._backend.exists(self.name):
            for where in _parts(store, sorted(hashes)):
                self._backend.delete(self.name, where)

    def forget(self, content_hash: str) -> int:
        """Delete an image, and of an embedded store its bytes, and say how many there were; it may be kept again."""
        found = len(self.read([content_hash]))
        self.delete({content_hash})
        if INBOX not in self._catalog.encoders() and self._is_ours():
            self._backend.rewrite(self.name)
        return found

    def _is_ours(self) -> bool:
        try:
            return set(self._stores()) <= {self._store_id()}
        except StoreError:  # somebody else has filled it
            return False

    def clear(self) -> None:
        """Delete all images of this store. Where no other process can write, the files go too."""
        encoders, store = self._catalog.encoders(), self._store_id()
        if INBOX in encoders or not store or not self._backend.exists(self.name):
            return
        if self._backend.exclusive:  # what is only deleted stays in the files
            list(self._stores())  # refuses somebody else's
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
        "dismissed": "yes" if image.dismissed else "no",
    }
    return payload if image.content is None else {**payload, "small": b64encode(image.content).decode()}


def _image(payload: Mapping[str, Any], row: Any, dims: Mapping[str, int]) -> InboxImage | None:
    """The image of a point, which anybody who may write to the store may have written; ``None`` if it is none."""
    content_hash, why, added = text_from(payload, "hash"), text_from(payload, "why"), time_from(payload)
    vectors = _vectors(row, dims)
    if content_hash is None or added is None or vectors is None:
        return None
    width, height = (value if isinstance(value := payload.get(key), int) else 0 for key in ("width", "height"))
    return InboxImage(
        hash=content_hash,
        source=text_from(payload, "source") or "",
        added=min(added.astimezone(UTC), datetime.now(UTC)),  # by a clock that is ahead, it would stay for ever
        width=width,
        height=height,
        why="uncertain" if why == "uncertain" else "all" if why == "all" else "asked",
        dismissed=payload.get("dismissed") == "yes",
        vectors=vectors,
    )


def _vectors(row: Any, dims: Mapping[str, int]) -> dict[str, NDArray[np.float32]] | None:
    """The vectors of a point; ``None`` if one is missing, of another dimension, or has no direction."""
    import numpy as np  # slow to import, and not needed to list the categories of a store

    if not isinstance(row, Mapping):
        return None
    found = {name: np.asarray(row[name], dtype=np.float32) for name in dims if name in row}
    for name, dim in dims.items():
        if name not in found or found[name].shape != (dim,) or not 0.5 < float(np.linalg.norm(found[name])) < 2:
            return None
    return found
