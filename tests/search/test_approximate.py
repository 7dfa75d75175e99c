"""Search by an index that misses references: never called exact, and never taken for a loss of references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.search.support import STATE, fill, queries, searcher
from tests.store.material import FINGERPRINTS, references
from zsvec.method.predict.reference_aggregation import Similarities
from zsvec.search.qdrant_index import Hits
from zsvec.store import EXACT, Hit, Store
from zsvec.store.backends.memory import MemoryBackend
from zsvec.types import SearchParams

LOSSY = SearchParams(oversampling=1.0)


class LossyBackend(MemoryBackend):
    """Misses every second reference, unless it is asked for exact search."""

    exclusive = False

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, bool, SearchParams]] = []

    def query(
        self, collection: str, vectors: Any, where: Any, limit: int, fields: Sequence[str], params: SearchParams = EXACT
    ) -> list[list[Hit]]:
        self.asked.append((str(where.match["modality"]), "gen" in where.match, params))
        found = super().query(collection, vectors, where, 2 * limit, fields, params)
        return [row[:limit] if params.exact else row[::2] for row in found]


@pytest.fixture
def backend() -> LossyBackend:
    return LossyBackend()


@pytest.fixture
def store(backend: LossyBackend) -> Store:
    opened = Store(backend, "zsvec")
    opened.bind(FINGERPRINTS)
    return opened


def tell(store: Store, params: SearchParams) -> None:
    store._catalog.set_in_store(search={"oversampling": params.oversampling, "ef": params.ef})


def rows(*similarities: Sequence[float]) -> list[list[Hit]]:
    return [[Hit(str(i), s, {"category": "lynx"}) for i, s in enumerate(row)] for row in similarities]


def test_a_short_row_is_complete_only_after_exact_search() -> None:
    hits = Hits.of(rows([0.9, 0.5], [0.8], []), 2)
    assert hits.bound.tolist() == pytest.approx([0.5, -1, -1])
    assert not hits.everything
    assert Hits.of(rows([0.8], []), 2).everything
    estimate = Hits.of(rows([0.9, 0.5], [0.8], []), 2, exact=False)
    assert estimate.bound.tolist() == pytest.approx([0.5, 0.8, -1])
    assert not estimate.everything


def test_the_next_batch_searches_as_the_store_says(store: Store, backend: LossyBackend) -> None:
    fill(store, STATE)
    searching = searcher(store, "qdrant", limit=10, norms=False)
    for params in (EXACT, LOSSY, SearchParams(oversampling=4.0, ef=128), EXACT):
        tell(store, params)
        backend.asked.clear()
        searching.search(queries(), nearest=1)
        assert {asked[2] for asked in backend.asked if asked[0] == "image"} == {params}
        assert {asked[2] for asked in backend.asked if asked[0] == "text"} == {EXACT}  # no more texts than the limit


def test_missed_references_are_no_loss_and_the_search_is_not_exact(store: Store) -> None:
    fill(store, STATE)
    tell(store, LOSSY)
    for limit in (1, 4, 20, 60):
        found = searcher(store, "qdrant", limit=limit, norms=False).search(queries(), nearest=limit)
        assert not found.exact
        assert not found.incomplete
        images = [expert for expert in found.experts if expert.modality == "image"]
        for expert in images:
            least = [neighbors[-1].similarity for neighbors in expert.nearest]
            assert isinstance(expert.similarities, Similarities)
            assert expert.similarities.bound.tolist() == pytest.approx(least, abs=1e-6)


def test_removed_references_that_displace_others_do_not_make_the_search_exact(
    store: Store, backend: LossyBackend
) -> None:
    fill(store, STATE)
    tell(store, LOSSY)
    store.remove("many")  # the references stay for a while
    backend.asked.clear()
    found = searcher(store, "qdrant", limit=4, norms=False).search(queries(), nearest=4)
    assert all(neighbor.category != "many" for expert in found.experts for row in expert.nearest for neighbor in row)
    assert {asked[1:] for asked in backend.asked if asked[0] == "image"} == {(False, LOSSY), (True, LOSSY)}


def test_a_category_that_is_replaced_meanwhile_is_searched_exactly(store: Store, backend: LossyBackend) -> None:
    fill(store, STATE)
    tell(store, LOSSY)
    searching = searcher(store, "qdrant", limit=10, norms=False)
    searching.search(queries(), nearest=1)
    query = backend.query

    def replaces(*args: Any, **kwargs: Any) -> list[list[Hit]]:
        backend.query = query  # type: ignore[method-assign]
        fill(store, {"many": references(images=[f"newer {i}" for i in range(70)])})
        return query(*args, **kwargs)

    backend.query = replaces  # type: ignore[method-assign]
    backend.asked.clear()
    found = searching.search(queries(), nearest=1)
    assert "many" in found.categories
    assert (True, EXACT) in {asked[1:] for asked in backend.asked if asked[0] == "image"}
