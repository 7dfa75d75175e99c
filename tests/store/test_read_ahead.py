"""References of many writes: other threads read while one page is looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from zsvec.errors import StoreUnavailableError
from zsvec.store.backends.base import Points, Where
from zsvec.store.collections import references as module
from zsvec.store.collections.references import ReferenceCollections

IDS = [f"{i:03}" for i in range(20)]


class Slow:
    """Answers each request for a page of its writes; remembers who asked."""

    exclusive = False

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.threads: set[int] = set()
        self.broken: set[str] = set()

    def scroll(self, collection: str, where: Where, **options: Any) -> Iterator[Points]:
        ids = tuple(where.match["gen"])  # type: ignore[arg-type]
        self.asked.append(ids)
        self.threads.add(threading.get_ident())
        if self.broken & set(ids):
            raise StoreUnavailableError(f"{ids} cannot be read")
        fields = ("category", "modality", "hash", "source")
        payloads = [{**dict.fromkeys(fields, "x"), "gen": gen} for gen in ids]
        yield Points(list(ids), np.zeros((len(ids), 2), np.float32), payloads)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Slow:
    monkeypatch.setattr(module, "_WRITE_IDS", 3)
    return Slow()


def read(backend: Any, ids: list[str] = IDS) -> list[str]:
    return [gen for page in ReferenceCollections(backend, "n").pages("e", ids) for gen in page.ids]


def test_pages_come_in_order(backend: Slow) -> None:
    assert read(backend) == IDS
    assert threading.get_ident() not in backend.threads
    assert len(backend.threads) <= 2


def test_few_writes_and_engines_in_the_process_take_no_thread(backend: Slow) -> None:
    assert read(backend, IDS[:3]) == IDS[:3]
    backend.exclusive = True
    assert read(backend) == IDS
    assert backend.threads == {threading.get_ident()}


def test_a_failure_reaches_the_reader_and_ends_the_reading(backend: Slow) -> None:
    backend.broken = {"003"}
    before = threading.active_count()
    with pytest.raises(StoreUnavailableError, match="003"):
        read(backend)
    assert threading.active_count() == before
    assert len(backend.asked) < 7


def test_no_more_is_read_than_a_little_ahead(backend: Slow) -> None:
    before = threading.active_count()
    pages = ReferenceCollections(backend, "n").pages("e", IDS)  # type: ignore[arg-type]
    assert next(pages).ids == IDS[:3]
    assert len(backend.asked) <= 4
    pages.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(backend.asked) <= 4
