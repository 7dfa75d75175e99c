from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import aclosing, nullcontext
from queue import Empty
from typing import Any

import pytest

from zsvec.streams import stream as module
from zsvec.streams.flow import Channel, Flow, StreamStats, Totals
from zsvec.streams.stream import Stream, ahead, iterate_async_source, iterate_in_thread, prefetch

DEADLINE = 60.0


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits sees soon that its stream has stopped: most tests end with that."""
    monkeypatch.setattr(module, "_POLL", 0.01)


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


def within(function: Callable[[], Any]) -> Any:
    """What a function returns, if it does before the deadline."""
    done: Future[Any] = Future()

    def call() -> None:
        try:
            done.set_result(function())
        except BaseException as exc:  # noqa: BLE001 - whoever waits gets it
            done.set_exception(exc)

    threading.Thread(target=call, daemon=True).start()
    return done.result(DEADLINE)


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
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    together = threading.Barrier(3, timeout=DEADLINE)
    arrivals = [arrival for batch in prefetch(lambda _: together.wait(), range(3), 8) for arrival in batch]
    assert sorted(arrivals) == [0, 1, 2]


def test_nothing_starts_before_the_first_batch_is_wanted() -> None:
    assert eventually(lambda: not threads())  # of the streams before
    source = Source()
    stream = prefetch(same, source, 4)
    assert (source.read, threads()) == (0, [])
    stream.close()  # type: ignore[attr-defined]
    assert (source.read, threads()) == (0, [])


# ---- look-ahead


@pytest.mark.usefixtures("patient")
def test_a_source_is_read_ahead_by_a_bounded_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = 2
    monkeypatch.setattr(os, "cpu_count", lambda: workers)
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


def test_a_batch_waits_from_its_first_item_on_not_from_its_last() -> None:
    def trickle() -> Iterator[int]:
        end = time.monotonic() + DEADLINE
        for i in itertools.count():
            if time.monotonic() > end:
                return
            yield i
            time.sleep(0.02)  # always less than a batch waits

    stream = prefetch(same, trickle(), 10_000, max_wait=0.1)
    first = next(stream)
    assert 1 <= len(first) < DEADLINE / 0.02 / 2  # it did not go on for as long as something came
    assert next(stream)[0] == first[-1] + 1
    stream.close()  # type: ignore[attr-defined]


def test_a_batch_waits_as_long_as_it_is_told_and_no_batch_waits_for_another() -> None:
    came: list[float] = []
    first_came = threading.Event()

    def source() -> Iterator[int]:
        came.append(time.monotonic())
        yield 0
        assert first_came.wait(DEADLINE)
        yield 1

    stream = prefetch(same, source(), 10, max_wait=0.1)
    assert within(lambda: next(stream)) == [0]
    assert time.monotonic() - came[0] >= 0.1
    first_came.set()
    assert list(stream) == [[1]]  # is not made to wait: its source has ended


def test_a_full_batch_does_not_wait() -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        yield from range(5)
        assert release.wait(2 * DEADLINE)
        yield 5

    stream = prefetch(same, source(), 2, max_wait=3600)
    assert within(lambda: [next(stream), next(stream)]) == [[0, 1], [2, 3]]
    release.set()
    assert list(stream) == [[4, 5]]


@pytest.mark.parametrize("max_wait", [0, 1e-9, 1e300, float("inf")])
def test_any_wait_will_do(max_wait: float) -> None:
    def source() -> Iterator[int]:
        for i in range(7):
            time.sleep(0.005)
            yield i

    batches = list(prefetch(same, source(), 3, max_wait=max_wait))
    assert [item for batch in batches for item in batch] == list(range(7))
    if max_wait > 1:
        assert [len(batch) for batch in batches] == [3, 3, 1]


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
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
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


# ---- one stage ahead of another


def encoded(
    source: Iterable[Any], batch_size: int, flow: Flow, *, function: Callable[[Any], Any] = same, max_wait: float = 3600
) -> Generator[Any, None, None]:
    """Items through both stages, as `classify_stream` has them."""
    batches = prefetch(function, source, batch_size, max_wait=max_wait, flow=flow)
    for batch in ahead(as_generator(batches), flow, "encode"):
        yield from batch


def as_generator(items: Iterable[Any]) -> Generator[Any, None, None]:
    yield from items


def test_ahead_keeps_the_order() -> None:
    flow = Flow()
    assert list(ahead(as_generator(range(100)), flow, "encode")) == list(range(100))
    assert flow.stopped
    assert eventually(lambda: not threads())


def test_ahead_is_one_batch_ahead() -> None:
    source = Source()
    stream = ahead(as_generator(source), Flow(), "encode")
    assert source.read == 0  # nothing begins before the first is wanted
    for taken in range(1, 5):
        assert next(stream) == taken - 1
        assert eventually(lambda taken=taken: source.read == taken + 2)  # type: ignore[misc]
        time.sleep(0.02)  # time in which it would run away
        assert source.read == taken + 2  # one is ready, and one more waits for room
    stream.close()  # type: ignore[attr-defined]


def ten_noting_their_thread(at: list[str]) -> Generator[int, None, None]:
    """Ten numbers, whose first and last step note the name of the thread that takes it."""
    at.append(threading.current_thread().name)
    try:
        yield from range(10)
    finally:
        at.append(threading.current_thread().name)


def test_it_works_in_a_thread_of_its_own_which_closes_what_it_iterates() -> None:
    at: list[str] = []
    flow = Flow()
    stream = Stream(ahead(ten_noting_their_thread(at), flow, "encode"), flow)
    next(stream)
    stream.close()
    assert at == ["zsvec-encode"] * 2
    assert threads() == []


@pytest.mark.parametrize("error", [FailureError("a batch"), KeyboardInterrupt("a batch"), SystemExit("a batch")])
def test_ahead_fails_after_what_came_before(error: BaseException) -> None:
    def batches() -> Generator[int, None, None]:
        yield from range(3)
        raise error

    stream = ahead(batches(), Flow(), "encode")
    got: list[int] = []
    with pytest.raises(type(error), match="a batch"):
        got.extend(stream)
    assert got == [0, 1, 2]
    assert next(stream, "over") == "over"
    assert eventually(lambda: not threads())


@pytest.mark.parametrize("where", ["source", "function"])
def test_a_failure_comes_through_both_stages_after_what_came_before(where: str) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        if where == "source":
            raise FailureError(5)
        yield from range(5, 100)

    def fails_at_5(i: int) -> int:
        if i == 5:
            raise FailureError(i)
        return i

    got: list[int] = []
    with pytest.raises(FailureError):
        got.extend(encoded(source(), 2, Flow(), function=fails_at_5))
    assert got == [0, 1, 2, 3, 4]
    assert eventually(lambda: not threads())


def test_how_far_both_stages_read_ahead_of_a_slow_consumer() -> None:
    source, size = Source(), 4
    stream = encoded(source, size, Flow())
    for taken in range(1, 4):
        assert [next(stream) for _ in range(size)] == list(range((taken - 1) * size, taken * size))
        # A batch is ready and one waits for room; as many as two are decoded, and one more item waits for room.
        most = (taken + 4) * size + 1
        assert eventually(lambda most=most: source.read == most)  # type: ignore[misc]
        time.sleep(0.02)
        assert source.read == most
    stream.close()
    assert eventually(lambda: not threads())
    assert source.closed


@pytest.mark.parametrize("raises", [False, True])
def test_a_consumer_that_stops_early_ends_all_threads(raises: bool) -> None:
    source = Source()

    def consume() -> None:
        for item in encoded(source, 3, Flow()):
            if item == 7:
                assert threads()
                if raises:
                    raise FailureError("the consumer")
                break

    with pytest.raises(FailureError) if raises else nullcontext():
        consume()
    assert eventually(lambda: not threads())
    assert source.closed


@pytest.mark.parametrize("given", [3, 4, 5])
def test_a_source_that_blocks_does_not_hold_up_the_end(given: int) -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        yield from range(given)  # the last batch is full, or waits for more, for an hour
        release.wait(3 * DEADLINE)

    stream = encoded(source(), 3, Flow(), max_wait=3600)
    assert within(lambda: [next(stream) for _ in range(3)]) == [0, 1, 2]
    within(stream.close)
    assert eventually(lambda: threads() == ["zsvec-feed"])  # which is the source's, and keeps no process alive
    release.set()
    assert eventually(lambda: not threads())


def test_what_is_not_wanted_any_more_is_not_made_a_batch_of() -> None:
    batches: list[list[int]] = []
    release = threading.Event()
    flow = Flow()

    def source() -> Iterator[int]:
        yield from range(3)
        release.wait(3 * DEADLINE)

    def encode() -> Generator[list[int], None, None]:
        for batch in prefetch(same, source(), 2, max_wait=3600, flow=flow):
            batches.append(batch)
            yield batch

    stream = ahead(encode(), flow, "encode")
    assert next(stream) == [0, 1]
    assert eventually(lambda: flow.stats().waiting == {"encode": 0, "decode": 0})  # it has taken 2, and waits
    within(stream.close)  # type: ignore[attr-defined]
    release.set()
    assert eventually(lambda: not threads())
    assert batches == [[0, 1]]


# ---- a stream that nobody holds


@pytest.mark.parametrize("stage", ["decode", "encode"])
def test_who_drops_a_stream_waits_for_nobody(stage: str) -> None:
    release, begun = threading.Event(), threading.Event()

    def work(i: int) -> int:
        if i:
            begun.set()
            assert release.wait(3 * DEADLINE)
        return i

    def one_by_one() -> Generator[int, None, None]:
        yield from map(work, itertools.count())

    stream: Any = prefetch(work, Source(), 1) if stage == "decode" else ahead(one_by_one(), Flow(), "encode")
    next(stream)
    assert begun.wait(DEADLINE)
    held = [stream]
    del stream
    within(held.clear)
    release.set()
    assert eventually(lambda: not threads())


class Request:
    """Holds its stream, and is held by itself."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self.stream = stream
        self.me = self


