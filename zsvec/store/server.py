"""Collections on a Qdrant server, shared by many processes.

Every call may be repeated without harm: it is tried again while the server is away, busy or slow
(`_is_transient`), until its deadline. Clients do not survive a fork, so each process opens its own.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from numpy.typing import NDArray
from pydantic import HttpUrl, TypeAdapter, ValidationError
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from zsvec.errors import InvalidInputError, StoreError, StoreUnavailableError
from zsvec.store.base import Hit, Points, Put, Where, stack

OLDEST = (1, 17)  # the first server whose upserts can be insert-only and update-only
_CHUNK = 500  # points a request: below the 32 MB that REST accepts, up to 2,000 dimensions
_PAGE = 1000
_QUERIES = 64
_DOOR = 2.0  # seconds to find out whether the gRPC port is open

_URL = TypeAdapter(HttpUrl)
_SCHEMAS = {"keyword": models.PayloadSchemaType.KEYWORD, "integer": models.PayloadSchemaType.INTEGER}
_REFUSED = {401, 403, 405, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_MISSING = {404, grpc.StatusCode.NOT_FOUND}
_TRANSIENT = {
    *(408, 429, 500, 502, 503, 504),
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED),
}
_NONSENSE = (
    json.JSONDecodeError,
    UnicodeDecodeError,
    AssertionError,
)  # raised by the client for an answer of no Qdrant


def connect(url: str, api_key: str | None, timeout: float) -> ServerBackend:
    """Reach a server, by gRPC where its port is open, else by REST.

    Args:
        url: ``http://`` or ``https://``; without a port, 6333.
        api_key: Key that the server asks for.
        timeout: Deadline of one operation, in seconds.

    Raises:
        InvalidInputError: The URL names no host and port.
        StoreUnavailableError: The server cannot be reached, refuses the key, or is too old.
    """
    host, port = _address(url)
    options: dict[str, Any] = {"url": url, "api_key": api_key, "timeout": max(1, round(timeout))}
    backend = ServerBackend(QdrantClient(**options, prefer_grpc=False, check_compatibility=False), url, timeout)
    version = backend.versions()["qdrant"]
    number = re.match(r"(\d+)\.(\d+)", version)
    if not number:
        raise StoreUnavailableError(f"the server at {url} says that its version is {version!r}: is it a Qdrant?")
    if tuple(map(int, number.groups())) < OLDEST:
        raise StoreUnavailableError(
            f"the server at {url} is Qdrant {version}, and zsvec needs {OLDEST[0]}.{OLDEST[1]} or later: upgrade it"
        )
    # The next port, never the usual one, which may belong to another server of this host.
    try:
        socket.create_connection((host, port + 1), timeout=min(timeout, _DOOR)).close()
    except OSError:
        return backend
    faster = QdrantClient(**options, grpc_port=port + 1, prefer_grpc=True, check_compatibility=False)
    try:
        same = faster.info().version == version
    except (grpc.RpcError, QdrantException):
        same = False
    (backend if same else faster).close()
    return ServerBackend(faster, url, timeout) if same else backend


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 6333
        _URL.validate_python(url)
    except ValueError as exc:
        reason = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else exc
        raise InvalidInputError(f"the store {url!r} is no URL: {reason}") from exc
    if not host:
        raise InvalidInputError(f"the store {url!r} names no host: give one, such as http://localhost:6333")
    return host, port


class ServerBackend:
    """Collections reached through a `QdrantClient`.

    Args:
        client: Of the server.
        location: Name of the server in messages.
        timeout: Deadline of one operation, in seconds.
    """

    exclusive = False

    def __init__(self, client: QdrantClient, location: str, timeout: float) -> None:
        self._client = client
        self.location = location
        self._timeout = timeout
        self._pid = os.getpid()
        self._closed = False

    def check(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(
                f"the connection to {self.location} was opened before this process was forked: "
                "open the store in the process that uses it"
            )
        if self._closed:
            raise StoreError(f"the store {self.location} is closed: open it again")

    def exists(self, collection: str) -> bool:
        return bool(self._retried(self._client.collection_exists, collection))

    def create(self, collection: str, dim: int, indexes: Mapping[str, str]) -> None:
        if not self.exists(collection):
            try:
                self._retried(
                    self._client.create_collection,
                    collection,
                    vectors_config=models.VectorParams(size=dim, distance=models.Distance.COSINE),
                    hnsw_config=models.HnswConfigDiff(m=0),
                )
            except StoreError:
                if not self.exists(collection):  # else another process has just made it
                    raise
        present = self._retried(self._client.get_collection, collection).payload_schema
        for name in indexes.keys() - present.keys():
            self._retried(self._client.create_payload_index, collection, name, field_schema=_SCHEMAS[indexes[name]])

    def upsert(self, collection: str, points: Points) -> None:
        structs = [
            models.PointStruct(id=identifier, vector=vector.tolist(), payload=dict(payload))
            for identifier, vector, payload in zip(points.ids, points.vectors, points.payloads, strict=True)
        ]
        for first in range(0, len(structs), _CHUNK):
            self._retried(self._client.upsert, collection, structs[first : first + _CHUNK], wait=True)

    def put(self, collection: str, puts: Sequence[Put]) -> None:
        new = [put for put in puts if put.expected is None]
        for first in range(0, len(new), _CHUNK):
            self._put(collection, [_upsert(new[first : first + _CHUNK], None, models.UpdateMode.INSERT_ONLY)])
        others = [
            _upsert([put], _filter(Where(match=put.expected)), models.UpdateMode.UPDATE_ONLY)
            for put in puts
            if put.expected is not None
        ]
        for first in range(0, len(others), _CHUNK):
            self._put(collection, others[first : first + _CHUNK])

    def _put(self, collection: str, operations: Sequence[models.UpsertOperation]) -> None:
        self._retried(
            self._client.batch_update_points, collection, operations, wait=True, ordering=models.WriteOrdering.STRONG
        )

    def retrieve(self, collection: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        found = self._retried(
            self._client.retrieve, collection, list(ids), consistency=models.ReadConsistencyType.QUORUM, missing=[]
        )
        return {str(record.id): record.payload or {} for record in found}

    def scroll(
        self, collection: str, where: Where, *, vectors: bool = False, fields: Sequence[str] | None = None
    ) -> Iterator[Points]:
        offset = None
        while True:
            page, offset = self._retried(
                self._client.scroll,
                collection,
                scroll_filter=_filter(where),
                limit=_PAGE,
                offset=offset,
                with_payload=True if fields is None else list(fields),
                with_vectors=vectors,
                consistency=models.ReadConsistencyType.QUORUM,
                missing=([], None),
            )
            yield Points(
                ids=[str(record.id) for record in page],
                vectors=stack([record.vector for record in page]),
                payloads=[record.payload or {} for record in page],
            )
            if offset is None:
                return

    def newest(self, collection: str, where: Where) -> int:
        page, _ = self._retried(
            self._client.scroll,
            collection,
            scroll_filter=_filter(where),
            limit=1,
            with_payload=["rev"],
            order_by=models.OrderBy(key="rev", direction=models.Direction.DESC),
        )
        return int(page[0].payload["rev"]) if page else 0

    def query(
        self, collection: str, vectors: NDArray[np.float32], where: Where, limit: int, fields: Sequence[str]
    ) -> list[list[Hit]]:
        requests = [
            models.QueryRequest(query=vector.tolist(), filter=_filter(where), limit=limit, with_payload=list(fields))
            for vector in vectors
        ]
        responses = [
            response
            for first in range(0, len(requests), _QUERIES)
            for response in self._retried(
                self._client.query_batch_points, collection, requests[first : first + _QUERIES]
            )
        ]
        return [[Hit(str(p.id), p.score, p.payload or {}) for p in response.points] for response in responses]

    def delete(self, collection: str, where: Where) -> None:
        self._retried(self._client.delete, collection, models.FilterSelector(filter=_filter(where)), wait=True)

    def drop(self, collection: str, ids: Sequence[str]) -> None:
        self._retried(self._client.delete, collection, models.PointIdsList(points=list(ids)), wait=True)

    def count(self, collection: str, where: Where) -> int:
        return int(self._retried(self._client.count, collection, count_filter=_filter(where), exact=True).count)

    def versions(self) -> Mapping[str, str]:
        return {"qdrant": self._retried(self._client.info).version}

    def flush(self) -> None:
        """Do nothing: the server writes its log to disk on its own schedule."""

    def close(self) -> None:
        if os.getpid() == self._pid:  # else the connections are the parent's
            self._closed = True
            self._client.close()

    def _retried(self, function: Callable[..., Any], /, *args: Any, missing: Any = None, **kwargs: Any) -> Any:
        """Call the client, again after a passing failure while there is time, with its failures as errors of ours.

        Args:
            function: Of the client.
            args: For it.
            missing: The answer where the collection does not exist; by default that is an error.
            kwargs: For the function.
        """
        self.check()
        retrying = Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_before_delay(self._timeout),
            wait=_wait,
            reraise=True,
        )
        try:
            return retrying(function, *args, **kwargs)
        except (ApiException, QdrantException, grpc.RpcError, RuntimeError, *_NONSENSE) as exc:
            code = _code(exc)
            if missing is not None and code in _MISSING:
                return missing
            if _is_nonsense(exc):
                raise StoreUnavailableError(
                    f"the server at {self.location} gives an answer that cannot be read ({_reason(exc)}): "
                    "is it a Qdrant?"
                ) from exc
            if code in _REFUSED:
                raise StoreUnavailableError(
                    f"the server at {self.location} refuses this ({_reason(exc)}): give a key that may do it, by "
                    "ZSVEC_API_KEY"
                ) from exc
            if _is_transient(exc):
                raise StoreUnavailableError(
                    f"the server at {self.location} did not answer within {self._timeout:g} s ({_reason(exc)}): check "
                    "that it runs and that the URL is right, or allow more time with ZSVEC_TIMEOUT"
                ) from exc
            raise StoreError(f"the server at {self.location} failed: {_reason(exc)}") from exc


def _code(exc: BaseException) -> int | grpc.StatusCode | None:
    if isinstance(exc, UnexpectedResponse):
        return exc.status_code
    return exc.code() if isinstance(exc, grpc.RpcError) and isinstance(exc, grpc.Call) else None


def _is_nonsense(exc: BaseException) -> bool:
    return isinstance(exc.source if isinstance(exc, ResponseHandlingException) else exc, (*_NONSENSE, ValidationError))


def _is_transient(exc: BaseException) -> bool:
    if isinstance(exc, ResponseHandlingException):
        return not _is_nonsense(exc)
    return isinstance(exc, ResourceExhaustedResponse) or _code(exc) in _TRANSIENT


def _wait(state: RetryCallState) -> float:
    """As long as a busy server asks for, else a growing random time, in seconds."""
    exc = state.outcome.exception() if state.outcome else None
    if isinstance(exc, ResourceExhaustedResponse):
        return float(exc.retry_after_s)
    return wait_random_exponential(multiplier=0.1, max=5.0)(state)


def _reason(exc: BaseException) -> str:
    if isinstance(exc, UnexpectedResponse):
        return f"HTTP {exc.status_code}: {exc.content.decode(errors='replace')[:300]}"
    if isinstance(exc, ResponseHandlingException):
        return str(exc.source) or type(exc.source).__name__
    details = exc.details() if isinstance(exc, grpc.Call) else None
    return details or str(exc) or type(exc).__name__


def _upsert(puts: Sequence[Put], condition: models.Filter | None, mode: models.UpdateMode) -> models.UpsertOperation:
    points = [models.PointStruct(id=put.id, vector=[1.0], payload=dict(put.payload)) for put in puts]
    return models.UpsertOperation(upsert=models.PointsList(points=points, update_filter=condition, update_mode=mode))


def _filter(where: Where) -> models.Filter:
    must = _conditions(where.match)
    if where.since is not None:
        must.append(models.FieldCondition(key="rev", range=models.Range(gte=where.since)))
    chosen = models.Filter(must=must, must_not=_conditions(where.exclude))
    if where.or_match is None:
        return chosen
    return models.Filter(should=[chosen, models.Filter(must=_conditions(where.or_match))])


def _conditions(match: Mapping[str, str | int | Sequence[str]]) -> list[Any]:
    return [
        models.FieldCondition(
            key=name,
            match=models.MatchValue(value=value) if isinstance(value, str | int) else models.MatchAny(any=list(value)),
        )
        for name, value in match.items()
    ]
