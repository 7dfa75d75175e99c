"""What the stages of a stream share: its end, the channels between them, and what they have done.

A stream that nobody holds any more is ended by Python's collector of garbage, in any thread and wherever that is, a
lock of ours or of Python's included. So `Flow.end`, all that a generator does when it is closed, waits for nobody.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Lock, Thread
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from weakref import WeakSet

from zsvec.streams.drift import WINDOW, Drift

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Key = TypeVar("Key", str, int)
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a stream has done so far.

    Attributes:
        images: How many have been classified or could not be read; of a batch, all at once.
        failed: How many of them could not be read.
        stale: How many of them were answered from an earlier state of the store, while that was away.
        seconds: Since its first stage began, until its end; of images that were classified alone, those in which there
            was one.
        busy: Seconds of work by stage, summed over threads. Waiting for a GPU counts as work.
        runs: How often each stage has worked: once an image, or once a batch.
        batches: How many batches have been encoded, by their number of images.
        waiting: Results that a stage has finished and the next has not taken, by the finished stage. Images or batches.
        store: Counters of the store's writes (`zsvec.store.store.Store.stats`), in the totals of a classifier.
        drift: How far the last images have moved away from the references, 0 to 1 (`zsvec.streams.drift`); in totals,
            the largest of the streams. ``None`` for few images, and without a calibration that can tell.
    """

    images: int = 0
    failed: int = 0
    stale: int = 0
    seconds: float = 0.0
    busy: Mapping[str, float] = field(default_factory=dict)
    runs: Mapping[str, int] = field(default_factory=dict)
    batches: Mapping[int, int] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    store: Mapping[str, int] = field(default_factory=dict)
    drift: float | None = None

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
            _sum(self.busy, other.busy),
            _sum(self.runs, other.runs),
            _sum(self.batches, other.batches),
            _sum(self.waiting, other.waiting),
            drift=max((drift for drift in (self.drift, other.drift) if drift is not None), default=None),
        )


def _sum(one: Mapping[Key, Number], other: Mapping[Key, Number]) -> Mapping[Key, Number]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


class Flow:
    """What the stages of one stream share; as a context manager it ends them.

    Attributes:
        loop: Event loop served by `iterate_in_thread`.
        pending_read: The task of that loop which waits for the next item of an async source.
    """

    loop: asyncio.AbstractEventLoop
    pending_read: asyncio.Task[Any] | None = None

    def __init__(self) -> None:
        self._channels: dict[str, Channel[Any]] = {}
        self._queues: list[SimpleQueue[Any]] = []
        self._threads: list[Thread] = []
        self._busy: defaultdict[str, float] = defaultdict(float)
        self._runs: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._images = self._failed = self._stale = 0
        self._drift = Drift()
        self._workers = 0
        self._worked = self._since = 0.0
        self._begun: float | None = None
        self._ended: float | None = None
        self._lock = Lock()

    @property
    def stopped(self) -> bool:
        """Whether the stages shall end, or have ended."""
        return self._ended is not None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a stage's work, unless the stream ends meanwhile."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            with self._lock:
                if not self.stopped:
                    self._busy[name] += spent
                    self._runs[name] += 1

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the clock of a flow without channels run while anybody is in this block."""
        with self._lock:
            self._workers += 1
            if self._workers == 1:
                self._since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._workers -= 1
                if not self._workers:
                    self._worked += time.monotonic() - self._since

    @contextmanager
    def encoding(self, images: int) -> Iterator[None]:
        """Count a batch of so many images, and the time of its encoders."""
        with self.stage("encode"):
            yield
        with self._lock:
            self._batches[images] += 1

    def count(self, images: int, failed: int, stale: int) -> None:
        """Count results that the stream has yielded."""
        with self._lock:
            self._images += images
            self._failed += failed
            self._stale += stale

    def rank(self, ranks: Iterable[float]) -> None:
        """Note how images rank among the left-out references (`Drift.add`), and warn once if they have moved away."""
        with self._lock:
            moved = self._drift.add(ranks)
        if moved is not None:
            _log.warning(
                "the last %d images are less like the references than these are like each other (drift %.2f): add "
                "references from where these images come from, give some of them with their categories to "
                "clf.calibrate(labelled=…), or see whether many show none of the categories",
                WINDOW,
                moved,
            )

    def new_channel(self, name: str, size: int) -> Channel[Any]:
        """A channel between a stage of this name and the next, for at most `size` results."""
        channel: Channel[Any] = Channel(self, size)
        with self._lock:
            self._channels[name] = channel
            self._begun = self._begun or time.monotonic()
        return channel

    def new_queue(self) -> SimpleQueue[Any]:
        """A queue into which the end puts a ``None``, so that nobody waits at it any more."""
        queue: SimpleQueue[Any] = SimpleQueue()
        self._queues.append(queue)
        if self.stopped:
            queue.put(None)
        return queue

    def start(self, work: Callable[[], None], name: str) -> None:
        """Start a thread for which `wait` waits, and the end of the process."""
        thread = Thread(target=work, name=name, daemon=True)
        _flows.add(self)
        thread.start()
        self._threads.append(thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Stop all stages, and the clock. Takes no lock and waits for nobody: the collector of garbage may call it."""
        if self._ended is None:
            self._ended = time.monotonic()
        for queue in self._queues:
            queue.put(None)  # reentrant, as no method of `queue.Queue` is

    def wait(self) -> None:
        """Wait until the stages, which have been stopped, have finished what they had begun."""
        for thread in self._threads:
            thread.join()

    def stats(self) -> StreamStats:
        """What has been done so far; may be called from any thread."""
        with self._lock:
            now = self._ended or time.monotonic()
            worked = self._worked + (now - self._since if self._workers else 0.0)
            return StreamStats(
                self._images,
                self._failed,
                self._stale,
                worked + now - (self._begun or now),
                dict(self._busy),
                dict(self._runs),
                dict(self._batches),
                {name: 0 if self._ended else channel.waiting for name, channel in self._channels.items()},
                drift=self._drift.value,
            )


