"""Embeds the references of a store again, with other encoders, into another namespace of the same store.

The copy is written by ordinary commits of the other namespace, a category in at most thirty parts. An interrupted run
is repeated: vectors that the copy has are not made again. The manifest of a complete category tells from which state of
the source it was made (``made_from``), so that a later run compares all categories by one listing of each namespace.
Vectors of an encoder with the same fingerprint in both namespaces are copied.

Records of the source are validated as input from users is, since any writer may have forged them. A category with an
unusable record is named, and the other categories are copied.

The marks of withdrawn references come along. The history stays behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from zsvec.errors import InvalidInputError, StoreError, StoreLockedError, StoreUnavailableError
from zsvec.inputs.categories import as_words
from zsvec.store.backends.base import Where
from zsvec.store.catalog.catalog import Catalog, readable
from zsvec.store.catalog.changefeed import Cursor, Look, look
from zsvec.store.catalog.commit import publish
from zsvec.store.catalog.marks import newest
from zsvec.store.catalog.schema import LONGEST_SOURCE, Reference, is_content_hash, is_damaged
from zsvec.store.catalog.successor import is_dropped, successor_from
from zsvec.store.collections.inbox import InboxCollection, InboxImage
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.copying import problem_of
from zsvec.store.reuse import StoredVectors
from zsvec.store.transfer import settled
from zsvec.store.writing import Write, Writer, emptied
from zsvec.types import Category, Fingerprint, Modality, SmallImage, StoredReference, encoder_and_modality, expert_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK = 512
"""Number of images after which the references of a copy are committed."""

_MOST_PARTS = 30  # of a category: the writer copies a category of more writes as a whole

Origin: TypeAlias = Literal["original", "small"]
Vectors: TypeAlias = "Mapping[str, NDArray[np.float32]]"
_Key: TypeAlias = tuple[str, str, str]


class Reencoder(Protocol):
    """The encoders of the copy.

    Attributes:
        fingerprints: Fingerprint of each encoder, by name.
        modalities: Modalities of the references of each encoder, by name.
    """

    fingerprints: Mapping[str, Fingerprint]
    modalities: Mapping[str, Collection[Modality]]

    def has_original(self, image: Reference) -> bool:
        """Returns whether there is a file at the source of an image. It may have other content."""
        ...

    def prompt(self, encoder: str, name: str) -> str:
        """Returns the text that an encoder embeds for a category that is defined by its name alone."""
        ...

    def texts(self, encoder: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors of texts, float32 ``(n, dim)``, unit rows."""
        ...

    def images(
        self, images: Sequence[tuple[Reference, SmallImage | None]], encoders: Collection[str]
    ) -> Iterator[tuple[str, Origin, Vectors]]:
        """Yields content hash, origin and vectors of the images that can be read; the others are left out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The numbers of images of a store with an original file, with a small copy, and with neither.

    Attributes:
        present: Number of images that the copy has.
        originals: Number of images with a file at the path of the original.
        small: Number of other images with a small copy.
        neither: Number of images with neither.
    """

    present: int
    originals: int
    small: int
    neither: int


@dataclass(slots=True, kw_only=True)
class Progress:
    """The result of re-embedding so far.

    Attributes:
        committed: Categories of the copy that were committed, by name.
        unchanged: Names of categories that the copy already had.
        origins: Origin of each image that was embedded, by content hash.
        left_out: By category, the references that cannot be embedded.
        damaged: By name of each category that cannot be copied, the reason.
        inbox: Number of images of the inbox that were embedded.
        inbox_left_out: Sources of the images of the inbox that cannot be embedded, by content hash.
    """

    committed: dict[str, Category] = field(default_factory=dict)
    unchanged: set[str] = field(default_factory=set)
    origins: dict[str, Origin] = field(default_factory=dict)
    left_out: dict[str, tuple[StoredReference, ...]] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    inbox: int = 0
    inbox_left_out: dict[str, str] = field(default_factory=dict)


