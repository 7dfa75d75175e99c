"""Texts and images of categories → encoders → store.

References of many categories share the encoders' batches. A category is committed as soon as all of its references are
embedded. References that a category already has are recognised by their content and not embedded again.

A category has three shapes on this way: the `CategoryInput` that a user gives, the draft that collects its references
from several batches, and the `Write` that the store commits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsvec.encoders import EncoderSet
from zsvec.errors import ImageError, InvalidInputError, shown
from zsvec.inputs.categories import (
    CategoryInput,
    ReferenceImage,
    as_numbers,
    as_words,
    checked_category,
    checked_group,
    checked_vectors,
    is_several,
)
from zsvec.inputs.decoding import opened
from zsvec.inputs.images import ImageLimits, LoadedImage, content_hash, reading, source_of, taken
from zsvec.inputs.memory import DEFAULT
from zsvec.inputs.small import small_copy
from zsvec.store import Reference, Renamed, Store, Write
from zsvec.streams.stream import prefetch
from zsvec.types import Category, Modality, SmallImage, encoder_and_modality, expert_name

Key: TypeAlias = tuple[str, str, str]
"""Encoder, modality and content hash of a reference."""


@dataclass(slots=True)
class _Draft:
    """A `Write` in the making.

    Attributes:
        category: As given, checked.
        replace: Whether the draft's references replace the stored ones of their modality.
        stored: Stored references of the category; with their vectors, if they are to be written again.
        references: References to write.
        recognised: Stored references that were given again; they are not written again.
        given: Modalities of which something was given.
        unreadable: Number of images that could not be read.
        added: When what is new was added (UTC).
        by: Who adds it.
        create: Whether the category is made if there is none.
    """

    category: CategoryInput
    replace: bool
    stored: Mapping[Key, Reference | None]
    by: str | None
    create: bool = True
    references: list[Reference] = field(default_factory=list)
    recognised: set[Key] = field(default_factory=set)
    given: set[Modality] = field(default_factory=set)
    unreadable: int = 0
    added: datetime = field(default_factory=lambda: datetime.now(UTC))

    def add(self, reference: Reference) -> None:
        """Add a reference that is new."""
        self.references.append(with_changes(reference, added=self.added, by=self.by))

    def texts(self, by_name: str) -> Sequence[str]:
        """The definition texts; without any, a new category is defined by its name.

        Args:
            by_name: The text to define it by.
        """
        if self.category.texts is not None:
            return self.category.texts
        return [] if self.stored else [by_name]

    def reuse(self, key: Key, group: str | None = None) -> bool:
        """Reuse a stored reference, in the group that is given now, if any. Returns False if none has this key."""
        stored = self.stored.get(key)
        if stored is not None:
            self.references.append(with_changes(stored, group=group or stored.group))
        elif key in self.stored:
            self.recognised.add(key)
        return key in self.stored

    @property
    def empty(self) -> bool:
        """Whether the category would have no reference."""
        kept = any(not self.replace or modality not in self.given for _, modality, _ in self.stored)
        return not self.references and not kept

    @property
    def lost_images(self) -> bool:
        """Whether an image could not be read, and what is stored is better than what is left of the draft."""
        replaces = self.replace and any(modality == "image" for _, modality, _ in self.stored)
        return self.unreadable > 0 and (replaces or self.empty)

    @property
    def _needed(self) -> frozenset[str] | None:
        """Returns the hashes of the references that must still be there at the commit; see `Write.needs`."""
        in_part = self.replace and self.stored and not self.given >= {"text", "image"}
        recognised = frozenset(digest for _, _, digest in self.recognised)
        only_there = self.stored and not self.references
        return recognised if recognised or in_part or only_there or not self.create else None

    def write(self) -> Write:
        """What the store commits."""
        return Write(
            name=self.category.name,
            references=self.references,
            texts=self.texts(as_words(self.category.name)),
            metadata=self.category.metadata,
            replace=self.replace and bool(self.given),
            keeps=frozenset({"text", "image", "metadata"} - self.given),
            needs=self._needed,
        )


@dataclass(frozen=True, slots=True)
class _Image:
    """One image of a draft: preprocessed, or already embedded, or unreadable."""

    draft: _Draft
    given: ReferenceImage
    source: str
    hash: str = ""
    prepared: Any = None
    small: SmallImage | None = None
    error: ImageError | None = None

    def reference(self, encoder: str, vector: NDArray[np.float32]) -> Reference:
        """What one encoder has of the image."""
        given, name = self.given, _name(self.given, self.source)
        return Reference(encoder, "image", self.hash, name, vector, given.prompt, given.group, small=self.small)


class Builder:
    """Builds categories into a store.

    Args:
        store: Bound to these encoders.
        encoders: They embed the references.
        prompts: By encoder, the text of a category without definition texts, from its ``{name}``.
        batch_size: Images that an encoder takes at once.
        max_pixels: Largest image that is decoded; see `zsvec.inputs.images.load_image`.
        image_memory: Likewise.
        keep_images: Whether to keep small copies of new images, where the store keeps any; see `Store.bind`.
        by: Who adds the references.

    Attributes:
        encoders: As given.
        batch_size: As given.
        max_pixels: As given.
        image_memory: As given.
    """

    def __init__(
        self,
        store: Store,
        encoders: EncoderSet,
        *,
        prompts: Mapping[str, str],
        batch_size: int,
        max_pixels: int | None = None,
        image_memory: int = DEFAULT,
        keep_images: bool = False,
        by: str | None = None,
    ) -> None:
        self.encoders = encoders
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.image_memory = image_memory
        self._store = store
        self._prompts = prompts
        self._keep_images = keep_images
        self._by = by
        self._image_encoders = [encoder.name for encoder in encoders if "image" in encoder.modalities]
        self._text_encoders = [encoder.name for encoder in encoders if "text" in encoder.modalities]

    @property
    def _limits(self) -> ImageLimits:
        return {"max_pixels": self.max_pixels, "image_memory": self.image_memory}

    @property
    def takes_texts(self) -> bool:
        """Whether a text alone can define a category."""
        return bool(self._text_encoders)

    def prompt(self, encoder: str, name: str) -> str:
        """The text that defines a category by its name, in the words of an encoder."""
        return self._prompts.get(encoder, "{name}").replace("{name}", as_words(name))

    def renamed(self, old: str, new: str) -> Renamed:
        """What takes the place of a name that defines a category.

        Args:
            old: The name as it is stored.
            new: Another one.
        """
        hashes = {text_hash(as_words(old)), *(text_hash(self.prompt(encoder, old)) for encoder in self._text_encoders)}
        draft = _Draft(CategoryInput(name=new), replace=False, stored={}, by=self._by)
        for encoder in self._text_encoders:
            self._embed_texts(encoder, [draft])
        return Renamed(as_words(old), as_words(new), hashes, draft.references)

    def build(
        self,
        categories: Iterable[CategoryInput],
        *,
        replace: bool = False,
        create: bool = True,
        on_error: Callable[[str, ImageError], None] | None = None,
    ) -> Iterator[Category]:
        """Embed and commit categories.

        Args:
            categories: At most one of each name.
            replace: Whether what is given of a category that exists, images, texts or metadata, takes the place of
                what it has of these, instead of being added.
            create: Whether a category that is not there is made.
            on_error: Called with source and error for each unreadable image, which is then left out; by default, the
                first error is raised and its category not written. A category whose stored images are to be replaced
                is then left as it is, and so is one that would have no reference.

        Yields:
            Each category when it is committed, in order.

        Raises:
            InvalidInputError: A name, text or vector cannot be used, or a category has no reference.
            ImageError: An image cannot be read, and there is no ``on_error``.
            ConflictError: Another writer removed references that were being added again, or a category of which a part
                was being replaced; or a category is not there and not to be made.
        """
        for batch in prefetch(self._prepare, self._steps(categories, replace=replace, create=create), self.batch_size):
            done, failure = (batch, None) if on_error else _until_failure(batch)
            images = [step for step in done if isinstance(step, _Image)]
            self._embed_images([image for image in images if image.error is None])
            for image in images:
                if on_error and image.error is not None:
                    image.draft.unreadable += 1
                    on_error(image.source, image.error)
            complete = [step for step in done if isinstance(step, _Draft)]
            if complete:
                yield from self._commit(complete)
            if failure is not None:
                raise failure

    def _steps(
        self, categories: Iterable[CategoryInput], *, replace: bool, create: bool
    ) -> Iterator[_Draft | _Image | tuple[_Draft, ReferenceImage]]:
        """Each image with its draft, taken before its source goes on. A draft after its last image is complete."""
        if not is_several(categories):
            raise InvalidInputError(f"categories must be a list of CategoryInput. Got {shown(categories)} instead")
        seen = set()
        for given in categories:
            category = checked_category(given)
            if category.name in seen:
                raise InvalidInputError(f"category {category.name!r} is given twice: put both in one")
            seen.add(category.name)
            draft = self._draft(category, replace=replace, create=create)
            for image in category.images:
                draft.given.add("image")
                reference = image if isinstance(image, ReferenceImage) else ReferenceImage(image=image)
                if reference.group is not None:
                    reference = with_changes(reference, group=checked_group(reference.group))
                self._check_vectors_of(reference)
                if opened(reference.image):
                    yield self._prepare((draft, reference))
                else:
                    own = taken(reference.image, **self._limits)
                    yield draft, with_changes(reference, image=own)
            yield draft

    def _check_vectors_of(self, reference: ReferenceImage) -> None:
        """Refuse vectors of an image that are not one of each encoder of images."""
        given = reference.vectors
        if given is None:
            return
        if not isinstance(given, Mapping) or not set(self._image_encoders) <= set(given):
            raise InvalidInputError(
                f"the vectors of a reference image must be a mapping of {', '.join(self._image_encoders)} to arrays. "
                f"Got {shown(given)} instead"
            )
        for name in self._image_encoders:
            try:
                rows = [as_numbers(given[name])]
            except Exception as exc:  # as in `checked_vectors`
                raise InvalidInputError(f"the vector of {name} is no array of numbers: {exc}; detach a tensor") from exc
            checked_vectors(rows, self.encoders[name].fingerprint.dim, name=name)

    def _draft(self, category: CategoryInput, *, replace: bool, create: bool) -> _Draft:
        vectors = {expert: self._checked_vectors(expert, category) for expert in category.vectors}
        stored: Mapping[Key, Reference | None]
        if replace:
            stored = {reference.key: reference for reference in self._store.stored(category.name)}
        else:
            stored = dict.fromkeys(self._store.keys(category.name))
        given = {encoder_and_modality(expert)[1] for expert, rows in vectors.items() if len(rows)}
        if category.texts is not None:
            given.add("text")
        draft = _Draft(category, replace, stored, self._by, create, given=given)
        for reference in _references_of_vectors(vectors):
            draft.add(reference)
        return draft

    def _checked_vectors(self, expert: str, category: CategoryInput) -> NDArray[np.float32]:
        experts = [expert_name(encoder.name, modality) for encoder in self.encoders for modality in encoder.modalities]
        if expert not in experts:
            raise InvalidInputError(f"there is no expert {expert!r} to give vectors to; there are {', '.join(experts)}")
        encoder, _ = encoder_and_modality(expert)
        return checked_vectors(category.vectors[expert], self.encoders[encoder].fingerprint.dim, name=expert)

    def _prepare(self, step: _Draft | _Image | tuple[_Draft, ReferenceImage]) -> _Draft | _Image:
        """Read, recognise, decode and preprocess one image; runs in threads."""
        if not isinstance(step, tuple):
            return step
        draft, given = step
        source = source_of(given.image)
        try:
            if given.vectors is not None or (draft.stored and not hasattr(given.image, "read")):
                digest = content_hash(given.image, **self._limits)
                if self._is_stored(draft, digest):
                    return _Image(draft, given, source, digest)
                if given.vectors is not None:
                    return _Image(draft, given, source, digest, small=self._small_copy_of_embedded(draft, given))
            with reading(given.image, side=self.encoders.side, **self._limits) as loaded:
                if self._is_stored(draft, loaded.content_hash):
                    return _Image(draft, given, source, loaded.content_hash)
                small = _small_copy(draft, given, loaded) if self._keep_images else None
                prepared = self.encoders.preprocess(loaded.image)
                return _Image(draft, given, source, loaded.content_hash, prepared, small)
        except ImageError as exc:
            return _Image(draft, given, source, error=exc)

    def _small_copy_of_embedded(self, draft: _Draft, given: ReferenceImage) -> SmallImage | None:
        """The copy of an image that is not decoded for its vectors; of one that cannot be decoded, none."""
        if self._keep_images:
            with suppress(ImageError), reading(given.image, side=self.encoders.side, **self._limits) as loaded:
                return _small_copy(draft, given, loaded)
        return None

    def _is_stored(self, draft: _Draft, digest: str) -> bool:
        return all((name, "image", digest) in draft.stored for name in self._image_encoders)

    def _embed_images(self, images: Sequence[_Image]) -> None:
        """Add the references of images to their drafts: embedded, given with their vectors, or stored."""
        new = [image for image in images if image.prepared is not None]
        vectors = self.encoders.encode_images([image.prepared for image in new])
        for name in self._image_encoders:
            for image, vector in zip(new, vectors[name], strict=True):
                image.draft.add(image.reference(name, vector))
            for image in images:
                reused = image.prepared is None and image.draft.reuse((name, "image", image.hash), image.given.group)
                if image.given.vectors is not None and not reused:
                    image.draft.add(image.reference(name, image.given.vectors[name]))

    def _embed_texts(self, encoder: str, drafts: Sequence[_Draft]) -> None:
        """Add the references of texts to their drafts; a text of several categories is embedded once."""
        keyed = [
            (draft, text, (encoder, "text", text_hash(text)))
            for draft in drafts
            for text in dict.fromkeys(draft.texts(self.prompt(encoder, draft.category.name)))
        ]
        new = list(dict.fromkeys(text for draft, text, key in keyed if key not in draft.stored))
        vectors = dict(zip(new, self.encoders[encoder].encode_texts(new), strict=True))
        for draft, text, key in keyed:
            if not draft.reuse(key):
                draft.add(Reference(encoder, "text", key[2], text, vectors[text]))

    def _commit(self, drafts: Sequence[_Draft]) -> list[Category]:
        """Embed the texts of complete drafts and write all but those that lost images."""
        for encoder in self._text_encoders:
            self._embed_texts(encoder, drafts)
        writes = []
        for draft in drafts:
            name = draft.category.name
            if draft.lost_images:
                continue
            if draft.empty:
                raise InvalidInputError(
                    f"category {name!r} has no reference: give it a text or an image that the encoders "
                    f"{', '.join(encoder.name for encoder in self.encoders)} can embed"
                )
            writes.append(draft.write())
        return self._store.write(writes)


def text_hash(text: str) -> str:
    """Content hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _references_of_vectors(vectors: Mapping[str, NDArray[np.float32]]) -> Iterator[Reference]:
    """References embedded elsewhere.

    Calibration compares what the encoders say of one image, by its hash. So rows of the same position have one hash,
    where all experts of a modality are given as many rows.

    Args:
        vectors: By expert, float32 ``(n, dim)``, unit rows.
    """
    for expert, rows in vectors.items():
        encoder, modality = encoder_and_modality(expert)
        beside = [other for name, other in sorted(vectors.items()) if encoder_and_modality(name)[1] == modality]
        if any(len(other) != len(rows) for other in beside):
            beside = [rows]
        for position, row in enumerate(rows):
            digest = hashlib.sha256(b"".join(other[position].tobytes() for other in beside)).hexdigest()
            yield Reference(encoder, modality, digest, "vector", row)


def _small_copy(draft: _Draft, given: ReferenceImage, loaded: LoadedImage) -> SmallImage:
    width, height = loaded.size
    return SmallImage(
        hash=loaded.content_hash,
        content=small_copy(loaded.image),
        width=width,
        height=height,
        source=_name(given, source_of(given.image)),
        added=draft.added,
    )


def _name(given: ReferenceImage, source: str) -> str:
    return given.source or source.encode(errors="backslashreplace").decode()  # a path may be any bytes


def _until_failure(batch: Sequence[_Draft | _Image]) -> tuple[Sequence[_Draft | _Image], ImageError | None]:
    """The steps before the first unreadable image, and its error."""
    for position, step in enumerate(batch):
        if isinstance(step, _Image) and step.error is not None:
            return batch[:position], step.error
    return batch, None
