"""Embeds the texts and images of categories, and writes them to the store.

An encoder batch may contain references of several categories. A category is committed as soon as all its references are
embedded. References that a category already has are recognised by their content hash. Nothing is embedded whose vectors
the store has, in any category or for undo.

The user's `CategoryInput` becomes a draft, which collects references from several batches. The complete draft becomes
the `Write` that the store commits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from datetime import UTC, datetime
from itertools import chain
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsvec.encoders import EncoderSet
from zsvec.errors import ImageError, InvalidInputError, LastReferenceError, shown
from zsvec.ingest.embedding import Embedder, PreparedImage, stored_source
from zsvec.inputs.categories import (
    CategoryInput,
    ReferenceImage,
    as_words,
    checked_category,
    checked_group,
    checked_vectors,
    is_several,
)
from zsvec.inputs.decoding import opened
from zsvec.inputs.images import ImageInput, ImageLimits, content_hash, released, share, shared_by, source_of, taken
from zsvec.store import Reference, Renamed, Store, StoredContent, Write
from zsvec.streams.stream import prefetch
from zsvec.types import Category, Modality, SmallImage, StoredReference, encoder_and_modality, expert_name

ReferenceKey: TypeAlias = tuple[str, str, str]
"""Encoder, modality and content hash of a reference."""


@dataclass(slots=True, eq=False)
class _Draft:
    """Collects the references of one category for a `Write`.

    `stored` maps the key of each reference that the category has in the store. With `replace`, the value is the
    reference with its vector, because a reference that is given again is written again. Otherwise, the value is
    ``None``. `recognised` contains the keys of stored references that were given again and are not written.
    `is_withdrawn` tells whether a content hash is to be left out, and `left_out` contains these references. `shared`
    contains the added images that other categories have, with the names of these categories.
    """

    category: CategoryInput
    replace: bool
    stored: Mapping[ReferenceKey, Reference | None]
    by: str | None
    create: bool = True
    is_withdrawn: Callable[[str], bool] | None = None
    left_out: dict[StoredReference, None] = field(default_factory=dict)
    references: dict[ReferenceKey, Reference] = field(default_factory=dict)
    recognised: set[ReferenceKey] = field(default_factory=set)
    shared: dict[StoredReference, Sequence[str]] = field(default_factory=dict)
    given: set[Modality] = field(default_factory=set)
    unreadable: int = 0
    added: datetime = field(default_factory=lambda: datetime.now(UTC))

    def add(self, reference: Reference) -> None:
        self.references[reference.key] = with_changes(reference, added=self.added, by=self.by)

    def leave_out(self, modality: Modality, digest: str, source: str) -> bool:
        """Leaves out a withdrawn reference; returns False if the reference is not withdrawn."""
        withdrawn = self.is_withdrawn is not None and self.is_withdrawn(digest)
        if withdrawn:
            one = StoredReference(category=self.category.name, hash=digest, modality=modality, source=source)
            self.left_out[one] = None
        return withdrawn

    def texts(self, by_name: str) -> Sequence[str]:
        if self.category.texts is not None:
            return self.category.texts
        return [] if self.stored else [by_name]

    def reuse(self, key: ReferenceKey, group: str | None = None) -> bool:
        """Reuses the stored reference with this key; returns False if there is none.

        With `replace`, a given `group` replaces the group of the reference.
        """
        stored = self.stored.get(key)
        if stored is not None:
            self.references[key] = with_changes(stored, group=group or stored.group)
        elif key in self.stored:
            self.recognised.add(key)
        return key in self.stored

    @property
    def empty(self) -> bool:
        """Whether the category would have no reference after the commit."""
        kept = any(not self.replace or modality not in self.given for _, modality, _ in self.stored)
        return not self.references and not kept

    @property
    def lost_images(self) -> bool:
        """Whether unreadable images forbid the commit, which would replace stored images or leave no reference."""
        replaces = self.replace and any(modality == "image" for _, modality, _ in self.stored)
        return self.unreadable > 0 and (replaces or self.empty)

    @property
    def only_unreadable(self) -> bool:
        """Whether a new category was given images alone, and none of them is readable."""
        return self.unreadable > 0 and not (self.stored or self.references or "text" in self.given)

    @property
    def is_left_out(self) -> bool:
        """Whether only withdrawn references were given, and the category would have no other."""
        return bool(self.left_out) and self.empty and not self.category.texts

    @property
    def _needed(self) -> frozenset[str] | None:
        """Hashes of the references that must still exist at the commit; see `Write.needs`."""
        in_part = self.replace and self.stored and not self.given >= {"text", "image"}
        recognised = frozenset(digest for _, _, digest in self.recognised)
        nothing_new = self.stored and not self.references
        return recognised if recognised or in_part or nothing_new or not self.create else None

    def write(self) -> Write:
        return Write(
            name=self.category.name,
            references=list(self.references.values()),
            texts=self.texts(as_words(self.category.name)),
            metadata=self.category.metadata,
            parent=self.category.parent,
            replace=self.replace and bool(self.given),
            keeps=frozenset({"text", "image", "metadata"} - self.given),
            needs=self._needed,
        )


@dataclass(slots=True, eq=False)
class _Image:
    """One image of a draft. Until the image is read, `read` contains only its name."""

    draft: _Draft
    given: ReferenceImage
    read: PreparedImage

    @property
    def source(self) -> str:
        return stored_source(self.given.source or self.read.source)

    def reference(self, encoder: str, vector: NDArray[np.float32]) -> Reference:
        given, read, source = self.given, self.read, self.source
        small = None
        if read.small is not None:
            width, height = read.size
            small = SmallImage(
                hash=read.hash, content=read.small, width=width, height=height, source=source, added=self.draft.added
            )
        return Reference(
            encoder,
            "image",
            read.hash,
            source,
            vector,
            prompt=given.prompt,
            group=given.group,
            cut_from=read.cut_from or None,
            small=small,
        )


def _lane(step: _Draft | _Image) -> object:
    return shared_by(step.given.image) if isinstance(step, _Image) else None


class Builder:
    """Embeds categories and writes them to a store.

    Args:
        store: The store.
        embedder: Embeds the references.
        prompts: Template by encoder for the text of a category without definition texts. ``{name}`` stands for the name
            of the category.
        batch_size: Number of images per encoder batch.
        keep_images: Whether to store small copies of new images, in a store that accepts small copies.
        create: Called before the first commit. Binds a new store to the encoders, so that encoders that fail make no
            store. By default, the store is bound already.
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        *,
        prompts: Mapping[str, str],
        batch_size: int,
        keep_images: bool = False,
        create: Callable[[], None] = lambda: None,
    ) -> None:
        self.encoders: EncoderSet = embedder.encoders
        self.limits: ImageLimits = embedder.limits
        self.batch_size = batch_size
        self._store = store
        self._stored = store.stored_vectors()
        self._embedder = embedder
        self._prompts = prompts
        self._keep_images = keep_images
        self._create = create
        self._by = store.by  # as set in this thread; another thread iterates the categories
        self._image_encoders = [encoder.name for encoder in self.encoders if "image" in encoder.modalities]
        self._text_encoders = [encoder.name for encoder in self.encoders if "text" in encoder.modalities]

    @property
    def takes_texts(self) -> bool:
        """Whether a text alone can define a category."""
        return bool(self._text_encoders)

    def prompt(self, encoder: str, name: str) -> str:
        """Returns the text that an encoder embeds for a category that is defined by its name alone."""
        return self._prompts.get(encoder, "{name}").replace("{name}", as_words(name))

    def renamed(self, old: str, new: str) -> Renamed:
        """Returns how text and references change when a category that is defined by its name is renamed."""
        hashes = {_text_hash(as_words(old)), *(_text_hash(self.prompt(name, old)) for name in self._text_encoders)}
        draft = _Draft(CategoryInput(name=new), replace=False, stored={}, by=self._by)
        for encoder in self._text_encoders:
            self._embed_texts(encoder, [draft])
        return Renamed(as_words(old), as_words(new), hashes, list(draft.references.values()))

    def build(
        self,
        categories: Iterable[CategoryInput],
        *,
        replace: bool = False,
        create: bool = True,
        on_error: Callable[[str, ImageError], None] | None = None,
        on_withdrawn: Callable[[StoredReference], None] | None = None,
        on_shared: Callable[[StoredReference, Sequence[str]], None] | None = None,
    ) -> Iterator[Category]:
        """Embeds, commits and yields categories in order, like `zsvec.classifier.Classifier.add_categories`.

        If `create` is false, a category that does not exist raises ConflictError. `on_error` is called for each
        unreadable image, `on_withdrawn` for each withdrawn reference, which is left out, and `on_shared` for each added
        image that other categories have. A category stays unchanged if unreadable images would leave it without a
        reference or cause it to lose stored images. A new category of unreadable images, without texts, is not created.
        """
        steps = self._steps(categories, replace=replace, create=create, respect=on_withdrawn is not None)
        for batch in prefetch(self._prepare, steps, self.batch_size, lane=_lane):
            failure = None
            images: list[_Image] = []
            complete: list[_Draft] = []
            for step in batch:
                if isinstance(step, _Draft):
                    complete.append(step)
                elif step.read.error is None:
                    if not step.draft.leave_out("image", step.read.hash, step.source):
                        step.draft.given.add("image")
                        images.append(step)
                elif on_error is None:
                    failure = step.read.error
                    break
                else:
                    step.draft.given.add("image")
                    step.draft.unreadable += 1
                    on_error(step.read.source, step.read.error)
            self._embed_images(images, complete)
            if complete:
                committed = self._commit(complete, on_withdrawn)
                if on_shared is not None:
                    _report_shared(complete, committed, on_shared)
                yield from committed
            if failure is not None:
                raise failure

    def _steps(
        self, categories: Iterable[CategoryInput], *, replace: bool, create: bool, respect: bool
    ) -> Iterator[_Draft | _Image]:
        """Yields each image of a category, and then the complete draft. Copies an image before the source advances."""
        if not is_several(categories):
            raise InvalidInputError(f"categories must be a list of CategoryInput. Got {shown(categories)} instead")
        seen = set()
        for given in categories:
            category = checked_category(given)
            if category.name in seen:
                raise InvalidInputError(f"category {category.name!r} is given twice: put both in one")
            seen.add(category.name)
            draft = self._draft(category, replace=replace, create=create, respect=respect)
            if category.images is not None:
                yield from self._images(draft, category.images)
            yield draft

    def _images(self, draft: _Draft, images: Iterable[ImageInput | ReferenceImage]) -> Iterator[_Draft | _Image]:
        references: list[ReferenceImage] = []  # the present one

        def given() -> Iterator[ImageInput]:
            for image in images:
                reference = image if isinstance(image, ReferenceImage) else ReferenceImage(image=image)
                if reference.group is not None:
                    reference = with_changes(reference, group=checked_group(reference.group))
                self._check_vectors_of(reference)
                references.append(reference)
                yield reference.image

        for image in share(given(), **self.limits):
            unread = PreparedImage(source_of(image))
            if opened(image):
                yield self._prepare(_Image(draft, with_changes(references.pop(), image=image), unread))
            else:
                own = taken(image, **self.limits)
                yield _Image(draft, with_changes(references.pop(), image=own), unread)

    def _check_vectors_of(self, reference: ReferenceImage) -> None:
        """Raises InvalidInputError if the image has vectors, but not a valid vector for each image encoder."""
        given = reference.vectors
        if given is None:
            return
        if not isinstance(given, Mapping) or not set(self._image_encoders) <= set(given):
            raise InvalidInputError(
                f"the vectors of a reference image must be a mapping of {', '.join(self._image_encoders)} to arrays. "
                f"Got {shown(given)} instead"
            )
        for name in self._image_encoders:
            checked_vectors([given[name]], self.encoders[name].fingerprint.dim, name=name)

    def _draft(self, category: CategoryInput, *, replace: bool, create: bool, respect: bool) -> _Draft:
        if category.texts and not self._text_encoders:
            raise InvalidInputError(
                f"category {category.name!r} must have no texts, since the encoders {', '.join(self._image_encoders)} "
                f"embed images alone. Got {shown(category.texts[0])}: give images, or use an encoder that embeds texts"
            )
        vectors = {expert: self._checked_vectors(expert, category) for expert in category.vectors}
        stored: Mapping[ReferenceKey, Reference | None]
        if replace:
            stored = {reference.key: reference for reference in self._store.stored(category.name)}
        else:
            stored = dict.fromkeys(self._store.keys(category.name))
        is_withdrawn = self._store.withdrawn(category.name) if respect else None
        if category.parent:
            self._store.check_parent(category.name, category.parent)
        draft = _Draft(category, replace, stored, self._by, create, is_withdrawn)
        if category.texts:
            texts = [text for text in category.texts if not draft.leave_out("text", _text_hash(text), text)]
            draft.category = with_changes(category, texts=texts or None)
        if draft.category.texts is not None:
            draft.given.add("text")
        for reference in _references_of_vectors(vectors, _sources_of(category, vectors)):
            if not draft.leave_out(reference.modality, reference.hash, reference.source):
                draft.given.add(reference.modality)
                draft.add(reference)
        return draft

    def _checked_vectors(self, expert: str, category: CategoryInput) -> NDArray[np.float32]:
        experts = [expert_name(encoder.name, modality) for encoder in self.encoders for modality in encoder.modalities]
        if expert not in experts:
            raise InvalidInputError(f"there is no expert {expert!r} to give vectors to; there are {', '.join(experts)}")
        encoder, _ = encoder_and_modality(expert)
        return checked_vectors(category.vectors[expert], self.encoders[encoder].fingerprint.dim, name=expert)

    def _prepare(self, step: _Draft | _Image) -> _Draft | _Image:
        """Reads an image that has not been read yet. Runs in several threads."""
        if isinstance(step, _Image) and not step.read.hash and step.read.error is None:
            try:
                with released(step.given.image):
                    step.read = self._read(step.draft, step.given, step.read.source)
            except ImageError as exc:
                step.read = with_changes(step.read, error=exc)
        return step

    def _read(self, draft: _Draft, given: ReferenceImage, source: str) -> PreparedImage:
        """Returns an image with the inputs of the encoders; without inputs if the vectors are given or stored."""
        if given.vectors is None and not draft.stored and not draft.is_withdrawn and self._image_encoders:
            return self._embedder.prepare(given.image, small=self._keep_images)
        recognised = PreparedImage(source, hash=content_hash(given.image, **self.limits))
        is_withdrawn = draft.is_withdrawn is not None and draft.is_withdrawn(recognised.hash)
        if is_withdrawn or all((name, "image", recognised.hash) in draft.stored for name in self._image_encoders):
            return recognised
        if given.vectors is not None and not self._keep_images:
            return recognised
        read = self._embedder.prepare(given.image, small=self._keep_images)
        if given.vectors is None:
            return read
        return recognised if read.error else with_changes(read, inputs=None)  # an unreadable image has no small copy

    def _embed_images(self, images: Sequence[_Image], complete: Iterable[_Draft]) -> None:
        """Adds the references of images to their drafts, with vectors that are embedded here, given, or stored.

        An image that the categories of this batch already have is not embedded again, although they are not committed.
        """
        new = [image for image in images if image.read.inputs is not None]
        drafts = dict.fromkeys([*(image.draft for image in images), *complete])
        known = self._known({image.read.hash for image in new}, drafts)
        vectors = self._embedder.encode(
            [image.read for image in new], {digest: one.vectors for digest, one in known.items()}
        )
        holders = {digest: set(one.categories) for digest, one in known.items()}
        for image in new:
            name, digest = image.draft.category.name, image.read.hash
            having = holders.setdefault(digest, set())
            if others := having - {name}:
                one = StoredReference(category=name, hash=digest, modality="image", source=image.source)
                image.draft.shared[one] = sorted(others)
            having.add(name)
        for name in self._image_encoders:
            for image in new:
                image.draft.add(image.reference(name, vectors[image.read.hash][name]))
            for image in images:
                reused = image.read.inputs is None and image.draft.reuse(
                    (name, "image", image.read.hash), image.given.group
                )
                if image.given.vectors is not None and not reused:
                    image.draft.add(image.reference(name, image.given.vectors[name]))

    def _known(self, hashes: Collection[str], drafts: Iterable[_Draft]) -> dict[str, StoredContent]:
        """Returns the images that these drafts or the store have, by content hash."""
        found: dict[str, StoredContent] = {}
        for draft in drafts:
            for digest in hashes:
                keys = [(name, "image", digest) for name in self._image_encoders]
                if all(key in draft.references for key in keys):
                    others = found[digest].categories if digest in found else frozenset()
                    vectors = {key[0]: draft.references[key].vector for key in keys}
                    found[digest] = StoredContent(vectors, others | {draft.category.name})
        return found | self._stored.find(self._image_encoders, "image", set(hashes) - found.keys())

    def _embed_texts(self, encoder: str, drafts: Sequence[_Draft]) -> None:
        """Adds the references of texts to their drafts. A text that several categories share is embedded once."""
        keyed = [
            (draft, text, (encoder, "text", _text_hash(text)))
            for draft in drafts
            for text in dict.fromkeys(draft.texts(self.prompt(encoder, draft.category.name)))
        ]
        texts = {key[2]: text for draft, text, key in keyed if key not in draft.stored}
        vectors = {digest: one.vectors[encoder] for digest, one in self._stored.find([encoder], "text", texts).items()}
        new = [digest for digest in texts if digest not in vectors]
        embedded = self.encoders[encoder].encode_texts([texts[digest] for digest in new])
        vectors |= dict(zip(new, embedded, strict=True))
        for draft, text, key in keyed:
            if not draft.reuse(key):
                draft.add(Reference(encoder, "text", key[2], text, vectors[key[2]]))

    def _commit(
        self, drafts: Sequence[_Draft], on_withdrawn: Callable[[StoredReference], None] | None
    ) -> list[Category]:
        """Writes complete drafts with their texts, and returns the categories.

        Drafts with `lost_images` or `only_unreadable`, and drafts of withdrawn references alone, are not written.
        """
        for draft in drafts:
            if draft.empty and draft.category.texts is None and not draft.left_out:  # its name alone defines it
                by_name = as_words(draft.category.name)
                draft.leave_out("text", _text_hash(by_name), by_name)
        if on_withdrawn is not None:
            for one in chain.from_iterable(draft.left_out for draft in drafts):
                on_withdrawn(one)
        drafts = [draft for draft in drafts if not (draft.only_unreadable or draft.is_left_out)]
        for encoder in self._text_encoders:
            self._embed_texts(encoder, drafts)
        writes = []
        for draft in drafts:
            if draft.lost_images:
                continue
            if draft.empty:
                raise self._without_reference(draft)
            writes.append(draft.write())
        if not writes:
            return []
        self._create()
        self._create = lambda: None
        return self._store.write(writes)

    def _without_reference(self, draft: _Draft) -> InvalidInputError | LastReferenceError:
        name = draft.category.name
        if draft.stored:
            return LastReferenceError(
                f"category {name!r} would have no reference: remove it, or give a text or an image"
            )
        kinds = {"a text": self._text_encoders, "an image": self._image_encoders}
        return InvalidInputError(
            f"category {name!r} has no reference: give it {' or '.join(kind for kind in kinds if kinds[kind])} that "
            f"the encoders {', '.join(encoder.name for encoder in self.encoders)} can embed"
        )


