"""Runs the stages of a stream in threads. Keeps the order of the items, and bounds the results that wait.

Several threads prepare items (`prefetch`). One more thread may encode batches (`ahead`). The consumer's thread does the
rest. The stages of a stream share a `Flow`, which stops and measures the stages. No thread keeps a reference to the
consumer's generator, so the garbage collector can end a stream that the consumer has dropped.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Self, TypeVar

from zsvec.streams.flow import Channel, Flow, StreamStats

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WAIT = 0.05
"""Default seconds from the first result of a batch until an incomplete batch is yielded."""
_POLL_S = 0.1
_END: Any = object()


class Stream(Iterator[Item]):
    """The items of a stream, and its statistics. As a context manager, closes the stream.

    Args:
        items: Generator that ends the flow when it is closed.
        flow: State that the stages of the stream share.
    """

    def __init__(self, items: Generator[Item, None, None], flow: Flow) -> None:
        self._items = items
        self._flow = flow

    def __next__(self) -> Item:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stats(self) -> StreamStats:
        """Counters of the stream; may be read from any thread."""
        return self._flow.stats()

    def close(self) -> None:
        """Ends the stream and all threads; no more items are yielded."""
        _close(self._items, self._flow)


def _close(items: Generator[Any, None, None], flow: Flow) -> None:
    items.close()
    flow.wait()


class AsyncStream(AsyncIterator[Item]):
    """`Stream` for an event loop; also an asynchronous context manager.

    Args:
        items: Generator that ends the flow when it is closed.
        flow: State that the stages of the stream share.
    """

    def __init__(self, items: AsyncGenerator[Item, None], flow: Flow) -> None:
        self._items = items
        self._flow = flow

    async def __anext__(self) -> Item:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def stats(self) -> StreamStats:
        """Counters of the stream; may be read from any thread."""
        return self._flow.stats()

    async def aclose(self) -> None:
        """Ends the stream and all threads; no more items are yielded."""
        await self._items.aclose()


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    batch_size: int,
    *,
    max_wait: float | None = None,
    flow: Flow | None = None,
    lane: Callable[[Item], object] = lambda _: None,
) -> Iterator[list[Result]]:
    """Applies a function in threads and yields the results in batches, in the order of the items.

    While the caller uses a batch, up to two more batches are prepared. A batch is full unless the items end or the next
    item takes too long. When the flow ends, the worker threads end and unprocessed items are dropped.

    Args:
        function: Function of one item; called in several threads at the same time.
        items: Iterated in another thread.
        batch_size: Number of results per full batch.
        max_wait: Seconds from the first result of a batch until an incomplete batch is yielded; by default `MAX_WAIT`.
        flow: State that the stages of the stream share; the caller ends the flow. By default, closing the iterator ends
            a private flow.
        lane: Returns ``None``, or the object that an item shares with its neighbours, such as their image. Consecutive
            items with the same object are processed one at a time, in order.

    Yields:
        1 to ``batch_size`` results.

    Raises:
        Exception: ``function`` or the iteration of the items failed. The results before the failure are yielded first.
    """
    shared = flow or Flow()
    waiting: Channel[Future[Result]] = shared.new_channel("decode", 2 * batch_size)
    feeding = partial(_feed, function, items, shared, waiting, lane)
    Thread(target=feeding, name="zsvec-feed", daemon=True).start()  # a blocked source must not keep the process alive
    batch: list[Result] = []
    due = 0.0
    try:
        while True:
            try:
                future = waiting.get(due if batch else math.inf)
            except Empty:
                yield batch
                batch = []
                continue
            if future is None:
                break
            if batch and future.exception() is not None:
                yield batch  # results before the failure
                batch = []
            if (result := future.result()) is _END:
                break
            if not batch:
                due = time.monotonic() + (MAX_WAIT if max_wait is None else max_wait)
            batch.append(result)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch and not shared.stopped:
            yield batch
    finally:
        if flow is None:
            shared.end()


def _feed(  # noqa: C901 - one loop with its two ends
    function: Callable[[Item], Result],
    items: Iterable[Item],
    flow: Flow,
    waiting: Channel[Future[Result]],
    lane: Callable[[Item], object],
) -> None:
    """Gives items to worker threads, and puts the futures of the results into `waiting`, in the order of the items."""
    tasks = flow.new_queue()
    workers = min(8, os.cpu_count() or 1)
    last: Future[Any] = Future()
    current = _Lane(None)
    try:
        for number, item in enumerate(items):
            future: Future[Result] = Future()
            if flow.stopped:
                break
            key = lane(item)
            if key is None or key is not current.key:
                current = _Lane(key)
            if current.add((future, item)):
                tasks.put(current)  # before `waiting.put`, so that each awaited future has a worker
            if number < workers:
                flow.start(partial(_work, function, tasks, flow), f"zsvec-decode_{number}")
            if not waiting.put(future):
                break
        last.set_result(_END)
    except BaseException as exc:  # noqa: BLE001 - `Future.result` raises this
        last.set_exception(exc)
    if flow.stopped:  # the workers may have ended before the last tasks, for which a consumer may wait
        with suppress(Empty):
            while True:
                left = tasks.get_nowait()
                while left is not None and (task := left.take()) is not None:
                    task[0].set_result(_END)
    tasks.put(None)
    waiting.put(last)


def _work(function: Callable[[Any], Any], tasks: SimpleQueue[Any], flow: Flow) -> None:
    while (lane := tasks.get()) is not None:
        while (task := lane.take()) is not None:
            future, item = task
            try:
                future.set_result(_END if flow.stopped else function(item))
            except BaseException as exc:  # noqa: BLE001 - `Future.result` raises this
                future.set_exception(exc)
            del task, future, item  # frees the item while waiting for the next task
        del lane
    tasks.put(None)  # ends the next thread


class _Lane:
    """Tasks of which one thread at a time does all, in order. `key` is the object that their items share."""

    def __init__(self, key: object) -> None:
        self.key = key
        self._tasks: deque[Any] = deque()
        self._is_taken = False
        self._lock = Lock()

    def add(self, task: Any) -> bool:
        """Adds a task. Returns whether a thread must be told of the lane, because none is at work in it."""
        with self._lock:
            self._tasks.append(task)
            was_taken, self._is_taken = self._is_taken, True
            return not was_taken

    def take(self) -> Any:
        """Returns the next task; ``None`` if there is none, which ends the work of the thread in the lane."""
        with self._lock:
            self._is_taken = bool(self._tasks)
            return self._tasks.popleft() if self._tasks else None


def ahead(batches: Generator[Result, None, None], flow: Flow, stage: str) -> Generator[Result, None, None]:
    """Runs a stage in another thread, one batch ahead of the consumer, and yields the results. Finally ends the flow.

    Args:
        batches: Generator of the stage's results; iterated and closed in that thread.
        flow: State that the stages of the stream share.
        stage: Name of the stage in the statistics.

    Raises:
        Exception: The iteration failed. The batches before the failure are yielded first.
    """
    channel = flow.new_channel(stage, 1)

    def run() -> None:
        failure: BaseException | None = None
        try:
            for batch in batches:
                if not channel.put((batch, None)):
                    break
        except BaseException as exc:  # noqa: BLE001 - the consumer raises this
            failure = exc
        finally:
            batches.close()
        channel.put((None, failure))

    flow.start(run, f"zsvec-{stage}")
    try:
        while (taken := channel.get()) is not None:
            batch, failure = taken
            if failure is not None:
                raise failure
            if batch is None:
                break
            yield batch
    finally:
        flow.end()


async def iterate_in_thread(items: Generator[Item, None, None], flow: Flow) -> AsyncGenerator[Item, None]:
    """Iterates a generator in another thread, so that the event loop can run other tasks. Finally ends the flow.

    Args:
        items: Generator that is iterated and closed in that thread, even if the task in the event loop is cancelled.
        flow: State that the stages of the stream share.
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
        closing = loop.run_in_executor(pool, _close, items, flow)
        pool.shutdown(wait=False)
        await asyncio.shield(closing)  # closing continues if this task is cancelled again


def iterate_async_source(items: AsyncIterable[Item], flow: Flow) -> Iterator[Item]:
    """Iterates an async source outside the thread of the event loop. Ends when the flow is stopped."""
    iterator = aiter(items)

    async def following() -> Any:
        if flow.stopped:
            return _END
        flow.pending_read = asyncio.current_task()
        return await anext(iterator, _END)

    while not flow.stopped:
        future = asyncio.run_coroutine_threadsafe(following(), flow.loop)
        while not future.done() and not flow.stopped:
            with suppress(TimeoutError):
                future.exception(_POLL_S)
        if not future.done() or (item := future.result()) is _END:
            return
        yield item
