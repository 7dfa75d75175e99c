"""Dynamic batching for threads with one item each: encoders, search and fusion take little longer for several images.

The thread that opens a batch becomes the leader. Batches run one after another, in the order of opening, and items that
arrive meanwhile join the waiting batch. Before a batch runs, the leader waits within a window for items that other
threads are preparing, and for as many items as the latest batches had. A single thread never waits. There is no
background thread.

A leader may be interrupted anywhere, for example by Ctrl-C. Therefore a batch lasts as long as the leader holds the
lock of the batch, which a ``with`` releases in any case. If a batch ends without a result, the waiters join the next
one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Lock, get_ident
from time import monotonic
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Turn(Generic[Item, Result]):
    """The part of a caller in a batch.

    Attributes:
        items: Items of the batch that the caller leads, in order; empty if another thread led the batch.
        results: Results of the items, in order; the leader sets them.
    """

    def __init__(self, items: Sequence[Item], place: int, results: Sequence[Result] = ()) -> None:
        self.items = items
        self.results = results
        self._place = place

    @property
    def result(self) -> Result:
        """The result of the caller's own item."""
        return self.results[self._place]


class DynamicBatcher(Generic[Item, Result]):
    """Collects the items of several threads into batches.

    Args:
        size: Items of a batch at most.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = Lock()  # guards the fields below and the items of an open batch; held briefly
        self._arrival = Condition(self._lock)
        self._last: _Batch[Item, Result] | None = None
        self._coming: set[int] = set()  # threads that are preparing an item
        self._lately = 0  # items of the latest batch and of the batch that waited then

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announces an item, which the block prepares: a batch waits within the window."""
        with self._lock:
            self._coming.add(get_ident())
        try:
            yield
        finally:
            with self._lock:
                self._coming.discard(get_ident())
                self._arrival.notify_all()

    @contextmanager
    def turn(self, item: Item, kind: Hashable = None, *, max_wait: float = 0.0) -> Iterator[Turn[Item, Result]]:
        """Adds an item to a batch, and leads the batch or waits for the result.

        One thread leads at a time, unless a waiting thread was interrupted.

        Args:
            item: The item.
            kind: Items of different kinds are in different batches.
            max_wait: Seconds of the window of a batch that this thread leads.

        Raises:
            Exception: Any error of the leader's block, in every thread with an item in the batch.
        """
        while True:
            own: _Batch[Item, Result] = _Batch(kind)
            with own.led:
                with self._lock:
                    last = self._last
                    batch = last if last is not None and last.has_room(self._size, kind) else own
                    place = batch.add(item)
                    self._last = batch
                    self._arrival.notify_all()
                if batch is own:
                    if last is not None:
                        last.wait()
                    with self._lock:
                        self._wait_for_others(own, max_wait)
                        turn: Turn[Item, Result] = Turn(own.close(), place)
                    try:
                        yield turn
                        own.results = turn.results
                    except Exception as exc:
                        own.error = exc
                        raise
                    finally:
                        with self._lock:
                            if self._last is own:
                                self._last = None  # items and error belong to the callers alone
                            self._lately = len(turn.items) + (len(self._last) if self._last is not None else 0)
                        del own, batch, last  # the traceback of an error would make a reference cycle
                    return
            batch.wait()
            try:
                if batch.error is not None:
                    raise batch.error
                if batch.results is not None:
                    yield Turn((), place, batch.results)
                    return
            finally:
                del own, batch, last  # as above

    def _wait_for_others(self, batch: _Batch[Item, Result], max_wait: float) -> None:
        due = monotonic() + max_wait
        while len(batch) < self._size and (self._coming or len(batch) < self._lately):
            if (left := due - monotonic()) <= 0:
                break
            self._arrival.wait(left)


class _Batch(Generic[Item, Result]):
    """Items of several callers, with results or error.

    Attributes:
        led: Held by the leader, from before other threads see the batch until the end.
        results: ``None`` after an error, or if the leader was interrupted.
        error: The error of the leader's block.
    """

    def __init__(self, kind: Hashable) -> None:
        self._kind = kind
        self.led = Lock()
        self.results: Sequence[Result] | None = None
        self.error: Exception | None = None
        self._items: list[Item] = []
        self._open = True

    def __len__(self) -> int:
        return len(self._items)

    def has_room(self, size: int, kind: Hashable) -> bool:
        """Whether another item of this kind may join."""
        return self._open and self._kind == kind and len(self._items) < size and self.led.locked()

    def add(self, item: Item) -> int:
        """Adds an item and returns the position."""
        self._items.append(item)
        return len(self._items) - 1

    def close(self) -> list[Item]:
        """Returns the items and accepts no more."""
        self._open = False
        items, self._items = self._items, []
        return items

    def wait(self) -> None:
        """Waits for the end of the batch."""
        with self.led:
            pass