def _report_shared(
    drafts: Iterable[_Draft],
    committed: Iterable[Category],
    on_shared: Callable[[StoredReference, Sequence[str]], None],
) -> None:
    names = {category.name for category in committed}
    for draft in drafts:
        if draft.category.name in names:
            for one, others in draft.shared.items():
                on_shared(one, others)


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sources_of(category: CategoryInput, vectors: Mapping[str, NDArray[np.float32]]) -> Sequence[str] | None:
    """Returns the sources of the vectors; raises InvalidInputError unless each row of each expert has a source."""
    sources = category.sources
    counts = {expert: len(rows) for expert, rows in vectors.items()}
    if sources is not None and set(counts.values()) != {len(sources)}:
        raise InvalidInputError(
            f"sources must have one source for each row of vectors. Got {len(sources)} for {counts or 'no vectors'}: "
            "give arrays with other numbers of rows in another call"
        )
    return sources


def _references_of_vectors(
    vectors: Mapping[str, NDArray[np.float32]], sources: Sequence[str] | None
) -> Iterator[Reference]:
    """Yields references for vectors that were embedded elsewhere.

    Calibration matches the evidence of several experts on one image by hash. If all experts of a modality have the same
    number of rows, row i of each expert is taken as the same image, and gets the same hash.

    Args:
        vectors: Vectors by expert, float32 ``(n, dim)``, with rows of unit norm.
        sources: Source of each row of each expert.
    """
    for expert, rows in vectors.items():
        encoder, modality = encoder_and_modality(expert)
        beside = [other for name, other in sorted(vectors.items()) if encoder_and_modality(name)[1] == modality]
        if any(len(other) != len(rows) for other in beside):
            beside = [rows]
        for position, row in enumerate(rows):
            digest = hashlib.sha256(b"".join(other[position].tobytes() for other in beside)).hexdigest()
            yield Reference(encoder, modality, digest, sources[position] if sources else "vector", row)
