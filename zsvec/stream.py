"""Stages in threads: each works ahead of the next, in order, in bounded memory, and is measured.

Items are prepared by several threads (`prefetch`), batches may be encoded by one (`ahead`), and whoever
iterates the last stage does the rest. `Flow` is what the stages of one stream share: it stops them, and
counts what they do.
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
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from threading import Event, Lock, RLock, Thread
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WAIT = 0.05
"""Seconds that a batch which is not full waits for items that have not come."""
_POLL = 0.1
_END: Any = object()


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a stream has done so far.

    Attributes:
        images: How many have been classified or could not be read; of a batch, all at once.
        failed: How many of them could not be read.
        seconds: Since its first stage began, until its end.
        busy: Seconds of work by stage, added up over its threads; on a GPU a stage that waits for it is busy.
        waiting: What is ready for the next stage, by the stage that it comes from: images, or batches.
    """

    images: int = 0
    failed: int = 0
    seconds: float = 0.0
    busy: Mapping[str, float] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds if self.seconds else 0.0

    def __add__(self, other: StreamStats) -> StreamStats:
        return StreamStats(
            self.images + other.images,
            self.failed + other.failed,
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
        stopped: Set when they shall end, or have ended.
        loop: Event loop served by `in_thread`.
        step: The task of that loop which waits for the next item of an async source.
    """

    loop: asyncio.AbstractEventLoop
    step: asyncio.Task[Any] | None = None

    def __init__(self) -> None:
        self.stopped = Event()
        self._queues: dict[str, Queue[Any]] = {}
        self._busy: defaultdict[str, float] = defaultdict(float)
        self._images = self._failed = 0
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

    def count(self, images: int, failed: int) -> None:
        """Count what comes out."""
        with self._lock:
            self._images += images
            self._failed += failed

    def queue(self, name: str, size: int) -> Queue[Any]:
        """What a stage hands over, a bounded number."""
        queue: Queue[Any] = Queue(maxsize=size)
        with self._lock:
            self._queues[name] = queue
            self._begun = self._begun or time.monotonic()
        return queue

    def put(self, queue: Queue[Any], item: Any) -> bool:
        """Hand over when there is room; whether anybody still wants it."""
        while not self.stopped.is_set():
            try:
                queue.put(item, timeout=_POLL)
            except Full:
                continue
            return True
        return False

    def get(self, queue: Queue[Any], due: float = math.inf) -> Any:
        """Take what is handed over, as soon as there is something; ``None`` once stopped.

        Args:
            queue: Of the stage before.
            due: On the monotonic clock, until when it waits.

        Raises:
            queue.Empty: There was nothing until then.
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
    """The items of a stream, with what it does meanwhile; also a context manager that closes it.

    Args:
        items: Ends the flow when it is closed.
        flow: Of the stream.
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
        """End the stream and its threads; nothing more comes."""
        self._items.close()


class AsyncStream(AsyncIterator[Item]):
    """`Stream` for an event loop; also an asynchronous context manager.

    Args:
        items: Ends the flow when it is closed.
        flow: Of the stream.
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
        """End the stream and its threads; nothing more comes."""
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

    While a batch is being used, up to two more are made ready. A batch is full unless the items end
    or their source pauses.

    Args:
        function: Called in several threads at once.
        items: Iterated in a thread of its own.
        batch_size: Results per batch.
        max_wait: Seconds that a batch waits, from its first item on, for items that have not come yet; by default
            `MAX_WAIT`.
        flow: Of the stream, which whoever made it ends; by default one of its own.

    Yields:
        1 to ``batch_size`` results.

    Raises:
        Exception: What ``function`` or the iteration raised, in the place of the result. Whoever stops
            early closes the iterator: threads end, and what has not begun is given up.
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
    """Submits each item to a pool and keeps the futures in order, a bounded number of them."""

    def __init__(self, function: Callable[[Item], Result], items: Iterable[Item], flow: Flow, ahead: int) -> None:
        super().__init__(name="zsvec-feed", daemon=True)  # a source that blocks must not keep the process alive
        self._function = function
        self._items = items
        self._flow = flow
        self._pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="zsvec-decode")
        self._waiting: Queue[Future[Result] | None] = flow.queue("decode", ahead)

    def run(self) -> None:
        try:
            for item in self._items:
                if self._flow.stopped.is_set() or not self._offer(self._pool.submit(self._function, item)):
                    return
        except BaseException as exc:  # noqa: BLE001 - not handled here: whoever takes the future gets it
            failed: Future[Result] = Future()
            failed.set_exception(exc)
            self._offer(failed)
        self._offer(None)

    def _offer(self, future: Future[Result] | None) -> bool:
        return self._flow.put(self._waiting, future)

    def take(self, due: float) -> Future[Result] | None:
        """The next future, or ``None`` after the last, or once stopped; `queue.Empty` if there is none by then."""
        future: Future[Result] | None = self._flow.get(self._waiting, due)
        return future

    def stop(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def ahead(batches: Generator[Result, None, None], flow: Flow, stage: str) -> Generator[Result, None, None]:
    """Iterate in a thread of its own, one batch ahead of whoever takes them.

    Args:
        batches: Closed in that thread.
        flow: Of the stream.
        stage: What to call it.

    Raises:
        Exception: What the iteration raised, after what came before it.
    """
    queue = flow.queue(stage, 1)

    def run() -> None:
        failure: BaseException | None = None
        try:
            for batch in batches:
                if not flow.put(queue, (batch, None)):
                    break
        except BaseException as exc:  # noqa: BLE001 - not handled here: whoever takes the batches gets it
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


async def in_thread(items: Generator[Item, None, None], flow: Flow) -> AsyncGenerator[Item, None]:
    """Iterate in a thread of its own, so that the event loop goes on meanwhile.

    Args:
        items: Closed in that thread, also if the loop's task is cancelled.
        flow: Of the stream.
    """
    flow.loop = loop = asyncio.get_running_loop()
    pool = ThreadPoolExecutor(1, thread_name_prefix="zsvec-async")
    try:
        while (item := await loop.run_in_executor(pool, next, items, _END)) is not _END:
            yield item
    finally:
        flow.end()
        if flow.step is not None:
            flow.step.cancel()
        closing = loop.run_in_executor(pool, items.close)
        pool.shutdown(wait=False)
        await asyncio.shield(closing)  # it goes on if this is cancelled, too


def from_async(items: AsyncIterable[Item], flow: Flow) -> Iterator[Item]:
    """Iterate, in any thread but the loop's, what comes from the event loop; ends when the flow is stopped."""
    iterator = aiter(items)

    async def following() -> Any:
        if flow.stopped.is_set():
            return _END
        flow.step = asyncio.current_task()
        return await anext(iterator, _END)

    while not flow.stopped.is_set():
        future = asyncio.run_coroutine_threadsafe(following(), flow.loop)
        while not future.done() and not flow.stopped.is_set():
            with suppress(FutureTimeoutError):
                future.exception(_POLL)
        if not future.done() or (item := future.result()) is _END:
            return
        yield item