def test_streams_may_be_garbage_wherever_it_is_collected() -> None:
    totals, before = Totals(), gc.get_threshold()

    def counted(flow: Flow) -> Iterator[int]:
        totals.add(flow)
        yield from encoded(itertools.count(), 2, flow)

    def drop_many() -> None:
        kept: list[Request] = []
        for i in range(150):
            request = Request(prefetch(same, itertools.count(), 2) if i % 3 else counted(Flow()))
            next(request.stream)
            kept = [*kept[-3:], request]
            totals.stats()

    gc.set_threshold(20, 2, 2)  # in any thread, within any lock
    try:
        within(drop_many)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert eventually(lambda: not threads())
    assert (totals.stats().waiting, totals.stats().rate) == ({"decode": 0, "encode": 0}, 0)


def test_a_process_ends_with_a_stream_open_once_its_threads_have_finished_what_they_had_begun() -> None:
    program = """if True:
        import itertools, time
        from zsvec.streams.stream import prefetch

        def work(i):
            if i:
                began.append(i)
                time.sleep(0.05)
                print("finished", flush=True)

        began = []
        stream = prefetch(work, itertools.count(), 1)
        next(stream)
        while not began:
            time.sleep(0.001)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "finished" in done.stdout


# ---- what has been done


def test_nothing_has_been_done_yet() -> None:
    assert Flow().stats() == StreamStats()
    assert StreamStats().rate == 0
    ended = Flow()
    ended.end()
    assert ended.stats() == StreamStats()


def test_counts_and_rate() -> None:
    flow = Flow()
    flow.new_channel("decode", 1)
    flow.count(5, 1, 2)
    flow.count(3, 0, 0)
    time.sleep(0.02)
    stats = flow.stats()
    assert (stats.images, stats.failed, stats.stale) == (8, 1, 2)
    assert stats.seconds >= 0.02
    assert stats.rate == 8 / stats.seconds


def test_time_runs_from_the_first_stage_to_the_end() -> None:
    flow = Flow()
    time.sleep(0.05)  # such as encoders take to load
    made = time.monotonic()
    flow.new_channel("decode", 1)
    time.sleep(0.02)
    running = flow.stats().seconds
    assert 0.02 <= running <= time.monotonic() - made
    flow.end()
    ended = flow.stats()
    assert running <= ended.seconds <= time.monotonic() - made
    time.sleep(0.02)
    flow.end()
    assert flow.stats() == ended


def test_stages_add_up_over_threads_and_count_what_fails() -> None:
    flow = Flow()

    def work() -> None:
        with flow.stage("decode"):
            time.sleep(0.02)

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(work) for _ in range(6)]:
            future.result()
    with pytest.raises(FailureError), flow.stage("encode"):
        time.sleep(0.01)
        raise FailureError
    busy = flow.stats().busy
    assert set(busy) == {"decode", "encode"}
    assert busy["decode"] >= 6 * 0.02
    assert busy["encode"] >= 0.01


def test_what_waits_is_counted_by_stage_until_the_end() -> None:
    flow = Flow()
    stream = encoded(range(100), 4, flow)
    next(stream)
    assert eventually(lambda: flow.stats().waiting == {"encode": 1, "decode": 8})
    stream.close()
    assert flow.stats().waiting == {"encode": 0, "decode": 0}


def test_statistics_are_a_copy() -> None:
    flow = Flow()
    with flow.stage("decode"):
        pass
    before = flow.stats()
    seen = dict(before.busy)
    with flow.stage("decode"), flow.stage("encode"):
        pass
    assert before.busy == seen


def test_they_may_be_asked_while_stages_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next stage begins in the midst of the counting, or as soon as that is over."""
    flow = Flow()
    for name in ("decode", "encode"):
        flow.new_channel(name, 1)
    begun: list[Future[Any]] = []

    def waiting(_: Channel[Any]) -> int:
        begun.append(pool.submit(flow.new_channel, "search", 1))
        wait(begun, timeout=0.1)
        return 0

    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        patch.setattr(Channel, "waiting", property(waiting))
        assert flow.stats().waiting == {"decode": 0, "encode": 0}
    assert flow.stats().waiting == {"decode": 0, "encode": 0, "search": 0}


