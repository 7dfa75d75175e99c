"""The `Backend` protocol, which every kind of storage implements, and the types of its arguments and results."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

from zsvec.errors import InvalidInputError, StoreError
from zsvec.types import Finding, SearchParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Dims: TypeAlias = int | Mapping[str, int]
"""Dimension of the vectors of a collection, or a dimension per vector name if each point has several vectors."""

Memory: TypeAlias = Literal["cold", "cached"]
"""Placement of a collection in the memory of a server, named as in Qdrant."""

EXACT = SearchParams()

FIRST_CONTACT = 5.0
"""Default deadline for reaching a server when a store is opened, in seconds."""


@dataclass(frozen=True, slots=True)
class Where:
    """A filter over payloads.

    A point matches if its payload meets `match`, `without`, `since` and `until` together, or if it meets `or_match`.

    Attributes:
        match: Value of each field, or a sequence of accepted values.
        since: Smallest ``rev``.
        until: Largest ``rev``.
        or_match: Alternative to all other conditions, in the format of `match`.
        without: Value that each field must not have.
        has_vector: Name of a vector that a point must have, empty for an unnamed one. ``None`` for any.
        present: Payload field that a point must have; empty for any.
    """

    match: Mapping[str, str | int | Sequence[str]] = field(default_factory=dict)
    since: int | None = None
    until: int | None = None
    or_match: Mapping[str, str | int | Sequence[str]] | None = None
    without: Mapping[str, str] = field(default_factory=dict)
    has_vector: str | None = None
    present: str = ""

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
        expected: Field values that the stored record must have. ``None`` requires that no record has this id.
    """

    id: str
    payload: Mapping[str, Any]
    expected: Mapping[str, str | int] | None = None


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one collection.

    Attributes:
        ids: Ids of the points.
        rows: One vector per point, as a list from the client or as a matrix. A row is ``None`` if vectors were not
            requested, and a mapping of names to vectors if each point has several.
        payloads: Payloads of the points.
    """

    ids: Sequence[str]
    rows: Sequence[Any] | NDArray[np.float32]
    payloads: Sequence[Mapping[str, Any]]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Vectors, float32 ``(n, dim)``; ``dim`` is 0 if vectors were not requested.

        Raises:
            StoreError: A point has no vector, or vectors differ in length.
        """
        import numpy as np  # slow to import, and not needed to list categories

        if isinstance(self.rows, list) and all(row is None for row in self.rows):
            return np.empty((len(self.rows), 0), dtype=np.float32)
        try:
            with np.errstate(over="ignore"):  # a forged number may be too large for float32
                vectors = np.asarray(self.rows, dtype=np.float32)
        except (TypeError, ValueError) as exc:
            raise StoreError(f"vectors are missing or differ in length ({exc}): restore the store from a copy") from exc
        if vectors.ndim != 2:
            raise StoreError(
                f"each point must have one vector, got shape {vectors.shape}: restore the store from a copy"
            )
        return vectors

    @property
    def named(self) -> bool:
        """Whether each point has several named vectors."""
        first = self.rows[0] if isinstance(self.rows, list) and self.rows else None
        return isinstance(first, Mapping) and bool(first)  # a damaged file may give an empty mapping

    @property
    def plain(self) -> Iterator[Any]:
        """Vector of each point as a list of floats, or a mapping of names to lists if points have several vectors."""
        import numpy as np  # slow to import, and not needed to list categories

        if self.named:
            yield from ({name: list(map(float, vector)) for name, vector in row.items()} for row in self.rows)
        else:  # one at a time, because all lists together do not fit into the caches of a processor
            yield from (np.asarray(row, np.float32).tolist() for row in self.rows)

    @property
    def numbers(self) -> int:
        """Number of components in all vectors together."""
        return sum(map(len, chain.from_iterable(row.values() for row in self.rows) if self.named else self.rows))

    def chosen(self, kept: Sequence[int]) -> Points:
        """Returns the points at the ascending positions `kept`."""
        if len(kept) == len(self.ids):
            return self
        matrix = hasattr(self.rows, "shape")
        rows = cast("Any", self.rows)[list(kept)] if matrix else [self.rows[i] for i in kept]
        return Points([self.ids[i] for i in kept], rows, [self.payloads[i] for i in kept])

    def chosen_first(self, most: int) -> Points:
        """Returns at most this many points, from the first on."""
        return self.chosen(range(min(most, len(self.ids))))


