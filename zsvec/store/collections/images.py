"""The collection of small copies of reference images, for display. Classification does not read the copies.

Like a reference, a copy is written under the id of a write before the commit, and deleted with the references of that
write. An image of several writes has one copy per write, because a shared copy could not be deleted without knowing all
these writes.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from zsvec.errors import ImageError
from zsvec.store.backends.base import Backend, Points, Where
from zsvec.store.catalog.schema import IMAGE_INDEXES, Reference, text_from, time_from
from zsvec.store.names import IMAGES, collection_name, point_id
from zsvec.types import Category, SmallImage

_AT_ONCE = 256  # copies in one request


class ImageCollection:
    """The small copies of images of one namespace."""

    def __init__(self, backend: Backend, namespace: str) -> None:
        self._backend = backend
        self.name = collection_name(namespace, IMAGES)

    def create(self) -> None:
        """Creates the collection, unless it exists."""
        self._backend.create(self.name, 1, IMAGE_INDEXES, memory="cold")

    def put(self, planned: Iterable[tuple[Category, Sequence[Reference]]], stored: Mapping[str, Sequence[str]]) -> None:
        """Writes copies of images, each under the last write id of the category.

        Args:
            planned: Categories with the references to write. For an image reference without ``small``, the stored copy
                is written again.
            stored: By category, the write ids of the stored copies.
        """
        rows = (
            (point_id(IMAGES, payload["category"], "image", payload["gen"], payload["hash"]), payload)
            for category, references in planned
            for payload in self._payloads(category, references, stored.get(category.name, ()))
        )
        while some := list(islice(rows, _AT_ONCE)):
            self._upsert(some)

    def _upsert(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        points = Points([place for place, _ in rows], [[1.0]] * len(rows), [payload for _, payload in rows])
        self._backend.upsert(self.name, points)

    def read(self, write_ids: Sequence[str], hashes: Sequence[str]) -> Iterator[SmallImage]:
        """Yields the readable copy of each image with one of these hashes in these writes, once."""
        for first in range(0, len(hashes), _AT_ONCE):
            some = list(hashes[first : first + _AT_ONCE])
            where = Where(match={"gen": list(write_ids), "hash": some})
            found: dict[str, SmallImage] = {}
            for small in small_images(self._backend.scroll(self.name, where)):
                if small.hash in some:  # a server may send others
                    found.setdefault(small.hash, small)
            yield from found.values()

    def add(self, category: Category, copies: Iterable[SmallImage]) -> int:
        """Writes copies under the last write id of a category, and returns their number of bytes."""
        size, write_id, left = 0, category.write_ids[-1], iter(copies)
        belongs = {"category": category.name, "gen": write_id}
        while some := list(islice(left, _AT_ONCE)):
            places = [point_id(IMAGES, category.name, "image", write_id, small.hash) for small in some]
            self._upsert([(p, {**_payload(small), **belongs}) for p, small in zip(places, some, strict=True)])
            size += sum(len(small.content) for small in some)
        return size

    def _payloads(
        self, category: Category, references: Iterable[Reference], write_ids: Sequence[str]
    ) -> Iterator[Mapping[str, Any]]:
        images = [reference for reference in references if reference.modality == "image"]
        if not images:
            return
        belongs = {"category": category.name, "gen": category.write_ids[-1]}
        given = {reference.hash: reference.small for reference in images if reference.small is not None}
        yield from ({**_payload(small), **belongs} for small in given.values())
        others = list({reference.hash for reference in images} - given.keys()) if write_ids else []
        for first in range(0, len(others), _AT_ONCE):
            where = Where(match={"gen": list(write_ids), "hash": others[first : first + _AT_ONCE]})
            for page in self._backend.scroll(self.name, where):
                yield from ({**payload, **belongs} for payload in page.payloads)

    def find(self, content_hash: str) -> SmallImage | None:
        """Returns the copy of an image, if a readable one exists."""
        return next(small_images(self._backend.scroll(self.name, Where(match={"hash": content_hash}))), None)


def _payload(small: SmallImage) -> dict[str, Any]:
    payload = {
        "hash": small.hash,
        "small": b64encode(small.content).decode(),
        "width": small.width,
        "height": small.height,
        "source": small.source,
    }
    return payload if small.added is None else {**payload, "added": small.added.isoformat(timespec="milliseconds")}


def small_images(pages: Iterable[Points]) -> Iterator[SmallImage]:
    """Yields the readable copies of images. Untrusted writers may have stored invalid copies."""
    for page in pages:
        for payload in page.payloads:
            with suppress(ImageError):
                yield _small_image(payload)


def _small_image(payload: Mapping[str, Any]) -> SmallImage:
    from zsvec.inputs.small import open_small  # imports Pillow, which listing categories does not need

    content_hash = text_from(payload, "hash")
    if content_hash is None:
        raise ImageError("it has no content hash")
    width, height = payload.get("width"), payload.get("height")
    try:
        content = b64decode(payload["small"], validate=True)
    except (KeyError, TypeError, ValueError) as exc:
        raise ImageError("it is no small copy") from exc
    open_small(content)
    return SmallImage(
        hash=content_hash,
        content=content,
        width=width if isinstance(width, int) else 0,
        height=height if isinstance(height, int) else 0,
        source=text_from(payload, "source") or "",
        added=time_from(payload),
    )
