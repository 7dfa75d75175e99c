"""Texts and images of categories → encoders → store.

References of many categories share the encoders' batches, and each category is committed as soon as
all of its own are embedded. What a category already holds is recognised by its content and not
embedded again.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsvec.encoders import EncoderSet
from zsvec.errors import ConflictError, ImageError, InvalidInputError
from zsvec.inputs.categories import (
    CategoryInput,
    ReferenceImage,
    checked_images,
    checked_metadata,
    checked_name,
    checked_texts,
    checked_vectors,
    readable,
)
from zsvec.inputs.images import content_hash, read_image, source_of
from zsvec.store import Reference, Store, Write
from zsvec.stream import prefetch
from zsvec.types import Category, encoder_and_modality, expert_name

Key: TypeAlias = tuple[str, str, str]


@dataclass(slots=True)
class _Draft:
    """A category on its way: what it held before, and what has been found for it so far.

    Attributes:
        category: Its name and metadata.
        texts: Definition texts; ``None``: the name, in each encoder's prompt.
        held: References that it had before; with their vectors, if they are to be written again.
        references: To be written.
        recognised: Those of `held` that were given again and are left where they are.
        unreadable: How many of its images could not be read.
    """

    category: CategoryInput
    texts: Sequence[str] | None
    held: Mapping[Key, Reference | None]
    references: list[Reference] = field(default_factory=list)
    recognised: set[Key] = field(default_factory=set)
    unreadable: int = 0

    def lost_its_images(self, *, replace: bool) -> bool:
        """Whether it came with images, none of which could be read, and cannot do without them.

        Then what the category holds must not be replaced by less, and the other categories must not suffer.
        """
        no_images = not any(reference.modality == "image" for reference in self.references)
        return self.unreadable > 0 and no_images and (replace or not (self.references or self.held))

    def recognises(self, key: Key) -> bool:
        """Whether the category had this reference already; if so, it is used as it is."""
        known = self.held.get(key)
        if known is not None:
            self.references.append(known)
        elif key in self.held:
            self.recognised.add(key)
        return key in self.held


@dataclass(frozen=True, slots=True)
class _Image:
    """One image of a draft: ready for the encoders, or already embedded, or unreadable."""

    draft: _Draft
    of: ReferenceImage
    source: str
    hash: str = ""
    prepared: Any = None
    error: ImageError | None = None


class Builder:
    """Builds categories into a store.

    Args:
        store: Bound to these encoders.
        encoders: What embeds the references.
        prompts: By encoder, the text of a category without definition texts, from its ``{name}``.
        batch_size: Images that an encoder takes at once.
        max_pixels: Largest image that is decoded.
    """

    def __init__(
        self, store: Store, encoders: EncoderSet, *, prompts: Mapping[str, str], batch_size: int, max_pixels: int
    ) -> None:
        self._store = store
        self._encoders = encoders
        self._prompts = prompts
        self._batch_size = batch_size
        self._max_pixels = max_pixels

    @property
    def takes_texts(self) -> bool:
        """Whether a category can be known by a text alone."""
        return any("text" in encoder.modalities for encoder in self._encoders)

    def build(
        self,
        categories: Iterable[CategoryInput],
        *,
        replace: bool = False,
        on_error: Callable[[str, ImageError], None] | None = None,
    ) -> Iterator[Category]:
        """Embed and commit categories.

        Args:
            categories: At most one of each name.
            replace: Whether the references of a category that exists are replaced, not added to.
            on_error: Called with source and error for each unreadable image, which is then left out;
                without it, the first one is raised and its category not written. A category that is
                to be replaced, or that would have no reference, is left as it is if none of its images
                can be read.

        Yields:
            Each category when it is committed, in order.

        Raises:
            InvalidInputError: A name, text or vector cannot be used, or a category has no reference.
            ImageError: An image cannot be read, and there is no ``on_error``.
        """
        for batch in prefetch(self._prepare, self._steps(categories, replace=replace), self._batch_size):
            done, failure = (batch, None) if on_error else _until_failure(batch)
            images = [step for step in done if isinstance(step, _Image)]
            self._embed([image for image in images if image.error is None])
            for image in images:
                if on_error and image.error is not None:
                    image.draft.unreadable += 1
                    on_error(image.source, image.error)
            complete = [step for step in done if isinstance(step, _Draft)]
            if complete:
                yield from self._commit(complete, replace=replace)
            if failure is not None:
                raise failure

    def _steps(
        self, categories: Iterable[CategoryInput], *, replace: bool
    ) -> Iterator[_Draft | tuple[_Draft, ReferenceImage]]:
        """Each image with its draft, then the draft: it has all its images once it has come through itself."""
        if not isinstance(categories, Iterable):
            raise InvalidInputError(
                f"categories must be a list of CategoryInput. Got {reprlib.repr(categories)} instead"
            )
        seen = set()
        for category in categories:
            draft = self._draft(category, replace=replace)
            if draft.category.name in seen:
                raise InvalidInputError(f"category {draft.category.name!r} is given twice: put both in one")
            seen.add(draft.category.name)
            for image in checked_images(category.images):
                yield draft, image if isinstance(image, ReferenceImage) else ReferenceImage(image=image)
            yield draft

    def _draft(self, category: CategoryInput, *, replace: bool) -> _Draft:
        if not isinstance(category, CategoryInput):
            raise InvalidInputError(f"categories must be CategoryInput objects. Got {reprlib.repr(category)} instead")
        name = checked_name(category.name)
        texts = checked_texts(category.texts) if category.texts is not None else None
        metadata = checked_metadata(category.metadata) if category.metadata is not None else None
        held: Mapping[Key, Reference | None]
        if replace:
            held = {reference.key: reference for reference in self._store.stored(name)}
        else:
            held = dict.fromkeys(self._store.keys(name))
            if held and texts is None:
                texts = []
        draft = _Draft(CategoryInput(name=name, metadata=metadata), texts, held)
        if not isinstance(category.vectors, Mapping):
            raise InvalidInputError(
                f"vectors must be a mapping of experts to arrays. Got {reprlib.repr(category.vectors)} instead"
            )
        draft.references.extend(self._given(category.vectors))
        return draft

    def _given(self, vectors: Mapping[str, ArrayLike]) -> Iterator[Reference]:
        """References whose vectors were made elsewhere."""
        rows = {expert: self._checked_vectors(expert, given) for expert, given in vectors.items()}
        for expert, of in rows.items():
            encoder, modality = encoder_and_modality(expert)
            # Calibration compares what encoders say of one image: rows side by side have one hash.
            beside = [other for name, other in sorted(rows.items()) if encoder_and_modality(name)[1] == modality]
            together = all(len(other) == len(of) for other in beside)
            for position, row in enumerate(of):
                same = [other[position] for other in beside] if together else [row]
                digest = hashlib.sha256(b"".join(vector.tobytes() for vector in same)).hexdigest()
                yield Reference(encoder, modality, digest, "vector", row)

    def _checked_vectors(self, expert: str, vectors: ArrayLike) -> NDArray[np.float32]:
        known = [expert_name(e.name, m) for e in self._encoders for m in e.modalities]
        if expert not in known:
            raise InvalidInputError(f"there is no expert {expert!r} to give vectors to; there are {', '.join(known)}")
        return checked_vectors(vectors, self._encoders[encoder_and_modality(expert)[0]].fingerprint.dim, of=expert)

    def _prepare(self, step: _Draft | tuple[_Draft, ReferenceImage]) -> _Draft | _Image:
        """Read, recognise, decode and preprocess one image; runs in threads."""
        if isinstance(step, _Draft):
            return step
        draft, of = step
        source = source_of(of.image)
        try:
            if of.vectors is not None or (draft.held and not hasattr(of.image, "read")):
                digest = content_hash(of.image, max_pixels=self._max_pixels)
                if of.vectors is not None or self._holds(draft, digest):
                    return _Image(draft, of, source, digest)
            loaded = read_image(of.image, max_pixels=self._max_pixels, side=self._encoders.side)
        except ImageError as exc:
            return _Image(draft, of, source, error=exc)
        if self._holds(draft, loaded.content_hash):
            return _Image(draft, of, source, loaded.content_hash)
        return _Image(draft, of, source, loaded.content_hash, self._encoders.preprocess(loaded.image))

    def _holds(self, draft: _Draft, digest: str) -> bool:
        return all((name, "image", digest) in draft.held for name in self._image_encoders())

    def _image_encoders(self) -> list[str]:
        return [encoder.name for encoder in self._encoders if "image" in encoder.modalities]

    def _embed(self, images: Sequence[_Image]) -> None:
        """Add references to their drafts, of new images by the encoders, of known ones from the store."""
        new = [image for image in images if image.prepared is not None]
        vectors = self._encoders.encode_images([image.prepared for image in new])
        for name in self._image_encoders():
            for image, vector in zip(new, vectors[name], strict=True):
                image.draft.references.append(_reference(name, image, vector))
            for image in images:
                known = image.prepared is None and image.draft.recognises((name, "image", image.hash))
                if image.of.vectors is not None and not known:
                    image.draft.references.append(_reference(name, image, image.of.vectors[name]))

    def _commit(self, drafts: Sequence[_Draft], *, replace: bool) -> list[Category]:
        for encoder in self._encoders:
            if "text" in encoder.modalities:
                self._embed_texts(encoder.name, drafts)
        writes = []
        for draft in drafts:
            name = draft.category.name
            if draft.lost_its_images(replace=replace):
                continue
            if not draft.references and (replace or not draft.held):
                raise InvalidInputError(
                    f"category {name!r} has no reference: give it a text or an image that the encoders "
                    f"{', '.join(encoder.name for encoder in self._encoders)} can embed"
                )
            if draft.recognised and not draft.recognised <= self._store.keys(name):
                raise ConflictError(
                    f"another writer removed references of {name!r} that were being added again: add them once more"
                )
            texts = draft.texts if draft.texts is not None else [readable(name)]
            writes.append(
                Write(
                    name=name,
                    references=draft.references,
                    texts=texts,
                    metadata=draft.category.metadata,
                    replace=replace,
                )
            )
        return self._store.write(writes)

    def _embed_texts(self, encoder: str, drafts: Sequence[_Draft]) -> None:
        prompt = self._prompts.get(encoder, "{name}")
        keyed = [
            (draft, text, (encoder, "text", hashlib.sha256(text.encode()).hexdigest()))
            for draft in drafts
            for text in dict.fromkeys(
                [prompt.replace("{name}", readable(draft.category.name))] if draft.texts is None else draft.texts
            )
        ]
        new = list(dict.fromkeys(text for draft, text, key in keyed if key not in draft.held))
        vectors = dict(zip(new, self._encoders[encoder].encode_texts(new), strict=True))
        for draft, text, key in keyed:
            if not draft.recognises(key):
                draft.references.append(Reference(encoder, "text", key[2], text, vectors[text]))


def _reference(encoder: str, image: _Image, vector: NDArray[np.float32]) -> Reference:
    source = image.of.source or image.source.encode(errors="backslashreplace").decode()  # file names may be any bytes
    return Reference(encoder, "image", image.hash, source, vector, image.of.prompt)


def _until_failure(batch: Sequence[_Draft | _Image]) -> tuple[Sequence[_Draft | _Image], ImageError | None]:
    """What comes before the first unreadable image, and its error."""
    for position, step in enumerate(batch):
        if isinstance(step, _Image) and step.error is not None:
            return batch[:position], step.error
    return batch, None
