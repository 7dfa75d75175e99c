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
from zsvec.streams.stream import ahead, iterate_async_source, iterate_in_thread, prefetch

DEADLINE = 60.0


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting threads notice the end of their stream soon: most tests end with that."""
    monkeypatch.setattr(module, "_POLL_S", 0.01)


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
    """Returns the result of a function, if in time."""
    done: Future[Any] = Future()

    def call() -> None:
        try:
            done.set_result(function())
        except BaseException as exc:  # noqa: BLE001 - the waiting thread raises this
            done.set_exception(exc)

    threading.Thread(target=call, daemon=True).start()
    return done.result(DEADLINE)


class Source:
    """Counts up; notes how far the reader came and whether the source was closed."""

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
def test_batches_are_full_but_the_last() -> None:
    for items, batch_size, sizes in (
        *((0, 4, []), (1, 4, [1]), (4, 4, [4]), (5, 4, [4, 1]), (12, 4, [4, 4, 4])),
        *((3, 1, [1, 1, 1]), (50, 64, [50])),
    ):
        source = Source(items)
        batches = list(prefetch(same, source, batch_size))
        assert [len(batch) for batch in batches] == sizes
        assert [item for batch in batches for item in batch] == list(range(items))
        assert eventually(lambda: not threads())
        assert source.closed


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


def test_items_of_one_lane_are_processed_in_order_while_other_lanes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    together = threading.Barrier(2, timeout=DEADLINE)  # of the first items of two lanes
    inside: dict[int, int] = {}
    seen: dict[int, list[int]] = {0: [], 1: []}

    def work(item: tuple[int, int]) -> tuple[int, int]:
        lane, number = item
        inside[lane] = inside.get(lane, 0) + 1
        assert inside[lane] == 1
        if number == 0:
            together.wait()
        time.sleep(0.001)
        seen[lane].append(number)
        inside[lane] -= 1
        return item

    lanes = [object(), object()]
    items = [(lane, number) for lane in (0, 1) for number in range(20)]
    batches = list(prefetch(work, items, 64, lane=lambda item: lanes[item[0]]))
    assert [item for batch in batches for item in batch] == items
    assert seen == {0: list(range(20)), 1: list(range(20))}


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


# ---- a source that pauses


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
            time.sleep(0.02)  # less than a batch waits

    stream = prefetch(same, trickle(), 10_000, max_wait=0.1)
    first = next(stream)
    assert 1 <= len(first) < DEADLINE / 0.02 / 2  # ended although items kept coming
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
    assert list(stream) == [[1]]  # no waiting: the source has ended


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


def test_any_wait_will_do() -> None:
    def source() -> Iterator[int]:
        for i in range(7):
            time.sleep(0.005)
            yield i

    for max_wait in (0, 1e-9, 1e300, float("inf")):
        batches = list(prefetch(same, source(), 3, max_wait=max_wait))
        assert [item for batch in batches for item in batch] == list(range(7))
        if max_wait > 1:
            assert [len(batch) for batch in batches] == [3, 3, 1]


# ---- failures


class FailureError(Exception): ...


def failing_at(bad: int) -> Callable[[int], int]:
    def work(i: int) -> int:
        if i == bad:
            raise FailureError(i)
        return i

    return work


@pytest.mark.usefixtures("patient")
def test_a_failure_of_the_function_comes_in_the_place_of_its_result() -> None:
    for bad, before in ((0, []), (3, [[0, 1, 2]]), (4, [[0, 1, 2, 3]]), (6, [[0, 1, 2, 3], [4, 5]])):
        stream = prefetch(failing_at(bad), range(20), 4)
        got: list[list[int]] = []
        with pytest.raises(FailureError) as failure:
            got.extend(stream)
        assert failure.value.args == (bad,)
        assert got == before
        assert next(stream, "over") == "over"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("error", [FailureError("the source"), SystemExit("the source")])
def test_a_failure_of_the_source_comes_after_its_items(error: BaseException) -> None:
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


def test_waiting_items_are_dropped_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Items through both stages of `classify_stream`."""
    batches = prefetch(function, source, batch_size, max_wait=max_wait, flow=flow)
    for batch in ahead(as_generator(batches), flow, "encode"):
        yield from batch


