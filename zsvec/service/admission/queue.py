"""Thread pools with bounded queues, for images and for other requests. The encoders batch concurrent images."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, BinaryIO, TypeVar

from zsvec import Classifier, ImageInput, Region
from zsvec.service.problems import Problem
from zsvec.types import Prediction

Result = TypeVar("Result")

_OTHER_THREADS = 8  # for all requests except classification
_MAX_THREADS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of requests. Each value is a maximum. Beyond `queue`, `tasks` or `receiving_bytes`, a request gets 429.

    Attributes:
        images: Images in one request.
        body_bytes: Bytes of one request body.
        queue: Images waiting or being classified.
        tasks: Other requests waiting or running.
        receiving_bytes: Bytes of all request bodies in memory.
        sending_bytes: Bytes of all responses that clients have not read.
        stall_timeout_s: Seconds to wait for the next part of a body.
        store_timeout_s: Seconds for one request to the store server. Some operations make several such requests.
    """

    images: int = 64
    body_bytes: int = 64 * 2**20
    queue: int = 256
    tasks: int = 64
    receiving_bytes: int = 512 * 2**20
    sending_bytes: int = 256 * 2**20
    stall_timeout_s: float = 30.0
    store_timeout_s: float = 10.0


class ClientLeft(Exception):  # noqa: N818 - no error
    """The client has disconnected."""