@dataclass(frozen=True, slots=True)
class Hit:
    """A reference that a nearest-neighbour query found, with the cosine similarity of reference and query."""

    id: str
    similarity: float
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Placement:
    """Placement of a collection on a cluster. The server chooses each value that is ``None``.

    Attributes:
        replicas: Number of replicas of each shard.
        shards: Number of shards of the collection.
        write_consistency: Number of replicas that must confirm a write before the server acknowledges it.
    """

    replicas: int | None = None
    shards: int | None = None
    write_consistency: int | None = None


class Handle:
    """Base of backends and connections, which refuse use after `close` and in a forked process.

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
        """See `Backend.check`."""
        if self.forked:
            raise StoreError(
                f"the store {self._location} was opened before this process was forked: open it in the process that "
                "uses it"
            )
        if self._closed:
            raise StoreError(f"the store {self._location} is closed: open it again")

    def close(self) -> None:
        """Makes `check` raise from now on."""
        self._closed = True


class InProcess(Handle):
    """Base of backends that hold collections in this process, without replicas and without other writers."""

    exclusive = True
    writes = 0

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Does nothing, since no request waits for a server."""
        return nullcontext()

    def placement(self, collection: str) -> None:
        """Returns ``None``, since there is no cluster."""
        self.check()

    @property
    def others(self) -> Others:
        """Raises InvalidInputError, since a folder has no collections of others."""
        raise InvalidInputError(
            f"the store must be on a Qdrant server to attach other collections of it, got {self._location}. "
            "`zsvec copy` moves a store to a server"
        )

    def optimize(self, collection: str, params: SearchParams) -> Iterator[float]:
        """Raises InvalidInputError, since every search compares all vectors."""
        raise InvalidInputError(
            f"the store must be on a Qdrant server to be optimised, got {self._location}. A store in this process "
            "compares every reference; `zsvec copy` moves it to a server"
        )

    def check_up(self, catalog: str, references: Sequence[str], *, repair: bool) -> Iterator[Finding]:
        """Returns no findings, since there is no deployment to check."""
        return iter(())

    def heal(self, collection: str, ids: Sequence[str]) -> int:
        """Returns 0, since there are no replicas."""
        return 0

    def is_whole(self, collection: str) -> bool:
        """Returns ``True``, since there are no replicas."""
        return True


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """What the configuration of a collection says of a vector.

    Attributes:
        dim: Dimension.
        kind: The distance, as Qdrant names it. Other words before it say that the vectors are no plain float vectors.
    """

    dim: int
    kind: str


class Others(Protocol):
    """Collections in the same deployment that zsvec did not make. They are only read, never written."""

    def vectors(self, collection: str) -> Mapping[str, VectorSpace] | None:
        """Returns the dense vectors of a collection by name, or ``None`` if there is no such collection.

        The name of an unnamed vector is empty.
        """

    def pages(
        self, collection: str, where: Where, fields: Sequence[str], vector: str | None = None
    ) -> Generator[Points, None, None]:
        """Yields all matching points in pages, or nothing if the collection does not exist.

        Args:
            collection: Name of the collection.
            where: Filter that the points match.
            fields: Payload fields to read.
            vector: Name of the vector to read, empty for an unnamed vector. ``None`` reads no vectors.
        """

    def query(
        self,
        collection: str,
        vector: str,
        vectors: NDArray[np.float32],
        where: Where,
        limit: int,
        fields: Sequence[str],
    ) -> list[list[Hit]]:
        """Returns the `limit` matching points nearest to each of the vectors, nearest first, by exact search.

        `vector` is the name of the vector to compare.
        """