def as_generator(items: Iterable[Any]) -> Generator[Any, None, None]:
    yield from items


@pytest.mark.parametrize("where", ["source", "function"])
def test_a_failure_comes_through_both_stages_after_the_items_before(where: str) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        if where == "source":
            raise FailureError(5)
        yield from range(5, 100)

    got: list[int] = []
    with pytest.raises(FailureError):
        got.extend(encoded(source(), 2, Flow(), function=failing_at(5)))
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


@pytest.mark.parametrize("given", [3, 4])
def test_a_source_that_blocks_does_not_hold_up_the_end(given: int) -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        yield from range(given)  # the last batch is full, or waits for more, for an hour
        release.wait(3 * DEADLINE)

    stream = encoded(source(), 3, Flow(), max_wait=3600)
    assert within(lambda: [next(stream) for _ in range(3)]) == [0, 1, 2]
    within(stream.close)
    assert eventually(lambda: threads() == ["zsvec-feed"])  # of the source; a daemon
    release.set()
    assert eventually(lambda: not threads())


def test_items_that_wait_at_the_end_are_not_encoded() -> None:
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
    assert eventually(lambda: flow.stats().waiting == {"encode": 0, "decode": 0})  # item 2 was taken, and waits
    within(stream.close)  # type: ignore[attr-defined]
    release.set()
    assert eventually(lambda: not threads())
    assert batches == [[0, 1]]


# ---- abandoned streams


@pytest.mark.parametrize("stage", ["decode", "encode"])
def test_dropping_a_stream_does_not_block(stage: str) -> None:
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
    """Holds a stream, and a reference to itself."""

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


def test_a_process_with_an_open_stream_exits_after_the_work_in_progress() -> None:
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
    settled = [StreamStats(settled={"clip": 2}), StreamStats(settled={"clip": 3, "dino": 1}), StreamStats()]
    assert sum(settled, StreamStats()).settled == {"clip": 5, "dino": 1}
    told = [StreamStats(no_cascade=reason) for reason in ("stale", "", None)]
    assert [sum(told[:n], StreamStats()).no_cascade for n in range(4)] == [None, "stale", "", ""]
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


def test_stages_add_up_over_threads_and_count_failures() -> None:
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


def test_waiting_results_are_counted_by_stage_until_the_end() -> None:
    flow = Flow()
    stream = encoded(range(100), 4, flow)
    next(stream)
    assert eventually(lambda: flow.stats().waiting == {"encode": 1, "decode": 8})
    stream.close()
    assert flow.stats().waiting == {"encode": 0, "decode": 0}


def test_statistics_while_stages_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next stage begins while the statistics are read, and changes none that were returned."""
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
        before = flow.stats()
    with flow.stage("decode"):
        pass
    assert (before.waiting, before.runs) == ({"decode": 0, "encode": 0}, {})
    assert (flow.stats().waiting, flow.stats().runs) == ({"decode": 0, "encode": 0, "search": 0}, {"decode": 1})


def test_handing_over_ends_when_the_stream_is_stopped() -> None:
    flow = Flow()
    channel = flow.new_channel("decode", 1)
    assert channel.put(1)
    stopping = threading.Timer(0.05, flow.end)
    stopping.start()
    assert within(lambda: channel.put(2)) is False  # there was no room
    assert channel.get() is None  # although there is a result
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
    """Counts up in an event loop; notes threads, the last item, and whether the source was closed."""

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
    """The stages of `aclassify_stream`."""
    flow = flow or Flow()
    items = iterate_async_source(source, flow) if hasattr(source, "__aiter__") else source
    return iterate_in_thread(encoded(items, batch_size, flow, max_wait=0.05), flow)


@pytest.fixture
def run(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs a coroutine; afterwards no thread is left, and no error was logged."""

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


