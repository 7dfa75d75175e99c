from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zsvec import stream as module
from zsvec.stream import prefetch

DEADLINE = 10.0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches wait until they are full, so that a busy machine does not make them smaller."""
    monkeypatch.setattr(module, "MAX_WAIT", DEADLINE)


def same(item: Any) -> Any:
    return item


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("zsvec-")]


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


class Source:
    """Counts up, and knows how far it was read and whether it was closed."""

    def __init__(self, end: int | None = None) -> None:
        self.read = 0
        self.closed = False
        self._end = end

    def __iter__(self) -> Iterator[int]:
        try:
            for i in itertools.count() if self._end is None else range(self._end):
                self.read = i + 1
                yield i
        finally:
            self.closed = True


# ---- order and batches


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("items", "batch_size", "sizes"),
    [(0, 4, []), (1, 4, [1]), (4, 4, [4]), (5, 4, [4, 1]), (12, 4, [4, 4, 4]), (3, 1, [1, 1, 1]), (50, 64, [50])],
)
def test_batches_are_full_but_the_last(items: int, batch_size: int, sizes: list[int]) -> None:
    batches = list(prefetch(same, range(items), batch_size))
    assert [len(batch) for batch in batches] == sizes
    assert [item for batch in batches for item in batch] == list(range(items))


def test_order_is_kept_whichever_is_ready_first() -> None:
    def slower_when_early(i: int) -> int:
        time.sleep(0.01 * (i % 4 == 0))
        return -i

    batches = list(prefetch(slower_when_early, range(40), 8))
    assert [item for batch in batches for item in batch] == [-i for i in range(40)]
    assert all(1 <= len(batch) <= 8 for batch in batches)


def test_the_function_runs_in_several_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 3)
    together = threading.Barrier(3, timeout=DEADLINE)
    arrivals = [arrival for batch in prefetch(lambda _: together.wait(), range(3), 8) for arrival in batch]
    assert sorted(arrivals) == [0, 1, 2]


def test_nothing_starts_before_the_first_batch_is_wanted() -> None:
    source = Source()
    stream = prefetch(same, source, 4)
    assert (source.read, threads()) == (0, [])
    stream.close()  # type: ignore[attr-defined]
    assert (source.read, threads()) == (0, [])


# ---- look-ahead


@pytest.mark.usefixtures("patient")
def test_a_source_is_read_ahead_by_a_bounded_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = 2
    monkeypatch.setattr(module.os, "cpu_count", lambda: workers)
    batch_size, consumed, furthest = 5, 0, 0

    def source() -> Iterator[int]:
        nonlocal furthest
        for i in range(200):
            furthest = max(furthest, i + 1 - consumed)
            yield i

    for batch in prefetch(same, source(), batch_size):
        consumed += len(batch)
    assert consumed == 200
    assert batch_size < furthest <= 3 * batch_size + workers


@pytest.mark.usefixtures("patient")
def test_two_batches_are_made_ready_while_one_is_used() -> None:
    source = Source()
    stream = prefetch(same, source, 5)
    next(stream)
    assert eventually(lambda: source.read >= 15)
    time.sleep(0.05)  # time in which it would run away
    assert 15 <= source.read <= 16  # one more may wait for room
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("patient")
def test_an_endless_source() -> None:
    source = Source()
    stream = prefetch(lambda i: i * i, source, 3)
    assert list(itertools.islice(stream, 3)) == [[0, 1, 4], [9, 16, 25], [36, 49, 64]]
    stream.close()  # type: ignore[attr-defined]
    assert source.read < 9 + 3 * 3


# ---- a source that pauses


def test_results_do_not_wait_for_items_that_have_not_come() -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield from range(3)
        assert go_on.wait(DEADLINE)
        yield from range(3, 5)

    stream = prefetch(same, source(), 100)
    before: list[int] = []
    while len(before) < 3:  # at once on an idle machine, in parts on a busy one
        before += next(stream)
    assert before == [0, 1, 2]
    go_on.set()
    assert [item for batch in stream for item in batch] == [3, 4]


def test_a_source_may_pause_before_its_first_item() -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        assert go_on.wait(DEADLINE)
        yield 7

    timer = threading.Timer(2 * module.MAX_WAIT, go_on.set)
    timer.start()
    assert list(prefetch(same, source(), 4)) == [[7]]
    timer.join()


# ---- failures


class FailureError(Exception): ...


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("bad", "before"), [(0, []), (3, [[0, 1, 2]]), (4, [[0, 1, 2, 3]]), (6, [[0, 1, 2, 3], [4, 5]])]
)
def test_a_failure_of_the_function_comes_in_the_place_of_its_result(bad: int, before: list[list[int]]) -> None:
    def fails_at(i: int) -> int:
        if i == bad:
            raise FailureError(i)
        return i

    stream = prefetch(fails_at, range(20), 4)
    got: list[list[int]] = []
    with pytest.raises(FailureError) as failure:
        got.extend(stream)
    assert failure.value.args == (bad,)
    assert got == before
    assert next(stream, "over") == "over"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "error", [FailureError("the source"), KeyboardInterrupt("the source"), SystemExit("the source")]
)
def test_a_failure_of_the_source_comes_after_what_it_gave(error: BaseException) -> None:
    def source() -> Iterator[int]:
        yield from range(6)
        raise error

    stream = prefetch(same, source(), 4)
    assert next(stream) == [0, 1, 2, 3]
    assert next(stream) == [4, 5]
    with pytest.raises(type(error), match="the source"):
        next(stream)
    assert eventually(lambda: not threads())


def test_items_that_cannot_be_iterated() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        list(prefetch(same, 5, 4))  # type: ignore[arg-type]
    assert eventually(lambda: not threads())


# ---- the end


@pytest.mark.parametrize("items", [0, 3, 50])
def test_threads_end_with_the_items(items: int) -> None:
    source = Source(items)
    assert sum(len(batch) for batch in prefetch(same, source, 4)) == items
    assert eventually(lambda: not threads())
    assert source.closed


def test_who_stops_early_ends_the_threads_and_the_reading() -> None:
    source = Source()
    stream = prefetch(same, source, 4)
    next(stream)
    assert threads()
    stream.close()  # type: ignore[attr-defined]
    assert eventually(lambda: not threads())
    read = source.read
    assert eventually(lambda: source.closed)
    assert source.read == read


def test_breaking_out_of_a_loop_is_stopping_early() -> None:
    source = Source()
    for _ in prefetch(same, source, 4):
        break
    assert eventually(lambda: not threads())
    assert source.closed


def test_a_source_that_blocks_does_not_hold_up_who_stops_early() -> None:
    go_on, read = threading.Event(), []

    def source() -> Iterator[int]:
        yield 0
        assert go_on.wait(DEADLINE)
        for i in range(1, 9):
            read.append(i)
            yield i

    stream = prefetch(same, source(), 1)
    assert next(stream) == [0]
    start = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < DEADLINE / 2
    go_on.set()
    assert eventually(lambda: not threads())
    assert read == [1]  # what it was waiting for, and nothing after it


def test_what_has_not_begun_when_one_stops_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    source, begun, go_on = Source(), [], threading.Event()

    def wait_after_the_first(i: int) -> int:
        begun.append(i)
        assert i == 0 or go_on.wait(DEADLINE)
        return i

    stream = prefetch(wait_after_the_first, source, 1)
    assert next(stream) == [0]
    assert eventually(lambda: source.read >= 3 and begun == [0, 1])
    threading.Timer(0.05, go_on.set).start()
    stream.close()  # type: ignore[attr-defined]
    assert eventually(lambda: not threads())
    assert begun == [0, 1]
