"""`StoredReferences`: what a classifier offers to look after its references."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from zsvec.curation.audit import Audit, audited
from zsvec.errors import InvalidInputError
from zsvec.ingest.ingestion import Builder
from zsvec.ingest.recalibration import Calibrator
from zsvec.ingest.validation import checked_hash, checked_hashes
from zsvec.inputs.categories import CategoryInput, as_words, checked_category, checked_name
from zsvec.method.quality.suspects import Suspect
from zsvec.search.searcher import Searcher
from zsvec.store import Move, Renamed, Store, Write
from zsvec.types import Category, Forgotten, SmallImage, StoredReference, encoder_and_modality

_HASH = re.compile("[0-9a-f]{64}")


class StoredReferences:
    """The references of a store. It is ``clf.references`` of a classifier.

    No image is embedded again by anything here. A change is in the next batch of every process.

    Args:
        store: Where they are.
        searcher: Of the store.
        calibrator: Of the store.
        builder: Gives a builder, whose encoders embed texts that are new.
    """

    def __init__(
        self, store: Store, searcher: Searcher, calibrator: Calibrator, builder: Callable[[], Builder]
    ) -> None:
        self._store = store
        self._searcher = searcher
        self._calibrator = calibrator
        self._builder = builder

    def remove(self, name: str, hashes: str | Collection[str]) -> Category:
        """Remove references of a category, and give it as it is then.

        Args:
            name: The category.
            hashes: Content hash of a text or an image, or several.

        Raises:
            CategoryNotFoundError: There is none of this name.
            InvalidInputError: It has no such reference, or would have none at all.
            ConflictError: Other writers changed it at every attempt.
        """
        return self._store.remove_references(checked_name(name), checked_hashes(hashes))

    def move(self, hashes: str | Collection[str], *, source: str, target: str) -> Category:
        """Move references from one category to another, which is made if there is none, and give that.

        For an instant they are in both, never in neither; a process that is killed on the way leaves them in one.

        Args:
            hashes: Content hash of a text or an image, or several.
            source: The category that has them.
            target: The category that gets them.

        Raises:
            CategoryNotFoundError: There is no such source.
            InvalidInputError: It has no such reference, or would have none at all; or both are the same.
            ConflictError: Other writers changed one of the two at every attempt.
        """
        return self._moved(
            Move(source=checked_name(source), target=checked_name(target), hashes=checked_hashes(hashes))
        )

    def rename(self, name: str, new: str) -> Category:
        """Give a category another name. If its name is one of its definition texts, so is the new one then.

        Raises:
            CategoryNotFoundError: There is none of the old name.
            InvalidInputError: There is one of the new name; or both are the same.
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
        """Move all that a category has to another one, and remove it. Metadata of the target win.

        Raises:
            CategoryNotFoundError: One of them is not there.
            InvalidInputError: Both are the same.
            ConflictError: Other writers changed one of the two at every attempt.
        """
        self._store.category(checked_name(target))
        return self._moved(Move(source=checked_name(source), target=checked_name(target)))

    def update(
        self, name: str, *, texts: Sequence[str] | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Category:
        """Give a category other definition texts, other metadata, or both in one change. Its images stay.

        Args:
            name: The category.
            texts: In the place of those that it has, which are not embedded again if they are among them. ``None``
                keeps them.
            metadata: JSON in the place of what is kept with it; likewise.

        Returns:
            The category as committed.

        Raises:
            CategoryNotFoundError: There is none of this name.
            InvalidInputError: A text or the metadata cannot be used, or there would be no reference at all.
            ConflictError: Other writers changed it at every attempt.
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
        """Remove an image from every category, the inbox, the kept copies and the history: no undo brings it back.

        Whoever has its file can add it again.

        A category that has nothing else is removed. Of an embedded store, the files of all references are written anew,
        so that nothing of the image stays in them. A server deletes it as well, and overwrites its files when it sees
        fit. What this user keeps of the store for the next process is deleted; other users' is renewed when they
        open the store again.

        Args:
            content_hash: Of the image.

        Returns:
            What there was of it. Without any, it was not in this store: its file may have changed since.

        Raises:
            InvalidInputError: It is no content hash, of 64 characters.
            StoreError: There is no store.
            StoreUnavailableError: There is no room to write the files anew; the references are deleted.
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
            CategoryNotFoundError: There is no category of this name.
        """
        return self._store.stored_references(checked_name(name))

    def small(self, content_hash: str) -> SmallImage | None:
        """The small copy of a reference image; ``None`` without one that can be read."""
        return self._store.image(checked_hash(content_hash))

    def suspects(self) -> list[Suspect]:
        """The reference images that are probably under a wrong category, most doubtful first; nothing is changed.

        Every reference image is compared with all others by the present calibration. As for a calibration, all vectors
        are read into the process; beyond them, memory is bounded. (The report of `Classifier.calibrate` names suspects
        only among the images that it left out.)

        Not judged are texts, an image that has no other of its category to be compared with, and, of a picture that is
        in several categories, all where one of these has no other image.

        Returns:
            Each with the probability that its category is wrong, above 0.5, and the category that the others say
            instead.

        Raises:
            StoreError: There is no calibration for the experts and the aggregation in use.
        """
        return self._calibrator.suspects()

    def audit(self) -> Audit:
        """What is doubtful among the reference images, of each kind the most doubtful first; nothing is changed.

        Labels, as `suspects` judges them; the same picture twice; images that are like no other; categories with too
        few different images; and pairs of categories whose images are taken for each other. Without a calibration,
        labels and confusions are missing. All vectors are read into the process once; beyond them, memory grows with
        the number of images, and the time with its square.

        Raises:
            StoreError: References cannot be read.
        """
        references = self._calibrator.references()
        return audited(references, self._calibrator.verdicts(references))