def test_handing_over_ends_when_the_stream_is_stopped() -> None:
    flow = Flow()
    channel = flow.new_channel("decode", 1)
    assert channel.put(1)
    stopping = threading.Timer(0.05, flow.end)
    stopping.start()
    assert within(lambda: channel.put(2)) is False  # there was no room
    assert channel.get() is None  # nobody is to go on, though there is something
    stopping.join()


def test_taking_over_ends_when_the_stream_is_stopped() -> None:
    flow = Flow()
    channel = flow.new_channel("decode", 1)
    with pytest.raises(Empty):
        channel.get(time.monotonic() - 1)
    before = time.monotonic()
    with pytest.raises(Empty):
        channel.get(before + 0.25)
    assert time.monotonic() >= before + 0.25
    stopping = threading.Timer(0.05, flow.end)
    stopping.start()
    assert within(channel.get) is None
    assert channel.get(time.monotonic() + 3600) is None
    stopping.join()


# ---- event loops


class AsyncSource:
    """Counts up in an event loop, and knows in which thread, how far, and whether it was closed."""

    def __init__(self, end: int | None = None, *, then: BaseException | None = None, stay: bool = False) -> None:
        self.read = 0
        self.closed = False
        self.threads: set[str] = set()
        self._end = end
        self._then = then
        self._stay = stay

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for i in itertools.count() if self._end is None else range(self._end):
                self.threads.add(threading.current_thread().name)
                await asyncio.sleep(0)
                self.read = i + 1
                yield i
            if self._stay:
                await asyncio.Event().wait()
            if self._then is not None:
                raise self._then
        finally:
            self.closed = True