@pytest.mark.parametrize("kind", [AsyncSource, Source])
def test_async_out(run: Callable[..., Any], kind: type) -> None:
    async def main() -> None:
        for items in (0, 1, 4, 50):
            source = kind(items)
            assert [item async for item in stream_of(source)] == list(range(items))
            assert await until(lambda source=source: source.closed)  # type: ignore[misc]

    run(main())


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
        go_on.set()  # by the loop, which is not blocked
        assert await waiting == 1
        assert [item async for item in stream] == []

    run(main())


def test_any_async_iterator(run: Callable[..., Any]) -> None:
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


@pytest.mark.parametrize("error", [TimeoutError("the source"), KeyError("it")])
def test_a_failure_of_an_async_source_comes_after_its_items(run: Callable[..., Any], error: Exception) -> None:
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


@pytest.mark.parametrize("kind", [AsyncSource, Source, stuck])
def test_stopping_early(run: Callable[..., Any], kind: Callable[[], Any]) -> None:
    async def main() -> None:
        for closes in (True, False):
            source = kind()
            stream = stream_of(source)
            assert await anext(stream) == 0
            if closes:
                await stream.aclose()
            del stream  # left to the loop
            assert await until(lambda: not threads())
            assert await until(lambda source=source: source.closed)  # type: ignore[misc]

    run(main())


def test_a_stream_that_is_open_when_the_loop_ends(run: Callable[..., Any]) -> None:
    kept = []

    async def main() -> None:
        for source in (AsyncSource(), stuck(), Source()):
            stream = stream_of(source)
            kept.append((stream, source))
            assert await anext(stream) == 0

    run(main())
    assert eventually(lambda: all(source.closed for _, source in kept))


def test_closing_waits_until_the_items_are_closed_in_their_thread(run: Callable[..., Any]) -> None:
    at: list[str] = []

    def items() -> Generator[int, None, None]:
        at.append(threading.current_thread().name)
        try:
            yield from range(10)
        finally:
            at.append(threading.current_thread().name)

    async def main() -> None:
        stream = iterate_in_thread(items(), Flow())
        assert await anext(stream) == 0
        await stream.aclose()
        assert at == ["zsvec-async_0"] * 2

    run(main())


def test_closing_an_unused_stream(run: Callable[..., Any]) -> None:
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
        stream = stream_of(source)
        async with aclosing(stream) if closes else nullcontext():
            async for _ in stream:
                raise FailureError("the consumer")

    async def main() -> None:
        with pytest.raises(FailureError, match="the consumer"):
            await consume()
        assert await until(lambda: source.closed and not threads())

    run(main())


@pytest.mark.parametrize("kind", [AsyncSource, Source, stuck, never])
def test_cancelling_the_task(run: Callable[..., Any], kind: Callable[[], Any]) -> None:
    async def consume(source: Any, got: list[int]) -> None:
        async with aclosing(stream_of(source)) as stream:
            async for item in stream:
                got.append(item)  # noqa: PERF401 - until the task is cancelled

    async def cancel(times: int) -> None:
        source, got = kind(), list[int]()
        task = asyncio.create_task(consume(source, got))
        assert await until(lambda: len(got) >= (0 if kind is never else 5) and bool(threads()))
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await until(lambda: not threads())
        assert await until(lambda: source.closed or kind is never)
        assert got == list(range(len(got)))

    async def main() -> None:
        for times in (1, 2, 3):
            await cancel(times)

    run(main())


def test_cancelling_before_anything_has_begun(run: Callable[..., Any]) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(anext(stream_of(AsyncSource())))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_giving_up_after_a_while(run: Callable[..., Any]) -> None:
    async def main() -> None:
        stream = stream_of(stuck())
        for i in range(6):
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
