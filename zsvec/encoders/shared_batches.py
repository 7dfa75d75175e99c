"""Calls of several threads that share batches: encoders take little longer for several images than for one.

The thread that opens a batch leads it. It waits until the batch before is over: batches follow each other in the order
in which they were opened, and who comes meanwhile joins the one that waits. A thread that finds nobody at work waits
for nobody. There is no thread of its own, and no timer.

A leader may be interrupted anywhere, by Ctrl-C for one. Therefore a batch lasts as long as its leader holds its lock,
which a ``with`` releases however the leader ends. Who finds that a batch is over and has no outcome joins another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class SharedBatches(Generic[Item, Result]):
    """A function of a batch, called with one item each by several threads at once.

    Args:
        function: Gives the results of a batch, in the order of its items. Called in the thread of one of the callers,
            and by one thread at a time unless a thread that waited for its turn was interrupted.
        size: Items that it gets at most.
    """

    def __init__(self, function: Callable[[Sequence[Item]], Sequence[Result]], size: int) -> None:
        self._function = function
        self._size = size
        self._lock = Lock()  # of `_last` and of the items of an open batch; nobody waits while holding it
        self._last: _Batch[Item, Result] | None = None

    def __call__(self, item: Item) -> Result:
        """The result of one item.

        Raises:
            Exception: What the function raised, in every thread whose item was in the batch.
        """
        while True:
            own: _Batch[Item, Result] = _Batch()
            with own.led:
                with self._lock:
                    last = self._last
                    batch = last if last is not None and last.has_room(self._size) else own
                    place = batch.add(item)
                    self._last = batch
                if batch is own:
                    if last is not None:
                        last.wait()
                    self._run(own)
            batch.wait()
            try:
                if batch.error is not None:
                    raise batch.error
                if batch.results is not None:
                    return batch.results[place]
            finally:
                del own, batch, last  # else an error, whose traceback has them, would be garbage with a cycle

    def _run(self, batch: _Batch[Item, Result]) -> None:
        with self._lock:
            items = batch.close()
        try:
            batch.results = self._function(items)
        except Exception as exc:  # noqa: BLE001 - not handled here: each caller raises it
            batch.error = exc
        with self._lock:
            if self._last is batch:
                self._last = None  # its vectors and its error are only its callers'


class _Batch(Generic[Item, Result]):
    """Items of several callers, and what came of them.

    Attributes:
        led: Held by who leads the batch, from before others see it until it is over.
        results: Of the function; ``None`` if it raised an error, or the leader was interrupted.
        error: What the function raised.
    """

    def __init__(self) -> None:
        self.led = Lock()
        self.results: Sequence[Result] | None = None
        self.error: Exception | None = None
        self._items: list[Item] = []
        self._open = True

    def has_room(self, size: int) -> bool:
        """Whether another item may join."""
        return self._open and len(self._items) < size and self.led.locked()

    def add(self, item: Item) -> int:
        """Add an item, and give its place."""
        self._items.append(item)
        return len(self._items) - 1

    def close(self) -> list[Item]:
        """Let go of the items, to which no more are added."""
        self._open = False
        items, self._items = self._items, []
        return items

    def wait(self) -> None:
        """Wait until it is over."""
        with self.led:
            pass
