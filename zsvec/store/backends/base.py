"""The contract of a backend, which holds the collections of a store, and its types."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from zsvec.errors import StoreError
from zsvec.types import Finding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Dims: TypeAlias = int | Mapping[str, int]
"""Dimension of the vectors of a collection; by name, if each point has several vectors."""

FIRST_CONTACT = 5.0
"""Deadline in seconds for reaching a server when a store is opened."""


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
        """Whether the filter has a condition on ``rev``."""
        return self.since is not None or self.until is not None


@dataclass(frozen=True, slots=True)
class Put:
    """A record to write by compare-and-set.

    Attributes:
        id: Id of the record.
        payload: New payload.
        expected: Fields of the present record; ``None`` requires that there is no record of this id.
    """

    id: str
    payload: Mapping[str, Any]
    expected: Mapping[str, str | int] | None = None


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one collection.

    Attributes:
        ids: Ids of the points.
        rows: Vectors as a client returns them, or a matrix; ``None`` each if not asked for. A row is a mapping of
            names to vectors if points have several.
        payloads: Payloads of the points.
    """

    ids: Sequence[str]
    rows: Sequence[Any] | NDArray[np.float32]
    payloads: Sequence[Mapping[str, Any]]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Vectors, float32 ``(n, dim)``; ``dim`` is 0 if not asked for."""
        import numpy as np  # slow to import, and not needed to list categories

        if isinstance(self.rows, list) and all(row is None for row in self.rows):
            return np.empty((len(self.rows), 0), dtype=np.float32)
        return np.asarray(self.rows, dtype=np.float32)

    @property
    def named(self) -> bool:
        """Whether each point has several vectors, by name."""
        first = self.rows[0] if isinstance(self.rows, list) and self.rows else None
        return isinstance(first, Mapping) and bool(first)  # may be empty in damaged files

    @property
    def plain(self) -> list[Any]:
        """Vector of each point as a list of numbers; by name, if points have several."""
        if self.named:
            return [{name: list(map(float, vector)) for name, vector in row.items()} for row in self.rows]
        rows: list[Any] = self.vectors.tolist()
        return rows

    @property
    def numbers(self) -> int:
        """Total count of numbers in the vectors."""
        return sum(map(len, chain.from_iterable(row.values() for row in self.rows) if self.named else self.vectors))

    def chosen(self, kept: Sequence[int]) -> Points:
        """Returns the points at these ascending positions."""
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
    """Placement of a collection on a cluster; ``None`` leaves a value to the server.

    Attributes:
        replicas: Copies of each shard.
        shards: Parts of the collection.
        write_consistency: Copies that must have a write before it is acknowledged.
    """

    replicas: int | None = None
    shards: int | None = None
    write_consistency: int | None = None


class Handle:
    """The process that opened a store, until the store is closed.

    Args:
        location: Name of the store in messages.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._pid = os.getpid()
        self._closed = False

    @property
    def forked(self) -> bool:
        """Whether this process was forked after the store was opened."""
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
        """Refuses further use."""
        self._closed = True


class InProcess(Handle):
    """Base of backends that keep collections in this process: no other process can write, and there are no replicas."""

    exclusive = True
    writes = 0

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """As `Backend.within`."""
        return nullcontext()

    def placement(self, collection: str) -> None:
        """As `Backend.placement`."""
        self.check()

    def check_up(self, catalog: str, references: Sequence[str], *, repair: bool) -> Iterator[Finding]:
        """As `Backend.check_up`."""
        return iter(())

    def heal(self, collection: str, ids: Sequence[str]) -> int:
        """As `Backend.heal`."""
        return 0


class Backend(Protocol):
    """Collections of points, in process or on a server.

    Every failure is an error of `zsvec.errors`. A finished write is visible to all clients.
    """

    exclusive: bool  # no other process can write
    writes: int  # if exclusive: number of finished writes

    @property
    def location(self) -> str:
        """Name in messages."""

    @property
    def place(self) -> str:
        """Identity of the deployment; empty for one that ends with the process."""

    def check(self) -> None:
        """Raises StoreError if the backend is closed, or was opened before this process was forked."""

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Limits the time of each request of this thread in a block."""

    def exists(self, collection: str) -> bool:
        """Returns whether there is a collection of this name."""

    def create(self, collection: str, dim: Dims, indexes: Mapping[str, str], *, ordered: bool = False) -> None:
        """Creates a collection for exact cosine search with payload indexes, unless one exists.

        Args:
            collection: Name of the collection.
            dim: Dimension of the vectors.
            indexes: Kind of each payload index, by key.
            ordered: Whether all writes must have one order, so that the collection is one shard.
        """

    def remove(self, collection: str) -> None:
        """Deletes a collection, if there is one, with all files."""

    def rewrite(self, collection: str) -> None:
        """Rewrites the files of a collection, if there is one, without deleted points.

        The collection does not change. A server rewrites files on its own schedule, and nothing is done.

        Raises:
            StoreUnavailableError: The disk has no room for another copy.
        """

    def upsert(self, collection: str, points: Points) -> None:
        """Writes points, idempotently by id."""

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        """Writes records to a collection of 1-d vectors, each by compare-and-set, without telling the outcome."""

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Returns the payloads of existing points, by id. The collection may not exist."""

    def scroll(
        self, collection: str, where: Where, *, vectors: bool = False, fields: Sequence[str] | None = None
    ) -> Iterator[Points]:
        """Yields pages of all matching points; payloads reduced to `fields` if given. The collection may not exist."""

    def newest(self, collection: str, where: Where) -> int:
        """Returns the largest ``rev`` of the matching points; 0 without points."""

    def query(
        self, collection: str, vectors: NDArray[np.float32], where: Where, limit: int, fields: Sequence[str]
    ) -> list[list[Hit]]:
        """Returns the `limit` nearest matching points of each vector by exact search, nearest first."""

    def delete(self, collection: str, where: Where) -> None:
        """Deletes all matching points."""

    def drop(self, collection: str, ids: Sequence[str]) -> None:
        """Deletes the points of these ids."""

    def count(self, collection: str, where: Where) -> int:
        """Returns the exact number of matching points. The collection may not exist."""

    def versions(self) -> Mapping[str, str]:
        """Returns the version of the engine, for `zsvec info`."""

    def placement(self, collection: str) -> Placement | None:
        """Returns the placement of a collection on a cluster; ``None`` in process."""

    def check_up(self, catalog: str, references: Sequence[str], *, repair: bool) -> Iterator[Finding]:
        """Yields findings about the deployment.

        Args:
            catalog: Name of the collection of the catalog.
            references: Names of the collections of references.
            repair: Whether to make the replicas of the catalog agree.
        """

    def heal(self, collection: str, ids: Sequence[str]) -> int:
        """Makes the replicas of records agree, and returns how many did not."""

    def flush(self) -> None:
        """Makes all writes survive a loss of power."""

    def close(self) -> None:
        """Closes files and connections."""