def stream_of(source: Any, batch_size: int = 4, flow: Flow | None = None) -> AsyncGenerator[Any, None]:
    """What `aclassify_stream` is made of."""
    flow = flow or Flow()
    items = iterate_async_source(source, flow) if hasattr(source, "__aiter__") else source
    return iterate_in_thread(encoded(items, batch_size, flow, max_wait=0.05), flow)


@pytest.fixture
def run(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs a coroutine; afterwards no thread is left, and nobody has complained."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        async def in_time() -> Any:
            return await asyncio.wait_for(main, 3 * DEADLINE)

        return asyncio.run(in_time(), debug=True)

    logging.getLogger("asyncio").setLevel(logging.WARNING)  # not how long a step took on a busy machine
    with caplog.at_level(logging.ERROR):
        yield run
        gc.collect()
        assert eventually(lambda: not threads())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.002)
    return True


@pytest.mark.parametrize("items", [0, 1, 4, 50])
@pytest.mark.parametrize("kind", [AsyncSource, Source])
def test_async_out(run: Callable[..., Any], kind: type, items: int) -> None:
    source = kind(items)

    async def main() -> None:
        assert [item async for item in stream_of(source)] == list(range(items))

    run(main())
    assert source.closed


def test_an_async_source_is_awaited_in_its_loop_and_read_a_little_ahead(run: Callable[..., Any]) -> None:
    source = AsyncSource()

    async def main() -> None:
        async with aclosing(stream_of(source, batch_size=2)) as stream:
            assert [await anext(stream), await anext(stream)] == [0, 1]
            assert await until(lambda: source.read >= 2)
            await asyncio.sleep(0.05)
            assert source.read <= 2 * (1 + 4) + 1

    run(main())
    assert source.threads == {threading.current_thread().name}