_flows: WeakSet[Flow] = WeakSet()


@atexit.register
def _end_all() -> None:
    """End the streams that are open: Python does not stop threads that are in C++ without a crash."""
    for flow in list(_flows):
        flow.end()
        flow.wait()


class Channel(Generic[Item]):
    """Results on their way from one stage to the next, in order.

    Args:
        flow: Its end is seen at once by those who wait here.
        size: Results that may be on their way; who puts another waits.
    """

    def __init__(self, flow: Flow, size: int) -> None:
        self._flow = flow
        self._size = size
        self._items = flow.new_queue()
        self._room = flow.new_queue()
        for _ in range(size):
            self._room.put(True)

    @property
    def waiting(self) -> int:
        """Results on their way."""
        return self._size - self._room.qsize()

    def put(self, item: Item) -> bool:
        """Put a result once there is room. Returns False if the stream was stopped first."""
        if self._take(self._room) is None:
            return False
        self._items.put(item)
        return True

    def get(self, due: float = math.inf) -> Item | None:
        """Take the next result; ``None`` once the stream has stopped.

        Args:
            due: Time on the monotonic clock until which to wait for a result.

        Raises:
            queue.Empty: No result arrived before `due`.
        """
        item: Item | None = self._take(self._items, due)
        if item is not None:
            self._room.put(True)
        return item

    def _take(self, queue: SimpleQueue[Any], due: float = math.inf) -> Any:
        if self._flow.stopped:
            return None
        return queue.get(timeout=None if due == math.inf else min(max(0.0, due - time.monotonic()), TIMEOUT_MAX))


class Totals:
    """What all streams of one owner have done so far. Safe in several threads."""

    def __init__(self) -> None:
        self._ended = StreamStats()
        self._flows: list[Flow] = []
        self._lock = Lock()

    def add(self, flow: Flow) -> None:
        """Count a stream, which begins."""
        with self._lock:
            self._settle()
            self._flows.append(flow)

    def stats(self) -> StreamStats:
        """The sum over all streams; their seconds add up, too."""
        with self._lock:
            self._settle()
            return sum((flow.stats() for flow in self._flows), self._ended)

    def _settle(self) -> None:
        """Add up the streams that have ended. They do not do it themselves: an end takes no lock."""
        ended = [flow for flow in self._flows if flow.stopped]
        self._flows = [flow for flow in self._flows if flow not in ended]
        self._ended = sum((flow.stats() for flow in ended), self._ended)