class Reembedding:
    """Copies a store, with vectors of other encoders, and follows the changes of the store.

    Args:
        source: Catalog of the store.
        references: References of the store.
        inbox: Inbox of the store.
        writer: Writer of the copy.
        reencoder: The encoders of the copy.
        on_image: Called with the number of images, whenever images are done.
        on_commit: Called with each category of the copy once it is committed.
    """

    def __init__(
        self,
        source: Catalog,
        references: ReferenceCollections,
        inbox: InboxCollection,
        writer: Writer,
        reencoder: Reencoder,
        *,
        on_image: Callable[[int], None],
        on_commit: Callable[[Category], None],
    ) -> None:
        self.found = Progress()
        self._source = source
        self._references = references
        self._inbox = inbox
        self._writer = writer
        self._reencoder = reencoder
        self._on_image = on_image
        self._on_commit = on_commit
        self._store = source.state([]).store
        stored = source.encoders()
        self._shared = {name for name, one in reencoder.fingerprints.items() if stored.get(name) == one}
        self._encoders = list(stored)
        self._reused = StoredVectors(writer.catalog, writer.references, writer.inbox)
        self._cursor = Cursor()
        self._known: dict[str, int] = {}
        self._listed: tuple[Look, Mapping[str, Mapping[str, Any]]] | None = None
        self._has_texts = False

    def follow(self) -> bool:
        """Embeds what has changed since the last call, at first everything. Returns whether anything had changed.

        Raises:
            StoreError: The store was dropped or switched, another process makes the copy, or an image was forgotten.
        """
        is_first = self._cursor.store is None
        seen, there = self._list() if is_first else (look(self._source, self._cursor, self._known), {})
        self._listed = None
        if seen.reset:
            raise StoreError(f"{self._source.location} was dropped while it was embedded again: repeat the command")
        self._cursor = seen.cursor
        self._known |= {category.name: category.version for category in seen.categories}
        self._find_texts(seen.categories)
        unreadable = "its manifest cannot be read: look with `zsvec doctor`"
        self.found.damaged |= dict.fromkeys(seen.unreadable, unreadable)
        for category in seen.categories:
            if not (is_first and self._is_made(category, there.get(category.name))):
                self._copy(category)
            elif category.write_ids:
                self.found.unchanged.add(category.name)
        if is_first:
            live = {name for name, manifest in there.items() if manifest.get("writes")}
            for name in sorted(live - self._known.keys() - set(seen.unreadable)):
                self._writer.remove(name, withdraw=False)
            self._match_inbox()
            self._writer.collector.collect(0.0)  # a forgotten image may be among what a refused run has left
        return bool(seen.categories)

    def copy_again(self, names: Collection[str]) -> None:
        """Embeds categories again. Used for those that have lost references in the copy."""
        for category in self._source.categories()[0]:
            if category.name in names:
                self._writer.remove(category.name, withdraw=False)  # its manifest counts the lost references
                self._copy(category)

    def _list(self) -> tuple[Look, Mapping[str, Mapping[str, Any]]]:
        """Returns the categories of the source and, by category, the manifests of the copy. `survey` may have read."""
        if self._listed is None:
            manifests = {one["category"]: one for one in self._writer.catalog.manifests() if not is_damaged(one)}
            self._listed = look(self._source, Cursor(), {}), manifests
        return self._listed

    def _is_made(self, category: Category, there: Mapping[str, Any] | None) -> bool:
        """Returns whether the copy has the present state of a category, according to its manifest there, if any."""
        if there is None:
            return not (category.write_ids or category.withdrawn or category.retired)
        is_live = bool(there.get("writes"))
        return is_live == bool(category.write_ids) and there.get("made_from") == self._state_of(category)

    def _state_of(self, category: Category) -> str:
        """Returns a text that identifies the state of a category, and the texts and modalities that are embedded."""
        embedded = {
            name: (sorted(modalities), self._reencoder.prompt(name, "name"))
            for name, modalities in sorted(self._reencoder.modalities.items())
        }
        given = _text_hash(repr((embedded, self._has_texts)))[:16]
        return f"{self._store} {category.version} {category.rev} {given}"  # a restored backup repeats versions

    def _find_texts(self, categories: Iterable[Category]) -> None:
        self._has_texts |= any(
            encoder_and_modality(expert)[1] == "text" for category in categories for expert in category.references
        )

    def _copy(self, category: Category) -> None:
        self.found.damaged.pop(category.name, None)
        self.found.left_out.pop(category.name, None)
        if problem := problem_of(category):
            self.found.damaged[category.name] = problem
            return
        try:
            changed = self._write(category) if category.write_ids else False
            changed |= self._describe(category)
            now = self._writer.catalog.category(category.name) if changed and category.write_ids else None
        except (StoreUnavailableError, StoreLockedError):
            raise
        except (StoreError, InvalidInputError) as exc:
            self._writer.catalog.check_current()
            self.found.damaged[category.name] = str(exc)
            return
        if now:
            self.found.committed[category.name] = now
            self.found.unchanged.discard(category.name)
            self._on_commit(now)
        elif category.write_ids and category.name not in self.found.committed:
            self.found.unchanged.add(category.name)

    def _write(self, category: Category) -> bool:
        """Gives the copy of a category the references of the source, and returns whether any was missing or stale.

        Raises:
            StoreError: None of the references can be embedded, or the source lacks some.
        """
        wanted = self._wanted(category)
        there = settled(self._writer.catalog, [category.name]).category(category.name)
        present = {one.key: one for one in self._present(there)}
        stale = [key for key, one in present.items() if key not in wanted or not _is_same(one, wanted[key])]
        lacking = {key: one for key, one in wanted.items() if key not in present}
        vectors: dict[_Key, NDArray[np.float32]] = {}
        left, written = list[Reference](), False
        parts = _parts(lacking)
        for number, part in enumerate(parts, 1):
            found, copies = self._embedded(category, part)
            left += [one for key, one in part.items() if key not in found]
            if stale:  # written at once, below
                vectors |= found
            elif found:
                is_whole = number == len(parts) and not left and _has_no_marks(category, there)
                chunk = [replace(part[key], vector=row, small=copies.get(key[2])) for key, row in found.items()]
                self._writer.write(
                    [
                        Write(
                            name=category.name,
                            references=chunk,
                            texts=category.texts,
                            metadata=category.metadata,
                            parent=category.parent,
                            made_from=self._state_of(category) if is_whole else None,
                        )
                    ]
                )
                written = True
        if left:
            self.found.left_out[category.name] = _described(category.name, left)
        if stale:
            self._replace(category, there, wanted, vectors)
        elif not (written or present):
            raise _nothing()
        return written or bool(stale)

    def _replace(
        self,
        category: Category,
        there: Category | None,
        wanted: Mapping[_Key, Reference],
        vectors: dict[_Key, NDArray[np.float32]],
    ) -> None:
        """Replaces the references of a category of the copy, some of which are stale.

        Args:
            category: The category of the source.
            there: The category of the copy.
            wanted: The references that the copy should have.
            vectors: The vectors of those that the copy lacks. Gets the vectors of the others.

        Raises:
            StoreError: None of the references can be embedded.
        """
        embedded = set(vectors)
        if there:
            vectors |= {one.key: one.vector for one in self._writer.references.read(there) if one.key not in embedded}
        usable = [replace(one, vector=vectors[key]) for key, one in wanted.items() if key in vectors]
        if not usable:
            self._writer.remove(category.name, withdraw=False)
            raise _nothing()
        self._writer.write([Write(name=category.name, references=usable, texts=category.texts, replace=True)])
        images = sorted({digest for _, modality, digest in embedded if modality == "image"})
        if images and self._writer.catalog.state([]).images:
            now = self._writer.catalog.category(category.name)
            self._writer.references.images.add(now, self._references.images.read(category.write_ids, images))

    def _present(self, there: Category | None) -> Iterator[Reference]:
        if there and there.write_ids:
            yield from self._writer.references.read(there, vectors=False)

    def _wanted(self, category: Category) -> dict[_Key, Reference]:
        """Returns the references that the copy of a category should have, without vectors, by key.

        Raises:
            StoreError: The source lacks references of the category.
        """
        stored = [one for one in self._references.read(category, vectors=False) if _is_usable(one)]
        if len(stored) < sum(category.references.values()):
            raise StoreError(
                f"{len(stored)} of its {sum(category.references.values())} references can be used: look with "
                "`zsvec doctor`"
            )
        wanted: dict[_Key, Reference] = {}
        texts = {one.hash: one for one in stored if one.modality == "text"}
        for encoder, modalities in self._reencoder.modalities.items():
            if encoder in self._shared:
                wanted |= {one.key: one for one in stored if one.encoder == encoder}
                continue
            if "image" in modalities:
                for one in stored:
                    if one.modality == "image":
                        wanted.setdefault((encoder, "image", one.hash), replace(one, encoder=encoder))
            if "text" in modalities:
                given = [one for one in texts.values() if _text_hash(one.source) != one.hash]  # as vectors alone
                wanted |= {(encoder, "text", one.hash): replace(one, encoder=encoder) for one in given}
                for text in self._texts(category, texts, encoder):
                    new = Reference(encoder, "text", _text_hash(text), text, _no_vector())
                    wanted[new.key] = replace(texts.get(new.hash, new), encoder=encoder)
        return wanted

    def _texts(self, category: Category, stored: Mapping[str, Reference], encoder: str) -> list[str]:
        """Returns the texts that an encoder embeds: those of the category, or the prompt of the encoder."""
        if self._has_texts and not stored:  # they were removed
            return []
        by_name = as_words(category.name)
        if category.texts == (by_name,) and _text_hash(by_name) not in stored:
            return [self._reencoder.prompt(encoder, category.name)]
        texts = [one.source for one in stored.values() if _text_hash(one.source) == one.hash]
        return list(dict.fromkeys((*category.texts, *texts)))

    def _embedded(
        self, category: Category, part: Mapping[_Key, Reference]
    ) -> tuple[dict[_Key, NDArray[np.float32]], dict[str, SmallImage]]:
        """Returns the vectors of references that the copy lacks, and the small copies of their images.

        References that cannot be embedded are left out.
        """
        vectors = self._known_vectors(category, part)
        for encoder in self._reencoder.modalities.keys() - self._shared:
            texts = {
                key: one.source
                for key, one in part.items()
                if key[:2] == (encoder, "text") and key not in vectors and _text_hash(one.source) == one.hash
            }
            if texts:
                vectors |= dict(zip(texts, self._reencoder.texts(encoder, list(texts.values())), strict=True))
        images = {one.hash: one for one in part.values() if one.modality == "image"}
        copies = self._small(category, list(images))
        missing: dict[str, set[str]] = {}
        for encoder, modality, digest in part:
            if modality == "image" and encoder not in self._shared and (encoder, modality, digest) not in vectors:
                missing.setdefault(digest, set()).add(encoder)
        encoders = set[str]().union(*missing.values())
        for some in _chunks(missing):  # the images of a chunk are decoded together
            embed = [(images[digest], copies.get(digest)) for digest in some]
            for digest, origin, rows in self._reencoder.images(embed, encoders):
                self.found.origins[digest] = origin
                vectors |= {(encoder, "image", digest): rows[encoder] for encoder in missing[digest]}
            self._on_image(len(embed))
        self._writer.catalog.check_current()  # an image may have been forgotten meanwhile
        return vectors, copies

    def _known_vectors(self, category: Category, part: Mapping[_Key, Reference]) -> dict[_Key, NDArray[np.float32]]:
        """Returns the vectors of shared encoders, and the vectors that the copy has in any category."""
        import numpy as np  # slow to import, and not needed to list categories

        found: dict[_Key, NDArray[np.float32]] = {}
        hashes: dict[tuple[str, Modality], list[str]] = {}
        for (encoder, _, digest), one in part.items():
            hashes.setdefault((encoder, one.modality), []).append(digest)
        for (encoder, modality), some in hashes.items():
            if encoder not in self._shared:
                contents = self._reused.find([encoder], modality, some)
                found |= {(encoder, modality, one): content.vectors[encoder] for one, content in contents.items()}
                continue
            for page in self._references.with_hashes(encoder, modality, some, vectors=True):
                for payload, row in zip(page.payloads, page.vectors, strict=True):
                    if payload["gen"] in category.write_ids and 0.5 < float(np.linalg.norm(row)) < 2:
                        found[encoder, modality, payload["hash"]] = row.copy()
        return found

    def _small(self, category: Category, hashes: Sequence[str]) -> dict[str, SmallImage]:
        if not (hashes and self._source.state([]).images):
            return {}
        return {one.hash: one for one in self._references.images.read(category.write_ids, hashes)}

    def _describe(self, category: Category) -> bool:
        """Commits texts, metadata, parent and marks of a category, or its removal. Returns whether they differed."""
        catalog, name = self._writer.catalog, category.name
        marks: dict[str, Any] = {
            "withdrawn": newest(category.withdrawn),
            "kept": newest(category.kept),
            "retired": category.retired,
        }
        state = None if name in self.found.left_out else self._state_of(category)
        differed: list[bool] = []

        def attempt() -> bool:
            before = settled(catalog, [name])
            there = before.category(name)
            held = there or Category(name=name, version=0, rev=0, write_ids=(), texts=(), references={})
            if category.write_ids:
                plan = replace(held, texts=category.texts, metadata=category.metadata, parent=category.parent, **marks)
            else:
                plan = replace(emptied(held), version=held.version, rev=held.rev, **marks)
            if plan != held:
                differed.append(True)
            elif state is None or before.manifests.get(name, {}).get("made_from") == state:
                return True
            plan = replace(plan, version=held.version + 1, rev=0)
            made_from = {name: state} if state else {}
            return bool(publish(catalog, self._writer.carry_out([(plan, ())], before, made_from=made_from)))

        self._writer.until_won(attempt, [name])
        return bool(differed)

    def _match_inbox(self) -> list[InboxImage]:
        """Deletes images that no longer wait from the inbox of the copy, and returns the images that it lacks."""
        waiting = {image.hash: image for image in self._inbox.read() if image.state == "waiting"}
        every = self._writer.inbox.read(labelled=True)
        there = {image.hash for image in every if image.state == "waiting"} & waiting.keys()
        self._writer.inbox.delete({image.hash for image in every} - there)
        return [image for digest, image in waiting.items() if digest not in there]

    def follow_inbox(self) -> None:
        """Brings the inbox of the copy in step: embeds the images that wait and that the copy lacks."""
        keeps = self._writer.catalog.state([]).images
        left = self.found.inbox_left_out = {image.hash: image.source for image in self._match_inbox()}
        new = self._reencoder.fingerprints.keys() - self._shared
        for some in _chunks(filter(is_content_hash, left)):
            images = {image.hash: image for image in self._inbox.read(some, vectors=True)}
            copies = {digest: self._inbox.small(digest) for digest in images}
            as_references = [
                (Reference("", "image", digest, image.source, _no_vector()), copies[digest])
                for digest, image in images.items()
            ]
            found = {digest: rows for digest, _, rows in self._reencoder.images(as_references, new)} if new else {}
            put = []
            for digest, image in images.items():
                own = {name: image.vectors[name] for name in self._shared}
                small = copies[digest]
                if new and digest not in found:
                    continue
                content = small.content if keeps and small else None
                put.append(replace(image, vectors={**own, **found.get(digest, {})}, removals=(), content=content))
            self._writer.catalog.check_current()  # as in `_embed_images`
            self._writer.inbox.put(put)
            self.found.inbox += len(put)
            for image in put:
                del left[image.hash]

    def check_complete(self) -> None:
        """Raises StoreError if the copy lacks a category."""
        if damaged := self.found.damaged:
            raise StoreError(
                f"the copy lacks {', '.join(map(repr, sorted(damaged)))}, so the store was not switched: repair or "
                "remove these categories, and repeat the command"
            )

    def survey(self) -> Survey:
        """Counts the images to embed. Whether an original is unchanged is seen only when it is read."""
        seen, manifests = self._list()
        categories = [category for category in seen.categories if category.write_ids]
        there = {one.name: one for one in readable(manifests.values())[0]}
        self._find_texts(categories)
        small: set[str] = set()
        if self._source.state([]).images:
            pages = self._source.backend.scroll(self._references.images.name, Where(), fields=("hash",))
            small = {one["hash"] for page in pages for one in page.payloads if isinstance(one.get("hash"), str)}
        done, present, found = 0, set[str](), dict[str, Origin | None]()
        for category in categories:
            if self._is_made(category, manifests.get(category.name)):
                done += category.images
                continue
            has = {one.key for one in self._present(there.get(category.name))}
            with suppress(StoreError):  # the copy names the category
                for key, one in self._wanted(category).items():
                    if one.modality == "image" and key[0] not in self._shared:
                        if key in has:
                            present.add(one.hash)
                        else:
                            at_hand = self._reencoder.has_original(one)
                            found[one.hash] = "original" if at_hand else "small" if one.hash in small else None
        origins = [origin for digest, origin in found.items() if digest not in present]
        return Survey(
            present=done + len(present),
            originals=origins.count("original"),
            small=origins.count("small"),
            neither=origins.count(None),
        )