def test_the_loop_goes_on_while_a_source_blocks(run: Callable[..., Any]) -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        assert go_on.wait(DEADLINE)
        yield 1

    async def main() -> None:
        stream = stream_of(source())
        assert await anext(stream) == 0
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        go_on.set()  # by the loop, which therefore is not held up
        assert await waiting == 1
        assert [item async for item in stream] == []

    run(main())


def test_what_is_iterated_need_not_be_a_generator(run: Callable[..., Any]) -> None:
    class Countdown:
        left = 3

        def __aiter__(self) -> Countdown:
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    async def main() -> None:
        assert [item async for item in stream_of(Countdown())] == [2, 1, 0]

    run(main())


def test_a_stream_can_be_made_before_there_is_a_loop(run: Callable[..., Any]) -> None:
    stream = stream_of(AsyncSource(3))

    async def main() -> None:
        assert [item async for item in stream] == [0, 1, 2]

    run(main())


def test_several_streams_in_one_loop(run: Callable[..., Any]) -> None:
    async def collect(source: Any) -> list[int]:
        return [item async for item in stream_of(source)]

    async def main() -> None:
        found = await asyncio.gather(*(collect(kind(30)) for kind in (AsyncSource, Source) * 3))
        assert found == [list(range(30))] * 6

    run(main())


@pytest.mark.parametrize("error", [FailureError("the source"), TimeoutError("the source"), KeyError("it")])
def test_a_failure_of_an_async_source_comes_after_what_it_gave(run: Callable[..., Any], error: Exception) -> None:
    got: list[int] = []

    async def main() -> None:
        stream = stream_of(AsyncSource(6, then=error))
        with pytest.raises(type(error)) as failure:
            async for item in stream:
                got.append(item)  # noqa: PERF401 - what came before is of interest
        assert failure.value.args == error.args
        assert [item async for item in stream] == []

    run(main())
    assert got == list(range(6))


def never() -> AsyncSource:
    return AsyncSource(0, stay=True)


def stuck() -> AsyncSource:
    return AsyncSource(6, stay=True)


@pytest.mark.parametrize("closing", ["aclosing", "aclose", "left to the loop"])
@pytest.mark.parametrize("kind", [AsyncSource, Source, stuck])
def test_stopping_early(run: Callable[..., Any], kind: Callable[[], Any], closing: str) -> None:
    source = kind()

    async def main() -> None:
        stream = stream_of(source)
        if closing == "aclosing":
            async with aclosing(stream):
                assert await anext(stream) == 0
        elif closing == "aclose":
            assert await anext(stream) == 0
            await stream.aclose()
        else:
            async for _ in stream:
                break
            del stream
        assert await until(lambda: not threads())
        assert await until(lambda: source.closed)

    run(main())


