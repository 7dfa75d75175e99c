"""Threads that share batches: encoders, search and fusion take little longer for several images than for one.

The thread that opens a batch leads it. It waits until the batch before is over: batches follow each other in the order
in which they were opened, and who comes meanwhile joins the one that waits. It also waits for those who have announced
an item and are making it, but no longer than the batch before took: so much would a batch of their own cost. A thread
that finds nobody else waits for nobody, and there is no thread of its own. Items of others may be expected, too, which
are on their way here: for these it waits as long as was said.

A leader may be interrupted anywhere, by Ctrl-C for one. Therefore a batch lasts as long as its leader holds its lock,
which a ``with`` releases however the leader ends. Who finds that a batch is over and has no outcome joins another.
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
        self._coming: dict[int, float] = {}  # since when which threads have been making an item
        self._expected: dict[Hashable, float] = {}  # until when whose items may come
        self._took = 0.0  # seconds of the batch before

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Announce an item, which the block makes: who leads a batch waits for it a little."""
        with self._lock:
            self._coming[get_ident()] = monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._coming.pop(get_ident(), None)
                self._arrival.notify_all()

    def expect(self, who: Hashable, seconds: float) -> None:
        """Say that an item of somebody who is not here may come: who leads a batch waits so long for it at most."""
        with self._lock:
            self._expected[who] = monotonic() + seconds

    def came(self, who: Hashable) -> None:
        """Say that somebody is here, and about to announce an item."""
        with self._lock:
            self._expected.pop(who, None)

    @contextmanager
    def turn(self, item: Item, kind: Hashable = None) -> Iterator[Turn[Item, Result]]:
        """Bring an item, and lead its batch or wait for its result.

        One thread leads at a time unless one that waited for its turn was interrupted.

        Args:
            item: The item.
            kind: Items of different kinds are in different batches.

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
                if batch is own:
                    if last is not None:
                        last.wait()
                    with self._lock:
                        self._wait_for_others(own)
                        turn: Turn[Item, Result] = Turn(own.close(), place)
                    begun = monotonic()
                    try:
                        yield turn
                        own.results = turn.results
                        self._took = monotonic() - begun
                    except Exception as exc:
                        own.error = exc
                        raise
                    finally:
                        with self._lock:
                            if self._last is own:
                                self._last = None  # its items and its error are only its callers'
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

    def _wait_for_others(self, batch: _Batch[Item, Result]) -> None:
        """Wait for items that come, while there is room for them in a batch, but no longer than one takes."""
        due = monotonic() + self._took
        while len(batch) < self._size and (self._coming or self._expected):
            now = monotonic()
            self._expected = {who: until for who, until in self._expected.items() if until > now}
            coming = [since + self._took for since in self._coming.values()]
            left = min(due, max([*coming, *self._expected.values()], default=now)) - now
            if left <= 0:
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
