"""The store: categories in Qdrant, each committed whole or not at all."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from zsvec.errors import ConflictError, InvalidInputError, StoreError, StoreUnavailableError, ZSVecError, shown
from zsvec.store import erasure, health, switching, undo
from zsvec.store.attached.collections import AttachedCollections
from zsvec.store.attached.parts import Parts, PartsChanged, with_parts
from zsvec.store.backends.base import EXACT, Backend, Hit, Points, Where
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.changefeed import Cursor, Look, look
from zsvec.store.catalog.history import FORGET, Cause, History
from zsvec.store.catalog.marks import kept_mark, mark
from zsvec.store.catalog.schema import (
    ERASURE,
    UNDO,
    Reference,
    attachments_from,
    dims_from,
    fingerprints_from,
    keeps_images,
    labels_from,
    measurement_from,
    profile_from,
    search_params_from,
)
from zsvec.store.catalog.successor import Successor, is_dropped, joined_namespace
from zsvec.store.collections import compatibility
from zsvec.store.collections.inbox import InboxCollection, InboxImage, Removal
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.collector import Collector
from zsvec.store.reuse import StoredVectors
from zsvec.store.transfer import settled
from zsvec.store.writing import EXPECTED, Expected, Move, Write, Writer
from zsvec.types import (
    MAX_LEVELS,
    SWITCH,
    Attached,
    Attachment,
    Category,
    Change,
    Copied,
    Finding,
    Fingerprint,
    Forgotten,
    KeepImages,
    Labels,
    Modality,
    SearchMeasurement,
    SearchParams,
    SmallImage,
    StoredReference,
    Synced,
    encoder_and_modality,
    names_of_parent,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zsvec.store.copying import Track
    from zsvec.store.following import Follower
    from zsvec.store.reembedding import Reembedding, Reencoder
    from zsvec.store.source import Source


@dataclass(slots=True)
class _Block:
    """A block of writes that form one change, and the functions to call once at the end of the block."""

    cause: Cause
    followed_by: dict[Callable[[], None], None] = field(default_factory=dict)

    def end(self) -> None:
        for follow in self.followed_by:
            follow()


def _same(one: Attachment, other: Attachment) -> bool:
    return (one.collection, one.expert) == (other.collection, other.expert)


_MADE = 10_000  # changes that a store remembers as its own
_SWITCHES = 5  # attempts to switch to other encoders, while others move references or undo changes

# Per thread or asyncio task, and shared by all stores.
_BLOCK: ContextVar[_Block | None] = ContextVar("block", default=None)
_BY: ContextVar[str | None] = ContextVar("by", default=None)


class Store:
    """The categories of one namespace.

    Args:
        backend: Backend that holds the collections.
        namespace: Prefix of the collections. Nothing else in the deployment is written, and only what is attached is
            read.
        history: Undo window: seconds for which a change can be undone. 0 keeps no history.
        by: Author recorded with each change.
        before: Catalogs of the namespaces from which the store was switched to this one, oldest first.

    Attributes:
        inbox: Images that wait for a label.
    """

    def __init__(
        self,
        backend: Backend,
        namespace: str,
        *,
        history: float = 0.0,
        by: str | None = None,
        before: Sequence[Catalog] = (),
    ) -> None:
        self._backend = backend
        self.namespace = namespace
        self._catalog = Catalog(backend, namespace)
        self._references = ReferenceCollections(backend, namespace)
        self.inbox = InboxCollection(self._catalog, namespace)
        self._collector = Collector(self._catalog, self._references, self.inbox, history)
        self._attached = AttachedCollections(backend, namespace)
        self._writer = Writer(self._catalog, self._references, self._collector, self.inbox)
        self._by = by
        self._history = history
        self._before = before
        self._follow: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        self._made: deque[str] = deque(maxlen=_MADE)  # ids of changes, each of which may be without a write
        self._may_be_unfinished = True  # an undo or an erasure, of this process or of a killed one

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
        """Folder or URL of the store, with the namespace."""
        return self._catalog.location

    @property
    def way_out(self) -> str:
        """What to do about damage, for messages."""
        return "look with `zsvec doctor`"

    @property
    def place(self) -> str:
        """Absolute folder or URL, with the namespace; empty for a store in memory."""
        return self._backend.place and f"{self._backend.place} {self.namespace}"

    def places(self) -> set[str]:
        """Returns place and id of this store in each of its namespaces; empty for a store in memory."""
        found = switching.namespaces(self._catalog) if self.place else ()
        return {f"{self.beside(one.number).place} {record.get('id', '')}" for one, record in found}

    def collection(self, encoder: str) -> str:
        """Returns the name of the collection of an encoder."""
        return self._references.collection(encoder)

    def check_open(self) -> None:
        """Raises StoreError if the store is closed, or was opened before this process was forked. Sends no request."""
        self._backend.check()

    def ping(self) -> None:
        """Reads one record; raises a StoreError if the store does not respond, or this namespace was deleted."""
        self._catalog.check_readable(self._catalog.store())

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Limits each request that this thread sends in a block to this many seconds. An embedded store sends none."""
        return self._backend.within(seconds)

    # Encoders

    def encoders(self) -> dict[str, Fingerprint]:
        """Returns the fingerprints of the encoders of the store, by name. Empty before the first write.

        Raises:
            StoreError: The store has another schema, or the record of the store is damaged.
        """
        return self._catalog.encoders()

    def profile(self) -> str | None:
        """Returns the name of the profile that the store was made with; ``None`` if unknown, or before the first write.

        The name is untrusted: other writers of a shared server may have changed it.

        Raises:
            StoreError: The store has another schema, or the record of the store is damaged.
        """
        return self._catalog.profile()

    def bind(
        self,
        fingerprints: Mapping[str, Fingerprint],
        *,
        images: KeepImages | None = None,
        profile: str | None = None,
        labels: Labels | None = None,
    ) -> None:
        """Prepares the store for writes with these encoders.

        Args:
            fingerprints: Fingerprints of the encoders in use, by name.
            images: Whether to keep small copies of images. ``small`` makes any store keep copies from now on. ``none``
                applies only to a new store. By default, a new store keeps copies, and an existing store is not changed.
            profile: Name of the profile that the encoders come from, which a new store remembers.
            labels: Whether an image belongs to ``one`` category or may belong to ``many``, from now on. By default, one
                in a new store; an existing store is not changed.

        Raises:
            EncoderMismatchError: The stored vectors were made by other encoders.
            InvalidInputError: The name of an encoder cannot be part of the name of a collection.
            StoreError: A collection that the store needs exists, and zsvec did not make it.
        """
        with self._writing():
            compatibility.bind(self._catalog, self._references, fingerprints, images, profile, labels)

    def check(self, names: Iterable[str]) -> None:
        """Checks the names of the encoders in use.

        Raises:
            InvalidInputError: A name cannot be part of the name of a collection.
            EncoderMismatchError: The stored vectors were made by encoders of other names.
        """
        compatibility.check_names(self._catalog, names)

    def check_fingerprints(self, fingerprints: Mapping[str, Fingerprint]) -> None:
        """Raises EncoderMismatchError if the stored vectors were made by other encoders."""
        compatibility.check_fingerprints(self._catalog, fingerprints)

    # Other namespaces of the store (`zsvec.store.catalog.successor`)

    def current(self) -> Store:
        """Returns the store in its current namespace: this object, unless the store was switched to other encoders.

        Raises:
            StoreError: A record of the store is damaged or has another schema.
            StoreUnavailableError: The store cannot be read.
        """
        catalog, before = switching.current(self._catalog)
        if not before:
            return self
        namespace = joined_namespace(catalog.base, catalog.number)
        return Store(self._backend, namespace, history=self._history, by=self._by, before=before)

    def open_again(self) -> None:
        """Ends the switch of a killed process at once. Only for a store that no other process can have open."""
        found = self._catalog.successor()
        if found is not None and not found.done:
            self._catalog.clear_successor(found)

    def beside(self, number: int) -> Store:
        """Returns another namespace of this store, without a history. Both share files and connections."""
        return Store(self._backend, joined_namespace(self._catalog.base, number), by=self._by)

    def named(self, namespace: str) -> Store:
        """Returns another namespace of this store by its name, such as ``zsvec.1``.

        Raises:
            InvalidInputError: The store has no other namespace of this name.
        """
        whole = [one for one in switching.siblings(self._catalog) if not is_dropped(one.store())]
        others = {joined_namespace(one.base, one.number): one.number for one in whole}
        if namespace not in others:
            known = ", ".join(others) or "none: `zsvec reembed` makes one"
            raise InvalidInputError(
                f"the other namespace must be one of {self.location}, got {shown(namespace)}. There are {known}"
            )
        return self.beside(others[namespace])

    def copy_for(self, fingerprints: Mapping[str, Fingerprint], profile: str | None = None) -> Store:
        """Returns the namespace for a copy of this store with other encoders, ready to be written.

        A namespace with these encoders that an earlier run has begun, or an undo has left, is used again.

        Args:
            fingerprints: Fingerprints of the encoders of the copy, by name.
            profile: Name of the profile that the encoders come from.

        Raises:
            InvalidInputError: The vectors of this store are of these encoders, or the name of an encoder cannot be part
                of the name of a collection.
            StoreError: There is no store.
        """
        from zsvec.store.reembedding import number_for  # imports modules that listing categories does not need

        if not (present := self.encoders()):
            raise StoreError(f"there is no store in {self.location}: check the path, or the URL, and the namespace")
        if present == fingerprints:
            raise InvalidInputError(
                f"the encoders must be others than those of {self.location}, got {', '.join(sorted(present))}: choose "
                "another profile (`zsvec reembed --profile NAME`)"
            )
        copy = self.beside(number_for(self._catalog, fingerprints))
        is_begun = copy._catalog.store() is not None
        token = str(uuid.uuid4())
        with self._writing():
            self._catalog.set_in_store(copying=token)
        copy._catalog.copied_from = (self._catalog, token)
        copy.bind(
            fingerprints, images="small" if self.keeps_images() else "none", profile=profile, labels=self.labels()
        )
        if is_begun:  # another run may be about to commit
            copy._fence(str(one["category"]) for one in (*self._catalog.manifests(), *copy._catalog.manifests()))
        return copy

    def _fence(self, names: Iterable[str]) -> None:
        manifests = self._catalog.state(names := set(names)).manifests
        if self._collector.fence(names, manifests) is None:
            raise ConflictError(f"another process changes {self.location}: repeat the command later")

    def reembedding(
        self,
        copy: Store,
        reencoder: Reencoder,
        *,
        on_image: Callable[[int], None] = lambda number: None,
        on_commit: Callable[[Category], None] = lambda category: None,
    ) -> Reembedding:
        """Returns the object that embeds the references of this store again, into a copy; arguments as there."""
        from zsvec.store.reembedding import Reembedding

        return Reembedding(
            self._catalog, self._references, self.inbox, copy._writer, reencoder, on_image=on_image, on_commit=on_commit
        )

    def switch_to(self, copy: Store, reembedding: Reembedding) -> tuple[Change, list[str]]:
        """Makes a copy the current namespace, once it has all changes. Writers wait, and are then refused.

        Returns:
            The change, and the names of the attached collections that the copy does not have, because their encoder is
            not among the same.

        Raises:
            StoreError: A category cannot be copied.
            ConflictError: Other processes changed or opened the store at every attempt.
        """
        reembedding.copy_again(copy.incomplete())
        for _ in range(_SWITCHES):
            reembedding.follow()
            reembedding.follow_inbox()  # here, so that writers wait for a few images alone
            with suppress(ConflictError), self._writing():
                with switching.closed(self._catalog, copy._catalog.number) as closing:
                    if not switching.is_in_motion(self._catalog):
                        reembedding.follow()
                        reembedding.follow_inbox()
                        detached = self._give_settings(copy, closing.record)
                        reembedding.check_complete()
                        copy._catalog.check_current()
                        rev = copy._catalog.newest()
                        done = switching.finish(self._catalog, closing, rev=rev, window_s=self._history, by=self.by)
                        copy._catalog.copied_from = None
                        return switching.as_change(done), detached
                self._may_be_unfinished = True  # the next attempt finishes what is in motion
                settled(self._catalog, [one["category"] for one in self._catalog.manifests() if "transfer" in one])
        raise ConflictError(f"other processes changed {self.location} at every attempt to switch: repeat the command")

    def _give_settings(self, copy: Store, record: Mapping[str, Any]) -> list[str]:
        """Gives a copy what the record of this store says of labels and attached collections.

        Returns:
            The names of the collections that the copy does not have, since their encoder is not among its own.
        """
        here, there = self.encoders(), copy.encoders()
        shared = {name for name in here if here[name] == there.get(name)}
        attached = attachments_from(record)
        kept = [one for one in attached if encoder_and_modality(one.expert)[0] in shared]
        copy._catalog.set_in_store(attachments=[asdict(one) for one in kept], labels=labels_from(record))
        return [one.collection for one in attached if one not in kept]

    def drop_others(self) -> list[str]:
        """Deletes the contents of all other namespaces of this store, and returns their names.

        Afterwards, no switch to other encoders can be undone.
        """
        with self._writing():
            others = list(switching.siblings(self._catalog))
            for one in others:
                switching.drop(one, self._catalog)
            return [joined_namespace(one.base, one.number) for one in others]

    def _last_switch(self) -> tuple[Successor, Change] | None:
        """Returns the last switch to this namespace, if the undo time is not over."""
        found = switching.last_switch(self._before[-1]) if self._before else None
        return found if found and found[0].until > time.time_ns() // 1000 else None

    def _is_switch(self, change: Change, identifier: str | None) -> bool:
        """Returns whether an undo of this id concerns a switch; without an id, whether it is the last change.

        Raises:
            InvalidInputError: The id of another change begins in the same way.
        """
        if identifier is not None:
            begins = bool(identifier) and change.id.startswith(identifier)
            return begins and undo.one_of(self.changes(), identifier) == change
        return all(one.undone or one.at < change.at for one in History(self._catalog).changes())

    # Reading

    def categories(self) -> list[Category]:
        """Returns the committed categories, sorted by name. Unreadable manifests are left out (see `info`)."""
        return self._catalog.categories()[0]

    def all_categories(self) -> list[Category]:
        """Returns the committed categories, with the references of attached collections, sorted by name."""
        self._follow_attachments()
        own = {category.name: category for category in self.categories()}
        parts = self._attached.current().by_category
        return [with_parts(own.get(name), name, parts.get(name, ())) for name in sorted({*own, *parts})]

    def whole_category(self, name: str) -> Category:
        """Returns a category with the references of attached collections.

        Raises:
            CategoryNotFoundError: There is no such category.
        """
        self._follow_attachments()
        own, parts = self._catalog.find(name), self._attached.current().by_category.get(name, ())
        return with_parts(own, name, parts) if parts else self._catalog.existing(name, own)

    def attached_parts(self) -> Parts:
        """Returns the points of attached collections: the same object as before, if nothing has changed.

        Reads a collection that was attached since the last call.
        """
        return self._attached.current()

    def look(self, cursor: Cursor, known: Mapping[str, int], *, whole: bool = False, removed: bool = True) -> Look:
        """Returns what has changed since the last look, including every commit acknowledged before this look began.

        Args:
            cursor: Cursor from the last look; ``Cursor()`` for the first look.
            known: Versions of the categories that the reader has, by name.
            whole: Whether to compare all categories. This also finds commits of writers that were killed before
                publishing.
            removed: Whether the reader needs the removed categories, which may be many, for their marks. Otherwise,
                the first look at an embedded store leaves them out, and `whole` has no effect there.

        Raises:
            StoreError: The store has another schema, or this namespace was deleted after a switch to other encoders.
        """
        found = look(self._catalog, cursor, known, whole=whole, removed=removed)
        if found.attachments is not None:
            self._attached.follow(found.attachments, found.dims, found.record)
        return found

    def category(self, name: str) -> Category:
        """Returns the committed category of this name.

        Raises:
            CategoryNotFoundError: There is no such category.
        """
        return self._catalog.category(name)

    def check_parent(self, name: str, parent: str) -> None:
        """Raises InvalidInputError if a parent would put a category above itself.

        Concurrent writers may still do so. A reader ends such a path (`zsvec.method.predict.tree`).
        """
        above = parent
        for _ in range(MAX_LEVELS):
            if not above:
                return
            top = names_of_parent(above)[0]
            if top == name:
                raise InvalidInputError(f"the parent of {name!r} must not be below {name!r}, got {parent!r}")
            found = self._catalog.find(top)
            above = found.parent if found else ""

    def references(
        self, encoder: str, write_ids: Sequence[str], *, vectors: bool = True, all_writes: bool = False
    ) -> Iterator[Points]:
        """Yields the references of these writes in the collection of an encoder, in pages.

        Args:
            encoder: Name of the encoder.
            write_ids: Ids of the writes.
            vectors: Whether to read the vectors.
            all_writes: Whether to read the references of all writes and to leave out the other ones here. This is
                faster if most references are wanted.
        """
        return self._references.pages(encoder, write_ids, vectors=vectors, all_writes=all_writes)

    def count(self, encoder: str) -> int:
        """Returns the number of stored references of an encoder, including uncommitted ones."""
        return self._references.count(encoder)

    def query(
        self,
        encoder: str,
        modality: Modality,
        vectors: NDArray[np.float32],
        limit: int,
        write_ids: Sequence[str] | None = None,
        params: SearchParams = EXACT,
    ) -> list[list[Hit]]:
        """Returns the references nearest to each vector, nearest first. Uncommitted references are included.

        Args:
            encoder: Name of the encoder.
            modality: Modality of the references.
            vectors: float32 ``(n, dim)``, unit rows.
            limit: Maximum number of references per vector.
            write_ids: Ids of the writes to search; ``None`` searches all writes.
            params: How a server searches. If not exact, some references may be missing.
        """
        return self._references.query(encoder, modality, vectors, limit, write_ids, params)

    def attached_pages(self, encoder: str, write_ids: Collection[str], *, keep: bool = False) -> Iterator[Points]:
        """Yields points of attached collections as references, in pages; see `AttachedCollections.pages`.

        Raises:
            PartsChanged: The points have changed since `attached_parts`, or can no longer be read.
        """
        return self._attached.pages(encoder, write_ids, keep=keep)

    def query_attached(
        self, encoder: str, modality: Modality, vectors: NDArray[np.float32], limit: int
    ) -> list[list[list[Hit]]]:
        """Returns the points nearest to each vector, for each attached collection of an expert; as `query`.

        Raises:
            PartsChanged: A collection can no longer be read.
        """
        return self._attached.query(encoder, modality, vectors, limit)

    # Attached collections

    def attach(self, attachment: Attachment) -> Attached:
        """Makes the points of a collection of others references, for every process from its next batch on.

        An attachment of the same collection and expert is replaced.

        Raises:
            InvalidInputError: There is no such collection, vector or expert, or a value is out of its range.
            EncoderMismatchError: Dimension or distance of the vectors are those of another encoder.
            StoreUnavailableError: The collection cannot be read.
        """
        encoders = self.encoders()
        self._attached.check(attachment, encoders)
        self._follow_attachments()
        self._attached.try_out(attachment, encoders[encoder_and_modality(attachment.expert)[0]].dim)
        self._set_attachments(
            lambda present: [*(one for one in present if not _same(one, attachment)), attachment], "attach"
        )
        self._attached.current()
        states = {one.attachment.id: one for one in self._attached.states()}
        return states.get(attachment.id) or Attached(attachment=attachment)  # another process may have detached it

    def detach(self, collection: str, expert: str | None = None) -> None:
        """Ends an attachment. The collection stays as it is.

        Args:
            collection: Name of the collection.
            expert: Expert of the attachment; by default, all attachments of the collection end.

        Raises:
            InvalidInputError: The collection is not attached.
        """
        present = self._follow_attachments()
        kept = [one for one in present if one.collection != collection or expert not in {None, one.expert}]
        if kept == present:
            known = ", ".join(sorted({f"{one.collection} ({one.expert})" for one in present})) or "none"
            raise InvalidInputError(
                f"{shown(collection)} must be an attached collection of {self.location}. Attached now: {known}"
            )
        gone = {one.id for one in present} - {one.id for one in kept}
        self._set_attachments(lambda now: [one for one in now if one.id not in gone], "detach")

    def attached(self) -> list[Attached]:
        """Returns the attached collections. Their ids and labels are read now."""
        self._follow_attachments()
        self._attached.refresh()
        return self._attached.states()

    def first_points(self, attachment: Attachment, encoders: Mapping[str, Fingerprint], most: int) -> Points:
        """Checks a collection, and returns the first points that have a source, if its field is known.

        Raises:
            InvalidInputError, EncoderMismatchError: As `attach`.
        """
        self._attached.check(attachment, encoders)
        return self._attached.first(attachment, most)

    def points_of(self, attachment: Attachment) -> Iterator[Points]:
        """Yields the points of a collection as they would be references, in pages, also if it is not attached.

        Raises:
            StoreUnavailableError: The collection cannot be read, or has changed meanwhile.
        """
        others = AttachedCollections(self._backend, self.namespace)
        others.follow([attachment], {name: one.dim for name, one in self.encoders().items()}, ("", 1))
        parts = others.current()
        write_ids = [part.write_id for some in parts.by_category.values() for part in some]
        try:
            yield from others.pages(encoder_and_modality(attachment.expert)[0], write_ids, keep=False)
        except PartsChanged:
            parts = others.current()
        if parts.unreadable:
            (state,) = others.states()
            raise StoreUnavailableError(f"{attachment.collection!r} cannot be read: {state.problem}")

    def _set_attachments(self, change: Callable[[Sequence[Attachment]], Sequence[Attachment]], what: str) -> None:
        with self._changing(what):
            self._catalog.change_store(
                lambda store: {"attachments": [asdict(one) for one in change(attachments_from(store))]}
            )
            self._follow_attachments()

    def _follow_attachments(self) -> list[Attachment]:
        store = self._catalog.store() or {}
        attachments = attachments_from(store)
        dims = dims_from(store) if store else {}
        self._attached.follow(attachments, dims, (store.get("id", ""), store.get("version", 0)))
        return attachments

    # Search

    def optimize(self, params: SearchParams) -> Iterator[tuple[str, float]]:
        """Builds the index of all references for searches with `params`, and then makes every process search so.

        Readers and writers go on meanwhile. A repeated call continues an interrupted one. Exact parameters remove the
        index.

        Yields:
            The name of the encoder whose collection is being indexed, and the finished share of the work, 0 to 1.

        Raises:
            InvalidInputError: The store is not on a server.
            StoreError: There is no store, or the server cannot build the index.
        """
        self._backend.check()
        encoders = self._catalog.encoders()
        if not encoders:
            raise StoreError(f"there is no store in {self.location}: check the path, or the URL, and the namespace")
        before = self.search_params()
        fields: dict[str, Any] = {"search": asdict(params)}
        if (before.exact, before.ef is None) != (params.exact, params.ef is None):
            fields["measurement"] = None  # of another index
        if params.exact:  # before the index goes
            self._catalog.set_in_store(**fields)
        for encoder in encoders:
            for share in self._backend.optimize(self.collection(encoder), params):
                yield encoder, share
        self._catalog.set_in_store(**fields)

    def search_params(self) -> SearchParams:
        """Returns how a server searches the references of this store."""
        return search_params_from(self._catalog.store())

    def search_measurement(self) -> SearchMeasurement | None:
        """Returns the last stored measurement of the search, if any."""
        return measurement_from(self._catalog.store())

    def keep_search_measurement(self, measurement: SearchMeasurement) -> None:
        """Stores a measurement of the search, in place of an earlier one."""
        self._catalog.set_in_store(measurement=measurement.to_dict())

    def keys(self, name: str) -> set[tuple[str, str, str]]:
        """Returns encoder, modality and content hash of every reference of a category; empty without the category."""
        category = self._catalog.find(name)
        return self._references.keys(category) if category else set()

    def stored(self, name: str) -> list[Reference]:
        """Returns every reference of a category with its vector; empty if the category does not exist."""
        category = self._catalog.find(name)
        return list(self._references.read(category)) if category else []

    def stored_vectors(self) -> StoredVectors:
        """Returns the vectors of the store, to be found by content hash."""
        return StoredVectors(self._catalog, self._references, self.inbox)

    def stored_references(self, name: str) -> list[StoredReference]:
        """Returns each text and image of a category once, with its experts: first texts, then images, oldest first.

        Points of attached collections are not among them.

        Raises:
            CategoryNotFoundError: There is no such category.
        """
        own = self._catalog.find(name)
        if own is None or not own.write_ids:
            self._follow_attachments()
            if name in self._attached.current().by_category:
                return []
        return self._references.described(self.category(name))

    def first_images(self, categories: Iterable[Category], most: int) -> dict[str, list[StoredReference]]:
        """Returns, by category, at most `most` images as one encoder has them, oldest first.

        A larger category is not read whole, so the images are not always its oldest.
        """
        return self._references.first_images(categories, most)

    def holders(self, hashes: Collection[str]) -> dict[str, set[str]]:
        """Returns, by content hash, the names of the categories that have the image."""
        return self._references.holders(hashes, self.categories())

    def withdrawn(self, name: str) -> Callable[[str], bool] | None:
        """Returns a function that tells whether a repeated import must leave a content hash out of a category.

        These are the references that were moved or removed from the category and not added again since; all references
        if the category was removed, renamed or merged. ``None`` without such references.
        """
        category = self._catalog.state([name]).category(name)
        if category is None or not (category.withdrawn or category.retired):
            return None
        retired, marks = category.retired, frozenset(category.withdrawn)
        return lambda content_hash: retired or mark(content_hash) in marks

    def retired(self, names: Collection[str]) -> set[str]:
        """Returns which of these categories were removed, renamed or merged, and not added again since."""
        state = self._catalog.state(names)
        return {name for name in names if (category := state.category(name)) and category.retired}

    def kept(self) -> Callable[[str, str, str], bool]:
        """Returns a function that tells whether a finding about an image was kept, as far as the image is concerned.

        Its arguments are the kind of the finding, and category and content hash of the image.
        """
        marks = {category.name: frozenset(category.kept) for category in self.categories()}
        return lambda finding, name, content_hash: kept_mark(finding, content_hash) in marks.get(name, ())

    def keeps_images(self) -> bool:
        """Returns whether small copies of images are kept; False before the first write."""
        return keeps_images(self._catalog.store())

    def labels(self) -> Labels:
        """Returns whether an image belongs to ``one`` category or may belong to ``many``."""
        return labels_from(self._catalog.store())

    def image(self, content_hash: str) -> SmallImage | None:
        """Returns the small copy of a reference image, if a readable one exists."""
        return self._references.images.find(content_hash) if self.keeps_images() else None

    def small_images(self, write_ids: Sequence[str], hashes: Sequence[str]) -> Iterator[SmallImage]:
        """Yields the readable small copies of images of these writes."""
        return self._references.images.read(write_ids, hashes)

    def inbox_images(self, without: Collection[str], *, small: bool) -> Iterator[InboxImage]:
        """Yields the images of the inbox for a copy (`zsvec.store.source.Source`)."""
        return self.inbox.copies(without, small=small)

    def info(self) -> dict[str, Any]:
        """Returns location, size, encoders, state of the calibration and engine versions, as a JSON object."""
        categories = self.all_categories()
        return health.info(self.namespace, self._catalog, self._references, categories, self._attached)

    def stats(self) -> dict[str, int]:
        """Returns counts of rare events since this store was opened.

        - ``second_stamps``: manifests that got a new ``rev``, because much newer commits exist;
        - ``unknown_outcomes``: attempts to commit that the catalog did not show at once;
        - ``healed_records``: records with differing replicas that were made equal.
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
        return health.check_up(self._catalog, self._references, self.attached(), repair=repair)

    def calibration(self) -> Mapping[str, Any] | None:
        """Returns the stored calibration. Without one, returns ``None`` or an empty mapping."""
        return self._catalog.calibration()

    # History

    def changes(self) -> list[Change]:
        """Returns the changes within the undo window, newest first, undone ones included."""
        found = History(self._catalog).changes()
        if switch := self._last_switch():
            found = sorted([*found, switch[1]], key=lambda change: (change.at, change.id), reverse=True)
        return found

    def undoable(self, changes: Iterable[Change]) -> set[str]:
        """Returns the ids of those changes that can be undone now, without a switch to other encoders."""
        history, keys = History(self._catalog), self._references.keys
        return {change.id for change in changes if change.what != SWITCH and history.can_be_undone(change, keys)}

    def needs_id(self, change: Change) -> bool:
        """Returns whether a last change is undone only by its id: it is not one's own, or concerns many images.

        A change is one's own if it is by the same author (`by`); without an author, if this store made it.
        """
        is_own = change.by == self.by and (change.by is not None or change.id in self._made)
        return not is_own or change.images > undo.MOST_IMAGES

    def undo(self, name: str | None = None, change: str | None = None) -> Change:
        """Undoes a change, and returns it.

        Args:
            name: Name of a category, whose last change is undone. By default, the last change of the store is undone.
            change: Id of the change to undo, or the first characters of the id. Some changes need their
                id (`needs_id`). With `name`, the last change of the category must have this id. An undo can be undone
                only by its id.

        Raises:
            InvalidInputError: No change or several changes match, the change cannot be undone, or one of its categories
                has been changed since.
            ChangeIdNeededError: The change needs its id, which was not given.
            ConflictError: Other writers changed a category at every attempt.
        """
        if name is None and (switch := self._last_switch()) and self._is_switch(switch[1], change):
            if change is None and self.needs_id(switch[1]):
                raise undo.id_needed(switch[1], name)
            with self._writing():
                switching.switch_back(self._catalog, self._before[-1], switch[0], self.by)
            return replace(switch[1], undone=True)
        with self._changing("undo"):
            self._may_be_unfinished = True
            return undo.undo(self._writer, name, change, self.needs_id)

    def finish_interrupted(self) -> None:
        """Finishes the undos and erasures of killed processes, as every write does."""
        with self._writing():
            pass

    @contextmanager
    def one_change(self, what: str, continues: str | None = None, *, more: bool = False) -> Iterator[str]:
        """Makes all writes of a block one change, and yields the id of the change.

        An inner block belongs to the change of the outer block. If categories may have changed, the function set by
        `after_changes` runs once, at the end of the outer block. It also runs after an error, because earlier commits
        stay, but not after a KeyboardInterrupt or a StoreUnavailableError.

        Args:
            what: Kind of the change, in one word.
            continues: Id of an earlier change that the writes belong to; by default, they are a new change.
            more: Whether later writes will continue the change. Then the function set by `after_changes` is left to
                these.

        Raises:
            InvalidInputError: The change to continue is not in effect, or is of another kind or by another author.
        """
        if (outer := _BLOCK.get()) is not None:
            yield outer.cause.id
            return
        block = _Block(Cause(what=what, by=self.by))
        self._made.append(block.cause.id)
        if continues is not None:
            self._check_continues(continues, block.cause)
            block.cause = replace(block.cause, id=continues)
        token = _BLOCK.set(block)
        try:
            yield block.cause.id
        except StoreUnavailableError:
            raise  # another request would wait for the deadline once more
        except Exception:
            block.end()
            raise
        else:
            if not more:
                block.end()
        finally:
            _BLOCK.reset(token)

    def _check_continues(self, identifier: str, cause: Cause) -> None:
        found = next((change for change in self.changes() if change.id == identifier), None)
        if found is None or found.undone or found.final or (found.what, found.by) != (cause.what, cause.by):
            raise InvalidInputError(
                f"the change to continue must be in effect, of the kind {cause.what!r} and by the same author, "
                f"got {shown(identifier)}: `zsvec history` lists the changes"
            )

    def after_changes(self, follow: Callable[[], None]) -> None:
        """Sets the function that `one_change` calls at the end of each change of categories."""
        self._follow = follow

    @contextmanager
    def acting(self, by: str | None) -> Iterator[None]:
        """Overrides the recorded author within this block; ``None`` keeps the author of the settings."""
        token = _BY.set(by)
        try:
            yield
        finally:
            _BY.reset(token)

    @contextmanager
    def expecting(self, name: str, versions: Container[int]) -> Iterator[None]:
        """Makes the first commit of a category in this block a compare-and-set of its version.

        An inner block replaces the outer one.

        Args:
            name: Name of the category.
            versions: Versions that the category may have before the commit; 0 stands for a missing category.

        Raises:
            VersionConflictError: The category has another version, at the start of the block or at the commit.
        """
        expected = Expected(self._catalog, name, versions)
        expected.check(self._catalog.find(name))
        token = EXPECTED.set(expected)
        try:
            yield
        finally:
            EXPECTED.reset(token)

    @property
    def by(self) -> str | None:
        """Author recorded with each reference and each change."""
        return _BY.get() or self._by

    # Writing

    def write(self, writes: Sequence[Write]) -> list[Category]:
        """Commits references to categories. Each category is committed as a whole or not at all.

        A missing category is created. An existing category gets the references that it lacks. If `Write.replace` is
        set, the new references replace the present ones.

        Args:
            writes: The writes, at most one per category.

        Returns:
            The categories after the write, in the order of `writes`.

        Raises:
            ConflictError: Other writers changed a category at every attempt, other writers removed references that a
                write needs, or a category would have no reference. The other categories are committed.
        """
        with self._changing("replace" if any(write.replace for write in writes) else "add"):
            return self._writer.write(writes)

    def remove(self, name: str) -> None:
        """Removes a category and all of its references.

        Raises:
            CategoryNotFoundError: There is no such category.
            ConflictError: Other writers changed the category at every attempt.
        """
        with self._changing("remove"):
            self._writer.remove(name)

    def remove_references(self, name: str, hashes: Collection[str]) -> Category:
        """Removes the references with these content hashes from a category, in all encoders, and returns the category.

        Raises:
            CategoryNotFoundError: There is no such category.
            InvalidInputError: A hash is not among the references of the category.
            ConflictError: The category would have no reference, or other writers changed the category at every attempt.
        """
        with self._changing("remove"):
            return self._writer.remove_references(name, hashes)

    def forget(self, content_hash: str) -> Forgotten:
        """Erases an image from all categories, small copies, changes and the inbox. No undo restores the image.

        The boxes that were cut from the image are erased with it. A category that has no other reference is removed. An
        embedded store rewrites its files. Another namespace of the store that has the image is deleted, so that a
        switch to other encoders can no longer be undone. A process that makes a copy with other encoders is refused. If
        this process is killed, the next write of any process finishes the erasure.

        Args:
            content_hash: Content hash of the image.

        Raises:
            StoreError: There is no store.
            ConflictError: Other writers added the image again at every attempt.
        """
        with self._changing(FORGET):
            if self._catalog.store() is None:
                raise StoreError(f"there is no store in {self.location}: check the path, or the URL, and the namespace")
            self._may_be_unfinished = True
            return erasure.forget(self._writer, content_hash)

    def remove_from_inbox(self, hashes: Collection[str], label: str | None = None) -> None:
        """Removes images from the inbox, as labelled images or as dismissed ones. An undo puts the images back.

        Args:
            hashes: Content hashes of the images.
            label: The category that has the images as references; ``None`` dismisses the images.

        Raises:
            StoreError: There is no store, or the store cannot be written.
        """
        if not hashes:
            return
        with self.one_change("dismiss" if label is None else "label"), self._writing():
            identifier = str(uuid.uuid4())
            # The record of the labelled references names the images of a label. A dismissed image has no reference.
            images = {"number": len(hashes), "hashes": []} if label is None else None
            told = {"removal": identifier, "undone": False, "label": label}
            noted = self._collector.note(identifier, told, images=images)
            how: Literal["dismissed", "labelled"] = "dismissed" if label is None else "labelled"
            self.inbox.remove(hashes, Removal(how, identifier if noted else ""))

    def keep(self, name: str, hashes: Collection[str], finding: str, *, kept: bool = True) -> Category:
        """Remembers that images stay as they are, although an audit doubts them (`kept`), and returns the category.

        Args:
            name: Name of the category.
            hashes: Content hashes of the images.
            finding: Kind of the finding. Kinds differ in the first letter.
            kept: ``False`` forgets that the images were kept.

        Raises:
            CategoryNotFoundError: There is no such category.
            InvalidInputError: A hash is not among the references of the category.
            ConflictError: Other writers changed the category at every attempt.
        """
        with self._changing("keep" if kept else "unkeep"):
            return self._writer.keep(name, hashes, finding, kept=kept)

    def move(self, move: Move) -> Category:
        """Moves references from one category to another, and returns the target.

        For an instant, the references are in both categories. If the process is killed, each reference is still in at
        least one of them.

        Raises:
            CategoryNotFoundError: There is no such source.
            InvalidInputError: A hash is not among the source's references, or `move.new` is set and the target already
                exists.
            ConflictError: The move would leave the source without references, or other writers changed source or target
                at every attempt.
        """
        with self._changing("merge" if move.hashes is None else "move"):
            return self._writer.move([move])[0]

    def move_many(self, moves: Sequence[Move]) -> list[Category]:
        """Moves references between many pairs of categories: all or none. Returns the targets; raises as `move`.

        A category may be a source and a target. Such a category passes on the references of before, and keeps the new
        ones.

        Args:
            moves: Moves with `Move.hashes`. A reference may go to several targets. A move of a reference to its own
                category keeps it there.
        """
        with self._changing("move"):
            return self._writer.move(moves) if moves else []

    def copy_from(
        self,
        source: Source,
        *,
        names: Collection[str] | None = None,
        replaces: bool = False,
        images: KeepImages | None = None,
        on_commit: Callable[[Category], None] = lambda category: None,
        track: Track = iter,
    ) -> Copied:
        """Copies the categories of a store or an archive to this store, with calibration and inbox, without history.

        An interrupted copy goes on when it is repeated. The source is only read.

        Args:
            source: The other store, or an archive.
            names: Names of the categories to copy, without calibration and inbox. By default, everything is copied.
            replaces: Whether to replace categories and the calibration of this store that have other content.
            images: Copies of images that a new store keeps. ``None``: as the source does. A store that already has
                references keeps its choice.
            on_commit: Called with each category once it is committed.
            track: Called with the categories of the source; must yield all of them. Shows progress.

        Raises:
            CategoryNotFoundError: The source does not have one of the named categories.
            EncoderMismatchError: This store has vectors of other encoders.
            StoreError: There is no source.
            StoreUnavailableError: A store cannot be reached, or refuses access.
        """
        from zsvec.store import copying  # imports numpy, which listing categories does not need

        if not (encoders := source.encoders()):
            raise StoreError(f"there is no store in {source.location}: check the path, or the URL, and the namespace")
        copying.check_encoders(source, self._catalog)
        with self._changing("copy"):
            chosen: KeepImages = images or ("small" if source.keeps_images() else "none")
            is_new = not self.encoders()
            labels = source.labels() if is_new else None
            self.bind(encoders, images=chosen if is_new else None, profile=source.profile(), labels=labels)
            copied = copying.copy(
                source,
                self._writer,
                names=names,
                replaces=replaces,
                on_commit=on_commit,
                track=track,
            )
            return copied if names is not None else replace(copied, inbox=self.inbox.copy_from(source))

    def follower(self) -> Follower:
        """Returns a reader of this store, by which an embedded store follows it (`sync_from`).

        Raises:
            InvalidInputError: This store is embedded.
        """
        from zsvec.store.following import Follower  # imports numpy, which listing categories does not need

        if self._backend.exclusive:
            raise InvalidInputError(
                f"the store to follow must be on a server, got {self.location}: `zsvec copy --replace` copies a folder"
            )
        return Follower(self, self._catalog)

    def sync_from(
        self,
        follower: Follower,
        *,
        images: KeepImages | None = None,
        on_commit: Callable[[Category], None] = lambda category: None,
        track: Track = iter,
    ) -> Synced:
        """Brings this embedded store in step with another store, which is only read. Has no history to undo.

        An interrupted run goes on when it is repeated. If nothing has changed, one request is sent.

        Args:
            follower: Reader of the other store. To keep it between runs saves requests.
            images: Copies of images that a new store keeps. ``None``: as the other store does.
            on_commit: Called with each added or changed category once it is committed.
            track: Called with the changed categories of the other store; must yield all of them. Shows progress.

        Raises:
            InvalidInputError: This store is on a server.
            EncoderMismatchError: This store has vectors of other encoders.
            StoreError: There is no other store, the store was switched to other encoders, or this store follows
                another one.
            StoreUnavailableError: A store cannot be reached, or refuses access.
        """
        if not self._backend.exclusive:
            raise InvalidInputError(f"a store that follows another one must be a folder, got {self.location}")
        if follower.is_in_step(self._catalog):
            return follower.unchanged()

        def prepare(record: Mapping[str, Any]) -> None:
            chosen: KeepImages = images or ("small" if keeps_images(record) else "none")
            is_new = not self.encoders()
            self.bind(
                fingerprints_from(record),
                images=chosen if is_new else None,
                profile=profile_from(record),
                labels=labels_from(record),
            )

        with self._writing():
            collector = Collector(self._catalog, self._references, self.inbox)  # without a history
            writer = Writer(self._catalog, self._references, collector, self.inbox)
            return follower.sync(writer, prepare, on_commit, track)

    def keep_calibration(self, calibration: Mapping[str, Any]) -> None:
        """Stores a calibration, unless the stored one was made from a later state of the store.

        An empty calibration removes the stored one.

        Raises:
            ConflictError: Other writers stored a calibration at every attempt.
        """
        with self._writing():
            self._writer.keep_calibration(calibration)

    def gc(
        self, grace: float | None = None, *, on_final: Callable[[Change], None] = lambda change: None
    ) -> Counter[str]:
        """Deletes the references that no manifest names. Returns the number of deleted references by expert.

        Args:
            grace: Minimum age in seconds of the references to delete and of the changes to make final. The default is
                the undo window for changes, a minute for replaced references, and an hour for uncommitted references;
                but 0 for all references if no other process can write.
            on_final: Called with each change that has become final, so that it can no longer be undone.
        """
        with self._writing():
            # Deletes copies of writers that began before `drop_images`.
            compatibility.drop_images(self._catalog, self._references)
            deleted, final = self._collector.collect(grace)
            self.inbox.settle(self.inbox.read(labelled=True))
            final += self._drop_old(grace)
        for change in final:
            on_final(change)
        return deleted

    def _drop_old(self, grace: float | None) -> list[Change]:
        """Deletes the namespaces before this one, if they are older than `grace` seconds or, without, the undo time.

        Finishes the deletions of killed processes.
        """
        final, now = [], time.time_ns() // 1000
        for one in switching.siblings(self._catalog):
            if is_dropped(one.store()):
                switching.drop(one, self._catalog)
        for one in self._before:
            switch = None if is_dropped(one.store()) else switching.last_switch(one)
            if switch and now > (switch[0].until if grace is None else switch[0].at + round(grace * 1e6)):
                switching.drop(one, self._catalog)
                final.append(switch[1])
        return final

    def drop_images(self) -> None:
        """Deletes all small copies of images, and keeps none from now on.

        A writer in progress may leave some copies. Such copies are not read, and `gc` deletes them.
        """
        with self._writing():
            compatibility.keep_no_images(self._catalog, self._references)
            self.inbox.drop_copies()

    def flush(self) -> None:
        """Makes all commits survive a loss of power. Even without this, no commit is lost if the process is killed."""
        self._backend.flush()

    def close(self) -> None:
        """Closes files and connections."""
        self._backend.close()

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        with self.one_change(what), self._writing():
            if block := _BLOCK.get():
                block.followed_by[self._follow] = None
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lets one thread of this process write at a time, after finishing the undos and erasures in progress."""
        self._backend.check()  # before the lock, which a forked process might never get
        with self._lock:
            self._catalog.check_current()
            if self._may_be_unfinished or not self._backend.exclusive:
                self._may_be_unfinished = not self._finish()
            if block := _BLOCK.get():
                self._collector.cause = block.cause
            yield

    def _finish(self) -> bool:
        """Finishes the recorded erasures and undos of all processes, and returns whether all are finished."""
        unfinished = 1
        with suppress(ZSVecError):  # the next write tries again
            found = self._catalog.scroll(Where(match={"kind": [ERASURE, UNDO]}))
            store = self._catalog.state([]).store if found else ""
            unfinished = sum(record["store"] == store for record in found)
            for record in sorted(found, key=lambda record: (record["kind"] == UNDO, record["rev"])):
                finish = undo.finish if record["kind"] == UNDO else erasure.finish
                if record["store"] == store:
                    expected = EXPECTED.set(None)  # which is about the commits of the block
                    try:
                        with suppress(ZSVecError):
                            finish(self._writer, record)
                            unfinished -= 1
                    finally:
                        EXPECTED.reset(expected)
        return not unfinished
