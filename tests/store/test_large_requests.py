"""Large writes, filters and reads are cut into requests that a server accepts, also by REST."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from tests.store.support import ServerDeployment
from zsvec.errors import StoreError
from zsvec.store.backends.base import Points, Put, Where
from zsvec.store.backends.server.backend import ServerBackend, connect
from zsvec.store.backends.server.connection import Connection
from zsvec.store.backends.server.conversion import filter_of, parts
from zsvec.store.backends.server.endpoint import Node
from zsvec.store.backends.server.limits import BYTES, Limits, cut, size_of_point
from zsvec.store.names import new_write_id, record_id

REST_TAKES = 32 * 2**20

# Cutting


@given(st.lists(st.integers(0, 2 * BYTES)), st.integers(1, 5))
def test_nothing_is_lost_and_no_part_is_too_large(sizes: list[int], most: int) -> None:
    found = list(cut(sizes, most, lambda size: size))
    assert list(itertools.chain.from_iterable(found)) == sizes
    assert all(len(part) == 1 or (len(part) <= most and sum(part) <= BYTES) for part in found)
    for part, following in itertools.pairwise(found):  # no part is smaller than necessary
        assert len(part) == most or sum(part) + following[0] > BYTES


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20),
    st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())),
)
def test_the_estimated_size_of_a_point_is_an_upper_bound(vector: list[float], payload: dict[str, object]) -> None:
    point = models.PointStruct(id=record_id("store"), vector=vector, payload=payload)
    assert len(point.model_dump_json().encode(errors="surrogatepass")) <= size_of_point(len(vector), payload)


@given(st.lists(st.text(max_size=3), min_size=1, max_size=50), st.sampled_from([None, 1, 3]))
def test_a_filter_of_too_many_bytes_becomes_several(values: list[str], conditions: int | None) -> None:
    long = [value + 100_000 * "é" for value in values]
    limits = Limits(values=2, conditions=conditions)
    some = parts(Where(match={"modality": "image", "gen": long}), limits)
    assert [value for part in some for value in part.match["gen"]] == long  # type: ignore[union-attr]
    assert all(len(filter_of(part, limits).model_dump_json().encode()) <= BYTES + 1000 for part in some)


# A real server


@pytest.fixture(params=["rest", "grpc"])
def backend(request: pytest.FixtureRequest, server: ServerDeployment) -> Iterator[ServerBackend]:
    if request.param == "grpc":
        found = connect([server.url], timeout=120)
    else:
        client = QdrantClient(server.url, check_compatibility=False, timeout=120)
        found = ServerBackend(Connection(server.url, 120, [Node(server.url, lambda *_: (client, False), 120)]))
    with closing(found):
        yield found


def collection(server: ServerDeployment, backend: ServerBackend, dim: int) -> str:
    name = f"{server.namespace}__large"
    backend.create(name, dim, {"gen": "keyword", "version": "integer"})
    return name


def random_points(number: int, dim: int, write_ids: Sequence[str], text: str = "") -> Points:
    vectors = np.random.default_rng(number).standard_normal((number, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    payloads = [{"gen": write_ids[i % len(write_ids)], "source": f"{i} {text}"} for i in range(number)]
    return Points([record_id("category", str(i)) for i in range(number)], vectors, payloads)


def all_of(backend: ServerBackend, name: str, where: Where | None = None) -> dict[str, tuple[NDArray[np.float32], str]]:
    """Vector and source of each point, by id."""
    pages = backend.scroll(name, where or Where(), vectors=True)
    rows = (row for page in pages for row in zip(page.ids, page.vectors, page.payloads, strict=True))
    return {identifier: (vector, payload["source"]) for identifier, vector, payload in rows}


def assert_there(backend: ServerBackend, name: str, points: Points) -> None:
    found = all_of(backend, name)
    assert found.keys() == set(points.ids)
    for identifier, vector, payload in zip(points.ids, points.vectors, points.payloads, strict=True):
        assert found[identifier][1] == payload["source"]
        np.testing.assert_allclose(found[identifier][0], vector, atol=1e-6)


def test_vectors_of_many_dimensions(server: ServerDeployment, backend: ServerBackend) -> None:
    name = collection(server, backend, 4096)
    points = random_points(500, 4096, [new_write_id()])
    assert REST_TAKES < 500 * 4096 * 17  # characters of a number in JSON
    backend.upsert(name, points)
    assert_there(backend, name, points)
    for identifier, hits in zip(points.ids, backend.query(name, points.vectors, Where(), 1, ()), strict=True):
        assert [hit.id for hit in hits] == [identifier]


def test_long_texts(server: ServerDeployment, backend: ServerBackend) -> None:
    name = collection(server, backend, 4)
    points = random_points(8, 4, [new_write_id()], text="é" * 2_500_000)  # 5 MB
    backend.upsert(name, points)
    assert_there(backend, name, points)


def test_20_000_write_ids_in_one_filter(server: ServerDeployment, backend: ServerBackend) -> None:
    name = collection(server, backend, 16)
    write_ids = [new_write_id() for _ in range(20_000)]
    points = random_points(400, 16, [*write_ids[::100], "of another write"])
    backend.upsert(name, points)
    where = Where(match={"gen": write_ids})
    wanted = [i for i, payload in enumerate(points.payloads) if payload["gen"] != "of another write"]
    assert 64 * len(filter_of(where, Limits()).model_dump_json()) > REST_TAKES
    assert backend.count(name, where) == len(wanted)
    assert all_of(backend, name, where).keys() == {points.ids[i] for i in wanted}
    queries = random_points(64, 16, write_ids).vectors
    similarities = queries @ points.vectors[wanted].T
    for row, hits in zip(similarities, backend.query(name, queries, where, 5, ("gen",)), strict=True):
        assert [hit.id for hit in hits] == [points.ids[wanted[i]] for i in np.argsort(-row)[:5]]
    backend.delete(name, where)
    assert all_of(backend, name).keys() == set(points.ids) - {points.ids[i] for i in wanted}


def test_large_records(server: ServerDeployment, backend: ServerBackend) -> None:
    """Written by compare-and-set; those that are not as expected stay."""
    name = collection(server, backend, 1)
    ids = [record_id("category", str(i)) for i in range(8)]
    first = [Put(place, {"version": 1, "metadata": "x" * 5_000_000}) for place in ids]
    backend.put(name, first)
    backend.put(name, [Put(put.id, {"version": 2, "metadata": "y" * 5_000_000}, {"version": 1}) for put in first[1:]])
    backend.put(name, [Put(put.id, {"version": 3}, {"version": 1}) for put in first[1:]])
    found = backend.retrieve(name, ids)
    assert [(found[place]["version"], found[place]["metadata"][0]) for place in ids] == [(1, "x"), *[(2, "y")] * 7]


def test_as_many_ids_as_one_likes(server: ServerDeployment, backend: ServerBackend) -> None:
    name = collection(server, backend, 4)
    points = random_points(3, 4, [new_write_id()])
    backend.upsert(name, points)
    ids = [*(record_id("category", f"none {i}") for i in range(900_000)), *points.ids]
    assert backend.retrieve(name, ids).keys() == set(points.ids)
    backend.drop(name, ids)
    assert not all_of(backend, name)


def test_a_point_that_is_too_large_for_a_server_is_a_store_error(server: ServerDeployment) -> None:
    client = QdrantClient(server.url, check_compatibility=False, timeout=120)
    with closing(
        ServerBackend(Connection(server.url, 120, [Node(server.url, lambda *_: (client, False), 120)]))
    ) as rest:
        name = collection(server, rest, 4)
        with pytest.raises(StoreError, match=r"JSON payload .* is larger than allowed"):
            rest.upsert(name, random_points(1, 4, [new_write_id()], text="x" * REST_TAKES))