def test_a_stream_that_nobody_closes_before_the_loop_ends(run: Callable[..., Any]) -> None:
    kept = []

    async def main() -> None:
        for source in (AsyncSource(), stuck(), Source()):
            stream = stream_of(source)
            kept.append((stream, source))
            assert await anext(stream) == 0

    run(main())
    assert eventually(lambda: all(source.closed for _, source in kept))


def test_what_a_loop_iterates_is_closed_in_its_thread_before_closing_is_over(run: Callable[..., Any]) -> None:
    at: list[str] = []
    kept, flow = ten_noting_their_thread(at), Flow()

    async def main() -> None:
        stream = iterate_in_thread(kept, flow)
        assert await anext(stream) == 0
        await stream.aclose()
        assert at == ["zsvec-async_0"] * 2

    run(main())


def test_closing_what_was_never_begun(run: Callable[..., Any]) -> None:
    source = AsyncSource()

    async def main() -> None:
        await stream_of(source).aclose()
        await asyncio.sleep(0)
        assert threads() == []

    run(main())
    assert source.read == 0


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("kind", [AsyncSource, Source, stuck])
def test_a_consumer_that_fails(run: Callable[..., Any], kind: Callable[[], Any], closes: bool) -> None:
    source = kind()

    async def consume() -> None:
        if not closes:
            async for _ in stream_of(source):
                raise FailureError("the consumer")
        async with aclosing(stream_of(source)) as stream:
            async for _ in stream:
                raise FailureError("the consumer")

    async def main() -> None:
        with pytest.raises(FailureError, match="the consumer"):
            await consume()
        assert await until(lambda: not threads())

    run(main())
    assert eventually(lambda: source.closed)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("kind", [AsyncSource, Source, stuck, never])
def test_cancelling_the_task(run: Callable[..., Any], kind: Callable[[], Any], times: int) -> None:
    source = kind()
    got: list[int] = []

    async def consume() -> None:
        async with aclosing(stream_of(source)) as stream:
            async for item in stream:
                got.append(item)  # noqa: PERF401 - until it is cancelled

    async def main() -> None:
        task = asyncio.create_task(consume())
        assert await until(lambda: len(got) >= (0 if kind is never else 5) and bool(threads()))
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await until(lambda: not threads())
        assert await until(lambda: source.closed or kind is never)

    run(main())
    assert got == list(range(len(got)))


def test_cancelling_before_anything_has_begun(run: Callable[..., Any]) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(anext(stream_of(AsyncSource())))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


@pytest.mark.parametrize("kind", [stuck, never])
def test_giving_up_after_a_while(run: Callable[..., Any], kind: Callable[[], AsyncSource]) -> None:
    async def main() -> None:
        stream = stream_of(kind())
        for i in range(0 if kind is never else 6):
            assert await anext(stream) == i
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        assert [item async for item in stream] == []  # it is over

    run(main())


def test_a_sync_source_that_blocks_for_ever_holds_up_no_loop(run: Callable[..., Any]) -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        release.wait(6 * DEADLINE)

    async def main() -> None:
        async with aclosing(stream_of(source())) as stream:
            assert await anext(stream) == 0
        task = asyncio.ensure_future(anext(stream_of(source(), batch_size=2)))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        assert await until(lambda: set(threads()) <= {"zsvec-feed"})

    try:
        run(main())
    finally:
        release.set()


def test_a_loop_that_is_closed_at_once(run: Callable[..., Any]) -> None:
    async def main(source: AsyncSource) -> None:
        async with aclosing(stream_of(source)) as stream:
            assert await anext(stream) == 0

    loop, source = asyncio.new_event_loop(), stuck()
    loop.run_until_complete(asyncio.wait_for(main(source), 3 * DEADLINE))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert source.closed
