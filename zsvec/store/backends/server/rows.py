"""What a server finds, as rows of the store.

By gRPC without the objects of the client in between: one for each point and each of its values takes several times as
long as the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as protocol
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from zsvec.errors import StoreError
from zsvec.store.backends.base import Hit, Points
from zsvec.store.backends.server.replicas import Consistency


def scroll(
    client: QdrantClient,
    collection: str,
    chosen: models.Filter,
    *,
    limit: int,
    offset: Any,
    vectors: bool,
    fields: Sequence[str] | None,
    consistency: Consistency,
    timeout: int | None,
) -> tuple[Points, Any]:
    """A page of points, and the offset of the next, ``None`` after the last.

    Args:
        client: Of a node.
        collection: Its name.
        chosen: Which points.
        limit: Points of the page.
        offset: Of the page; ``None``: the first.
        vectors: Whether to read them.
        fields: Of the payload; ``None``: all.
        consistency: How many copies have to agree.
        timeout: Seconds; ``None``: those of the client.
    """
    payload = True if fields is None else list(fields)
    if not _by_grpc(client):
        records, following = client.scroll(
            collection,
            scroll_filter=chosen,
            limit=limit,
            offset=offset,
            with_payload=payload,
            with_vectors=vectors,
            consistency=consistency,
            timeout=timeout,
        )
        points = Points(
            ids=[str(record.id) for record in records],
            rows=[record.vector for record in records],
            payloads=[record.payload or {} for record in records],
        )
        return replace(points, rows=points.vectors) if vectors and not points.named else points, following
    response = client.grpc_points.Scroll(
        protocol.ScrollPoints(
            collection_name=collection,
            filter=RestToGrpc.convert_filter(chosen),
            limit=limit,
            offset=None if offset is None else RestToGrpc.convert_extended_point_id(offset),
            with_payload=RestToGrpc.convert_with_payload_interface(payload),
            with_vectors=protocol.WithVectorsSelector(enable=vectors),
            read_consistency=_agreement(consistency),
            timeout=timeout,
        ),
        timeout=_seconds(client, timeout),
    )
    points = Points(
        ids=[_id(point.id) for point in response.result],
        rows=_rows(response.result, collection) if vectors else [None] * len(response.result),
        payloads=_payloads(response.result),
    )
    more = response.HasField("next_page_offset")
    return points, GrpcToRest.convert_point_id(response.next_page_offset) if more else None


def retrieve(
    client: QdrantClient, collection: str, ids: Sequence[str], *, consistency: Consistency, timeout: int | None
) -> dict[str, Mapping[str, Any]]:
    """Payloads of those of the points that exist, by id; arguments as those of `scroll`."""
    if not _by_grpc(client):
        records = client.retrieve(collection, list(ids), consistency=consistency, timeout=timeout)
        return {str(record.id): record.payload or {} for record in records}
    response = client.grpc_points.Get(
        protocol.GetPoints(
            collection_name=collection,
            ids=[RestToGrpc.convert_extended_point_id(identifier) for identifier in ids],
            with_payload=protocol.WithPayloadSelector(enable=True),
            with_vectors=protocol.WithVectorsSelector(enable=False),
            read_consistency=_agreement(consistency),
            timeout=timeout,
        ),
        timeout=_seconds(client, timeout),
    )
    return dict(zip([_id(point.id) for point in response.result], _payloads(response.result), strict=True))


def nearest(
    client: QdrantClient,
    collection: str,
    vectors: NDArray[np.float32],
    chosen: Sequence[models.Filter],
    *,
    limit: int,
    fields: Sequence[str],
    timeout: int | None,
) -> list[list[Hit]]:
    """The nearest points of each vector, nearest first.

    Args:
        client: Of a node.
        collection: Its name.
        vectors: float32 ``(n, dim)``, unit rows.
        chosen: For each, of which points.
        limit: Points of each.
        fields: Of the payload.
        timeout: Seconds; ``None``: those of the client.
    """
    if not _by_grpc(client):
        requests = [
            models.QueryRequest(query=vector.tolist(), filter=one, limit=limit, with_payload=list(fields))
            for vector, one in zip(vectors, chosen, strict=True)
        ]
        responses = client.query_batch_points(collection, requests, timeout=timeout)
        return [[Hit(str(p.id), p.score, p.payload or {}) for p in response.points] for response in responses]
    payload = RestToGrpc.convert_with_payload_interface(list(fields))
    queries = [
        protocol.QueryPoints(
            collection_name=collection,
            query=protocol.Query(nearest=protocol.VectorInput(dense=protocol.DenseVector(data=vector))),
            filter=RestToGrpc.convert_filter(one),
            limit=limit,
            with_payload=payload,
        )
        for vector, one in zip(vectors, chosen, strict=True)
    ]
    response = client.grpc_points.QueryBatch(
        protocol.QueryBatchPoints(collection_name=collection, query_points=queries, timeout=timeout),
        timeout=_seconds(client, timeout),
    )
    return [
        [
            Hit(_id(point.id), point.score, payload)
            for point, payload in zip(found.result, _payloads(found.result), strict=True)
        ]
        for found in response.result
    ]


def _by_grpc(client: QdrantClient) -> bool:
    return bool(client.init_options["prefer_grpc"])


def _seconds(client: QdrantClient, timeout: int | None) -> float | None:
    seconds: float | None = client.init_options["timeout"] if timeout is None else timeout
    return seconds


def _agreement(consistency: Consistency) -> protocol.ReadConsistency | None:
    return None if consistency is None else RestToGrpc.convert_read_consistency(consistency)


def _id(identifier: protocol.PointId) -> str:
    return identifier.uuid or str(identifier.num)


def _payloads(points: Iterable[Any]) -> list[Mapping[str, Any]]:
    return [_payload(point.payload) for point in points]


def _payload(found: Any) -> Mapping[str, Any]:
    texts = {name: value.string_value for name, value in found.items()}
    return texts if all(texts.values()) else GrpcToRest.convert_payload(found)  # not all of it is text


def _rows(points: Sequence[Any], collection: str) -> Any:
    """The vectors of points as a matrix; as mappings of names to vectors, where they are named."""
    if any(point.vectors.HasField("vectors") for point in points):
        return [{name: _numbers(one) for name, one in point.vectors.vectors.vectors.items()} for point in points]
    return _vectors(points, collection)


def _numbers(vector: Any) -> NDArray[np.float32]:
    return np.array(_dense_of(vector).data, dtype=np.float32)


def _vectors(points: Sequence[Any], collection: str) -> NDArray[np.float32]:
    if not points:
        return np.empty((0, 0), dtype=np.float32)
    dense = [_dense(point) for point in points]
    dim = len(dense[0].data)
    for point, vector in zip(points, dense, strict=True):
        if len(vector.data) != dim or not dim:
            raise StoreError(
                f"the point {_id(point.id)} of {collection!r} has a vector of {len(vector.data)} numbers, and another "
                f"one {dim or 'some'}: it is not of zsvec; delete it"
            )
    # A vector is written again as its numbers are in memory, behind a few bytes: not one object for each of them.
    numbers = 4 * dim
    head = protocol.DenseVector(data=[0.0] * dim).ByteSize() - numbers
    written = [vector.SerializeToString() for vector in dense]
    if any(len(row) != head + numbers for row in written):  # there is more in them than this version knows of
        return np.array([vector.data for vector in dense], dtype=np.float32)
    rows = np.frombuffer(b"".join(written), dtype=np.uint8).reshape(len(dense), -1)[:, head:]
    return np.ascontiguousarray(rows).view("<f4").astype(np.float32, copy=False)


def _dense(point: Any) -> Any:
    return _dense_of(point.vectors.vector)


def _dense_of(vector: Any) -> Any:
    return vector.dense if vector.HasField("dense") else vector  # before 1.17
