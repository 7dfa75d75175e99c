"""What a server sends by gRPC, where it is not what zsvec has stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qdrant_client import grpc as protocol

from zsvec.errors import StoreError
from zsvec.store.base import Points
from zsvec.store.server.rows import _vectors


def point(number: int, *values: float, former: bool = False) -> Any:
    vector = (
        protocol.VectorOutput(data=values) if former else protocol.VectorOutput(dense=protocol.DenseVector(data=values))
    )
    vectors = protocol.VectorsOutput(vector=vector) if values else None
    return protocol.RetrievedPoint(id=protocol.PointId(num=number), vectors=vectors)


@pytest.mark.parametrize("former", [False, True])
def test_vectors_are_a_matrix(former: bool) -> None:
    found = _vectors([point(1, 0.5, 1.0, former=former), point(2, 0.25, 2.0, former=former)], "c")
    np.testing.assert_array_equal(found, np.array([[0.5, 1], [0.25, 2]], np.float32))


@pytest.mark.parametrize(
    "points", [[(1, 1.0, 2.0), (2,)], [(2,)], [(1, 1.0, 2.0), (2, 1.0)], [(1, 1.0), (2, 1.0, 3.0)]]
)
def test_a_point_without_its_vector_is_an_error_of_ours(points: list[Any]) -> None:
    number = next(p[0] for p in points if len(p) != len(points[0]) or len(p) == 1)
    with pytest.raises(StoreError, match=f"the point {number} of 'c' has a vector of"):
        _vectors([point(*p) for p in points], "c")


def test_vectors_of_some_points_are_none_of_ours() -> None:
    assert Points(["a", "b"], [None, None], [{}, {}]).vectors.shape == (2, 0)
    with pytest.raises((TypeError, ValueError)):
        _ = Points(["a", "b"], [None, [1.0]], [{}, {}]).vectors
