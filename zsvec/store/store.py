"""The store: categories in Qdrant, each committed whole or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from zsvec.errors import EncoderMismatchError, StoreError
from zsvec.store import forgetting, health, mending, undo, writing
from zsvec.store.backends.base import Backend, Hit, Points
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.history import FORGET, History
from zsvec.store.catalog.look import Cursor, Look, look
from zsvec.store.catalog.schema import Reference, keeps_images
from zsvec.store.causes import Causes
from zsvec.store.collections import ownership
from zsvec.store.collections.inbox import InboxCollection
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.collector import Collector
from zsvec.store.mending import Move
from zsvec.store.writing import Write
from zsvec.types import (
    Category,
    Change,
    Finding,
    Fingerprint,
    Forgotten,
    KeepImages,
    Modality,
    SmallImage,
    StoredReference,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Store:
    """The categories of one namespace.

    Args:
        backend: Where the collections are.
        namespace: Prefix of their names. Nothing else in the deployment is read or written.
        profile_of: From the fingerprints of its encoders to the profile to name where others are in use, if there is
            one.
        history: Seconds for which changes can be taken back; 0 keeps no history.
        by: Who changes categories; kept with each change.

    Attributes:
        inbox: Images that wait for a label.
    """

    def __init__(
        self,
        backend: Backend,
        namespace: str,
        profile_of: Callable[[Mapping[str, Fingerprint]], str | None] = lambda stored: None,
        *,
        history: float = 0.0,
        by: str | None = None,
    ) -> None:
        self._backend = backend
        self._profile_of = profile_of
        self.namespace = namespace
        self._catalog = Catalog(backend, namespace)
        self._references = ReferenceCollections(backend, namespace)
        self._collector = Collector(self._catalog, self._references, history)
        self._causes = Causes(by)
        self.inbox = InboxCollection(backend, self._catalog, namespace)
        self._lock = threading.RLock()
        self._may_be_undoing = True  # here, or in a process that was killed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the store {self.location}, or a classifier that has it open, cannot be pickled: "
            "call zsvec.open in each process"
        )

    @property
    def location(self) -> str:
        """Folder or URL, and namespace."""
        return self._catalog.location

    @property
    def place(self) -> str:
        """Absolute folder or URL, and namespace; empty for a store that ends with the process."""
        return self._backend.place and f"{self._backend.place} {self.namespace}"

    def collection(self, encoder: str) -> str:
        """Name of the collection of an encoder's references."""
        return self._references.collection(encoder)

    def check_open(self) -> None:
        """Refuse to be used once closed, or in a process forked from that which opened it. Asks no server.

        Raises:
            StoreError: It is so.
        """
        self._backend.check()

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Give each request of this thread no more than so many seconds, in a block; an embedded store makes none."""
        return self._backend.within(seconds)

    # Encoders

    def encoders(self) -> dict[str, Fingerprint]:
        """Fingerprint of each encoder whose vectors are stored; empty before the first write.

        Raises:
            StoreError: The store has another schema.
        """
        return self._catalog.encoders()

    def bind(self, fingerprints: Mapping[str, Fingerprint], *, images: KeepImages | None = None) -> None:
        """Make the store ready to be written with these encoders, and refuse any others.

        Args:
            fingerprints: Of the encoders in use, by name.
            images: Whether small copies of images are kept. ``small`` begins to keep them; ``none`` is a matter of a
                new store. By default a new store keeps them, and another one goes on as it did.

        Raises:
            EncoderMismatchError: The stored vectors were made by other encoders.
            InvalidInputError: It cannot keep copies, because one of its encoders has the name of their collection.
            StoreError: A collection of a name that is needed belongs to somebody else.
        """
        with self._writing(), self._naming_the_profile():
            ownership.bind(self._backend, self._catalog, self._references, fingerprints, images)

    def check(self, names: Iterable[str]) -> None:
        """Refuse encoders of other names than those that the store was written with.

        Raises:
            InvalidInputError: A name cannot be part of the name of a collection.
            EncoderMismatchError: The names differ.
        """
        with self._naming_the_profile():
            ownership.check_names(self._catalog, names)

    def check_fingerprints(self, fingerprints: Mapping[str, Fingerprint]) -> None:
        """Refuse encoders whose vectors cannot be compared with those that are stored.

        Raises:
            EncoderMismatchError: A fingerprint differs.
        """
        with self._naming_the_profile():
            ownership.check_fingerprints(self._catalog, fingerprints)

    @contextmanager
    def _naming_the_profile(self) -> Iterator[None]:
        try:
            yield
        except EncoderMismatchError as exc:
            profile = self._profile_of(self.encoders())
            if profile is None:
                raise
            made = f"it was made with the profile {profile!r}: open it with that (--profile {profile})"
            raise EncoderMismatchError(f"{exc}; {made}") from exc

    # Reading

    def categories(self) -> list[Category]:
        """Committed categories, by name; without those whose manifest this version cannot read (see `info`)."""
        return self._catalog.categories()[0]

    def look(self, cursor: Cursor, known: Mapping[str, int], *, whole: bool = False) -> Look:
        """What was committed since the last look: all that was acknowledged before this one began.

        Args:
            cursor: That the last look gave; for the first, ``Cursor()``.
            known: Version of each category that the reader has.
            whole: Whether to compare all categories. That finds commits whose writer died before it published them.

        Raises:
            StoreError: The store has a schema that this version does not know.
        """
        return look(self._catalog, cursor, known, whole=whole)

    def category(self, name: str) -> Category:
        """The committed category of this name.

        Raises:
            CategoryNotFoundError: There is none.
        """
        return self._catalog.category(name)

    def references(self, encoder: str, write_ids: Sequence[str], *, vectors: bool = True) -> Iterator[Points]:
        """References of these writes in one encoder's collection, page by page."""
        return self._references.pages(encoder, write_ids, vectors=vectors)

    def query(
        self,
        encoder: str,
        modality: Modality,
        vectors: NDArray[np.float32],
        limit: int,
        write_ids: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """The nearest references of each vector, nearest first, committed or not.

        Args:
            encoder: Name of the encoder.
            modality: Of the references.
            vectors: float32 ``(n, dim)``, unit rows.
            limit: References per vector.
            write_ids: Only references of these writes.
        """
        return self._references.query(encoder, modality, vectors, limit, write_ids)

    def keys(self, name: str) -> set[tuple[str, str, str]]:
        """Encoder, modality and content hash of every reference of a category; empty if there is no category."""
        category = self._catalog.find(name)
        return self._references.keys(category) if category else set()

    def stored(self, name: str) -> list[Reference]:
        """Every reference of a category with its vector; empty if there is no category."""
        category = self._catalog.find(name)
        return list(self._references.read(category)) if category else []

    def stored_references(self, name: str) -> list[StoredReference]:
        """What a category has: each text and image once, with the experts that have it; texts first, then by age.

        Raises:
            CategoryNotFoundError: There is no category of this name.
        """
        return self._references.described(self.category(name))

    def holders(self, hashes: Collection[str]) -> dict[str, set[str]]:
        """By content hash of an image, names of the categories that have it, in one pass over the references."""
        return self._references.holders(hashes, self.categories())

    def keeps_images(self) -> bool:
        """Whether small copies of images are kept; no, before the first write."""
        return keeps_images(self._catalog.store())

    def image(self, content_hash: str) -> SmallImage | None:
        """The small copy of a reference image, by its content hash; ``None`` without one that can be read."""
        return self._references.images.find(content_hash) if self.keeps_images() else None

    def info(self) -> dict[str, Any]:
        """Place, size, encoders and calibration of the store, and versions of its engine; JSON."""
        return health.info(self._backend, self.namespace, self._catalog, self._references)

    def stats(self) -> dict[str, int]:
        """Counts of rare events of this handle.

        ``second_stamps``: commits that were stamped anew after others; ``unknown_outcomes``: commits that did not show
        at once; ``healed_records``: records with copies that were made equal in a cluster.
        """
        return dict(self._catalog.counts)

    def incomplete(self) -> list[str]:
        """Names of the categories that lack references which their manifest counts; empty unless data was lost."""
        return health.incomplete(self._catalog, self._references)

    def check_up(self, *, repair: bool = False) -> Iterator[Finding]:
        """What is to be said of the deployment and of what is in it, with what to do.

        Args:
            repair: Whether to make the copies of the catalog agree, where they do not.
        """
        return health.check_up(self._catalog, self._references, repair=repair)

    def calibration(self) -> Mapping[str, Any] | None:
        """The calibration that is kept with the store; ``None``, or empty, if there is none."""
        return self._catalog.calibration()

    # History

    def changes(self) -> list[Change]:
        """The changes of categories that can be taken back, or were, newest first."""
        return History(self._catalog).changes()

    def undo(self, name: str | None = None, change: str | None = None) -> Change:
        """Take a change back, and give it.

        Args:
            name: Of a category, whose last change it is; by default the last change of all.
            change: Its id, or the first characters of that. A change that took another one back can be given here, too.

        Raises:
            InvalidInputError: There is no such change, or a category has been changed since.
            ConflictError: Others changed a category at each attempt.
        """
        with self._changing("undo"):
            self._may_be_undoing = True
            return undo.undo(self._catalog, self._references, self._collector, name, change)

    def finish_undos(self) -> None:
        """Finish the undos that killed processes have begun. Each write does so first."""
        with self._writing():
            pass

    def one_change(self, what: str) -> AbstractContextManager[str]:
        """Make all writes of a block one change of this name, and give its id. Inner blocks belong to it."""
        return self._causes.one_change(what)

    def after_changes(self, follow: Callable[[], None]) -> None:
        """Call this at the end of each change of categories; after an error, too: what was committed stays."""
        self._causes.follow = follow

    def acting(self, by: str | None) -> AbstractContextManager[None]:
        """Let somebody else than the setting says be who changes categories in a block; ``None``: as it says."""
        return self._causes.acting(by)

    @property
    def by(self) -> str | None:
        """Who changes categories now; kept with each reference and each change."""
        return self._causes.by

    # Writing

    def write(self, writes: Sequence[Write]) -> list[Category]:
        """Commit references to categories, each category whole or not at all.

        A category that does not exist is created. One that exists gets the references it lacks, and nothing is
        written if it lacks none; with ``replace``, its references are replaced.

        Args:
            writes: At most one per category.

        Returns:
            The categories as they are then, in order.

        Raises:
            ConflictError: Others changed a category at each attempt, or removed references that the write needs. The
                other categories are committed.
            InvalidInputError: What a category was to keep is gone, and nothing else is given. The others are committed.
        """
        with self._changing("replace" if any(write.replace for write in writes) else "add"):
            return writing.write_categories(self._catalog, self._references, self._collector, writes)

    def remove(self, name: str) -> None:
        """Remove a category and its references.

        Raises:
            CategoryNotFoundError: There is none of this name.
            ConflictError: Others changed it at each attempt.
        """
        with self._changing("remove"):
            writing.remove_category(self._catalog, self._references, self._collector, name)

    def remove_references(self, name: str, hashes: Collection[str]) -> Category:
        """Remove some references of a category, and give it as it is then.

        Args:
            name: The category.
            hashes: Content hashes of texts and images; all encoders' references of these.

        Raises:
            CategoryNotFoundError: There is none of this name.
            InvalidInputError: It has no reference of such a hash, or would have none at all.
            ConflictError: Others changed it at each attempt.
        """
        with self._changing("remove"):
            return mending.remove_references(self._catalog, self._references, self._collector, name, hashes)

    def forget(self, content_hash: str) -> Forgotten:
        """Remove an image from all categories, copies, changes and the inbox, for good: nothing can bring it back.

        A category that has nothing else is removed. Of an embedded store, the files are written anew.

        Args:
            content_hash: Of the image.

        Raises:
            StoreError: There is no store; ConflictError: others add the image again and again.
        """
        with self._changing(FORGET):
            if self._catalog.store() is None:
                raise StoreError(f"there is no store in {self.location}: check the path, or the URL, and the namespace")
            found = forgetting.forget(self._catalog, self._references, self._collector, content_hash)
            return replace(found, points=found.points + self.inbox.forget(content_hash))

    def move(self, move: Move) -> Category:
        """Move references from one category to another, and give that as it is then.

        For an instant they are in both, never in neither, and whatever is killed, they end in one of them.

        Raises:
            CategoryNotFoundError: There is no such source.
            InvalidInputError: It has no reference of such a hash, or none would be left; or there is a target where
                there must be none.
            ConflictError: Others changed one of the two at each attempt.
        """
        with self._changing("merge" if move.hashes is None else "move"):
            return mending.move_references(self._catalog, self._references, self._collector, move)

    def keep_calibration(self, calibration: Mapping[str, Any]) -> None:
        """Commit a calibration in the place of the one that is there; an empty one is none.

        A calibration that was made from a later state of the catalog stays.

        Raises:
            ConflictError: Others committed one at each attempt.
        """
        with self._writing():
            writing.keep_calibration(self._catalog, calibration)

    def gc(self, grace: float | None = None, *, on_final: Callable[[Change], None] = lambda change: None) -> int:
        """Delete the references that no manifest names, and say how many there were.

        Args:
            grace: Age in seconds from which they cannot belong to a writer at work, and from which changes cannot be
                taken back any more. By default an hour, or 0 where no other process can write; and changes stay as
                long as their history is kept.
            on_final: Called with each change that cannot be taken back any more.
        """
        with self._writing():
            # A writer may have left some which was at work while they were dropped.
            ownership.drop_images(self._backend, self._catalog, self._references)
            deleted, final = self._collector.collect(grace)
        for change in final:
            on_final(change)
        return deleted

    def drop_images(self) -> None:
        """Delete all small copies of images, and keep none any more.

        A writer at work may leave some. Nobody sees them, and `gc` deletes them.
        """
        with self._writing():
            ownership.keep_no_images(self._backend, self._catalog, self._references)

    def flush(self) -> None:
        """Make all that is committed survive a loss of power; a killed process never loses it."""
        self._backend.flush()

    def close(self) -> None:
        """Let go of files and connections."""
        self._backend.close()

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        """A write that changes categories; `what` it does in one word, where it is no part of a larger change."""
        with self.one_change(what), self._writing(what):
            yield

    @contextmanager
    def _writing(self, what: str = "") -> Iterator[None]:
        """One writer at a time in this process, after the undos that are under way.

        Args:
            what: It does to categories, where it is no part of anything.
        """
        self._backend.check()  # before the lock, which a forked process might never get
        with self._lock:
            if self._may_be_undoing or not self._backend.exclusive:
                self._may_be_undoing = False
                undo.finish_undos(self._catalog, self._references, self._collector)
            self._collector.cause = self._causes.cause(what)
            yield
