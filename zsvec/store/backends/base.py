"""What a Qdrant deployment must offer to be the place of a store, and what every such place needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from zsvec.errors import StoreError
from zsvec.types import Finding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Dims: TypeAlias = int | Mapping[str, int]
"""Dimension of the vectors of a collection; by name, where each point has several."""

FIRST_CONTACT = 5.0
"""Seconds after which a server that cannot be reached is given up when a store is opened."""


@dataclass(frozen=True, slots=True)
class Where:
    """A filter over payloads: all of `match`, none of `without`, and ``rev`` from `since` to `until`; or `or_match`."""

    match: Mapping[str, str | int | Sequence[str]] = field(default_factory=dict)
    since: int | None = None
    until: int | None = None
    or_match: Mapping[str, str | int | Sequence[str]] | None = None
    without: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranged(self) -> bool:
        """Whether there is a condition on ``rev``."""
        return self.since is not None or self.until is not None


@dataclass(frozen=True, slots=True)
class Put:
    """A record to write by compare-and-set.

    Attributes:
        id: Of the record.
        payload: What is written.
        expected: What the record must match that is there; ``None``: there must be none of this id.
    """

    id: str
    payload: Mapping[str, Any]
    expected: Mapping[str, str | int] | None = None


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one collection.

    Attributes:
        ids: Of the points.
        rows: Their vectors as a client gives them, each ``None`` if not asked for; or a matrix. Each is a mapping of
            names to vectors where points have several.
        payloads: What they carry.
    """

    ids: Sequence[str]
    rows: Sequence[Any] | NDArray[np.float32]
    payloads: Sequence[Mapping[str, Any]]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors, float32 ``(n, dim)``; ``dim`` is 0 if not asked for."""
        import numpy as np  # slow to import, and not needed to list the categories of a store

        if isinstance(self.rows, list) and all(row is None for row in self.rows):
            return np.empty((len(self.rows), 0), dtype=np.float32)
        return np.asarray(self.rows, dtype=np.float32)

    @property
    def named(self) -> bool:
        """Whether each point has several vectors, by name."""
        first = self.rows[0] if isinstance(self.rows, list) and self.rows else None
        return isinstance(first, Mapping) and bool(first)  # of damaged files it may be empty

    @property
    def plain(self) -> list[Any]:
        """The vector of each point as a list of numbers; by name, where points have several."""
        if self.named:
            return [{name: list(map(float, vector)) for name, vector in row.items()} for row in self.rows]
        rows: list[Any] = self.vectors.tolist()
        return rows

    @property
    def numbers(self) -> int:
        """How many numbers the vectors have, all together."""
        return sum(map(len, chain.from_iterable(row.values() for row in self.rows) if self.named else self.vectors))

    def chosen(self, kept: Sequence[int]) -> Points:
        """Some of them, ascending; all are the same object."""
        if len(kept) == len(self.ids):
            return self
        matrix = hasattr(self.rows, "shape")
        rows = cast("Any", self.rows)[list(kept)] if matrix else [self.rows[i] for i in kept]
        return Points([self.ids[i] for i in kept], rows, [self.payloads[i] for i in kept])


@dataclass(frozen=True, slots=True)
class Hit:
    """A reference found by a nearest-neighbour query, with its cosine to the query."""

    id: str
    similarity: float
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Placement:
    """How a collection is spread over the nodes of a cluster; ``None``: as the server chooses.

    Attributes:
        replicas: Copies of each shard.
        shards: Parts of the collection.
        write_consistency: Copies that must have a write before it is acknowledged.
    """

    replicas: int | None = None
    shards: int | None = None
    write_consistency: int | None = None


class Handle:
    """What keeps an open store to the process that opened it, until it is closed.

    Args:
        location: Name of the store in messages.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._pid = os.getpid()
        self._closed = False

    @property
    def forked(self) -> bool:
        """Whether this process is another one than that which opened the store."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """As `Backend.check`."""
        if self.forked:
            raise StoreError(
                f"the store {self._location} was opened before this process was forked: open it in the process that "
                "uses it"
            )
        if self._closed:
            raise StoreError(f"the store {self._location} is closed: open it again")

    def close(self) -> None:
        """Refuse from now on."""
        self._closed = True


class Backend(Protocol):
    """Collections of points, in process or on a server.

    Every failure is an error of `zsvec.errors`. A write is visible to everyone when its method returns.
    """

    exclusive: bool  # no other process can write
    writes: int  # where it is exclusive: how many have come to an end

    @property
    def location(self) -> str:
        """What it is called in messages."""

    @property
    def place(self) -> str:
        """The same place has the same; empty for one that ends with the process."""

    def check(self) -> None:
        """Refuse to be used once closed, or in a process forked from that which opened it."""

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Give each request of this thread no more than so many seconds, in a block."""

    def exists(self, collection: str) -> bool:
        """Whether there is a collection of this name."""

    def create(self, collection: str, dim: Dims, indexes: Mapping[str, str], *, ordered: bool = False) -> None:
        """Make a collection for exact cosine search with its payload indexes; keep one that exists.

        Args:
            collection: Its name.
            dim: Of its vectors.
            indexes: Kind of each payload index, by key.
            ordered: Whether its writes have one order, so that it is one shard.
        """

    def remove(self, collection: str) -> None:
        """Delete a collection, if there is one, with all that it ever had."""

    def rewrite(self, collection: str) -> None:
        """Write a collection anew, if there is one, so that its files hold nothing that was deleted from it.

        Nothing else of it changes. A server rewrites its files when it sees fit: there, nothing is done.

        Raises:
            StoreUnavailableError: There is no room for another copy.
        """

    def upsert(self, collection: str, points: Points) -> None:
        """Write points; the same ids again change nothing."""

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        """Write records to a collection of 1-d vectors, each by compare-and-set, without saying which were written."""

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Payloads of those of the points that exist, by id; a collection that does not exist has none."""

    def scroll(
        self, collection: str, where: Where, *, vectors: bool = False, fields: Sequence[str] | None = None
    ) -> Iterator[Points]:
        """All matching points, page by page; payloads reduced to `fields` if given. The collection may not exist."""

    def newest(self, collection: str, where: Where) -> int:
        """The largest ``rev`` of the matching points, 0 if there is none."""

    def query(
        self, collection: str, vectors: NDArray[np.float32], where: Where, limit: int, fields: Sequence[str]
    ) -> list[list[Hit]]:
        """The `limit` nearest matching points of each vector, nearest first, by exact search; not of named vectors."""

    def delete(self, collection: str, where: Where) -> None:
        """Delete all matching points."""

    def drop(self, collection: str, ids: Sequence[str]) -> None:
        """Delete the points of these ids."""

    def count(self, collection: str, where: Where) -> int:
        """Exact number of matching points. The collection may not exist."""

    def versions(self) -> Mapping[str, str]:
        """What runs the backend, for `zsvec info`."""

    def placement(self, collection: str) -> Placement | None:
        """How a collection is spread over nodes; ``None`` where there are none."""

    def check_up(self, catalog: str, references: Sequence[str], *, repair: bool) -> Iterator[Finding]:
        """What can be found out of the deployment; of one without servers, nothing.

        Args:
            catalog: Name of the catalog's collection.
            references: Names of the collections of references.
            repair: Whether to make the copies of the catalog agree.
        """

    def heal(self, collection: str, ids: Sequence[str]) -> int:
        """Make the copies of records agree: how many did not. Nothing to do where there is one copy."""

    def flush(self) -> None:
        """Make everything written survive a loss of power."""

    def close(self) -> None:
        """Let go of files and connections."""
