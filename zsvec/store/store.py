"""The store: categories in Qdrant, each committed whole or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from zsvec.errors import EncoderMismatchError, StoreError, StoreUnavailableError
from zsvec.store import erasure, health, undo
from zsvec.store.backends.base import Backend, Hit, Points
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.changefeed import Cursor, Look, look
from zsvec.store.catalog.history import FORGET, Cause, History
from zsvec.store.catalog.schema import Reference, keeps_images
from zsvec.store.collections import compatibility
from zsvec.store.collections.inbox import InboxCollection
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.collector import Collector
from zsvec.store.writing import Move, Write, Writer
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


@dataclass(slots=True)
class _Block:
    """A block of writes that are one change, and the functions to call once at the end."""

    cause: Cause
    followed_by: dict[Callable[[], None], None] = field(default_factory=dict)

    def end(self) -> None:
        for follow in self.followed_by:
            follow()


# For this thread or task, and for all stores.
_BLOCK: ContextVar[_Block | None] = ContextVar("block", default=None)
_BY: ContextVar[str | None] = ContextVar("by", default=None)


class Store:
    """The categories of one namespace.

    Args:
        backend: Where the collections are.
        namespace: Prefix of the collections. Nothing else in the deployment is read or written.
        profile_of: Returns the profile with these encoders, if there is one, for the error about other encoders.
        history: Undo window in seconds; 0 keeps no history.
        by: Author recorded with each change.

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
        self._writer = Writer(self._catalog, self._references, self._collector)
        self._by = by
        self._follow: Callable[[], None] = lambda: None
        self.inbox = InboxCollection(self._catalog, namespace)
        self._lock = threading.RLock()
        self._may_be_undoing = True  # here, or in a killed process

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
        """Returns the name of the collection of an encoder."""
        return self._references.collection(encoder)

    def check_open(self) -> None:
        """Raises StoreError if the store is closed, or was opened before this process was forked. Asks no server."""
        self._backend.check()

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Limits the time of each request of this thread in a block. An embedded store makes no requests."""
        return self._backend.within(seconds)

    # Encoders

    def encoders(self) -> dict[str, Fingerprint]:
        """Returns the fingerprints of the stored encoders, by name; empty before the first write.

        Raises:
            StoreError: The store has another schema.
        """
        return self._catalog.encoders()

    def bind(self, fingerprints: Mapping[str, Fingerprint], *, images: KeepImages | None = None) -> None:
        """Prepares the store for writes with these encoders.

        Args:
            fingerprints: Fingerprints of the encoders in use, by name.
            images: Whether to keep small copies of images. ``small`` starts with this call; ``none`` applies to a new
                store alone. By default a new store keeps copies, and another store is not changed.

        Raises:
            EncoderMismatchError: The stored vectors were made by other encoders.
            InvalidInputError: A name of an encoder cannot be part of the name of a collection.
            StoreError: A needed collection is foreign.
        """
        with self._writing(), self._naming_the_profile():
            compatibility.bind(self._catalog, self._references, fingerprints, images)

    def check(self, names: Iterable[str]) -> None:
        """Checks the names of the encoders in use.

        Raises:
            InvalidInputError: A name cannot be part of the name of a collection.
            EncoderMismatchError: The stored vectors were made by encoders of other names.
        """
        with self._naming_the_profile():
            compatibility.check_names(self._catalog, names)

    def check_fingerprints(self, fingerprints: Mapping[str, Fingerprint]) -> None:
        """Raises EncoderMismatchError if the stored vectors were made by other encoders."""
        with self._naming_the_profile():
            compatibility.check_fingerprints(self._catalog, fingerprints)

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
        """Returns the committed categories, by name, without those of an unreadable manifest (see `info`)."""
        return self._catalog.categories()[0]

    def look(self, cursor: Cursor, known: Mapping[str, int], *, whole: bool = False) -> Look:
        """Returns the commits since the last look: all that were acknowledged before this look began.

        Args:
            cursor: Cursor of the last look; for the first, ``Cursor()``.
            known: Version of each category that the reader has.
            whole: Whether to compare all categories, which also finds commits of writers killed before publishing.

        Raises:
            StoreError: The store has another schema.
        """
        return look(self._catalog, cursor, known, whole=whole)

    def category(self, name: str) -> Category:
        """Returns the committed category of this name.

        Raises:
            CategoryNotFoundError: There is no such category.
        """
        return self._catalog.category(name)

    def references(self, encoder: str, write_ids: Sequence[str], *, vectors: bool = True) -> Iterator[Points]:
        """Yields pages of the references of these writes in the collection of an encoder."""
        return self._references.pages(encoder, write_ids, vectors=vectors)

    def query(
        self,
        encoder: str,
        modality: Modality,
        vectors: NDArray[np.float32],
        limit: int,
        write_ids: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Returns the nearest references of each vector, nearest first, committed or not.

        Args:
            encoder: Name of the encoder.
            modality: Modality of the references.
            vectors: float32 ``(n, dim)``, unit rows.
            limit: References per vector.
            write_ids: Only references of these writes.
        """
        return self._references.query(encoder, modality, vectors, limit, write_ids)

    def keys(self, name: str) -> set[tuple[str, str, str]]:
        """Returns encoder, modality and content hash of every reference of a category, which need not exist."""
        category = self._catalog.find(name)
        return self._references.keys(category) if category else set()

    def stored(self, name: str) -> list[Reference]:
        """Returns every reference of a category with its vector; empty without such a category."""
        category = self._catalog.find(name)
        return list(self._references.read(category)) if category else []

    def stored_references(self, name: str) -> list[StoredReference]:
        """Returns each text and image of a category once, with its experts; texts first, then by age.

        Raises:
            CategoryNotFoundError: There is no such category.
        """
        return self._references.described(self.category(name))

    def holders(self, hashes: Collection[str]) -> dict[str, set[str]]:
        """Returns the names of the categories that have an image, by content hash."""
        return self._references.holders(hashes, self.categories())

    def keeps_images(self) -> bool:
        """Returns whether small copies of images are kept; False before the first write."""
        return keeps_images(self._catalog.store())

    def image(self, content_hash: str) -> SmallImage | None:
        """Returns the small copy of a reference image, if a readable one exists."""
        return self._references.images.find(content_hash) if self.keeps_images() else None

    def info(self) -> dict[str, Any]:
        """Returns place, size, encoders and calibration of the store, and versions of its engine, as JSON."""
        return health.info(self.namespace, self._catalog, self._references)

    def stats(self) -> dict[str, int]:
        """Returns counts of rare events of this handle.

        ``second_stamps``: commits that were stamped anew after others; ``unknown_outcomes``: commits that did not show
        at once; ``healed_records``: records with replicas that were made equal.
        """
        return dict(self._catalog.counts)

    def incomplete(self) -> list[str]:
        """Returns the names of categories that lack references; empty unless data was lost."""
        return health.incomplete(self._catalog, self._references)

    def check_up(self, *, repair: bool = False) -> Iterator[Finding]:
        """Yields findings about the deployment and the store, with advice.

        Args:
            repair: Whether to make replicas of the catalog agree.
        """
        return health.check_up(self._catalog, self._references, repair=repair)

    def calibration(self) -> Mapping[str, Any] | None:
        """Returns the stored calibration; ``None`` or empty without one."""
        return self._catalog.calibration()

    # History

    def changes(self) -> list[Change]:
        """Returns the changes of categories that can be or were undone, newest first."""
        return History(self._catalog).changes()

    def undo(self, name: str | None = None, change: str | None = None) -> Change:
        """Undoes a change, and returns it.

        Args:
            name: Category of the last change to undo; by default the last change of all.
            change: Id of the change, or the first characters. An undo can be undone by id.

        Raises:
            InvalidInputError: There is no such change, or a category has been changed since.
            ConflictError: Others changed a category at each attempt.
        """
        with self._changing("undo"):
            self._may_be_undoing = True
            return undo.undo(self._writer, name, change)

    def finish_undos(self) -> None:
        """Finishes the undos of killed processes, as every write does."""
        with self._writing():
            pass

    @contextmanager
    def one_change(self, what: str) -> Iterator[str]:
        """Makes all writes of a block one change of this kind, and yields the id. Inner blocks belong to the outer.

        The functions of `after_changes` run at the end, and after an error, too, since earlier commits stay. They do
        not run after an interrupt, such as a KeyboardInterrupt, or an error of an unavailable server.
        """
        if (outer := _BLOCK.get()) is not None:
            outer.followed_by[self._follow] = None
            yield outer.cause.id
            return
        block = _Block(Cause(what=what, by=self.by), {self._follow: None})
        token = _BLOCK.set(block)
        try:
            yield block.cause.id
        except StoreUnavailableError:
            raise  # another request would wait for the deadline once more
        except Exception:
            block.end()
            raise
        else:
            block.end()
        finally:
            _BLOCK.reset(token)

    def after_changes(self, follow: Callable[[], None]) -> None:
        """Sets the function to call at the end of each change of categories, as `one_change` does."""
        self._follow = follow

    @contextmanager
    def acting(self, by: str | None) -> Iterator[None]:
        """Overrides the recorded author within this block; ``None`` keeps the author of the settings."""
        token = _BY.set(by)
        try:
            yield
        finally:
            _BY.reset(token)

    @property
    def by(self) -> str | None:
        """Author recorded with each reference and each change."""
        return _BY.get() or self._by

    # Writing

    def write(self, writes: Sequence[Write]) -> list[Category]:
        """Commits references to categories, each category whole or not at all.

        A new category is created. An existing one gets the references that it lacks; with ``replace``, its references
        are replaced.

        Args:
            writes: At most one per category.

        Returns:
            The categories after the write, in order.

        Raises:
            ConflictError: Others changed a category at each attempt or removed references that the write needs, or the
                category would have no reference. The other categories are committed.
        """
        with self._changing("replace" if any(write.replace for write in writes) else "add"):
            return self._writer.write(writes)

    def remove(self, name: str) -> None:
        """Removes a category with all references.

        Raises:
            CategoryNotFoundError: There is no such category.
            ConflictError: Others changed it at each attempt.
        """
        with self._changing("remove"):
            self._writer.remove(name)

    def remove_references(self, name: str, hashes: Collection[str]) -> Category:
        """Removes the references of these content hashes from a category, in all encoders, and returns the category.

        Raises:
            CategoryNotFoundError: There is no such category.
            InvalidInputError: The category has no reference of such a hash.
            ConflictError: The category would have no reference, or others changed it at each attempt.
        """
        with self._changing("remove"):
            return self._writer.remove_references(name, hashes)

    def forget(self, content_hash: str) -> Forgotten:
        """Erases an image from all categories, copies, changes and the inbox. No undo brings the image back.

        A category without other references is removed. The files of an embedded store are rewritten.

        Args:
            content_hash: Content hash of the image.

        Raises:
            StoreError: There is no store.
            ConflictError: Others add the image again at each attempt.
        """
        with self._changing(FORGET):
            if self._catalog.store() is None:
                raise StoreError(f"there is no store in {self.location}: check the path, or the URL, and the namespace")
            found = erasure.forget(self._writer, content_hash)
            return replace(found, points=found.points + self.inbox.forget(content_hash))

    def move(self, move: Move) -> Category:
        """Moves references from one category to another, and returns the target.

        For an instant the references are in both, never in neither. After a kill at any time, each is in one of them.

        Raises:
            CategoryNotFoundError: There is no such source.
            InvalidInputError: The source has no reference of such a hash, or the target must not exist and does.
            ConflictError: The source would have no reference, or others changed one of the two at each attempt.
        """
        with self._changing("merge" if move.hashes is None else "move"):
            return self._writer.move(move)

    def keep_calibration(self, calibration: Mapping[str, Any]) -> None:
        """Commits a calibration, unless the stored one was made from a later state. An empty one removes the stored.

        Raises:
            ConflictError: Others committed one at each attempt.
        """
        with self._writing():
            self._writer.keep_calibration(calibration)

    def gc(self, grace: float | None = None, *, on_final: Callable[[Change], None] = lambda change: None) -> int:
        """Deletes the references that no manifest names, and returns the number.

        Args:
            grace: Age in seconds from which references cannot belong to a present writer, and changes become final.
                By default an hour, or 0 if no other process can write; and the undo window for changes.
            on_final: Called with each change that can no longer be undone.
        """
        with self._writing():
            # Of writers that began before the copies were dropped.
            compatibility.drop_images(self._catalog, self._references)
            deleted, final = self._collector.collect(grace)
        for change in final:
            on_final(change)
        return deleted

    def drop_images(self) -> None:
        """Deletes all small copies of images, and keeps none from now on.

        A present writer may leave some, which are not read and which `gc` deletes.
        """
        with self._writing():
            compatibility.keep_no_images(self._catalog, self._references)

    def flush(self) -> None:
        """Makes all commits survive a loss of power. A killed process never loses one."""
        self._backend.flush()

    def close(self) -> None:
        """Closes files and connections."""
        self._backend.close()

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        with self.one_change(what), self._writing():
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Runs one writer at a time in this process, after the undos that are under way."""
        self._backend.check()  # before the lock, which a forked process might never get
        with self._lock:
            if self._may_be_undoing or not self._backend.exclusive:
                self._may_be_undoing = False
                undo.finish_undos(self._writer)
            if block := _BLOCK.get():
                self._collector.cause = block.cause
            yield
