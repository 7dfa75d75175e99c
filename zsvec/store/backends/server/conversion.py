"""Conversion of filters and points between the store and Qdrant.

Over gRPC, points are read without the client's classes. With these (client 1.20, 100,000 references of 512 dimensions,
two cores for client and server), reading all references takes 3.4 times as long, and 64 queries for 256 references each
1.5 times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as protocol
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from zsvec.errors import StoreError
from zsvec.store.backends.base import Hit, Points, Where
from zsvec.store.backends.server.limits import Limits, cut
from zsvec.types import SearchParams

Consistency = models.ReadConsistencyType | int

_CHARACTER, _AROUND = 6, 3  # maximum JSON bytes of a character, and of quotes and comma

# Filters


def filter_of(where: Where, limits: Limits, without: Sequence[str] = ()) -> models.Filter:
    """Returns a filter for all points that match `where`, except points with the ids in `without`."""
    must = _conditions(where.match, limits)
    if where.ranged:
        must.append(models.FieldCondition(key="rev", range=models.Range(gte=where.since, lte=where.until)))
    if where.has_vector is not None:
        must.append(models.HasVectorCondition(has_vector=where.has_vector))
    must_not: list[Any] = _conditions(where.without, limits)
    if where.present:
        must_not.append(models.IsEmptyCondition(is_empty=models.PayloadField(key=where.present)))
    must_not += [models.HasIdCondition(has_id=list(ids)) for ids in cut(without, limits.values)]
    chosen = models.Filter(must=must, must_not=must_not)
    if where.or_match is None:
        return chosen
    return models.Filter(should=[chosen, models.Filter(must=_conditions(where.or_match, limits))])


def parts(where: Where, limits: Limits, without: int = 0, *, sliced: bool = False) -> list[Where]:
    """Splits a filter into filters within the limits. Each matching point matches exactly one of the filters.

    Only the longest list of values is split. A filter that has `or_match`, or has no list, stays whole.

    Args:
        where: The filter to split.
        limits: Limits of the collection. Each part has at least one condition on the split list, whatever the limits.
        without: Number of ids that `filter_of` will exclude.
        sliced: Whether a slice of the points will be read, which is another condition.
    """
    lists = {name: value for name, value in where.match.items() if not isinstance(value, str | int)}
    if not lists or where.or_match is not None:
        return [where]
    name, longest = max(lists.items(), key=lambda item: len(item[1]))
    lengths = [len(lists.get(other, "1")) for other in where.match if other != name]
    single = where.ranged + sliced + (where.has_vector is not None) + bool(where.present)
    others = sum(-(-length // limits.values) for length in (*lengths, without)) + single
    most = math.inf if limits.conditions is None else limits.values * max(1, limits.conditions - others)
    some = cut(longest, most, lambda value: _CHARACTER * len(value) + _AROUND)
    return [replace(where, match={**where.match, name: values}) for values in some] or [where]


def _conditions(match: Mapping[str, str | int | Sequence[str]], limits: Limits) -> list[Any]:
    return [_condition(name, value, limits) for name, value in match.items()]


def _condition(name: str, value: str | int | Sequence[str], limits: Limits) -> Any:
    if isinstance(value, str | int):
        return models.FieldCondition(key=name, match=models.MatchValue(value=value))
    if len(value) <= limits.values:
        return models.FieldCondition(key=name, match=models.MatchAny(any=list(value)))
    return models.Filter(should=[_condition(name, some, limits) for some in cut(value, limits.values)])


# Points


def scroll(
    client: QdrantClient,
    timeout: int | None,
    consistency: Consistency,
    collection: str,
    chosen: models.Filter,
    *,
    limit: int,
    offset: Any,
    vectors: bool | str,
    fields: Sequence[str] | None,
) -> tuple[Points, Any]:
    """Returns a page of points, and the offset of the next page, or ``None`` after the last page.

    If `vectors` is the name of a vector, the rows are the vectors of this name. The name of an unnamed vector is empty.
    """
    payload = True if fields is None else list(fields)
    if not by_grpc(client):
        records, following = client.scroll(
            collection,
            scroll_filter=chosen,
            limit=limit,
            offset=offset,
            with_payload=payload,
            with_vectors=[vectors] if isinstance(vectors, str) else vectors,
            consistency=consistency,
            timeout=timeout,
        )
        rows: list[Any] = [record.vector for record in records]
        points = Points(
            ids=[str(record.id) for record in records],
            rows=[_named(row, vectors) for row in rows] if isinstance(vectors, str) and vectors else rows,
            payloads=[record.payload or {} for record in records],
        )
        return points if vectors is False or points.named else replace(points, rows=points.vectors), following
    response = client.grpc_points.Scroll(
        protocol.ScrollPoints(
            collection_name=collection,
            filter=RestToGrpc.convert_filter(chosen),
            limit=limit,
            offset=None if offset is None else RestToGrpc.convert_extended_point_id(offset),
            with_payload=RestToGrpc.convert_with_payload_interface(payload),
            with_vectors=_chosen_vectors(vectors),
            read_consistency=RestToGrpc.convert_read_consistency(consistency),
            timeout=timeout,
        ),
        timeout=_seconds(client, timeout),
    )
    points = Points(
        ids=[_id(point.id) for point in response.result],
        rows=[None] * len(response.result) if vectors is False else _rows(response.result, collection, vectors),
        payloads=[_payload(point) for point in response.result],
    )
    more = response.HasField("next_page_offset")
    return points, GrpcToRest.convert_point_id(response.next_page_offset) if more else None


def nearest(
    client: QdrantClient,
    timeout: int | None,
    collection: str,
    vectors: NDArray[np.float32],
    chosen: Sequence[models.Filter],
    *,
    limit: int,
    fields: Sequence[str],
    params: SearchParams,
    vector_name: str | None = None,
) -> list[list[Hit]]:
    """Returns the nearest points of each vector, nearest first.

    Args:
        client: Client of a node.
        timeout: Time-out in seconds; ``None`` means the client's default.
        collection: Name of the collection.
        vectors: float32 ``(n, dim)``.
        chosen: Filter for each vector.
        limit: Maximum number of points per vector.
        fields: Payload fields to read.
        params: How to search.
        vector_name: Name of the vector to compare, if each point has several.
    """
    asked = _params(params)
    if not by_grpc(client):
        requests = [
            models.QueryRequest(
                query=vector.tolist(),
                using=vector_name,
                filter=one,
                limit=limit,
                with_payload=list(fields),
                params=asked,
            )
            for vector, one in zip(vectors, chosen, strict=True)
        ]
        responses = client.query_batch_points(collection, requests, timeout=timeout)
        return [[Hit(str(p.id), p.score, p.payload or {}) for p in response.points] for response in responses]
    payload = RestToGrpc.convert_with_payload_interface(list(fields))
    queries = [
        protocol.QueryPoints(
            collection_name=collection,
            query=protocol.Query(nearest=protocol.VectorInput(dense=protocol.DenseVector(data=vector))),
            using=vector_name,
            filter=RestToGrpc.convert_filter(one),
            limit=limit,
            with_payload=payload,
            params=RestToGrpc.convert_search_params(asked),
        )
        for vector, one in zip(vectors, chosen, strict=True)
    ]
    response = client.grpc_points.QueryBatch(
        protocol.QueryBatchPoints(collection_name=collection, query_points=queries, timeout=timeout),
        timeout=_seconds(client, timeout),
    )
    return [[Hit(_id(point.id), point.score, _payload(point)) for point in found.result] for found in response.result]


def _params(params: SearchParams) -> models.SearchParams:
    if params.exact:
        return models.SearchParams(exact=True)
    rescored = models.QuantizationSearchParams(rescore=True, oversampling=params.oversampling)
    return models.SearchParams(hnsw_ef=params.ef, quantization=rescored)


def by_grpc(client: QdrantClient) -> bool:
    """Returns whether a client uses gRPC."""
    return bool(client.init_options["prefer_grpc"])


def _seconds(client: QdrantClient, timeout: int | None) -> float | None:
    seconds: float | None = client.init_options["timeout"] if timeout is None else timeout
    return seconds


def _id(identifier: protocol.PointId) -> str:
    return identifier.uuid or str(identifier.num)


def _payload(point: Any) -> Mapping[str, Any]:
    payload, texts = point.payload, {}
    for name in payload:  # faster than `items`
        if not (text := payload[name].string_value):  # another type, or empty
            return GrpcToRest.convert_payload(payload)
        texts[name] = text
    return texts


def _chosen_vectors(vectors: bool | str) -> protocol.WithVectorsSelector:
    if isinstance(vectors, str):
        return protocol.WithVectorsSelector(include=protocol.VectorsSelector(names=[vectors]))
    return protocol.WithVectorsSelector(enable=vectors)


def _named(row: Any, name: str) -> Any:
    return row.get(name) if isinstance(row, Mapping) else None


def _rows(points: Sequence[Any], collection: str, vectors: bool | str) -> Any:
    if isinstance(vectors, str) and vectors:
        return _vectors(points, collection, vectors)
    if any(point.vectors.HasField("vectors") for point in points):
        return [
            {name: np.array(one.dense.data, dtype=np.float32) for name, one in point.vectors.vectors.vectors.items()}
            for point in points
        ]
    return _vectors(points, collection)


def _vectors(points: Sequence[Any], collection: str, name: str | None = None) -> NDArray[np.float32]:
    if not points:
        return np.empty((0, 0), dtype=np.float32)
    vectors = [point.vectors for point in points]
    dense = [(one.vector if name is None else one.vectors.vectors[name]).dense for one in vectors]
    dim = len(dense[0].data)
    messages = [vector.SerializeToString() for vector in dense]
    for point, vector, message in zip(points, dense, messages, strict=True):
        if len(message) != len(messages[0]) or not dim:
            found = len(vector.data)
            raise StoreError(
                f"the point {_id(point.id)} of {collection!r} has a vector of {found} numbers, and another one "
                f"{dim or 'some'}: it is not of zsvec; delete it"
            )
    # A message is a tag, a length and the bytes of the array. Reading the numbers from the objects takes longer.
    size = dim * np.dtype("<f4").itemsize
    begin = 1 + math.ceil(size.bit_length() / 7)
    rows = bytearray().join([message[begin : begin + size] for message in messages])
    return np.frombuffer(rows, dtype="<f4").reshape(len(points), dim)
