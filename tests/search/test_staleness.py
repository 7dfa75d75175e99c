"""`max_staleness`: answers from the last whole state while the store is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.search.support import STATE, SharedDeployment, assert_answers, fill, queries
from tests.store.material import FINGERPRINTS, add, references
from tests.store.support import Hooked, fast_folder
from zsvec.errors import StoreUnavailableError
from zsvec.search.searcher import Searcher
from zsvec.store import Store


class Away(Hooked):
    """A backend that does not answer while it is away.

    Attributes:
        away: Whether requests fail.
        patience: Time-outs of failed requests, in seconds.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.away = False
        self.patience: list[float | None] = []
        self._within: float | None = None

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        self._within = seconds
        yield
        self._within = None

    def __getattr__(self, name: str) -> Any:
        if self.away and callable(getattr(self.inner, name)):
            self.patience.append(self._within)
            raise StoreUnavailableError("did not answer")
        return super().__getattr__(name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed, to be set."""
    passed = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: passed[0])
    return passed


@pytest.fixture
def backend() -> Iterator[Away]:
    with fast_folder() as folder:
        deployment = SharedDeployment(folder / "store")
        yield Away(deployment.backend().inner)
        deployment.close()


@pytest.fixture
def store(backend: Away) -> Store:
    store = Store(backend, "zsvec")
    store.bind(FINGERPRINTS)
    fill(store, STATE)
    return store


def searcher(store: Store, max_staleness: float, kind: Any = "memory") -> Searcher:
    return Searcher(store, kind=kind, budget=0, neighbors=1000, norms=False, max_staleness=max_staleness)


def test_answers_go_on_for_as_long_as_that_is_allowed(backend: Away, store: Store, clock: list[float]) -> None:
    searching = searcher(store, 60)
    assert searching.search(queries(), nearest=1).stale_seconds == 0
    backend.away = True
    for seconds in (5, 30, 59):
        clock[0] = 1000 + seconds
        assert searching.search(queries(), nearest=1).stale_seconds == seconds
        assert_answers(searching, STATE)
    clock[0] = 1060
    with pytest.raises(StoreUnavailableError, match="did not answer"):
        searching.search(queries(), nearest=1)


def test_a_store_that_is_away_is_not_asked_for_each_batch(backend: Away, store: Store, clock: list[float]) -> None:
    searching = searcher(store, 60)
    searching.search(queries(), nearest=1)
    backend.away = True
    for batch in range(100):
        clock[0] = 1000 + batch / 10
        searching.search(queries(), nearest=1)
    assert backend.patience == [1] * 5  # every two seconds, for one at most


def test_readers_catch_up_by_themselves(backend: Away, store: Store, clock: list[float]) -> None:
    searching = searcher(store, 60)
    searching.search(queries(), nearest=1)
    backend.away = True
    clock[0] = 1010
    searching.search(queries(), nearest=1)
    backend.away = False
    add(store, "new", ["11"])
    clock[0] = 1013
    assert searching.search(queries(), nearest=1).stale_seconds == 0
    assert_answers(searching, {**STATE, "new": references(images=["11"])})
    backend.away = True
    clock[0] = 1014
    assert searching.search(queries(), nearest=1).stale_seconds == 1


@pytest.mark.parametrize(("max_staleness", "kind"), [(0, "memory"), (60, "qdrant")])
def test_without_permission_there_is_no_stale_answer(
    backend: Away, store: Store, max_staleness: float, kind: str
) -> None:
    searching = searcher(store, max_staleness, kind)
    searching.search(queries(), nearest=1)
    backend.away = True
    with pytest.raises(StoreUnavailableError):
        searching.search(queries(), nearest=1)
    assert backend.patience[0] is None


def test_a_reader_that_has_never_read_has_no_answer(backend: Away, store: Store) -> None:
    backend.away = True
    with pytest.raises(StoreUnavailableError):
        searcher(store, 60).search(queries(), nearest=1)
