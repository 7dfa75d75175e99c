"""Stages in threads: each works ahead of the next, in order, in bounded memory, and is measured.

Several threads prepare items (`prefetch`), and one may encode batches (`ahead`). The consumer's thread does the rest.
The stages of a stream share a `Flow`, which stops and measures them.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from threading import Event, Lock, RLock, Thread
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WAIT = 0.05
"""Seconds, from its first item, after which an incomplete batch is passed on."""
_POLL = 0.1
_END: Any = object()


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a stream has done so far.

    Attributes:
        images: How many have been classified or could not be read; of a batch, all at once.
        failed: How many of them could not be read.
        stale: How many of them were answered from an earlier state of the store, while that was away.
        seconds: Since its first stage began, until its end.
        busy: Seconds of work by stage, summed over threads. Waiting for a GPU counts as work.
        waiting: Results that a stage has finished and the next has not taken, by the finished stage. Images or batches.
        store: Counters of the store's writes (`zsvec.store.store.Store.stats`), in the totals of a classifier.
    """

    images: int = 0
    failed: int = 0
    stale: int = 0
    seconds: float = 0.0
    busy: Mapping[str, float] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    store: Mapping[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds if self.seconds else 0.0

    def __add__(self, other: StreamStats) -> StreamStats:
        return StreamStats(
            self.images + other.images,
            self.failed + other.failed,
            self.stale + other.stale,
            self.seconds + other.seconds,
            {stage: self.busy.get(stage, 0.0) + other.busy.get(stage, 0.0) for stage in {**self.busy, **other.busy}},
            {
                stage: self.waiting.get(stage, 0) + other.waiting.get(stage, 0)
                for stage in {**self.waiting, **other.waiting}
            },
        )


class Flow:
    """What the stages of one stream share; as a context manager it ends them.

    Attributes:
        stopped: Set when the stages shall end, or have ended.
        loop: Event loop served by `iterate_in_thread`.
        pending_read: The task of that loop which waits for the next item of an async source.
    """

    loop: asyncio.AbstractEventLoop
    pending_read: asyncio.Task[Any] | None = None

    def __init__(self) -> None:
        self.stopped = Event()
        self._queues: dict[str, Queue[Any]] = {}
        self._busy: defaultdict[str, float] = defaultdict(float)
        self._images = self._failed = self._stale = 0
        self._begun: float | None = None
        self._ended: float | None = None
        self._lock = Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a stage's work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                self._busy[name] += spent

    def count(self, images: int, failed: int, stale: int) -> None:
        """Count results that the stream has yielded."""
        with self._lock:
            self._images += images
            self._failed += failed
            self._stale += stale

    def new_queue(self, name: str, size: int) -> Queue[Any]:
        """A queue between a stage of this name and the next, for at most `size` results."""
        queue: Queue[Any] = Queue(maxsize=size)
        with self._lock:
            self._queues[name] = queue
            self._begun = self._begun or time.monotonic()
        return queue

    def put(self, queue: Queue[Any], item: Any) -> bool:
        """Put an item once the queue has room. Returns False if the stream was stopped first."""
        while not self.stopped.is_set():
            try:
                queue.put(item, timeout=_POLL)
            except Full:
                continue
            return True
        return False

    def get(self, queue: Queue[Any], due: float = math.inf) -> Any:
        """Take the next item; ``None`` once the stream has stopped.

        Args:
            queue: Queue of the stage before.
            due: Time on the monotonic clock until which to wait for an item.

        Raises:
            queue.Empty: No item arrived before `due`.
        """
        while not self.stopped.is_set():
            left = max(0.0, due - time.monotonic())
            try:
                return queue.get(timeout=min(_POLL, left))
            except Empty:
                if left <= _POLL:
                    raise
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Stop all stages, and the clock."""
        with self._lock:
            self._ended = self._ended or time.monotonic()
        self.stopped.set()

    def stats(self) -> StreamStats:
        """What has been done so far; may be called from any thread."""
        with self._lock:
            now = self._ended or time.monotonic()
            return StreamStats(
                self._images,
                self._failed,
                self._stale,
                now - (self._begun or now),
                dict(self._busy),
                {name: 0 if self._ended else queue.qsize() for name, queue in self._queues.items()},
            )


class Totals:
    """What all streams of one owner have done so far. Safe in several threads."""

    def __init__(self) -> None:
        self._ended = StreamStats()
        self._running: list[Flow] = []
        # A stream that is collected as garbage ends wherever its thread is, within `stats` too.
        self._lock = RLock()

    @contextmanager
    def counting(self, flow: Flow) -> Iterator[None]:
        """Count a stream, which begins and ends within."""
        with self._lock:
            self._running.append(flow)
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(flow)
                self._ended += flow.stats()

    def stats(self) -> StreamStats:
        """The sum over all streams; their seconds add up, too."""
        with self._lock:
            return sum((flow.stats() for flow in self._running), self._ended)


class Stream(Iterator[Item]):
    """The items of a stream, and its statistics. As a context manager it closes the stream.

    Args:
        items: Generator that ends the flow when it is closed.
        flow: Shared by the stages of the stream.
    """

    def __init__(self, items: Generator[Item, None, None], flow: Flow) -> None:
        self._items = items
        self._flow = flow

    def __next__(self) -> Item:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stats(self) -> StreamStats:
        """What the stream has done so far; may be asked from any thread."""
        return self._flow.stats()

    def close(self) -> None:
        """End the stream and its threads; no more items are yielded."""
        self._items.close()


class AsyncStream(AsyncIterator[Item]):
    """`Stream` for an event loop; also an asynchronous context manager.

    Args:
        items: Generator that ends the flow when it is closed.
        flow: Shared by the stages of the stream.
    """

    def __init__(self, items: AsyncGenerator[Item, None], flow: Flow) -> None:
        self._items = items
        self._flow = flow

    async def __anext__(self) -> Item:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def stats(self) -> StreamStats:
        """What the stream has done so far; may be asked from any thread."""
        return self._flow.stats()

    async def aclose(self) -> None:
        """End the stream and its threads; no more items are yielded."""
        await self._items.aclose()


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    batch_size: int,
    *,
    max_wait: float | None = None,
    flow: Flow | None = None,
) -> Iterator[list[Result]]:
    """Apply a function in threads and yield its results in batches, in the order of the items.

    While the caller uses a batch, up to two more are prepared. A batch is full unless the items end
    or their source pauses.

    Args:
        function: Called in several threads at once.
        items: Iterated in a thread of its own.
        batch_size: Results per batch.
        max_wait: Seconds, from its first item, after which an incomplete batch is passed on; by default `MAX_WAIT`.
        flow: Shared by the stages of the stream; the caller ends it. By default prefetch makes and ends its own.

    Yields:
        1 to ``batch_size`` results.

    Raises:
        Exception: What ``function`` or the iteration raised, in the place of the result. Close the iterator to stop
            early: its threads end, and items not yet begun are dropped.
    """
    shared = flow or Flow()
    feeder = _Feeder(function, items, shared, ahead=2 * batch_size)
    feeder.start()
    batch: list[Result] = []
    due = 0.0
    try:
        while True:
            try:
                future = feeder.take(due if batch else math.inf)
            except Empty:
                yield batch
                batch = []
                continue
            if future is None:
                break
            if batch and future.exception() is not None:
                yield batch  # what came before the failure is not lost with it
                batch = []
            if not batch:
                due = time.monotonic() + (MAX_WAIT if max_wait is None else max_wait)
            batch.append(future.result())
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch and not shared.stopped.is_set():
            yield batch
    finally:
        if flow is None:
            shared.end()
        feeder.stop()


class _Feeder(Thread, Generic[Item, Result]):
    """Submits each item to a pool and keeps a bounded number of futures, in order."""

    def __init__(self, function: Callable[[Item], Result], items: Iterable[Item], flow: Flow, ahead: int) -> None:
        super().__init__(name="zsvec-feed", daemon=True)  # a source that blocks must not keep the process alive
        self._function = function
        self._items = items
        self._flow = flow
        self._pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="zsvec-decode")
        self._waiting: Queue[Future[Result] | None] = flow.new_queue("decode", ahead)

    def run(self) -> None:
        try:
            for item in self._items:
                if self._flow.stopped.is_set() or not self._offer(self._pool.submit(self._function, item)):
                    return
        except BaseException as exc:  # noqa: BLE001 - not handled here: `Future.result` raises it
            failed: Future[Result] = Future()
            failed.set_exception(exc)
            self._offer(failed)
        self._offer(None)

    def _offer(self, future: Future[Result] | None) -> bool:
        return self._flow.put(self._waiting, future)

    def take(self, due: float) -> Future[Result] | None:
        """The next future; ``None`` after the last, or once stopped. Raises `queue.Empty` as `Flow.get` does."""
        future: Future[Result] | None = self._flow.get(self._waiting, due)
        return future

    def stop(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def ahead(batches: Generator[Result, None, None], flow: Flow, stage: str) -> Generator[Result, None, None]:
    """Run a stage in its own thread, one batch ahead of the consumer. Ends the flow.

    Args:
        batches: Results of the stage; closed in that thread.
        flow: Shared by the stages of the stream.
        stage: Name of the stage in the statistics.

    Raises:
        Exception: What the iteration raised, after the batches before it.
    """
    queue = flow.new_queue(stage, 1)

    def run() -> None:
        failure: BaseException | None = None
        try:
            for batch in batches:
                if not flow.put(queue, (batch, None)):
                    break
        except BaseException as exc:  # noqa: BLE001 - not handled here: the consumer raises it
            failure = exc
        finally:
            batches.close()
        flow.put(queue, (None, failure))

    thread = Thread(target=run, name=f"zsvec-{stage}", daemon=True)
    thread.start()
    try:
        while (taken := flow.get(queue)) is not None:
            batch, failure = taken
            if failure is not None:
                raise failure
            if batch is None:
                break
            yield batch
    finally:
        flow.end()
        thread.join()


async def iterate_in_thread(items: Generator[Item, None, None], flow: Flow) -> AsyncGenerator[Item, None]:
    """Iterate in a thread of its own, so that the event loop can run other tasks. Ends the flow.

    Args:
        items: Closed in that thread, also if the loop's task is cancelled.
        flow: Shared by the stages of the stream.
    """
    flow.loop = loop = asyncio.get_running_loop()
    pool = ThreadPoolExecutor(1, thread_name_prefix="zsvec-async")
    try:
        while (item := await loop.run_in_executor(pool, next, items, _END)) is not _END:
            yield item
    finally:
        flow.end()
        if flow.pending_read is not None:
            flow.pending_read.cancel()
        closing = loop.run_in_executor(pool, items.close)
        pool.shutdown(wait=False)
        await asyncio.shield(closing)  # closing goes on if this task is cancelled, too


def iterate_async_source(items: AsyncIterable[Item], flow: Flow) -> Iterator[Item]:
    """Iterate an async source in any thread but the event loop's. Ends when the flow is stopped."""
    iterator = aiter(items)

    async def following() -> Any:
        if flow.stopped.is_set():
            return _END
        flow.pending_read = asyncio.current_task()
        return await anext(iterator, _END)

    while not flow.stopped.is_set():
        future = asyncio.run_coroutine_threadsafe(following(), flow.loop)
        while not future.done() and not flow.stopped.is_set():
            with suppress(TimeoutError):
                future.exception(_POLL)
        if not future.done() or (item := future.result()) is _END:
            return
        yield item
