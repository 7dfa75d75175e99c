"""Every way of searching a store gives the answers of plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.search.support import (
    EVERYTHING,
    STATE,
    TOP_M,
    answer,
    assert_answers,
    assert_same,
    every_way,
    fill,
    most_references,
    present_of,
    queries,
    searcher,
    truth,
)
from tests.store.material import FINGERPRINTS, add, references
from tests.store.support import Deployment, Hooked
from zsvec.method.predict.reference_aggregation import AGGREGATIONS
from zsvec.method.similarities import SearchResult
from zsvec.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

every_store = pytest.mark.parametrize("deployment", ["edge", "local", "server"], indirect=True)


@every_way
def test_answers_are_those_of_plain_numpy(store: Store, way: str) -> None:
    fill(store, STATE)
    asked = queries()
    found = searcher(store, way).search(asked, nearest=4)

    assert found.categories == tuple(sorted(STATE))
    assert [expert.name for expert in found.experts] == ["clip:image", "clip:text", "dino:image"]
    for aggregation in AGGREGATIONS:
        assert_same(answer(found, aggregation), truth(STATE, asked, aggregation))
    for expert in found.experts:
        assert list(expert.coverage) == sorted(expert.coverage)


@every_way
def test_nearest_references_are_named(store: Store, way: str) -> None:
    fill(store, STATE)
    asked = queries()
    found = searcher(store, way).search(asked, nearest=4)

    for expert in found.experts:
        encoder, modality = expert.name.split(":")
        stored = [
            (float(query @ r.vector), name, r.source, i)
            for i, query in enumerate(asked[encoder])
            for name, of_category in STATE.items()
            for r in {r.key: r for r in of_category}.values()
            if (r.encoder, r.modality) == (encoder, modality)
        ]
        for i, neighbors in enumerate(expert.nearest):
            expected = sorted((one for one in stored if one[3] == i), reverse=True)[:4]
            assert [n.similarity for n in neighbors] == pytest.approx([one[0] for one in expected], abs=2e-6)
            assert {(n.category, n.source) for n in neighbors} <= {
                (name, source)
                for similarity, name, source, j in stored
                if j == i and similarity > expected[-1][0] - 1e-5
            }


@every_way
def test_any_number_of_nearest_references(store: Store, way: str) -> None:
    state = {"red panda": references(["a"], ["1", "2", "3"])}
    fill(store, state)
    for nearest in (0, 1, EVERYTHING):
        found = searcher(store, way).search(queries(2), nearest)

        assert {e.name: [len(neighbors) for neighbors in e.nearest] for e in found.experts} == {
            "clip:image": [min(nearest, 3)] * 2,
            "clip:text": [min(nearest, 1)] * 2,
            "dino:image": [min(nearest, 3)] * 2,
        }
        assert_same(answer(found, "mean"), truth(state, queries(2), "mean"))


@every_way
def test_no_category_and_no_image(deployment: Deployment, backend: Hooked, way: str) -> None:
    store = Store(backend, deployment.namespace)
    searching = searcher(store, way)
    assert searching.search(queries(), nearest=1) == SearchResult((), ())
    assert searching.kind == ("qdrant" if way == "qdrant" else "memory")

    store.bind(FINGERPRINTS)
    assert searching.search(queries(), nearest=1) == SearchResult((), ())

    add(store, "red panda", ["1", "2"], ["a"])
    found = searching.search(queries(0), nearest=1)
    assert found.categories == ("red panda",)
    for expert in found.experts:
        assert list(expert.nearest) == []
        assert expert.similarities.aggregate("max", 1).shape == (0, 1)
    assert_answers(searching, {"red panda": references(["a"], ["1", "2"])})


@every_store
@pytest.mark.parametrize("limit", [1, 4, 20])
def test_limited_search_gives_bounds(store: Store, limit: int) -> None:
    """Fetched references are exact, others count at the bound."""
    fill(store, STATE)
    asked = queries()
    found = searcher(store, "qdrant", limit=limit).search(asked, nearest=limit)
    every = {method: (answer(found, method), truth(STATE, asked, method)) for method in ("max", "mean", "top_mean")}

    for got, true in every.values():
        for expert_name, categories in true.items():
            assert got[expert_name].keys() == categories.keys()
            assert all((got[expert_name][name] >= values - 2e-6).all() for name, values in categories.items())
    got, true = every["max"]
    for expert in found.experts:
        for i, neighbors in enumerate(expert.nearest):
            fetched = {neighbor.category for neighbor in neighbors}
            bound = neighbors[-1].similarity
            for name, values in got[expert.name].items():
                expected = true[expert.name][name][i] if name in fetched else bound
                assert values[i] == pytest.approx(expected, abs=2e-6)
    # Where all that counts was fetched, so is the mean of the best exact.
    got, true = every["top_mean"]
    for expert in found.experts:
        for i, neighbors in enumerate(expert.nearest):
            for name, values in got[expert.name].items():
                if sum(neighbor.category == name for neighbor in neighbors) >= TOP_M:
                    assert values[i] == pytest.approx(true[expert.name][name][i], abs=2e-6)


@every_store
def test_limit_that_is_just_enough_is_exact(store: Store) -> None:
    fill(store, STATE)
    assert_answers(searcher(store, "qdrant", limit=most_references(STATE)), STATE)


@pytest.mark.parametrize("norms", [True, False])
def test_a_search_is_exact_unless_something_was_left_out(store: Store, norms: bool) -> None:
    fill(store, STATE)
    most = most_references(STATE)
    for limit in (1, 4, 20, most - 1):
        assert not searcher(store, "qdrant", limit=limit, norms=norms).search(queries(), nearest=1).exact
    for limit in (most + 1, EVERYTHING):
        assert searcher(store, "qdrant", limit=limit, norms=norms).search(queries(), nearest=1).exact
    assert searcher(store, "numpy", limit=1, norms=norms).search(queries(), nearest=1).exact


def test_a_search_is_not_exact_where_each_image_found_another_reference(store: Store) -> None:
    stored = references(images=["1", "2"])
    fill(store, {"red panda": stored[:1] + stored[2:3], "lynx": stored[1:2] + stored[3:]})
    asked = {e: np.stack([r.vector for r in stored if r.encoder == e]) for e in FINGERPRINTS}
    found = searcher(store, "qdrant", limit=1).search(asked, nearest=1)
    assert [list(present_of(expert.similarities)) for expert in found.experts] == [[1, 1]] * 2
    assert not found.exact
    assert searcher(store, "qdrant", limit=3).search(asked, nearest=1).exact


def test_a_search_that_grows_beyond_the_limit_is_not_exact_any_more(store: Store, writer: Store) -> None:
    fill(store, {"red panda": references(images=["1", "2"])})
    searching = searcher(store, "qdrant", limit=3, norms=False)
    assert searching.search(queries(), nearest=1).exact
    add(writer, "lynx", ["3", "4"])
    assert not searching.search(queries(), nearest=1).exact
    writer.remove("lynx")
    assert searching.search(queries(), nearest=1).exact
