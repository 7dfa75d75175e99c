"""Shared state of the stages of a stream: its end, the channels between stages, and counters.

The garbage collector may close an abandoned stream in any thread, even one that holds a lock. So `Flow.end`, the
only action of a generator while it is being closed, never blocks.
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
from typing import Any, Generic, Self, TypeVar
from weakref import WeakSet

from zsvec.streams.drift import WINDOW, Drift

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Key = TypeVar("Key", str, int)
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class StreamStats:
    """Counters of a stream, or of all streams of a classifier.

    Attributes:
        images: Images that were classified or could not be read; a batch is counted at once.
        failed: Images that could not be read.
        stale: Images that were classified with an earlier state of the store, during an outage.
        seconds: From the start of the first stage to the end of the stream; of images classified without a stream, the
            time with at least one such image in progress.
        busy: Seconds of work by stage, summed over threads. Waiting for a GPU counts as work.
        runs: Runs of each stage: one for each image or batch.
        batches: Encoded batches, by number of images.
        waiting: Results of a finished stage that the next stage has not taken, by finished stage. Images or batches.
        store: Counters of the store's writes (`zsvec.store.store.Store.stats`), in the totals of a classifier.
        drift: Distance of the last images from the references, 0 to 1 (`zsvec.streams.drift`); in totals, the largest
            of the streams. ``None`` for few images, or without a calibration of novelty.
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
    """Shared state of the stages of one stream. As a context manager, ends the stages.

    Attributes:
        loop: Event loop served by `iterate_in_thread`.
        pending_read: Task of that loop that waits for the next item of an async source.
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
        """Whether the stream was ended; its stages end, or have ended."""
        return self._ended is not None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of the block as work of a stage, unless the stream ends meanwhile."""
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
        """Runs the clock of a flow without channels during the block, in one or more threads."""
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
        """Counts a batch of images, and the time of the block as work of the encoders."""
        with self.stage("encode"):
            yield
        with self._lock:
            self._batches[images] += 1

    def count(self, images: int, failed: int, stale: int) -> None:
        """Counts results that the stream has yielded."""
        with self._lock:
            self._images += images
            self._failed += failed
            self._stale += stale

    def rank(self, ranks: Iterable[float]) -> None:
        """Adds the ranks of images among the left-out references (`Drift.add`), and warns once of drift."""
        with self._lock:
            moved = self._drift.add(ranks)
        if moved is not None:
            _log.warning(
                "the last %d images are less like the references than these are like each other (drift %.2f): add "
                "references from the same source, give some of these images with their categories to "
                "clf.calibrate(labelled=…), or check whether many show none of the categories",
                WINDOW,
                moved,
            )

    def new_channel(self, name: str, size: int) -> Channel[Any]:
        """Returns a channel from a stage to the next, for at most `size` results."""
        channel: Channel[Any] = Channel(self, size)
        with self._lock:
            self._channels[name] = channel
            self._begun = self._begun or time.monotonic()
        return channel

    def new_queue(self) -> SimpleQueue[Any]:
        """Returns a queue that `end` puts a ``None`` into, so that its readers wake up."""
        queue: SimpleQueue[Any] = SimpleQueue()
        self._queues.append(queue)
        if self.stopped:
            queue.put(None)
        return queue

    def start(self, work: Callable[[], None], name: str) -> None:
        """Starts a thread that `wait`, and the exit of the process, wait for."""
        thread = Thread(target=work, name=name, daemon=True)
        _flows.add(self)
        thread.start()
        self._threads.append(thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stops all stages, and the clock. Takes no lock and never blocks: the garbage collector may call it."""
        if self._ended is None:
            self._ended = time.monotonic()
        for queue in self._queues:
            queue.put(None)  # reentrant, unlike `queue.Queue.put`

    def wait(self) -> None:
        """Waits until the stopped stages have finished their work in progress."""
        for thread in self._threads:
            thread.join()

    def stats(self) -> StreamStats:
        """Returns the counters; may be called from any thread."""
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
    """Ends open streams: the exit of Python crashes under threads that run C++."""
    for flow in list(_flows):
        flow.end()
        flow.wait()


class Channel(Generic[Item]):
    """A bounded queue of results from one stage to the next.

    Args:
        flow: The stream; at its end, all waiting threads wake up.
        size: Results that the channel holds; `put` blocks while the channel is full.
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
        """Results in the channel."""
        return self._size - self._room.qsize()

    def put(self, item: Item) -> bool:
        """Puts a result once there is room. Returns False if the stream was stopped first."""
        if self._take(self._room) is None:
            return False
        self._items.put(item)
        return True

    def get(self, due: float = math.inf) -> Item | None:
        """Takes the next result; ``None`` once the stream has stopped.

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
    """Counters of all streams of one owner. Thread-safe."""

    def __init__(self) -> None:
        self._ended = StreamStats()
        self._flows: list[Flow] = []
        self._lock = Lock()

    def add(self, flow: Flow) -> None:
        """Adds a stream that begins."""
        with self._lock:
            self._settle()
            self._flows.append(flow)

    def stats(self) -> StreamStats:
        """Returns the sum over all streams, seconds included."""
        with self._lock:
            self._settle()
            return sum((flow.stats() for flow in self._flows), self._ended)

    def _settle(self) -> None:
        """Adds up ended streams. `Flow.end` cannot, because that takes no lock."""
        ended = [flow for flow in self._flows if flow.stopped]
        self._flows = [flow for flow in self._flows if flow not in ended]
        self._ended = sum((flow.stats() for flow in ended), self._ended)
