"""State that the stages of a stream share: whether the stream has ended, the channels between stages, and counters.

The garbage collector may close an abandoned stream in any thread, even in one that holds a lock. A generator that is
being closed therefore only calls `Flow.end`, which never blocks.
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
        images: Number of images that were classified or could not be read. All images of a batch are counted at the
            same time.
        failed: Number of images that could not be read.
        stale: Number of images that were classified with an earlier state of the store, during an outage.
        seconds: Seconds from the start of the first stage to the end of the stream. For images that are classified
            without a stream, the seconds during which at least one image is in progress.
        busy: Seconds of work by stage, summed over threads. Waiting for a GPU counts as work.
        runs: Number of runs by stage. A stage runs once for each image or batch.
        batches: Number of encoded batches, by number of images in the batch. In a cascade, those of the first encoder.
        waiting: Number of results (images or batches) that the next stage has not taken, by the name of the stage that
            makes the results. Images that are being decoded are included.
        store: Counters of the store's writes (`zsvec.store.store.Store.stats`); only in the totals of a classifier.
        drift: Drift of the last images from the references, 0 to 1 (`zsvec.streams.drift`); in totals, the maximum over
            all streams. ``None`` if there are too few images, or if novelty is not calibrated.
        settled: By encoder, the number of images that the encoder classified without the others (setting ``cascade``).
        no_cascade: Why all encoders will embed the next batch, although `cascade` is ``auto``; empty if one encoder is
            the first, or if `cascade` is ``off``. ``None`` before the first batch.
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
    settled: Mapping[str, int] = field(default_factory=dict)
    no_cascade: str | None = None

    @property
    def rate(self) -> float:
        """Images per second."""
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
            settled=_sum(self.settled, other.settled),
            no_cascade=self.no_cascade if other.no_cascade is None else other.no_cascade,
        )


def _sum(one: Mapping[Key, Number], other: Mapping[Key, Number]) -> Mapping[Key, Number]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


class Flow:
    """State that the stages of one stream share. As a context manager, ends the stages.

    Attributes:
        loop: Event loop in which `iterate_in_thread` runs.
        pending_read: Task in `loop` that waits for the next item of an async source.
        no_cascade: As in `StreamStats`.
    """

    loop: asyncio.AbstractEventLoop
    pending_read: asyncio.Task[Any] | None = None
    no_cascade: str | None = None

    def __init__(self) -> None:
        self._channels: dict[str, Channel[Any]] = {}
        self._queues: list[SimpleQueue[Any]] = []
        self._threads: list[Thread] = []
        self._busy: defaultdict[str, float] = defaultdict(float)
        self._runs: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._settled: Counter[str] = Counter()
        self._images = self._failed = self._stale = 0
        self._drift = Drift()
        self._workers = 0
        self._worked = self._since = 0.0
        self._begun: float | None = None
        self._ended: float | None = None
        self._lock = Lock()

    @property
    def stopped(self) -> bool:
        """Whether the stream was ended. Stages may still be finishing."""
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
        """Counts the time of the block in `StreamStats.seconds`; blocks that overlap count once.

        For flows without channels, whose images are classified without a stream.
        """
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
        """Adds numbers of images to the counters of `StreamStats`."""
        with self._lock:
            self._images += images
            self._failed += failed
            self._stale += stale

    def settle(self, encoder: str, images: int) -> None:
        """Adds images that an encoder classified without the others."""
        with self._lock:
            self._settled[encoder] += images

    def rank(self, ranks: Iterable[float]) -> None:
        """Adds the ranks of images among the left-out references (`Drift.add`); warns once if drift is large."""
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
        """Returns a channel from the stage `name` to the next stage, for at most `size` results."""
        channel: Channel[Any] = Channel(self, size)
        with self._lock:
            self._channels[name] = channel
            self._begun = self._begun or time.monotonic()
        return channel

    def new_queue(self) -> SimpleQueue[Any]:
        """Returns a queue. When the stream ends, ``None`` is put into the queue to wake up its reader."""
        queue: SimpleQueue[Any] = SimpleQueue()
        self._queues.append(queue)
        if self.stopped:
            queue.put(None)
        return queue

    def start(self, work: Callable[[], None], name: str) -> None:
        """Starts a thread. `wait` and the exit of the process wait until the thread ends."""
        thread = Thread(target=work, name=name, daemon=True)
        _flows.add(self)
        thread.start()
        self._threads.append(thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stops all stages and the clock. Never takes a lock or blocks, because the garbage collector may call this."""
        if self._ended is None:
            self._ended = time.monotonic()
        for queue in self._queues:
            queue.put(None)  # reentrant, unlike `queue.Queue.put`

    def wait(self) -> None:
        """Waits until all threads that `start` has started have ended."""
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
                settled=dict(self._settled),
                no_cascade=self.no_cascade,
            )


_flows: WeakSet[Flow] = WeakSet()


@atexit.register
def _end_all() -> None:
    """Ends open streams. Python crashes at exit while threads run C++ code."""
    for flow in list(_flows):
        flow.end()
        flow.wait()


class Channel(Generic[Item]):
    """A bounded queue of results from one stage to the next.

    Args:
        flow: State of the stream. When the stream ends, all threads that wait for the channel wake up.
        size: Maximum number of results in the channel. `put` blocks while the channel is full.
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
        """Number of results in the channel."""
        return self._size - self._room.qsize()

    def put(self, item: Item) -> bool:
        """Waits for room and adds a result to the channel; returns False if the stream stops first."""
        if self._take(self._room) is None:
            return False
        self._items.put(item)
        return True

    def get(self, due: float = math.inf) -> Item | None:
        """Takes and returns the next result; returns ``None`` if the stream has stopped.

        Args:
            due: Time, as of `time.monotonic`, until which `get` waits for a result.

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
    """Sums the counters of all streams of one classifier. Thread-safe."""

    def __init__(self) -> None:
        self._ended = StreamStats()
        self._flows: list[Flow] = []
        self._lock = Lock()

    def add(self, flow: Flow) -> None:
        """Adds a new stream."""
        with self._lock:
            self._settle()
            self._flows.append(flow)

    def stats(self) -> StreamStats:
        """Returns the sum of the counters of all streams, including `StreamStats.seconds`."""
        with self._lock:
            self._settle()
            return sum((flow.stats() for flow in self._flows), self._ended)

    def _settle(self) -> None:
        """Adds the counters of ended streams to the sum. `Flow.end` cannot do this, because it must not take a lock."""
        ended = [flow for flow in self._flows if flow.stopped]
        self._flows = [flow for flow in self._flows if flow not in ended]
        self._ended = sum((flow.stats() for flow in ended), self._ended)
