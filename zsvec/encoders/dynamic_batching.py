"""Dynamic batching: combines the items of threads that have one item each.

Encoders, search and fusion take little longer for several images than for one. The thread that opens a batch is the
leader, which runs the batch. Batches run one at a time, in the order in which they were opened. Items that arrive while
a batch runs join the next batch. Before a batch runs, the leader waits up to `max_wait` seconds for more items, while
other threads are preparing items, or while the batch has fewer items than the latest batch plus the items that arrived
meanwhile. A single thread never waits. There is no background thread.

A leader may be interrupted anywhere, for example by Ctrl-C. Therefore a batch lasts exactly as long as the leader holds
the lock of the batch, which a ``with`` statement releases in any case. If a batch ends without a result, its waiters
join the next batch.
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
    """The role of a caller in a batch. If the caller leads the batch, it must set `results`.

    Attributes:
        items: All items of the batch, in order, if the caller leads the batch; empty if another thread led the batch.
        results: Results of the whole batch, in the order of the items.
    """

    def __init__(self, items: Sequence[Item], place: int, results: Sequence[Result] = ()) -> None:
        self.items = items
        self.results = results
        self._place = place

    @property
    def result(self) -> Result:
        """The result of the caller's item."""
        return self.results[self._place]


class DynamicBatcher(Generic[Item, Result]):
    """Collects the items of several threads into batches.

    Args:
        size: Maximum number of items in a batch.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = Lock()  # guards the fields below and the items of an open batch; held briefly
        self._arrival = Condition(self._lock)
        self._last: _Batch[Item, Result] | None = None
        self._coming: set[int] = set()  # threads that are preparing an item
        self._lately = 0  # items in the latest batch, plus items that were waiting when the latest batch ended

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announces that the calling thread prepares an item in this block, so that leaders wait for the item."""
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
        """Adds an item to a batch. The caller then leads the batch, or waits for the leader's results.

        Batches run one at a time, unless a leader was interrupted while waiting for the previous batch.

        Args:
            item: The item.
            kind: Only items of the same kind share a batch.
            max_wait: Maximum number of seconds that the caller, as leader, waits for items of other threads.

        Raises:
            Exception: Any error that the leader's block raises. All callers in the batch get the error.
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
                                self._last = None  # the items and the error must not outlive the callers
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
    """Items of several callers, with their results or an error.

    Attributes:
        led: Lock of the leader: acquired before other threads see the batch, and released when the batch ends.
        results: Results in the order of the items; ``None`` after an error, or if the leader was interrupted.
        error: Error that the leader's block raised.
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
        """Whether an item of this kind may join. If `led` is free, the batch has ended, even if still open."""
        return self._open and self._kind == kind and len(self._items) < size and self.led.locked()

    def add(self, item: Item) -> int:
        """Adds an item and returns its position in the batch."""
        self._items.append(item)
        return len(self._items) - 1

    def close(self) -> list[Item]:
        """Returns the items. No more items can join."""
        self._open = False
        items, self._items = self._items, []
        return items

    def wait(self) -> None:
        with self.led:
            pass
