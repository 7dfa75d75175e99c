"""Dynamic batching for threads with an item each: encoders, search and fusion take little longer for several images.

The thread that opens a batch leads it. It waits until the batch before is over: batches follow each other in the order
in which they were opened, and items that come meanwhile join the one that waits. Then the batch has a window, in which
it waits for items that other threads are making, and for as many items as there were lately. A thread that was alone
waits for nobody. There is no thread of its own.

A leader may be interrupted anywhere, by Ctrl-C for one. Therefore a batch lasts as long as its leader holds its lock,
which a ``with`` releases however the leader ends. If a batch ends without a result, its waiters join the next one.
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
    """What a caller has to do, and what it gets.

    Attributes:
        items: Of the batch that it leads, in order; empty where another thread has led it.
        results: Theirs, which who leads sets.
    """

    def __init__(self, items: Sequence[Item], place: int, results: Sequence[Result] = ()) -> None:
        self.items = items
        self.results = results
        self._place = place

    @property
    def result(self) -> Result:
        """The result of the caller's own item."""
        return self.results[self._place]


class SharedBatches(Generic[Item, Result]):
    """Batches of items that several threads bring at once, one each.

    Args:
        size: Items of a batch at most.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = Lock()  # of what follows and of the items of an open batch; nobody waits while holding it
        self._arrival = Condition(self._lock)
        self._last: _Batch[Item, Result] | None = None
        self._coming: set[int] = set()  # threads that are making an item
        self._lately = 0  # items of the batch that ended last, and of the one that waited for its end

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announce an item, which the block makes: a batch waits for it within its window."""
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
        """Bring an item, and lead its batch or wait for its result.

        One thread leads at a time unless one that waited for its turn was interrupted.

        Args:
            item: The item.
            kind: Items of different kinds are in different batches.
            max_wait: Seconds of the window of a batch that this thread leads.

        Raises:
            Exception: What the block of the leading thread raised, in every thread whose item was in the batch.
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
                                self._last = None  # its items and its error are only its callers'
                            self._lately = len(turn.items) + (len(self._last) if self._last is not None else 0)
                        del own, batch, last  # else an error, whose traceback has them, would be garbage with a cycle
                    return
            batch.wait()
            try:
                if batch.error is not None:
                    raise batch.error
                if batch.results is not None:
                    yield Turn((), place, batch.results)
                    return
            finally:
                del own, batch, last  # likewise

    def _wait_for_others(self, batch: _Batch[Item, Result], max_wait: float) -> None:
        """Waits for the items of others, while there is room for them and the window is open."""
        due = monotonic() + max_wait
        while len(batch) < self._size and (self._coming or len(batch) < self._lately):
            if (left := due - monotonic()) <= 0:
                break
            self._arrival.wait(left)


class _Batch(Generic[Item, Result]):
    """Items of several callers, and what came of them.

    Attributes:
        led: Held by who leads the batch, from before others see it until it is over.
        results: ``None`` if there was an error, or the leader was interrupted.
        error: What the leader raised.
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
