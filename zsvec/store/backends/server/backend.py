"""A backend that holds collections on a Qdrant server or cluster, shared by many processes."""

from __future__ import annotations

import heapq
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from zsvec.errors import LargeAnswerError, StoreError, StoreUnavailableError
from zsvec.store.backends.base import (
    EXACT,
    FIRST_CONTACT,
    Dims,
    Hit,
    Memory,
    Others,
    Placement,
    Points,
    Put,
    VectorSpace,
    Where,
)
from zsvec.store.backends.server import connection as connections
from zsvec.store.backends.server import conversion
from zsvec.store.backends.server.connection import Connection
from zsvec.store.backends.server.conversion import Consistency, filter_of, parts
from zsvec.store.backends.server.diagnostics import check_peers, check_up
from zsvec.store.backends.server.endpoint import Node
from zsvec.store.backends.server.limits import ID, Limits, cut, size_of_point
from zsvec.store.backends.server.replication import AnyReplica, Copies, Reads, Records, Replicas, differing, heal
from zsvec.streams.flow import Flow
from zsvec.streams.stream import ahead
from zsvec.types import Finding, SearchParams

_SLICES = 4  # slices of a collection whose vectors are read in parallel
# Milliseconds after which a node also reads from another replica. The header `x-qdrant-route-affinity` is no
# substitute: it keeps the reads of a process on one replica, also while that replica stands still.
_FAN_OUT = 500

_LINKS = 16  # links of each point in an HNSW graph
_LOOK_EVERY_S = 0.5  # between two looks at an index that is being built

_SCHEMAS = {"keyword": models.PayloadSchemaType.KEYWORD, "integer": models.PayloadSchemaType.INTEGER}

_T = TypeVar("_T")


def connect(
    urls: Sequence[str],
    *,
    api_key: str | None = None,
    ca_certificate: Path | None = None,
    timeout: float = 60.0,
    first_contact: float = FIRST_CONTACT,
    placement: Placement | None = None,
) -> ServerBackend:
    """Connects to a deployment through the first node that answers.

    Args:
        urls: URLs of the nodes, ``http://`` or ``https://``; the default port is 6333.
        api_key: Key of the servers.
        ca_certificate: PEM file of the certificate authorities to trust, instead of the default ones.
        timeout: Deadline of one request, in seconds.
        first_contact: Deadline of the first request in seconds, if shorter than `timeout`.
        placement: Placement of new collections.

    Raises:
        InvalidInputError: A URL is not valid, the key has characters that cannot be sent, or the file of certificates
            cannot be read.
        StoreUnavailableError: No server can be reached, or the server refuses the key or is too old.
    """
    found = connections.connect(urls, api_key, ca_certificate, timeout, min(first_contact, timeout))
    return ServerBackend(found, placement)


