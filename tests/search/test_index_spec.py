"""Index specifications: placement of references, and moves after a change of the specification."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.search.support import ROUNDING, STAND_IN, OneWay, in_a_folder, of_sizes, rows_in, unit
from tests.store.material import FINGERPRINTS, add
from tests.store.support import Deployment
from zsvec.errors import InvalidInputError, StoreError
from zsvec.search import torch_index as module
from zsvec.search.base import NUMPY, IndexSpec
from zsvec.store import Store

Floats = NDArray[np.float32]


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with in_a_folder("shared") as opened:
        yield opened


def searcher(store: Store, spec: IndexSpec = STAND_IN, *, kind: Any = "memory") -> OneWay:
    made = OneWay(store, kind=kind, budget=0, neighbors=100, norms=True)
    made.spec = spec
    return made


QUERIES = {name: unit(np.random.default_rng(2), 3, fingerprint.dim) for name, fingerprint in FINGERPRINTS.items()}


def numbers(searching: OneWay) -> dict[str, Floats]:
    """Similarities as plain arrays."""
    found = searching.search(QUERIES, nearest=2)
    return {expert.name: expert.similarities.aggregate("top_mean", 2) for expert in found.experts}


def assert_numbers(got: Mapping[str, Floats], expected: Mapping[str, Floats]) -> None:
    assert got.keys() == expected.keys()
    for expert, values in got.items():
        np.testing.assert_allclose(values, expected[expert], atol=ROUNDING)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
@pytest.mark.parametrize("device", ["cuda", "nowhere"])
def test_a_device_that_is_not_there(store: Store, device: str) -> None:
    with pytest.raises(InvalidInputError, match=f"'{device}'"):
        module.build(of_sizes([3]), IndexSpec("torch", device))
    add(store, "lynx", ["1", "2"], ["text"])
    searching = searcher(store, IndexSpec("torch", device))
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=f"'{device}'"):
            numbers(searching)
    searching.spec = NUMPY
    assert_numbers(numbers(searching), numbers(searcher(store, NUMPY)))


def test_a_commit_sends_its_category_to_the_device(store: Store, sent: list[Floats]) -> None:
    add(store, "lynx", ["1", "2"], ["text"])
    add(store, "wolf", ["3", "4", "5"])
    searching, plain = searcher(store), searcher(store, NUMPY)
    assert_numbers(numbers(searching), numbers(plain))
    assert sorted(rows_in(sent)) == [1, 5, 5]

    changes: list[tuple[Callable[[], None], list[int]]] = [
        (lambda: add(store, "panda", ["6"]), [1, 1]),
        (lambda: add(store, "wolf", ["7"]), [4, 4]),
        (lambda: add(store, "lynx", ["8"], replace=True), [1, 1]),  # the only text is replaced: the expert is gone
        (lambda: add(store, "lynx", [], ["again"]), [1]),
        (lambda: store.remove("wolf"), []),
        (lambda: None, []),
    ]
    for change, rows in changes:
        change()
        assert_numbers(numbers(searching), numbers(plain))
        assert sorted(rows_in(sent)) == rows


def test_a_search_in_progress_keeps_its_snapshot(store: Store) -> None:
    add(store, "lynx", ["1", "2"], ["text"])
    add(store, "wolf", ["3", "4", "5"])
    searching = searcher(store)
    before = numbers(searching)
    begun = searching.search(QUERIES, nearest=2)
    store.remove("lynx")
    add(store, "wolf", ["6"], replace=True)
    assert numbers(searching).keys() == {"clip:image", "dino:image"}
    assert begun.categories == ("lynx", "wolf")
    assert_numbers({e.name: e.similarities.aggregate("top_mean", 2) for e in begun.experts}, before)


def test_references_move_when_the_encoders_do(store: Store, sent: list[Floats]) -> None:
    add(store, "lynx", ["1", "2"], ["text"])
    searching = OneWay(store, kind="auto", budget=5, neighbors=100, norms=True)
    searching.spec = NUMPY
    before = numbers(searching)
    assert rows_in(sent) == []

    searching.spec = IndexSpec("torch", STAND_IN.device)  # as any other of the same value
    assert_numbers(numbers(searching), before)
    assert sorted(rows_in(sent)) == [1, 2, 2]
    searching.spec = IndexSpec("torch", STAND_IN.device)
    assert_numbers(numbers(searching), before)
    assert rows_in(sent) == []
    assert sorted(searching.references()[0]) == ["clip:image", "clip:text", "dino:image"]
    assert rows_in(sent) == []

    add(store, "wolf", ["3"])  # above the budget
    numbers(searching)
    assert searching.kind == "qdrant"
    searching.spec = NUMPY
    numbers(searching)
    store.remove("wolf")
    assert_numbers(numbers(searching), before)
    assert rows_in(sent) == []


def test_another_number_format_is_another_index(store: Store, sent: list[Floats]) -> None:
    add(store, "lynx", ["1", "2"], ["text"])
    searching = searcher(store)
    numbers(searching)
    assert sorted(rows_in(sent)) == [1, 2, 2]
    searching.spec = IndexSpec("torch", STAND_IN.device, "float16")
    numbers(searching)
    assert sorted(rows_in(sent)) == [1, 2, 2]


def test_a_spec_may_name_qdrant(store: Store, sent: list[Floats]) -> None:
    add(store, "lynx", ["1", "2"], ["text"])
    searching = searcher(store)
    before = numbers(searching)
    searching.spec = IndexSpec("qdrant")
    assert_numbers(numbers(searching), before)
    assert searching.kind == "qdrant"
    searching.spec = NUMPY
    assert_numbers(numbers(searching), before)
    assert searching.kind == "memory"


def test_nothing_is_sent_for_references_alone(store: Store, sent: list[Floats]) -> None:
    add(store, "lynx", ["1", "2"], ["text"])
    found, _ = searcher(store, kind="qdrant").references()
    assert sorted(found) == ["clip:image", "clip:text", "dino:image"]
    assert rows_in(sent) == []


def test_threads_that_search_while_categories_change_see_no_mixture(store: Store) -> None:
    """Each answer belongs to one committed state, and no thread goes back in time."""
    states = [["1", "2"], ["3"], ["4", "5", "6"], ["1"], [str(i) for i in range(20)]]
    add(store, "wolf", ["7", "8"])
    add(store, "lynx", states[0])
    searching = searcher(store)
    expected = [numbers(searching)]
    for images in states[1:]:
        add(store, "lynx", images, replace=True)
        expected.append(numbers(searcher(store, NUMPY)))
    add(store, "lynx", states[0], replace=True)
    numbers(searching)
    done, ready = threading.Event(), threading.Barrier(4)

    def search() -> list[int]:
        seen = []
        ready.wait()
        while not (ending := done.is_set()) or not seen or seen[-1] != len(states) - 1:
            got = numbers(searching)
            (at,) = [
                i
                for i, then in enumerate(expected)
                if all(np.allclose(got[expert], then[expert], atol=ROUNDING) for expert in then)
            ]
            seen.append(at)
            assert not ending or at == len(states) - 1
        return seen

    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(search) for _ in range(3)]
        ready.wait()
        for images in states[1:]:
            add(store, "lynx", images, replace=True)
            done.wait(0.05)
        done.set()
        seen = [task.result() for task in tasks]
    assert all(states_seen == sorted(states_seen) for states_seen in seen)


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")


def test_too_little_memory_is_told_and_does_no_harm(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, "lynx", ["1", "2"], ["text"])
    searching = searcher(store)
    for name in ("empty", "tensor"):  # of the references, and of a batch
        with monkeypatch.context() as patch:
            patch.setattr(torch, name, out_of_memory)
            with pytest.raises(StoreError, match=r"device cpu.*index_dtype"):
                searching.search(QUERIES, nearest=2)
    assert_numbers(numbers(searching), numbers(searcher(store, NUMPY)))