def _has_no_marks(category: Category, there: Category | None) -> bool:
    """Returns whether a category gets no marks in the copy, and had neither marks nor references there."""
    marks = (category.withdrawn, category.kept, category.retired)
    had = (there.write_ids, there.withdrawn, there.kept, there.retired) if there else ()
    return not any((*marks, *had))


def _nothing() -> StoreError:
    return StoreError("none of its references can be embedded: add a text, or an image that can be read")


def _parts(lacking: Mapping[_Key, Reference]) -> list[dict[_Key, Reference]]:
    """Returns references in parts of `CHUNK` images or, of many, a thirtieth. The first part has the texts, too."""
    images = list(dict.fromkeys(digest for _, modality, digest in lacking if modality == "image"))
    size = max(CHUNK, -(-len(images) // _MOST_PARTS))
    number = {digest: n // size for n, digest in enumerate(images)}
    parts: dict[int, dict[_Key, Reference]] = {}
    for key, one in lacking.items():
        parts.setdefault(number[one.hash] if one.modality == "image" else 0, {})[key] = one
    return [parts[n] for n in sorted(parts)]


def _chunks(items: Iterable[str]) -> Iterator[list[str]]:
    every = list(items)
    return (every[first : first + CHUNK] for first in range(0, len(every), CHUNK))


def number_for(source: Catalog, fingerprints: Mapping[str, Fingerprint]) -> int:
    """Returns the number of the namespace for a copy with these encoders: an unfinished copy, or a new one."""
    number = source.number
    while True:
        number += 1
        other = source.beside(number)
        record = other.store()
        if record is None:
            return number
        found = successor_from(record, number)
        is_link = found is not None and found.to > number
        if not is_dropped(record) and not is_link and other.encoders() == fingerprints:
            return number


def _is_usable(one: Reference) -> bool:
    length = sum(len(text) for text in (one.hash, one.source, one.prompt, one.group, one.by) if text)
    return one.modality in ("text", "image") and is_content_hash(one.hash) and length <= LONGEST_SOURCE


def _is_same(one: Reference, other: Reference) -> bool:
    """Returns whether two references have the same description; their vectors are not compared."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("source", "prompt", "group", "added", "by", "cut_from")
    )


def _no_vector() -> NDArray[np.float32]:
    import numpy as np  # slow to import, and not needed to list categories

    return np.empty(0, dtype=np.float32)


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _described(category: str, references: Iterable[Reference]) -> tuple[StoredReference, ...]:
    """Returns each reference once, with the experts that lack it."""
    found: dict[str, list[Reference]] = {}
    for one in references:
        found.setdefault(one.hash, []).append(one)
    return tuple(
        StoredReference(
            category=category,
            hash=digest,
            modality=some[0].modality,
            source=some[0].source,
            prompt=some[0].prompt,
            group=some[0].group,
            added=some[0].added,
            by=some[0].by,
            experts=tuple(sorted(expert_name(one.encoder, one.modality) for one in some)),
        )
        for digest, some in found.items()
    )
