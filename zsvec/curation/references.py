"""Changes, label errors and audit of stored references: `StoredReferences`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from zsvec.curation.audit import Audit, audited
from zsvec.errors import InvalidInputError, StoreError
from zsvec.ingest.ingestion import Builder
from zsvec.ingest.recalibration import Calibrator
from zsvec.ingest.validation import checked_hash, checked_hashes
from zsvec.inputs.categories import CategoryInput, as_words, checked_category, checked_name
from zsvec.method.quality.label_errors import Suspect, suspects
from zsvec.search.searcher import Searcher
from zsvec.store import Move, Renamed, Store, Write
from zsvec.types import Category, Forgotten, SmallImage, StoredReference, encoder_and_modality

_HASH = re.compile("[0-9a-f]{64}")


class StoredReferences:
    """The references of a store: ``clf.references`` of a classifier.

    No method embeds an image again. A change is visible in the next batch of every process.
    """

    def __init__(
        self, store: Store, searcher: Searcher, calibrator: Calibrator, builder: Callable[[], Builder]
    ) -> None:
        self._store = store
        self._searcher = searcher
        self._calibrator = calibrator
        self._builder = builder

    def remove(self, name: str, hashes: str | Collection[str]) -> Category:
        """Remove references of a category.

        Args:
            name: The category.
            hashes: Content hash of a text or an image, or several.

        Returns:
            The category as committed.

        Raises:
            CategoryNotFoundError: There is no such category.
            InvalidInputError: The category has no such reference.
            ConflictError: The category would have no reference, or other writers changed the category at every
                attempt.
        """
        return self._store.remove_references(checked_name(name), checked_hashes(hashes))

    def move(self, hashes: str | Collection[str], *, source: str, target: str) -> Category:
        """Move references from one category to another, which is made if there is none.

        The references are in both categories for an instant, never in neither; after a kill they are in one.

        Args:
            hashes: Content hash of a text or an image, or several.
            source: The category that has the references.
            target: The category that gets the references.

        Returns:
            The target as committed.

        Raises:
            CategoryNotFoundError: There is no such source.
            InvalidInputError: The source has no such reference, or is the target.
            ConflictError: The source would have no reference, or other writers changed one of the two at every
                attempt.
        """
        return self._moved(
            Move(source=checked_name(source), target=checked_name(target), hashes=checked_hashes(hashes))
        )

    def rename(self, name: str, new: str) -> Category:
        """Rename a category. A definition text that is the old name becomes the new one.

        Raises:
            CategoryNotFoundError: There is no category of the old name.
            InvalidInputError: There is a category of the new name, or both names are the same.
            ConflictError: Other writers changed one of the two at every attempt.
        """
        old, wanted = checked_name(name), checked_name(new)
        category = self._store.category(old)
        renamed = None
        if as_words(old) in category.texts:
            embedded = any(encoder_and_modality(expert)[1] == "text" for expert in category.references)
            renamed = self._builder().renamed(old, wanted) if embedded else Renamed(as_words(old), as_words(wanted))
        with self._store.one_change("rename"):
            return self._moved(Move(source=old, target=wanted, new=True, renamed=renamed))

    def merge(self, source: str, target: str) -> Category:
        """Move all references of a category to another one, and remove the category. Metadata of the target win.

        Raises:
            CategoryNotFoundError: One of the categories does not exist.
            InvalidInputError: Both are the same.
            ConflictError: Other writers changed one of the two at every attempt.
        """
        self._store.category(checked_name(target))
        return self._moved(Move(source=checked_name(source), target=checked_name(target)))

    def update(
        self, name: str, *, texts: Sequence[str] | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Category:
        """Replace the definition texts of a category, its metadata, or both in one change. Images stay.

        Args:
            name: The category.
            texts: New definition texts; present ones among them are not embedded again. ``None`` keeps the texts.
            metadata: New metadata, JSON; ``None`` keeps the metadata.

        Returns:
            The category as committed.

        Raises:
            CategoryNotFoundError: There is no such category.
            InvalidInputError: A text or the metadata is unusable.
            ConflictError: The category would have no reference, or other writers changed the category at every
                attempt.
        """
        if texts is None and metadata is None:
            raise InvalidInputError("update must be given texts, metadata or both. Got neither")
        given = checked_category(CategoryInput(name=name, texts=texts, metadata=metadata))
        self._store.category(given.name)
        with self._store.one_change("set"):
            if texts is None:
                write = Write(name=given.name, references=(), metadata=given.metadata, needs=frozenset())
                (category,) = self._store.write([write])
            else:
                (category,) = self._builder().build([given], replace=True, create=False)
        return category

    def forget(self, content_hash: str) -> Forgotten:
        """Erase an image from every category, the inbox, the small copies and the history, without undo.

        A later write may add the image again. A category without other references is removed. An embedded store
        rewrites the files of all references, so that no trace of the image remains. A server deletes the points, and
        overwrites its files at its own time. The cache of this user is deleted; other users' caches are renewed when
        the store is opened again.

        Args:
            content_hash: Content hash of the image.

        Returns:
            The erased points; none for an image that was not in this store, for instance after a change of the file.

        Raises:
            InvalidInputError: The value is no content hash of 64 characters.
            StoreError: There is no store.
            StoreUnavailableError: The disk has no room to rewrite the files; the references are deleted.
            ConflictError: Other writers add the image again and again.
        """
        digest = checked_hash(content_hash).lower()
        if not _HASH.fullmatch(digest):
            raise InvalidInputError(
                f"hash must be a whole hash of 64 characters. Got {digest!r} instead: `zsvec show --json` has it"
            )
        found = self._store.forget(digest)
        self._searcher.forget()
        return found

    def _moved(self, move: Move) -> Category:
        if move.source == move.target:
            raise InvalidInputError(f"{move.source!r} and {move.target!r} are the same category: give two")
        return self._store.move(move)

    def of(self, name: str) -> list[StoredReference]:
        """The references of a category: each text and image once, texts first, then by age.

        Raises:
            CategoryNotFoundError: There is no such category.
        """
        return self._store.stored_references(checked_name(name))

    def small(self, content_hash: str) -> SmallImage | None:
        """The small copy of a reference image; ``None`` without a readable copy."""
        return self._store.image(checked_hash(content_hash))

    def suspects(self) -> list[Suspect]:
        """Probable label errors among the reference images, most doubtful first; nothing is changed.

        Every reference image is compared with all others by the stored calibration. All vectors are read into the
        process; other memory is bounded. (The report of `Classifier.calibrate` names suspects only among the images
        that were left out.)

        Texts are not judged, nor is an image without another of its category. A picture in several categories is
        judged only if each of these has another image.

        Returns:
            Each suspect with the probability, above 0.5, of a wrong category, and the category that the other
            references make most probable.

        Raises:
            StoreError: There is no calibration for the experts and the aggregation in use.
        """
        references = self._calibrator.references()
        verdicts = self._calibrator.verdicts(references)
        if verdicts is None:
            raise StoreError(
                f"{self._store.location} has no calibration that says how often a label is wrong: calibrate it with "
                "`zsvec calibrate` or clf.calibrate()"
            )
        return suspects(references, verdicts)

    def audit(self) -> Audit:
        """Audit the reference images; findings of each kind, the most doubtful first. Nothing is changed.

        Label errors, as of `suspects`; near-duplicates; outliers; categories with too few different images; and pairs
        of confused categories. Label errors and confusions need a calibration. All vectors are read
        into the process once; other memory grows with the number of images, and the time with its square.

        Raises:
            StoreError: References cannot be read.
        """
        references = self._calibrator.references()
        return audited(references, self._calibrator.verdicts(references))