class Backend(Protocol):
    """Collections of points, in process or on a server.

    Every failure raises an error of `zsvec.errors`. All clients see a write as soon as the call returns.
    """

    exclusive: bool  # whether no other process can write
    writes: int  # number of finished writes, if exclusive; 0 otherwise

    @property
    def location(self) -> str:
        """Name of the store in messages."""

    @property
    def place(self) -> str:
        """Identity of the folder or deployment. Empty if the collections end with the process."""

    @property
    def others(self) -> Others:
        """The collections of others; raises InvalidInputError if the store is in a folder."""

    def check(self) -> None:
        """Raises StoreError if the backend is closed, or if this process was forked after the backend was opened."""

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Limits each request that this thread makes in a ``with`` block to a number of seconds."""

    def exists(self, collection: str) -> bool:
        """Returns whether a collection exists."""

    def create(
        self,
        collection: str,
        dim: Dims,
        indexes: Mapping[str, str],
        *,
        ordered: bool = False,
        memory: Memory = "cached",
    ) -> None:
        """Creates a collection for exact cosine search with payload indexes, unless the collection exists.

        Args:
            collection: Name of the collection.
            dim: Dimension of the vectors.
            indexes: Kind of each payload index (``keyword`` or ``integer``), by payload field.
            ordered: Whether all writes must have one order. The collection then has a single shard.
            memory: How a server holds the collection. ``cached``: loaded into the page cache when the server starts.
                ``cold``: read from the disk when needed.
        """

    def remove(self, collection: str) -> None:
        """Deletes a collection with all files, if the collection exists."""

    def rewrite(self, collection: str) -> None:
        """Removes the traces of deleted points from the files of a collection, if the collection exists.

        The remaining points do not change. On a server the call does nothing, since the server schedules rewrites.

        Raises:
            StoreUnavailableError: The disk has no room for another copy.
        """

    def upsert(self, collection: str, points: Points) -> None:
        """Writes points, and replaces points that have the same ids."""

    def set_payload(self, collection: str, where: Where, fields: Mapping[str, Any], key: str = "") -> None:
        """Sets payload fields of all matching points. Creates no point, and keeps vectors and other fields.

        Args:
            collection: Name of the collection.
            where: Filter that the points match.
            fields: New values of the fields. ``None`` removes a field.
            key: Payload field with the mapping whose fields are set, instead of the fields of the payload. Any other
                value of this field is replaced by a mapping.
        """

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        """Writes records to a collection of 1-d vectors, each by compare-and-set.

        A record whose condition does not hold is skipped. To learn the outcome, read the record.
        """

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Returns the payloads of existing points, by id. Empty if the collection does not exist."""

    def scroll(
        self,
        collection: str,
        where: Where,
        *,
        vectors: bool = False,
        fields: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Points]:
        """Yields all matching points in pages, or nothing if the collection does not exist.

        Args:
            collection: Name of the collection.
            where: Filter that the points match.
            vectors: Whether to read the vectors.
            fields: Payload fields to read; by default all.
            limit: Maximum number of points, if not all.
        """

    def newest(self, collection: str, where: Where) -> int:
        """Returns the largest ``rev`` of the matching points, or 0 if no point matches."""

    def query(
        self,
        collection: str,
        vectors: NDArray[np.float32],
        where: Where,
        limit: int,
        fields: Sequence[str],
        params: SearchParams = EXACT,
    ) -> list[list[Hit]]:
        """Returns the `limit` nearest matching points of each vector, nearest first, with exact similarities.

        A server searches as `params` say and may then miss some of these points. Any other backend compares all points.
        """

    def optimize(self, collection: str, params: SearchParams) -> Iterator[float]:
        """Builds the index for searches with `params`, or removes it for exact search, while readers go on.

        A repeated call waits for an index that is being built, and returns at once if the index is complete. The
        original vectors stay.

        Yields:
            The finished share of the work, 0 to 1, about once a second.

        Raises:
            InvalidInputError: The collection is not on a server.
            StoreError: The server has given up building the index.
        """

    def delete(self, collection: str, where: Where) -> None:
        """Deletes all matching points."""

    def drop(self, collection: str, ids: Sequence[str]) -> None:
        """Deletes points by id."""

    def count(self, collection: str, where: Where) -> int:
        """Returns the exact number of matching points, or 0 if the collection does not exist."""

    def versions(self) -> Mapping[str, str]:
        """Returns the version of the engine, for `zsvec info`."""

    def placement(self, collection: str) -> Placement | None:
        """Returns the placement of a collection on a cluster, or ``None`` if the collection is in this process."""

    def check_up(self, catalog: str, references: Sequence[str], *, repair: bool) -> Iterator[Finding]:
        """Yields findings about the deployment.

        Args:
            catalog: Name of the collection of the catalog.
            references: Names of the reference collections.
            repair: Whether to repair records of the catalog on which replicas differ.
        """

    def heal(self, collection: str, ids: Sequence[str]) -> int:
        """Repairs each given record on which replicas differ, and returns the number of repaired records."""

    def is_whole(self, collection: str) -> bool:
        """Returns whether all replicas of a collection are active, so that reads show all acknowledged writes."""

    def flush(self) -> None:
        """Makes all finished writes survive a loss of power."""

    def close(self) -> None:
        """Closes files and connections."""
