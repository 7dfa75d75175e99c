"""Attached collections: points of other collections are references of a store. zsvec never writes to them.

A point is a reference of the category that its payload field ``label`` names. Every few seconds, a thread reads ids and
labels, and computes for each category a digest of its points. The digest is part of a *write id*: for readers, the
points of a category are one more write, which changes when the points change.

For searches in process, the thread also reads the vectors of changed categories before readers see the change. So a
slow collection delays no batch, except the first. A vector that changes in place is noticed only if its point is among
the first of the collection.

Everything in such a collection is untrusted. A collection that cannot be read is named (`Attached.problem`), and all
other references answer.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from zsvec.errors import InvalidInputError, StoreUnavailableError, shown
from zsvec.store.attached.parts import Part, Parts, PartsChanged
from zsvec.store.attached.reader import FAILURES, Reader, UnusableError, View
from zsvec.store.backends.base import Backend, Hit, Points
from zsvec.store.catalog.schema import check_attachment
from zsvec.types import Attached, Attachment, Fingerprint, Modality, encoder_and_modality, expert_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RETRY_S = 5.0  # before a collection that could not be read is read again
_QUERY_S = 5.0  # deadline of a query in a batch


@dataclass(frozen=True, slots=True)
class _State:
    """What is known of an attached collection.

    Attributes:
        view: The points.
        begun: When the last read began, on the clock of `time.monotonic`.
        read: When the last successful read began; ``None`` without one.
        due: When to read again.
        problem: Why the last read failed.
    """

    view: View = View()  # noqa: RUF009 - frozen
    begun: float = float("-inf")
    read: float | None = None
    due: float = 0.0
    problem: str | None = None


class AttachedCollections:
    """The attached collections of a store.

    Args:
        backend: Backend of the store.
        namespace: Namespace of the store. Its own collections cannot be attached.
    """

    def __init__(self, backend: Backend, namespace: str) -> None:
        self._backend = backend
        self._namespace = namespace
        self._lock = threading.Lock()
        self._reading = threading.RLock()  # held while a caller waits for a first read
        self._record: tuple[str, int] = ("", 0)  # id of the store, and version of the record that named the attachments
        self._named: Sequence[Attachment] = ()
        self._attachments: Sequence[Attachment] = ()
        self._dims: Mapping[str, int] = {}
        self._reader = Reader(backend)
        self._states: dict[str, _State] = {}  # by id of the attachment
        self._parts = Parts()
        self._keeps_vectors = False  # whether a search in process has asked for vectors
        self._refreshing: threading.Thread | None = None

    def follow(self, attachments: Sequence[Attachment], dims: Mapping[str, int], record: tuple[str, int]) -> None:
        """Sets what is attached, unless a newer record of the same store is known.

        Args:
            attachments: The attachments, as the record of the store has them.
            dims: Dimension of the vectors of each encoder.
            record: Id of the store, and version of the record.
        """
        with self._lock:
            store, version = self._record
            if (record[0] == store and record[1] < version) or (attachments, dims) == (self._named, self._dims):
                return
            self._record, self._named, self._dims = record, attachments, dims
            self._attachments = [one for one in attachments if not self._is_own(one.collection)]
            ids = {one.id for one in self._attachments}
            self._states = {identifier: state for identifier, state in self._states.items() if identifier in ids}
            self._join()

    def check(self, attachment: Attachment, encoders: Mapping[str, Fingerprint]) -> None:
        """Checks an attachment against the configuration of the collection.

        Raises:
            InvalidInputError: There is no such collection, vector or expert, or a value is out of its range.
            EncoderMismatchError: The dimension or the distance is another.
        """
        encoder, modality = encoder_and_modality(attachment.expert)
        if encoder not in encoders or attachment.expert != expert_name(encoder, modality):
            known = ", ".join(expert_name(name, either) for name in encoders for either in ("image", "text"))
            raise InvalidInputError(f"expert must be one of {known}, got {shown(attachment.expert)}")
        check_attachment(attachment)
        if self._is_own(attachment.collection):
            raise InvalidInputError(
                f"the collection must be another than those of this store, got {shown(attachment.collection)}"
            )
        self._reader.check_space(attachment, encoders[encoder].dim)
        self._reader.check_foreign(attachment.collection)

    def _is_own(self, collection: str) -> bool:
        return collection.startswith(f"{self._namespace}__")

    # State

    def current(self) -> Parts:
        """Returns the points as last read: the same object as before, if nothing has changed.

        Reads a collection that was never read. Starts a thread to read the others when it is time.
        """
        if not self._attachments:
            return self._parts
        if any(one.id not in self._states for one in self._attachments):
            with self._reading:
                for attachment in self._attachments:
                    if attachment.id not in self._states:
                        self._update(attachment)
        now = time.monotonic()
        due = [one for one in self._attachments if self._state_of(one).due <= now]
        if due and (self._refreshing is None or not self._refreshing.is_alive()):
            self._refreshing = threading.Thread(target=self._refresh, args=[due], name="zsvec-attached", daemon=True)
            self._refreshing.start()
        return self._parts

    def try_out(self, attachment: Attachment, dim: int) -> None:
        """Reads labels, and asks for the points nearest to some vector, as searches will.

        Raises:
            StoreUnavailableError: The collection cannot be read, or not with these conditions.
            InvalidInputError: No point is a reference.
        """
        import numpy as np

        try:
            view = self._reader.look(attachment, dim)
            if view.parts:
                self._reader.query(attachment, view, np.eye(1, dim, dtype=np.float32), 1)
        except (*FAILURES, UnusableError) as exc:
            raise StoreUnavailableError(
                f"the collection {attachment.collection!r} cannot be read: {exc}. Check the conditions, the rights of "
                "the key, and the strict mode of the collection"
            ) from exc
        if not view.parts:
            left_out = "; ".join(f"{n} have {reason}" for reason, n in view.left_out.items())
            raise InvalidInputError(
                f"{shown(attachment.collection)} must have points with a category in {shown(attachment.label)}, "
                f"got none ({left_out or 'no point meets the conditions'}): check the field and the conditions"
            )

    def first(self, attachment: Attachment, most: int) -> Points:
        """As `Reader.first`."""
        return self._reader.first(attachment, most)

    def refresh(self) -> None:
        """Reads all attached collections now."""
        self._refresh(self._attachments)

    def states(self) -> list[Attached]:
        """Returns the state of each attached collection, in the order in which they were attached."""
        now = time.monotonic()
        return [
            Attached(
                attachment=attachment,
                points=sum(part.points for part in state.view.parts.values()),
                categories=len(state.view.parts),
                left_out=dict(state.view.left_out),
                age=None if state.read is None else now - state.read,
                problem=state.problem,
            )
            for attachment in self._attachments
            for state in [self._state_of(attachment)]
        ]

    def _state_of(self, attachment: Attachment) -> _State:
        return self._states.get(attachment.id, _State())

    def _dim(self, attachment: Attachment) -> int:
        return self._dims.get(encoder_and_modality(attachment.expert)[0], 0)

    def _refresh(self, attachments: Sequence[Attachment]) -> None:
        for attachment in attachments:
            self._update(attachment)

    def _update(self, attachment: Attachment) -> None:
        """Reads a collection, and publishes what was read or the problem."""
        begun, before, keeps_vectors = time.monotonic(), self._state_of(attachment), self._keeps_vectors
        try:
            view = self._reader.look(attachment, self._dim(attachment))
            if keeps_vectors:
                view = self._reader.with_content(attachment, view, before.view.content or {}, self._dim(attachment))
            state = _State(view, begun=begun, read=begun, due=time.monotonic() + attachment.refresh)
        except UnusableError as exc:
            state = _failed(attachment, _State(begun=begun, read=before.read), str(exc))
        except FAILURES as exc:
            # Without vectors, a search in process has nothing to compare.
            usable = before if before.view.content is not None or not keeps_vectors else _State()
            state = _failed(attachment, replace(usable, begun=begun), str(exc))
        with self._lock:
            if attachment in self._attachments and begun >= self._state_of(attachment).begun:
                self._states[attachment.id] = state
                self._join()

    def _fill(self, attachment: Attachment) -> None:
        """Reads the vectors of a collection, after its labels."""
        before = self._state_of(attachment)
        try:
            view = self._reader.with_content(attachment, before.view, {}, self._dim(attachment))
        except FAILURES as exc:
            self._drop(attachment, str(exc))
            return
        with self._lock:
            if self._state_of(attachment) is before:
                self._states[attachment.id] = replace(before, view=view)
                self._join()

    def _drop(self, attachment: Attachment, problem: str) -> None:
        """Leaves a collection out until it is read again."""
        with self._lock:
            if attachment.id in self._states:
                self._states[attachment.id] = _failed(attachment, _State(begun=time.monotonic()), problem)
                self._join()

    def _join(self) -> None:
        joined: dict[str, list[Part]] = defaultdict(list)
        unreadable = set()
        for attachment in self._attachments:
            state = self._state_of(attachment)
            for name, part in state.view.parts.items():
                joined[name].append(part)
            if state.problem is not None:
                unreadable.add(attachment.collection)
        by_category = {name: tuple(some) for name, some in sorted(joined.items())}
        write_ids = sorted(part.write_id for some in joined.values() for part in some)
        digest = blake2b(" ".join(write_ids).encode(), digest_size=16).hexdigest() if write_ids else ""
        parts = Parts(by_category, digest, tuple(sorted(unreadable)))
        if parts != self._parts:
            self._parts = parts

    # Reading

    def pages(self, encoder: str, write_ids: Collection[str], *, keep: bool) -> Iterator[Points]:
        """Yields the points of parts that belong to an encoder, as references of the store with unit vectors, in pages.

        Args:
            encoder: Name of the encoder.
            write_ids: Ids of parts, also of other encoders.
            keep: Whether to keep the vectors in memory, and to read changed ones ahead from now on.

        Raises:
            PartsChanged: The parts have changed, or can no longer be read.
        """
        if keep and not self._keeps_vectors:
            with self._reading:
                self._keeps_vectors = True
                for attachment in self._attachments:
                    self._fill(attachment)
        wanted, views = set(write_ids), [(one, self._state_of(one).view) for one in self._attachments]
        if not wanted <= {part.write_id for _, view in views for part in view.parts.values()}:
            raise PartsChanged
        for attachment, view in views:
            if encoder_and_modality(attachment.expert)[0] == encoder:
                parts = {name: part for name, part in view.parts.items() if part.write_id in wanted}
                yield from self._content(attachment, view, parts)

    def _content(self, attachment: Attachment, view: View, parts: Mapping[str, Part]) -> Iterator[Points]:
        if view.content is not None:
            yield from (view.content[part.write_id] for part in parts.values())
            return
        try:
            yield from (page for _, page in self._reader.stream(attachment, view, parts, self._dim(attachment)))
        except FAILURES as exc:
            self._backend.check()
            self._drop(attachment, str(exc))
            raise PartsChanged from exc

    def query(
        self, encoder: str, modality: Modality, vectors: NDArray[np.float32], limit: int
    ) -> list[list[list[Hit]]]:
        """Returns the points nearest to each vector, nearest first, for each attached collection of an expert.

        The category of a hit is empty if its label is unknown so far.

        Raises:
            PartsChanged: A collection can no longer be read.
        """
        found = []
        for attachment in self._attachments:
            view = self._state_of(attachment).view
            if attachment.expert != expert_name(encoder, modality) or not view.parts:
                continue
            try:
                with self._backend.within(_QUERY_S):
                    found.append(self._reader.query(attachment, view, vectors, limit))
            except FAILURES as exc:
                self._backend.check()
                self._drop(attachment, str(exc))
                raise PartsChanged from exc
        return found


def _failed(attachment: Attachment, state: _State, problem: str) -> _State:
    return replace(state, problem=problem, due=time.monotonic() + min(_RETRY_S, attachment.refresh))
