"""Conversions of filters and points between the store and a server."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qdrant_client import grpc as protocol
from qdrant_client import models
from qdrant_client.conversions.conversion import RestToGrpc

from zsvec.errors import StoreError
from zsvec.store.backends.base import Points, Where
from zsvec.store.backends.server.conversion import _payload, _vectors, filter_of, parts, scroll
from zsvec.store.backends.server.limits import Limits

FIVE = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("values", "conditions", "expected"),
    [
        (256, None, [FIVE]),
        (2, None, [FIVE]),
        (256, 2, [FIVE]),
        (2, 4, [FIVE]),  # three conditions for the five, one for the modality
        (2, 3, [("a", "b", "c", "d"), ("e",)]),
        (2, 2, [("a", "b"), ("c", "d"), ("e",)]),
        (1, 2, [("a",), ("b",), ("c",), ("d",), ("e",)]),
        (2, 1, [("a", "b"), ("c", "d"), ("e",)]),  # less is not possible, and refused by the server
    ],
)
def test_a_filter_of_too_many_conditions_becomes_several(
    values: int, conditions: int | None, expected: Sequence[tuple[str, ...]]
) -> None:
    where = Where(match={"modality": "image", "gen": FIVE})
    limits = Limits(values=values, conditions=conditions)
    assert [part.match for part in parts(where, limits)] == [{"modality": "image", "gen": gen} for gen in expected]
    for part in parts(where, limits):
        assert len(filter_of(part, limits).model_dump()["must"]) == 2


def test_points_left_out_take_conditions_too() -> None:
    where, limits = Where(match={"gen": FIVE}), Limits(values=2, conditions=3)
    assert [part.match["gen"] for part in parts(where, limits)] == [FIVE]
    assert [part.match["gen"] for part in parts(where, limits, without=3)] == [("a", "b"), ("c", "d"), ("e",)]


def test_a_filter_without_lists_is_not_split() -> None:
    limits = Limits(conditions=1)
    for where in (Where(), Where(match={"kind": "store"}), Where(match={"gen": FIVE}, or_match={"kind": "store"})):
        assert parts(where, limits) == [where]


def test_no_values_match_nothing() -> None:
    assert parts(Where(match={"gen": ()}), Limits(conditions=1)) == [Where(match={"gen": ()})]


# Points


def point(number: int, *values: float) -> Any:
    vector = protocol.VectorOutput(dense=protocol.DenseVector(data=values))
    vectors = protocol.VectorsOutput(vector=vector) if values else None
    return protocol.RetrievedPoint(id=protocol.PointId(num=number), vectors=vectors)


@pytest.mark.parametrize("dim", [1, 31, 32, 512, 4095, 4096])  # the length of a message takes one byte to three
def test_vectors_are_exact_to_the_last_bit(dim: int) -> None:
    sent = np.random.default_rng(0).standard_normal((3, dim)).astype(np.float32)
    sent[0, 0] = -0.0
    points = [point(i, *row.tolist()) for i, row in enumerate(sent)]
    found = _vectors([protocol.RetrievedPoint.FromString(p.SerializeToString()) for p in points], "c")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), sent.view(np.uint32))


@pytest.mark.parametrize(
    "payload",
    [
        {"category": "red panda", "source": "a.jpg"},
        {"category": "red panda", "source": ""},
        {"category": "red panda", "version": 0, "texts": [], "metadata": {"a": [1.5, None, True]}},
        {},
    ],
)
def test_a_payload_is_converted_unchanged(payload: dict[str, Any]) -> None:
    sent = protocol.RetrievedPoint(payload=RestToGrpc.convert_payload(payload))
    assert _payload(sent) == payload


@pytest.mark.parametrize(
    "points", [[(1, 1.0, 2.0), (2,)], [(2,)], [(1, 1.0, 2.0), (2, 1.0)], [(1, 1.0), (2, 1.0, 3.0)]]
)
def test_a_point_without_a_vector_is_a_store_error(points: list[Any]) -> None:
    number = next(p[0] for p in points if len(p) != len(points[0]) or len(p) == 1)
    with pytest.raises(StoreError, match=f"the point {number} of 'c' has a vector of"):
        _vectors([point(*p) for p in points], "c")


def test_vectors_of_some_points_are_refused() -> None:
    assert Points(["a", "b"], [None, None], [{}, {}]).vectors.shape == (2, 0)
    for rows in ([None, [1.0]], [[1.0], [1.0, 2.0]], [{"x": [1.0]}, {}], [{}], ["x"], [[[1.0]], [[2.0]]]):
        with pytest.raises(StoreError):
            _ = Points(["a"] * len(rows), rows, [{}] * len(rows)).vectors


def test_a_number_too_large_for_a_vector_is_infinite() -> None:
    assert np.isinf(Points(["a"], [[1e300]], [{}]).vectors).all()


@pytest.mark.parametrize("vector", [None, [1.0], {}, {"other": [1.0]}, [[1.0]]])
def test_a_point_without_the_named_vector_is_a_store_error(vector: Any) -> None:
    records = [models.Record(id=number, vector=one) for number, one in enumerate([{"v": [1.0]}, vector])]
    client = SimpleNamespace(init_options={"prefer_grpc": False}, scroll=lambda *_, **__: (records, None))
    with pytest.raises(StoreError):
        _ = scroll(client, None, 1, "c", models.Filter(), limit=2, offset=None, vectors="v", fields=None)  # type: ignore[arg-type]
