"""The collections of references, one per encoder.

Readers use only the references of writes that a manifest names. Small copies of images are written and deleted with the
references of a write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zsvec.errors import StoreError
from zsvec.store.backends.base import EXACT, Backend, Hit, Points, Where
from zsvec.store.catalog.schema import (
    REFERENCE_INDEXES,
    Reference,
    is_reference,
    reference_from,
    reference_payload,
    text_from,
    time_from,
)
from zsvec.store.collections.images import ImageCollection
from zsvec.store.names import IMAGES, collection_name, point_id
from zsvec.types import Category, Modality, SearchParams, StoredReference, encoder_and_modality, expert_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HIT_FIELDS = ("category", "gen", "source", "hash")
_IMAGE_FIELDS = ("gen", "hash", "source", "added", "by")
_MODALITIES: tuple[Modality, ...] = ("text", "image")
_AT_ONCE = 256  # write ids or hashes in one filter


class ReferenceCollections:
    """The collections of references of one namespace.

    Attributes:
        images: The collection of small copies of images.
    """

    def __init__(self, backend: Backend, namespace: str) -> None:
        self.images = ImageCollection(backend, namespace)
        self._backend = backend
        self._namespace = namespace

    def collection(self, encoder: str) -> str:
        """Returns the name of the collection of an encoder."""
        return collection_name(self._namespace, encoder)

    def create(self, encoder: str, dim: int) -> None:
        """Creates the collection of an encoder, unless it exists."""
        self._backend.create(self.collection(encoder), dim, REFERENCE_INDEXES)

    # Reading

    def pages(
        self, encoder: str, write_ids: Sequence[str], *, vectors: bool = True, all_writes: bool = False
    ) -> Iterator[Points]:
        """Yields references without unreadable payloads; arguments are as in `zsvec.store.store.Store.references`."""
        wanted = frozenset(write_ids)
        for where in [Where()] if all_writes else _wheres(write_ids):
            for page in self._backend.scroll(self.collection(encoder), where, vectors=vectors):
                yield page.chosen(
                    [i for i, payload in enumerate(page.payloads) if is_reference(payload) and payload["gen"] in wanted]
                )

    def read(self, category: Category, *, vectors: bool = True) -> Iterator[Reference]:
        """Yields every reference of a category. If `vectors` is False, the vectors are empty."""
        for encoder in dict.fromkeys(encoder_and_modality(expert)[0] for expert in category.references):
            for page in self.pages(encoder, category.write_ids, vectors=vectors):
                for payload, vector in zip(page.payloads, page.vectors, strict=True):
                    yield reference_from(encoder, payload, vector)

    def described(self, category: Category) -> list[StoredReference]:
        """Returns each text and image of a category once, with its experts: first texts, then images, oldest first."""
        found: dict[tuple[Modality, str], list[Reference]] = {}
        for reference in self.read(category, vectors=False):
            found.setdefault((reference.modality, reference.hash), []).append(reference)
        described = [_described(category.name, one) for one in found.values()]
        return sorted(described, key=lambda one: (one.modality == "image", str(one.added or ""), one.source, one.hash))

    def first_images(self, categories: Iterable[Category], most: int) -> dict[str, list[StoredReference]]:
        """As `zsvec.store.store.Store.first_images`."""
        of_encoder: dict[str, dict[str, str]] = {}  # category by write id, by encoder
        for category in categories:
            experts = sorted(map(encoder_and_modality, category.own))
            encoder = next((encoder for encoder, modality in experts if modality == "image"), None)
            if encoder is not None:
                of_encoder.setdefault(encoder, {}).update(dict.fromkeys(category.write_ids, category.name))
        found: dict[str, list[StoredReference]] = {}
        for encoder, names in of_encoder.items():
            payloads: dict[str, list[Mapping[str, Any]]] = {}
            for some in _parts(list(names)):
                for name, images in self._some_images(encoder, {write_id: names[write_id] for write_id in some}, most):
                    payloads.setdefault(name, []).extend(images)
            for name, images in payloads.items():
                images.sort(key=lambda one: (str(one.get("added", "")), one["source"], one["hash"]))
                found[name] = [
                    StoredReference(
                        category=name,
                        hash=one["hash"],
                        modality="image",
                        source=one["source"],
                        added=time_from(one),
                        by=text_from(one, "by"),
                        experts=(expert_name(encoder, "image"),),
                    )
                    for one in images[:most]
                ]
        return found

    def _some_images(
        self, encoder: str, names: Mapping[str, str], most: int
    ) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
        """Yields, by category, the payloads of at most `most` images; `names` has the categories by write id.

        Points come in the order of their ids, which are hashes. So the first points are of all categories alike, and
        only a few categories, such as small ones beside large ones, need another and longer scroll.
        """
        waiting, limit = dict(names), 2 * most * len(names)
        while waiting:
            where = Where(match={"gen": list(waiting), "modality": "image"})
            found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in waiting.values()}
            read = 0
            for page in self._backend.scroll(self.collection(encoder), where, fields=_IMAGE_FIELDS, limit=limit):
                read += len(page.ids)
                for payload in page.payloads:
                    if is_reference(payload, ("gen", "hash", "source")):
                        images = found[waiting[payload["gen"]]]
                        if len(images) < most:
                            images.append(payload)
            is_all = read < limit
            yield from ((name, images) for name, images in found.items() if images and (is_all or len(images) == most))
            if is_all:
                return
            waiting = {write_id: name for write_id, name in waiting.items() if len(found[name]) < most}
            limit *= 2

    def keys(self, category: Category) -> set[tuple[str, str, str]]:
        """Returns the `Reference.key` of every reference of a category."""
        return {reference.key for reference in self.read(category, vectors=False)}

    def holders(self, hashes: Collection[str], categories: Sequence[Category]) -> dict[str, set[str]]:
        """Returns, by content hash, the names of the categories that have the image."""
        live = {write_id: category.name for category in categories for write_id in category.write_ids}
        experts = {encoder_and_modality(expert) for category in categories for expert in category.references}
        found: dict[str, set[str]] = {}
        for encoder in sorted(encoder for encoder, modality in experts if modality == "image"):
            for page in self.with_hashes(encoder, "image", hashes):
                for payload in page.payloads:
                    if name := live.get(payload["gen"]):
                        found.setdefault(payload["hash"], set()).add(name)
        return found

    def with_hashes(
        self, encoder: str, modality: Modality, hashes: Collection[str], *, vectors: bool = False
    ) -> Iterator[Points]:
        """Yields the references with these content hashes, in pages, with the fields category, gen and hash.

        References of replaced writes and of writes in progress are included.
        """
        fields = ("category", "gen", "hash")
        for some in _parts(sorted(hashes)):
            where = Where(match={"hash": some, "modality": modality})
            for page in self._backend.scroll(self.collection(encoder), where, vectors=vectors, fields=fields):
                yield page.chosen([i for i, payload in enumerate(page.payloads) if is_reference(payload, fields)])

    def count(self, encoder: str) -> int:
        """Returns the number of stored references of an encoder, including uncommitted ones."""
        return self._backend.count(self.collection(encoder), Where())

    def counts(self, category: Category) -> dict[str, int]:
        """Returns, by expert, the number of stored references of a category. After a loss, the manifest counts more."""
        if self._backend.exclusive:  # the index of a damaged file may count more than can be read
            read = Counter(expert_name(r.encoder, r.modality) for r in self.read(category, vectors=False))
            return {expert: read[expert] for expert in category.references} | read
        counted: dict[str, int] = {}
        for expert in category.references:
            encoder, modality = encoder_and_modality(expert)
            where = Where(match={"gen": list(category.write_ids), "modality": modality})
            counted[expert] = self._backend.count(self.collection(encoder), where)
        return counted

    def garbage(self, categories: Iterable[Category], encoders: Iterable[str], kept: Iterable[str]) -> Counter[str]:
        """Returns the number of references of neither these categories nor the kept writes, by expert."""
        found: Counter[str] = Counter()
        parts = _parts(sorted(kept))
        for encoder in encoders:
            for modality in _MODALITIES:
                wheres = [Where(match={"modality": modality, "gen": some}) for some in parts]
                others = sum(self._backend.count(self.collection(encoder), where) for where in wheres)
                stored = self._backend.count(self.collection(encoder), Where(match={"modality": modality}))
                found[expert_name(encoder, modality)] = stored - others
        for category in categories:
            found.subtract(category.references)
        return +found

    def query(
        self,
        encoder: str,
        modality: Modality,
        vectors: NDArray[np.float32],
        limit: int,
        write_ids: Sequence[str] | None = None,
        params: SearchParams = EXACT,
    ) -> list[list[Hit]]:
        """As `zsvec.store.store.Store.query`."""
        where = Where(match={"modality": modality} if write_ids is None else {"modality": modality, "gen": write_ids})
        found = self._backend.query(self.collection(encoder), vectors, where, limit, _HIT_FIELDS, params)
        if unreadable := [hit.id for hits in found for hit in hits if not is_reference(hit.payload, _HIT_FIELDS)]:
            raise StoreError(
                f"the reference {unreadable[0]} in {self.collection(encoder)!r} of {self._backend.location} cannot be "
                "read: `zsvec doctor` shows which category it is missing from; remove that and add it again"
            )
        return found

    # Writing

    def put(self, planned: Iterable[tuple[Category, Sequence[Reference]]]) -> None:
        """Writes references of categories, each under the last write id of the category."""
        rows: dict[str, list[tuple[Category, Reference]]] = {}
        for category, references in planned:
            for reference in references:
                rows.setdefault(reference.encoder, []).append((category, reference))
        for encoder, pairs in rows.items():
            points = Points(
                ids=[point_id(encoder, c.name, r.modality, c.write_ids[-1], r.hash) for c, r in pairs],
                rows=[reference.vector for _, reference in pairs],
                payloads=[reference_payload(r, c.name, c.write_ids[-1]) for c, r in pairs],
            )
            self._backend.upsert(self.collection(encoder), points)

    def writes(self, collections: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yields the category and write id of every reference and every small copy in these collections."""
        for name in collections:
            for page in self._backend.scroll(self.collection(name), Where(), fields=("category", "gen")):
                yield from ((p["category"], p["gen"]) for p in page.payloads if is_reference(p, ("category", "gen")))

    def delete(self, collections: Iterable[str], write_ids: Sequence[str]) -> Counter[str]:
        """Deletes the references and small copies of these writes. Returns the number of references by expert."""
        deleted: Counter[str] = Counter()
        for name in collections:
            collection = self.collection(name)
            if name == IMAGES and not self._backend.exists(collection):
                continue
            for where in _wheres(write_ids):
                if name != IMAGES:
                    for page in self._backend.scroll(collection, where, fields=("modality",)):
                        readable = [p for p in page.payloads if is_reference(p, ("modality",))]
                        deleted.update(expert_name(name, payload["modality"]) for payload in readable)
                self._backend.delete(collection, where)
        return deleted


def _wheres(write_ids: Sequence[str]) -> list[Where]:
    return [Where(match={"gen": some}) for some in _parts(write_ids)]


def _parts(values: Sequence[str]) -> list[list[str]]:
    return [list(values[first : first + _AT_ONCE]) for first in range(0, len(values), _AT_ONCE)]


def _described(category: str, references: Sequence[Reference]) -> StoredReference:
    one = references[0]
    return StoredReference(
        category=category,
        hash=one.hash,
        modality=one.modality,
        source=one.source,
        prompt=one.prompt,
        group=one.group,
        added=one.added,
        by=one.by,
        experts=tuple(sorted(expert_name(reference.encoder, reference.modality) for reference in references)),
    )