class ServerBackend:
    """A backend that makes all requests through a `Connection`.

    Args:
        connection: Connection to the deployment.
        placement: Placement of new collections.
        copies: Makes the requests that depend on replicas.
        reads: Makes reads instead of `copies`.
    """

    exclusive = False
    writes = 0

    def __init__(
        self,
        connection: Connection,
        placement: Placement | None = None,
        copies: Copies | None = None,
        reads: Reads | None = None,
    ) -> None:
        self._connection = connection
        self._placement = placement or Placement()
        self.location = self.place = connection.location
        self._checked = False  # whether the versions of all peers were checked
        self._limits: dict[str, Limits] = {}
        self._halvings: Counter[str] = Counter()  # number of times that limits were halved, by collection
        self._copies = copies or Copies(connection)
        self._reads: Reads = reads or self._copies

    def check(self) -> None:
        self._connection.check()

    def within(self, seconds: float) -> AbstractContextManager[None]:
        return self._connection.within(seconds)

    def exists(self, collection: str) -> bool:
        return self._connection.call(lambda client, _: client.collection_exists(collection))

    def create(
        self,
        collection: str,
        dim: Dims,
        indexes: Mapping[str, str],
        *,
        ordered: bool = False,
        memory: Memory = "cached",
    ) -> None:
        if not self._checked:
            check_peers(self._connection)
            self._checked = True
        self._copies.meet(collection)
        if not self.exists(collection):
            held = models.Memory(memory)
            params = _params(dim, held) if isinstance(dim, int) else {name: _params(n, held) for name, n in dim.items()}
            fan_out = models.CollectionParamsDiff(read_fan_out_delay_ms=_FAN_OUT)
            try:
                self._connection.call(
                    lambda client, patience: client.create_collection(
                        collection,
                        vectors_config=params,
                        hnsw_config=models.HnswConfigDiff(m=0, payload_m=0),
                        # Points wait for no optimization: readers see a write as soon as it is acknowledged.
                        optimizers_config=models.OptimizersConfigDiff(prevent_unoptimized=False),
                        payload=models.PayloadStorageParams(memory=held),
                        shard_number=1 if ordered else self._placement.shards,
                        replication_factor=self._placement.replicas,
                        write_consistency_factor=self._placement.write_consistency,
                        timeout=patience,
                    )
                )
                self._connection.call(
                    lambda client, patience: client.update_collection(
                        collection, collection_params=fan_out, timeout=patience
                    )
                )
            except StoreError:
                if not self.exists(collection):  # another process may have just created the collection
                    raise
        present = self._connection.call(lambda client, _: client.get_collection(collection)).payload_schema
        for name in indexes.keys() - present.keys():
            self._connection.call(
                lambda client, patience, name=name: client.create_payload_index(  # type: ignore[misc]
                    collection, name, field_schema=_SCHEMAS[indexes[name]], timeout=patience
                )
            )

    def remove(self, collection: str) -> None:
        self._connection.call(lambda client, patience: client.delete_collection(collection, timeout=patience))

    def rewrite(self, collection: str) -> None:
        """Does nothing, since no request makes a server rewrite files."""

    def upsert(self, collection: str, points: Points) -> None:
        structs = [
            models.PointStruct(id=identifier, vector=vector, payload=dict(payload))
            for identifier, vector, payload in zip(points.ids, points.plain, points.payloads, strict=True)
        ]
        numbers = points.numbers // max(1, len(points.ids))  # per point; equal for all points of a collection

        def write(limits: Limits) -> None:
            for some in cut(structs, limits.points, lambda point: size_of_point(numbers, point.payload)):
                self._copies.write(collection, partial(_write_points, collection, some))

        self._within_limits(collection, write)

    def set_payload(self, collection: str, where: Where, fields: Mapping[str, Any], key: str = "") -> None:
        self._change(collection, where, partial(_set_payload, collection, dict(fields), key or None))

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        def write(limits: Limits) -> None:
            new = [put for put in puts if put.expected is None]
            for some in cut(new, limits.points, lambda put: size_of_point(1, put.payload)):
                self._put(collection, [_upsert(some, None, models.UpdateMode.INSERT_ONLY)])
            others = [put for put in puts if put.expected is not None]
            for some in cut(others, limits.points, lambda put: size_of_point(1, put.payload)):
                self._put(
                    collection,
                    [
                        _upsert([put], filter_of(Where(match=put.expected), limits), models.UpdateMode.UPDATE_ONLY)
                        for put in some
                    ],
                )

        self._within_limits(collection, write)

    def _put(self, collection: str, operations: Sequence[models.UpsertOperation]) -> None:
        self._copies.write(
            collection,
            lambda client, patience, copies: client.batch_update_points(
                collection, operations, wait=True, ordering=copies.ordering, timeout=patience
            ),
        )

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        def read(limits: Limits) -> Mapping[str, Mapping[str, Any]]:
            found: dict[str, Mapping[str, Any]] = {}
            for some in cut(ids, limits.records, lambda _: ID):
                found |= self._reads.read(collection, partial(_retrieve, collection, some), missing={})
            return found

        return self._within_limits(collection, read)

    def scroll(
        self,
        collection: str,
        where: Where,
        *,
        vectors: bool | str = False,
        fields: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Points]:
        waiting, left = [where], sys.maxsize if limit is None else limit
        while waiting:
            limits = self._limits.get(collection) or self._read_limits(collection)
            some = parts(waiting.pop(), limits, sliced=vectors is not False)
            if len(some) > 1:
                waiting += reversed(some)
                continue
            begun = False
            try:
                for page in self._scroll(collection, some[0], vectors, fields):
                    begun = True
                    yield page.chosen_first(left)
                    left -= len(page.ids)
                    if left <= 0:
                        return
            except StoreError:  # the limits may have changed
                if begun or len(parts(some[0], self._limits[collection], sliced=vectors is not False)) == 1:
                    raise
                waiting.append(some[0])

    def _scroll(
        self, collection: str, where: Where, vectors: bool | str, fields: Sequence[str] | None
    ) -> Iterator[Points]:
        """Yields pages. Pages after the first are read ahead in other threads, those with vectors in several slices."""
        for page, following in self._pages(collection, where, vectors, fields):
            yield page
            if following is not None:
                break
        else:
            return
        patience = self._connection.deadline
        parallel = [models.Slice(total=_SLICES, index=index) for index in range(_SLICES)]
        slices = [None] if vectors is False else parallel

        whole = []  # slices that were read to the end

        def read(some: models.Slice | None) -> Generator[Points, None, None]:
            with self._connection.within(patience):  # in another thread
                for page, _ in self._pages(collection, where, vectors, fields, following, some):
                    yield page
            whole.append(some)

        with ExitStack() as stack:
            reads = [stack.enter_context(closing(ahead(read(some), Flow(), "scroll"))) for some in slices]
            for pages in zip_longest(*reads):  # in turn, so that the order does not depend on the threads
                yield from (page for page in pages if page is not None)
        if len(whole) < len(slices):
            raise StoreUnavailableError(f"{collection!r} was not read to the end, because this process ends")

    def _pages(
        self,
        collection: str,
        where: Where,
        vectors: bool | str,
        fields: Sequence[str] | None,
        offset: Any = None,
        some: models.Slice | None = None,
    ) -> Iterator[tuple[Points, Any]]:
        """Yields pages, each with the offset of the next page as the server gave it."""
        last: str | None = None
        while True:
            read = partial(self._page, collection, where, offset, vectors, fields, some)
            page, following, copied = self._within_limits(collection, read)
            fresh = page.chosen([row for row, place in enumerate(page.ids) if place != last]) if last else page
            yield fresh, following
            if following is None and not (copied and fresh.ids):
                return
            # A quorum read omits records that are being written, and may then report a short page as the last one.
            last = fresh.ids[-1] if fresh.ids else last
            offset = last if following is None else following

    def _page(
        self,
        collection: str,
        where: Where,
        offset: Any,
        vectors: bool | str,
        fields: Sequence[str] | None,
        some: models.Slice | None,
        limits: Limits,
    ) -> tuple[Points, Any, bool]:
        chosen = filter_of(where, limits)
        page, following = self._reads.read(
            collection,
            partial(
                conversion.scroll,
                collection=collection,
                chosen=models.Filter(must=[chosen, models.SliceCondition(slice=some)]) if some else chosen,
                limit=limits.page,
                offset=offset,
                vectors=vectors,
                fields=fields,
            ),
            missing=(Points([], [], []), None),
        )
        return page, following, self._reads.known(collection).copied

    def newest(self, collection: str, where: Where) -> int:
        # Reads one active replica, since a quorum would omit a record in flight that other readers may have seen.
        def ask(limits: Limits) -> list[models.Record]:
            page, _ = self._connection.call(
                lambda client, patience: client.scroll(
                    collection,
                    scroll_filter=filter_of(where, limits),
                    limit=1,
                    with_payload=["rev"],
                    order_by=models.OrderBy(key="rev", direction=models.Direction.DESC),
                    timeout=patience,
                )
            )
            return page

        page = self._within_limits(collection, ask)
        return int((page[0].payload or {})["rev"]) if page else 0

    def query(
        self,
        collection: str,
        vectors: NDArray[np.float32],
        where: Where,
        limit: int,
        fields: Sequence[str],
        params: SearchParams = EXACT,
        vector_name: str | None = None,
    ) -> list[list[Hit]]:
        def search(limits: Limits) -> list[list[Hit]]:
            if not limits.exact and params.exact:
                raise StoreError(
                    f"the strict mode of {collection!r} at {self.location} forbids exact search (search_allow_exact), "
                    "which experts with few references or without an index need: allow it, or compare in this process "
                    "with index=memory"
                )
            found: list[list[Hit]] = []
            chosen = len(filter_of(where, limits).model_dump_json().encode()) + limit * ID
            for some in cut(vectors, limits.queries, lambda vector: size_of_point(len(vector)) + chosen):
                rows: list[list[Hit]] = [[] for _ in some]
                for part in parts(where, limits, without=(limit - 1) // limits.page * limits.page):
                    nearest = self._nearest(collection, some, part, limit, fields, params, limits, vector_name)
                    rows = [_merged(row, hits)[:limit] for row, hits in zip(rows, nearest, strict=True)]
                found += rows
            return found

        return self._within_limits(collection, search)

    def _nearest(
        self,
        collection: str,
        vectors: NDArray[np.float32],
        where: Where,
        limit: int,
        fields: Sequence[str],
        params: SearchParams,
        limits: Limits,
        vector_name: str | None,
    ) -> list[list[Hit]]:
        rows: list[list[Hit]] = [[] for _ in vectors]
        while size := min(limits.page, limit - len(rows[0])):
            request = partial(
                conversion.nearest,
                collection=collection,
                vectors=vectors,
                # Pages exclude earlier hits by id. Offsets could skip or repeat points of equal similarity.
                chosen=[filter_of(where, limits, without=[hit.id for hit in hits]) for hits in rows],
                limit=size,
                fields=fields,
                params=params,
                vector_name=vector_name,
            )
            pages = self._connection.call(request)
            rows = [[*row, *page] for row, page in zip(rows, pages, strict=True)]
            if len(pages[0]) < size:  # all vectors are compared with the same points
                break
        return rows

    def optimize(self, collection: str, params: SearchParams) -> Iterator[float]:
        info = self._connection.call(lambda client, _: client.get_collection(collection))
        if not _is_indexed(info.config, params):
            self._connection.call(partial(_build_index, collection, params))
        elif info.status == models.CollectionStatus.GREEN:
            return
        greens = 0
        while greens < 2:  # the optimizer starts a moment after the update
            time.sleep(_LOOK_EVERY_S)
            info = self._connection.call(lambda client, _: client.get_collection(collection))
            if isinstance(info.optimizer_status, models.OptimizersStatusOneOf1):
                raise StoreError(
                    f"the index of {collection!r} at {self.location} cannot be built: {info.optimizer_status.error}. "
                    "Make room for it, or run `zsvec optimize --exact`"
                )
            if info.status == models.CollectionStatus.GREY:  # waits for an update, such as after a restart
                self._connection.call(partial(_wake, collection))
            greens = greens + 1 if info.status == models.CollectionStatus.GREEN else 0
            at_work = self._connection.call(lambda client, _: client.get_optimizations(collection))
            running = sum(segment.points_count for one in at_work.running for segment in one.segments)
            waiting = at_work.summary.queued_points + running
            yield 1.0 if greens else max(0.0, 1 - waiting / max(1, info.points_count or 0))

    def delete(self, collection: str, where: Where) -> None:
        self._change(collection, where, partial(_delete, collection))

    def _change(self, collection: str, where: Where, request: Callable[..., None]) -> None:
        def change(limits: Limits) -> None:
            for part in parts(where, limits):
                chosen = models.FilterSelector(filter=filter_of(part, limits))
                self._copies.write(collection, partial(request, chosen))

        self._within_limits(collection, change)

    def drop(self, collection: str, ids: Sequence[str]) -> None:
        for some in cut(ids, size=lambda _: ID):
            self._copies.write(collection, partial(_delete, collection, models.PointIdsList(points=list(some))))

    def count(self, collection: str, where: Where) -> int:
        def count(limits: Limits) -> int:
            if not limits.exact:
                return sum(len(page.ids) for page in self.scroll(collection, where, fields=()))
            return sum(self._count(collection, filter_of(part, limits)) for part in parts(where, limits))

        return self._within_limits(collection, count)

    def _count(self, collection: str, chosen: models.Filter) -> int:
        return self._connection.call(
            lambda client, patience: client.count(collection, count_filter=chosen, exact=True, timeout=patience),
            missing=models.CountResult(count=0),
        ).count

    def versions(self) -> Mapping[str, str]:
        return {"qdrant": self._connection.call(lambda client, _: client.info()).version}

    def placement(self, collection: str) -> Placement | None:
        info = self._connection.call(lambda client, _: client.get_collection(collection))
        params = info.config.params
        return Placement(params.replication_factor, params.shard_number, params.write_consistency_factor)

    @cached_property
    def others(self) -> Others:
        return _Others(
            self._connection,
            ServerBackend(self._connection, copies=self._copies, reads=AnyReplica(self._connection)),
        )

    def check_up(self, catalog: str, references: Sequence[str], *, repair: bool) -> Iterator[Finding]:
        return check_up(self._connection, catalog, references, repair=repair)

    def heal(self, collection: str, ids: Sequence[str]) -> int:
        def read(node: Node, consistency: Consistency) -> Records:
            request = partial(_retrieve, collection, ids, consistency=consistency)
            return node.ask(request, left=self._connection.deadline)

        def find(_: QdrantClient, __: int | None) -> Records:
            copies = self._copies.known(collection)
            if not copies.copied or copies.consistency == 1:  # a single replica is active
                return {}
            nodes = [node for node in self._connection.nodes if node.is_well()] or [self._connection.node]
            return differing(nodes, read, whole=copies.whole)

        found = self._connection.call(find, before=partial(self._copies.look, collection))
        heal(self._connection, collection, found)
        return len(found)

    def is_whole(self, collection: str) -> bool:
        return self._connection.call(
            lambda _, __: self._copies.known(collection).whole, before=partial(self._copies.look, collection)
        )

    def flush(self) -> None:
        """Does nothing, since the server flushes on a schedule."""

    def close(self) -> None:
        self._connection.close()

    def _within_limits(self, collection: str, request: Callable[[Limits], _T]) -> _T:
        """Returns the answer to a request within the limits of a collection.

        If an answer is too large, the request is repeated with smaller limits. If the request fails otherwise and the
        limits have changed, the request is repeated once.
        """
        while True:
            limits = self._limits.get(collection) or self._read_limits(collection)
            try:
                return request(limits)
            except LargeAnswerError:
                if limits.halved() == limits:
                    raise
                self._halvings[collection] += 1
                self._limits[collection] = limits.halved()
            except StoreError as exc:
                if type(exc) is not StoreError or self._read_limits(collection) == limits:
                    raise
                return request(self._limits[collection])

    def _read_limits(self, collection: str) -> Limits:
        def ask(client: QdrantClient, _: int | None) -> models.StrictModeConfigOutput | None:
            return client.get_collection(collection).config.strict_mode_config

        allowed = Limits.of(self._connection.call(ask, missing=models.StrictModeConfigOutput()))
        self._limits[collection] = allowed.halved(self._halvings[collection])
        return self._limits[collection]


class _Others:
    """Reads collections of others. Implements `zsvec.store.backends.base.Others`."""

    def __init__(self, connection: Connection, backend: ServerBackend) -> None:
        self._connection = connection
        self._backend = backend

    def vectors(self, collection: str) -> Mapping[str, VectorSpace] | None:
        if not self._backend.exists(collection):
            return None
        info = self._connection.call(lambda client, _: client.get_collection(collection))
        named = info.config.params.vectors or {}
        spaces = named if isinstance(named, dict) else {"": named}
        return {name: _space(params) for name, params in spaces.items()}

    def pages(
        self, collection: str, where: Where, fields: Sequence[str], vector: str | None = None
    ) -> Generator[Points, None, None]:
        vectors = False if vector is None else vector
        yield from self._backend.scroll(collection, where, vectors=vectors, fields=fields)

    def query(
        self,
        collection: str,
        vector: str,
        vectors: NDArray[np.float32],
        where: Where,
        limit: int,
        fields: Sequence[str],
    ) -> list[list[Hit]]:
        return self._backend.query(collection, vectors, where, limit, fields, vector_name=vector or None)


def _space(params: models.VectorParams) -> VectorSpace:
    floats = params.datatype in {None, models.Datatype.FLOAT32, models.Datatype.FLOAT16}
    kinds = ["multivectors"] * bool(params.multivector_config) + ([] if floats else [str(params.datatype)])
    return VectorSpace(params.size, ", ".join([*kinds, params.distance.value]))


def _write_points(
    collection: str, points: Sequence[models.PointStruct], client: QdrantClient, timeout: int | None, _: Replicas
) -> None:
    client.upsert(collection, points, wait=True, timeout=timeout)


def _delete(
    collection: str, chosen: models.PointsSelector, client: QdrantClient, timeout: int | None, _: Replicas
) -> None:
    client.delete(collection, chosen, wait=True, timeout=timeout)


def _set_payload(
    collection: str,
    fields: dict[str, Any],
    key: str | None,
    chosen: models.FilterSelector,
    client: QdrantClient,
    timeout: int | None,
    _: Replicas,
) -> None:
    client.set_payload(collection, fields, chosen, key, wait=True, timeout=timeout)


def _retrieve(
    collection: str, ids: Sequence[str], client: QdrantClient, timeout: int | None, consistency: Consistency
) -> Records:
    records = client.retrieve(collection, list(ids), consistency=consistency, timeout=timeout)
    return {str(record.id): record.payload or {} for record in records}


def _params(dim: int, memory: models.Memory) -> models.VectorParams:
    return models.VectorParams(size=dim, distance=models.Distance.COSINE, memory=memory)


def _wake(collection: str, client: QdrantClient, timeout: int | None) -> None:
    client.update_collection(collection, optimizers_config=models.OptimizersConfigDiff(), timeout=timeout)


def _is_indexed(config: models.CollectionConfig, params: SearchParams) -> bool:
    """Returns whether the configuration of a collection has the index for searches with these parameters."""
    quantized = config.quantization_config
    if params.exact:
        return not quantized and config.hnsw_config.m == 0
    return isinstance(quantized, models.ScalarQuantization) and config.hnsw_config.m == (_LINKS if params.ef else 0)


def _build_index(collection: str, params: SearchParams, client: QdrantClient, timeout: int | None) -> None:
    links = _LINKS if params.ef else 0
    int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, memory=models.Memory.PINNED)
    client.update_collection(
        collection,
        # Links within the points of each modality: a search that is filtered by a rare one needs them.
        hnsw_config=models.HnswConfigDiff(m=links, payload_m=links),
        quantization_config=models.Disabled.DISABLED if params.exact else models.ScalarQuantization(scalar=int8),
        timeout=timeout,
    )


def _merged(some: Sequence[Hit], others: Sequence[Hit]) -> list[Hit]:
    return list(heapq.merge(some, others, key=lambda hit: -hit.similarity))


def _upsert(puts: Sequence[Put], condition: models.Filter | None, mode: models.UpdateMode) -> models.UpsertOperation:
    points = [models.PointStruct(id=put.id, vector=[1.0], payload=dict(put.payload)) for put in puts]
    return models.UpsertOperation(upsert=models.PointsList(points=points, update_filter=condition, update_mode=mode))
