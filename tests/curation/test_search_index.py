"""The index of a store in Qdrant: parameters, and the measurement of searches."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

import zsvec
from tests.support import isolated as isolated
from zsvec import CategoryInput, Classifier, SearchMeasurement, SearchParams
from zsvec.curation import search_index
from zsvec.errors import InvalidInputError, StoreError
from zsvec.store import EXACT, Hit
from zsvec.store.backends.memory import MemoryBackend
from zsvec.testing import HashEncoder

pytestmark = pytest.mark.usefixtures("isolated")

DIM = 32
INT8 = SearchParams(oversampling=2.0)


def opened(**settings: Any) -> Classifier:
    return zsvec.open(":memory:", encoders=[HashEncoder("clip", dim=DIM)], index="qdrant", neighbors=10, **settings)


def fill(clf: Classifier, n_categories: int = 5, n: int = 20) -> None:
    rng = np.random.default_rng(0)
    clf.add_categories(
        CategoryInput(
            name=f"category {number}",
            vectors={"clip:image": rng.standard_normal(DIM) + 1.5 * rng.standard_normal((n, DIM))},
        )
        for number in range(n_categories)
    )


@pytest.fixture
def on_a_server(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, SearchParams]]:
    """Lets a store in memory be optimised. Without oversampling above 1, it misses the nearest reference of others."""
    seen: list[tuple[str, SearchParams]] = []
    query = MemoryBackend.query

    def optimize(self: MemoryBackend, collection: str, params: SearchParams) -> Any:
        seen.append((collection, params))
        yield from (0.0, 1.0)

    def lossy(
        self: MemoryBackend,
        collection: str,
        vectors: Any,
        where: Any,
        limit: int,
        fields: Sequence[str],
        params: Any = EXACT,
    ) -> list[list[Hit]]:
        rows = query(self, collection, vectors, where, limit + 1, fields)
        misses = params.oversampling == 1
        return [[*row[:1], *row[2:]] if misses else row[:limit] for row in rows]

    monkeypatch.setattr(MemoryBackend, "optimize", optimize)
    monkeypatch.setattr(MemoryBackend, "query", lossy)
    return seen


def test_a_store_in_process_is_refused() -> None:
    with opened() as clf:
        with pytest.raises(StoreError):
            clf.index.optimize()
        fill(clf)
        with pytest.raises(InvalidInputError):
            clf.index.optimize()
        assert clf.index.params == EXACT


@pytest.mark.parametrize(
    "wrong",
    [
        {"oversampling": 0.5},
        {"oversampling": 65},
        {"oversampling": float("nan")},
        {"oversampling": "2"},
        {"oversampling": True},
        {"ef": 0},
        {"ef": 65_537},
        {"ef": 64.0},
        {"exact": True, "ef": 64},
        {"exact": True, "oversampling": 2},
    ],
    ids=str,
)
def test_wrong_parameters(wrong: Any, on_a_server: list[Any]) -> None:
    with opened() as clf:
        fill(clf)
        with pytest.raises(InvalidInputError):
            clf.index.optimize(**wrong)
    assert on_a_server == []


def test_parameters_that_are_not_given_stay(on_a_server: list[Any]) -> None:
    with opened() as clf:
        fill(clf)
        shares: list[tuple[str, float]] = []
        assert clf.index.optimize(on_progress=lambda *done: shares.append(done)) == INT8 == clf.index.params
        assert shares == [("clip", 0.0), ("clip", 1.0)]
        assert clf.index.optimize(ef=64) == SearchParams(oversampling=2.0, ef=64)
        assert clf.index.optimize(oversampling=4) == SearchParams(oversampling=4.0, ef=64)
        assert clf.index.optimize() == SearchParams(oversampling=4.0, ef=64)
        assert clf.index.optimize(exact=True) == EXACT == clf.index.params
        assert clf.index.optimize() == INT8
    assert {collection for collection, _ in on_a_server} == {"zsvec__clip"}


def test_a_very_large_store_gets_a_graph(on_a_server: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_index, "GRAPH_FROM", 100)
    with opened() as clf:
        fill(clf, n=19)
        assert clf.index.optimize().ef is None
        clf.add_category("more", vectors={"clip:image": np.eye(DIM)[:5]})
        assert clf.index.optimize().ef == search_index.EF


def test_a_measurement_has_recall_labels_and_time(on_a_server: list[Any]) -> None:
    with opened() as clf:
        fill(clf)
        clf.index.optimize()
        done: list[tuple[int, int]] = []
        found = clf.index.measure(70, on_progress=lambda *images: done.append(images))
        assert done == [(0, 70), (64, 70), (70, 70)]
        assert (found.images, found.k) == (70, 10)
        assert [row.params.oversampling for row in found.rows] == [None, 1.0, 2.0, 4.0]
        exact, lossy, *others = found.rows
        assert (exact.recall, exact.same_label) == (1.0, 1.0)
        assert lossy.recall == pytest.approx(0.9)  # one of ten is missing
        assert lossy.same_label <= 1
        assert all((row.recall, row.same_label) == (1.0, 1.0) for row in others)
        assert all(row.ms > 0 for row in found.rows)
        assert datetime.now(UTC) - found.measured < timedelta(minutes=5)
        assert clf.index.measurement == found == SearchMeasurement.from_dict(found.to_dict())
        info = clf.info()["search"]
        assert info == {
            "fusion": "log_linear",
            "approximate": True,
            "oversampling": 2.0,
            "ef": None,
            "recall": 1.0,
            "same_label": 1.0,
            "k": 10,
            "measured": found.measured.isoformat(),
        }


def test_a_measurement_tries_the_parameters_in_use_and_several_ef(on_a_server: list[Any]) -> None:
    with opened() as clf:
        fill(clf)
        clf.index.optimize(oversampling=3, ef=17)
        rows = clf.index.measure(5).rows
    assert rows[0].params == EXACT
    tried = {(row.params.oversampling, row.params.ef) for row in rows[1:]}
    assert tried == {(times, ef) for times in (1.0, 2.0, 4.0) for ef in (10, 17, 20, 40)} | {(3.0, 17)}


def test_other_parameters_have_no_recall_in_info(on_a_server: list[Any]) -> None:
    with opened() as clf:
        fill(clf)
        clf.index.optimize()
        clf.index.measure(5)
        clf.index.optimize(oversampling=8)
        assert "recall" not in clf.info()["search"]


def test_another_index_has_no_measurement_yet(on_a_server: list[Any]) -> None:
    with opened() as clf:
        fill(clf)
        with pytest.raises(StoreError):
            clf.index.measure(5)
        clf.index.optimize()
        assert clf.index.measurement is None
        found = clf.index.measure(5)
        clf.index.optimize(oversampling=4)
        assert clf.index.measurement == found
        clf.index.optimize(ef=64)
        assert clf.index.measurement is None
        clf.index.measure(5)
        clf.index.optimize(exact=True)
        assert clf.index.measurement is None
        with pytest.raises(StoreError):
            clf.index.measure(5)


@pytest.mark.parametrize("images", [0, -1, 2.5, True, "5"])
def test_a_wrong_number_of_images(images: Any) -> None:
    with opened() as clf:
        fill(clf)
        with pytest.raises(InvalidInputError):
            clf.index.measure(images)


def test_what_cannot_be_measured(on_a_server: list[Any]) -> None:
    with opened() as clf:
        with pytest.raises(StoreError):
            clf.index.measure()
        clf.add_category("texts", texts=["a text"])
        fill(clf, 1)
        clf.index.optimize()
        assert clf.index.measure(5).rows[0].recall == 1
        clf.remove_category("texts")
        with pytest.raises(StoreError):
            clf.index.measure()


@pytest.mark.parametrize(
    "change",
    [
        {"measured": "yesterday"},
        {"measured": "0001-01-01T00:00:00+23:00"},
        {"measured": 5},
        {"rows": {}},
        {"rows": [{"params": {"oversampling": 2.0, "ef": None}, "recall": 2, "same_label": 1, "ms": 1}]},
        {"rows": [{"params": {"oversampling": 1e9, "ef": None}, "recall": 1, "same_label": 1, "ms": 1}]},
        {"rows": [{"params": {"oversampling": 2.0, "ef": None}, "recall": "1", "same_label": 1, "ms": 1}]},
        {"rows": [{"params": "exact"}]},
        {"rows": ["exact"]},
        {"images": "many"},
    ],
    ids=str,
)
def test_other_writers_may_forge_a_measurement(change: Any) -> None:
    row = {"params": {"oversampling": 2.0, "ef": None}, "recall": 1.0, "same_label": 1.0, "ms": 1.0}
    good = {"measured": "2026-11-29T18:00:00+00:00", "images": 5, "k": 10, "rows": [row]}
    assert SearchMeasurement.from_dict(good) is not None
    assert SearchMeasurement.from_dict({**good, **change}) is None
