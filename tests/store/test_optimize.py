"""The index of references on a server: built, used by every process, and removed; refused in process."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from tests.store.material import add, unit_vector
from tests.store.support import Deployment, ServerDeployment
from zsvec.errors import InvalidInputError, StoreError
from zsvec.store import EXACT, Cursor, Store
from zsvec.types import SearchMeasurement, SearchParams, SearchQuality

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

OpenStore = Callable[..., Store]

INT8 = SearchParams(oversampling=2.0)
GRAPH = SearchParams(oversampling=4.0, ef=64)


def built(store: Store, params: SearchParams) -> list[float]:
    return [share for _, share in store.optimize(params)]


@pytest.mark.parametrize("deployment", ["edge", "memory"], indirect=True)
def test_a_store_in_process_cannot_be_optimised(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "lynx", ["1"])
    with pytest.raises(InvalidInputError):
        built(store, INT8)
    assert store.search_params() == EXACT


def test_a_store_that_is_not_there_cannot_be_optimised(deployment: Deployment) -> None:
    store = Store(deployment.backend(), deployment.namespace)
    with pytest.raises(StoreError):
        built(store, INT8)
    assert store.search_params() == EXACT


@pytest.mark.parametrize("deployment", ["local", "server"], indirect=True)
def test_the_next_look_of_every_process_tells_how_to_search(deployment: Deployment, open_store: OpenStore) -> None:
    store = open_store()
    reader = deployment.another(store)
    add(store, "lynx", ["1"])
    first = reader.look(Cursor(), {})
    assert first.search == EXACT
    for params in (GRAPH, INT8, EXACT):
        store._catalog.set_in_store(search={"oversampling": params.oversampling, "ef": params.ef})
        assert reader.look(first.cursor, {"lynx": 1}).search == params == reader.search_params()


@pytest.mark.parametrize(
    "forged",
    [
        "fast",
        ["oversampling", 2],
        {"oversampling": 2},
        {"oversampling": 1e9, "ef": None},
        {"oversampling": float("nan"), "ef": None},
        {"oversampling": 0.5, "ef": None},
        {"oversampling": 2, "ef": 10**9},
        {"oversampling": 2, "ef": "64"},
        {"oversampling": None, "ef": 64},
    ],
    ids=str,
)
def test_other_writers_may_forge_the_parameters(forged: object) -> None:
    assert SearchParams.from_dict(forged) == EXACT


@pytest.mark.parametrize("deployment", ["server"], indirect=True)
def test_an_index_is_built_kept_and_removed(deployment: ServerDeployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "lynx", [str(i) for i in range(40)], ["a", "b"])
    reader = deployment.another(store)
    queries = np.stack([unit_vector(16, f"query {i}") for i in range(5)])
    exact = reader.query("clip", "image", queries, 7)

    def config() -> tuple[int, bool]:
        found = deployment.client.get_collection(store.collection("clip")).config
        return found.hnsw_config.m, bool(found.quantization_config)

    for params, expected in ((INT8, (0, True)), (GRAPH, (16, True)), (EXACT, (0, False))):
        assert built(store, params)[-1] == 1.0
        assert config() == expected
        assert store.search_params() == reader.search_params() == params
        found = reader.query("clip", "image", queries, 7, None, params)
        assert [[hit.id for hit in row] for row in found] == [[hit.id for hit in row] for row in exact]
        np.testing.assert_allclose(
            [[hit.similarity for hit in row] for row in found],
            [[hit.similarity for hit in row] for row in exact],
            atol=1e-5,
        )
        assert built(store, params) == []  # complete


@pytest.mark.parametrize("deployment", ["server"], indirect=True)
def test_numbers_of_a_measurement_are_kept_as_they_are(deployment: ServerDeployment, open_store: OpenStore) -> None:
    store = open_store()
    numbers = np.random.default_rng(0).random((200, 3))
    rows = []
    for a, b, c in numbers.tolist():
        params = SearchParams(oversampling=round(1 + 63 * a, 3), ef=5)
        row = SearchQuality(params=params, recall=round(a, 6), same_label=round(b, 6), ms=round(99 * c, 4))
        rows.append(row)
    measurement = SearchMeasurement(measured=datetime(2026, 11, 29, tzinfo=UTC), images=9, k=256, rows=tuple(rows))
    store.keep_search_measurement(measurement)
    assert store.search_measurement() == measurement


@pytest.mark.parametrize("deployment", ["server"], indirect=True)
def test_an_interrupted_build_continues(deployment: ServerDeployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "lynx", [str(i) for i in range(40)])
    next(store.optimize(INT8))
    assert store.search_params() == EXACT
    built(store, INT8)
    assert store.search_params() == INT8


@pytest.mark.parametrize("deployment", ["server"], indirect=True)
def test_writes_are_seen_while_an_index_is_built_and_after(deployment: ServerDeployment, open_store: OpenStore) -> None:
    store = open_store()
    add(store, "lynx", [str(i) for i in range(40)])
    for number, _ in enumerate(store.optimize(GRAPH)):
        add(store, f"new {number}", [f"new {number}"])
        vector = unit_vector(16, f"clip image new {number}")[None]
        assert store.query("clip", "image", vector, 1, None, GRAPH)[0][0].payload["category"] == f"new {number}"
    add(store, "later", ["later"])
    found = store.query("clip", "image", unit_vector(16, "clip image later")[None], 1, None, GRAPH)
    assert found[0][0].payload["category"] == "later"