class Work:
    """Runs requests in threads. Thread-safe.

    Attributes:
        outcomes: Number of images by outcome: ``known``, ``unknown``, or ``failed`` for an unreadable image.
        listeners: Functions to call with each image and prediction, in the thread that classified the image.
    """

    def __init__(self, classifier: Classifier, limits: Limits) -> None:
        self.classifier = classifier
        self.limits = limits
        self.outcomes: Counter[str] = Counter(known=0, unknown=0, failed=0)
        self.listeners: list[Callable[[ImageInput, Prediction], None]] = []
        self._lock = threading.Lock()
        self._images = self._tasks = 0
        # Enough threads to prepare one batch while another is encoded.
        threads = min(2 * classifier.settings.batch_size, _MAX_THREADS)
        self._classifying = ThreadPoolExecutor(threads, thread_name_prefix="zsvec-serve")
        self._other = ThreadPoolExecutor(_OTHER_THREADS, thread_name_prefix="zsvec-serve-other")

    @property
    def queued(self) -> int:
        """Number of images waiting or being classified."""
        return self._images

    def check_room(self, images: int) -> None:
        """Raises a Problem if the queue has no room for this number of images."""
        if self._images + images > self.limits.queue:
            raise Problem(429, f"{self._images} images wait already, of {self.limits.queue} at most: try again soon")

    async def classify(
        self,
        images: Sequence[BinaryIO],
        top_k: int,
        gone: Callable[[], Awaitable[object]],
    ) -> list[Prediction]:
        """Classifies each image in a thread. The setting ``keep`` decides which images are kept in the inbox.

        Args:
            images: Images of a request.
            top_k: Maximum number of categories in a ranking.
            gone: Waits until the client has disconnected. Images that no thread has started on are then cancelled and
                closed.

        Raises:
            Problem: The queue is full.
            ClientLeft: The client has disconnected.
            ZSVecError: `zsvec.classifier.Classifier.classify` failed. For an unreadable image, the prediction has an
                ``error`` instead.
        """
        self._admit(len(images))
        futures = [self._classifying.submit(self._classified, image, top_k) for image in images]
        for future in futures:
            future.add_done_callback(lambda _: self._release(1))
        return await _unless_gone(futures, [[image] for image in images], gone)

    async def classify_regions(
        self,
        image: BinaryIO,
        boxes: Sequence[Sequence[float]],
        margin: float,
        top_k: int,
        gone: Callable[[], Awaitable[object]],
    ) -> list[Prediction]:
        """Classifies boxes in an image, each of which counts as an image. Otherwise as `classify`."""
        self._admit(len(boxes))
        future = self._classifying.submit(self._regions_classified, image, boxes, margin, top_k)
        future.add_done_callback(lambda _: self._release(len(boxes)))
        (predictions,) = await _unless_gone([future], [[image]], gone)
        return predictions

    async def classify_together(
        self,
        images: Sequence[BinaryIO],
        top_k: int,
        gone: Callable[[], Awaitable[object]],
    ) -> list[Prediction]:
        """Classifies the images of a request as one set, in one thread. Otherwise as `classify`."""
        self._admit(len(images))
        left = threading.Event()
        future = self._classifying.submit(self._classified_together, images, top_k, left)
        future.add_done_callback(lambda _: self._release(len(images)))
        try:
            (predictions,) = await _unless_gone([future], [images], gone)
        finally:
            left.set()
        return predictions

    def _classified(self, image: ImageInput, top_k: int) -> Prediction:
        keep = self.classifier.settings.keep
        with self.classifier.within(self.limits.store_timeout_s):
            prediction = self.classifier.classify(image, top_k=top_k, errors="report", keep=keep)
        self._report(image, prediction)
        return prediction

    def _classified_together(self, images: Sequence[BinaryIO], top_k: int, left: threading.Event) -> list[Prediction]:
        keep = self.classifier.settings.keep
        wanted = takewhile(lambda _: not left.is_set(), images)
        with self.classifier.within(self.limits.store_timeout_s):
            predictions = self.classifier.classify_together(wanted, top_k=top_k, keep=keep)
        for image, prediction in zip(images, predictions, strict=False):  # fewer after the client has left
            self._report(image, prediction)
        return predictions

    def _regions_classified(
        self, image: BinaryIO, boxes: Sequence[Sequence[float]], margin: float, top_k: int
    ) -> list[Prediction]:
        keep = self.classifier.settings.keep
        with self.classifier.within(self.limits.store_timeout_s):
            predictions = self.classifier.classify_regions(image, boxes, margin=margin, top_k=top_k, keep=keep)
        for (left, top, right, bottom), prediction in zip(boxes, predictions, strict=True):
            self._report(Region(image, (left, top, right, bottom), margin=margin), prediction)
        return predictions

    def _report(self, image: ImageInput, prediction: Prediction) -> None:
        outcome = "failed" if prediction.error is not None else "unknown" if prediction.unknown else "known"
        with self._lock:
            self.outcomes[outcome] += 1
        for listener in self.listeners:
            listener(image, prediction)

    def _admit(self, images: int) -> None:
        with self._lock:
            self.check_room(images)
            self._images += images

    def _release(self, images: int) -> None:
        with self._lock:
            self._images -= images

    async def run(self, function: Callable[[], Result], *, by: str | None = None) -> Result:
        """Runs a function in a thread for requests other than classification. `by` is the recorded author of changes.

        Raises:
            Problem: Too many requests are waiting.
        """

        def run() -> Result:
            with self.classifier.history.acting(by), self.classifier.within(self.limits.store_timeout_s):
                return function()

        with self._lock:
            if self._tasks >= self.limits.tasks:
                raise Problem(429, f"{self._tasks} requests wait already: try again soon")
            self._tasks += 1
        future = self._other.submit(run)
        future.add_done_callback(self._finish)
        return await asyncio.wrap_future(future)

    def _finish(self, _: Future[Any]) -> None:
        with self._lock:
            self._tasks -= 1

    def close(self) -> None:
        """Waits for running work, and cancels waiting work."""
        self._classifying.shutdown(cancel_futures=True)
        self._other.shutdown(cancel_futures=True)


async def _unless_gone(
    futures: Sequence[Future[Result]], images: Sequence[Sequence[BinaryIO]], gone: Callable[[], Awaitable[object]]
) -> list[Result]:
    """Waits for results, unless the client disconnects first. Then closes images not yet started on.

    Each result is of the images at the same position.
    """
    leaving: asyncio.Future[Any] = asyncio.ensure_future(gone())
    answers = asyncio.gather(*map(asyncio.wrap_future, futures))
    answers.add_done_callback(lambda done: done.cancelled() or done.exception())  # marks the exception as retrieved
    try:
        both: set[asyncio.Future[Any]] = {answers, leaving}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ClientLeft
        return answers.result()
    finally:
        leaving.cancel()
        answers.cancel()
        for future, of_future in zip(futures, images, strict=True):
            if future.cancel():  # the executor would hold the images until a thread is free
                for image in of_future:
                    image.close()
