"""Work ahead in threads, in order and in bounded memory, so that an encoder never waits for a decoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE = 0.05  # seconds that a batch which is not full waits for a source that pauses
_POLL = 0.1


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], batch_size: int) -> Iterator[list[Result]]:
    """Apply a function in threads and yield its results in batches, in the order of the items.

    While a batch is being used, up to two more are made ready. A batch is full unless the items end
    or their source pauses: results never wait for items that have not come yet.

    Args:
        function: Called in several threads at once.
        items: Iterated in a thread of its own.
        batch_size: Results per batch.

    Yields:
        1 to ``batch_size`` results.

    Raises:
        Exception: What ``function`` or the iteration raised, in the place of the result. Whoever stops
            early closes the iterator: threads end, and what has not begun is given up.
    """
    feeder = _Feeder(function, items, ahead=2 * batch_size)
    feeder.start()
    batch: list[Result] = []
    try:
        while True:
            try:
                future = feeder.take(_PATIENCE if batch else None)
            except Empty:
                yield batch
                batch = []
                continue
            if future is None:
                break
            if batch and future.exception() is not None:
                yield batch  # what came before the failure is not lost with it
                batch = []
            batch.append(future.result())
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch
    finally:
        feeder.stop()


class _Feeder(Thread, Generic[Item, Result]):
    """Submits each item to a pool and keeps the futures in order, a bounded number of them."""

    def __init__(self, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> None:
        super().__init__(name="zsvec-feed", daemon=True)  # a source that blocks must not keep the process alive
        self._function = function
        self._items = items
        self._pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="zsvec-decode")
        self._waiting: Queue[Future[Result] | None] = Queue(maxsize=ahead)
        self._stopped = Event()

    def run(self) -> None:
        try:
            for item in self._items:
                if self._stopped.is_set() or not self._offer(self._pool.submit(self._function, item)):
                    return
        except BaseException as exc:  # noqa: BLE001 - not handled here: whoever takes the future gets it
            failed: Future[Result] = Future()
            failed.set_exception(exc)
            self._offer(failed)
        self._offer(None)

    def _offer(self, future: Future[Result] | None) -> bool:
        """Queue a future when there is room; whether anybody still wants it."""
        while not self._stopped.is_set():
            try:
                self._waiting.put(future, timeout=_POLL)
            except Full:
                continue
            return True
        return False

    def take(self, timeout: float | None) -> Future[Result] | None:
        """The next future, or ``None`` after the last; `queue.Empty` if the source pauses for so long."""
        return self._waiting.get(timeout=timeout)

    def stop(self) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
