"""What is at work: a bounded number of images, in threads that share the encoders' batches."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from zsvec import Classifier, ImageInput
from zsvec.service.problems import Problem
from zsvec.types import Prediction

Result = TypeVar("Result")

_OTHERS = 8  # threads for all that is not classifying
_MOST_THREADS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What the service takes.

    Attributes:
        images: Of one request.
        bytes: Of the body of one request.
        queue: Images that wait or are at work.
        tasks: Other requests that wait or are at work.
        held: Bytes of all bodies at once.
        sending: Bytes of all answers that clients have yet to read.
        patience: Seconds until the next part of a body has come.
        answer: Seconds until a store on a server has answered one of our requests, of which some need several.
    """

    images: int = 64
    bytes: int = 64 * 2**20
    queue: int = 256
    tasks: int = 64
    held: int = 512 * 2**20
    sending: int = 256 * 2**20
    patience: float = 30.0
    answer: float = 10.0


class ClientLeft(Exception):  # noqa: N818 - nobody is answered
    """Nobody waits for the answer any more."""


class Work:
    """Runs what requests ask for. Safe in several threads.

    Args:
        classifier: Does it.
        limits: What is let in.

    Attributes:
        outcomes: Images so far: known, unknown, and failed, which could not be read.
        listeners: Called with each image that was classified, and its prediction, in a thread.
    """

    def __init__(self, classifier: Classifier, limits: Limits) -> None:
        self.classifier = classifier
        self.limits = limits
        self.outcomes: Counter[str] = Counter()
        self.listeners: list[Callable[[ImageInput, Prediction], None]] = []
        self._lock = threading.Lock()
        self._images = self._tasks = 0
        # While one batch is encoded, the next one is prepared.
        threads = min(2 * classifier.settings.batch_size, _MOST_THREADS)
        self._classifying = ThreadPoolExecutor(threads, thread_name_prefix="zsvec-serve")
        self._other = ThreadPoolExecutor(_OTHERS, thread_name_prefix="zsvec-serve-other")

    @property
    def queued(self) -> int:
        """Images that wait or are at work."""
        return self._images

    @property
    def full(self) -> bool:
        """Whether no image is let in."""
        return self._images >= self.limits.queue

    async def classify(
        self,
        images: Sequence[BinaryIO],
        top_k: int,
        gone: Callable[[], Awaitable[object]],
    ) -> list[Prediction]:
        """Classify images, each by a thread, and keep those that the setting ``keep`` says.

        Args:
            images: Of one request. Those that are left undone are closed.
            top_k: Categories in the rankings.
            gone: Comes back when the client has left: then what has not begun is left undone.

        Raises:
            Problem: There is no room for so many.
            ClientLeft: The client has left.
            ZSVecError: As `zsvec.classifier.Classifier.classify`; an image that cannot be read is answered.
        """
        self._admit(len(images))
        futures = [self._classifying.submit(self._classified, image, top_k) for image in images]
        for future in futures:
            future.add_done_callback(self._release)
        leaving: asyncio.Future[Any] = asyncio.ensure_future(gone())
        answers = asyncio.gather(*map(asyncio.wrap_future, futures))
        answers.add_done_callback(lambda done: done.cancelled() or done.exception())  # which is looked at, then
        try:
            both: set[asyncio.Future[Any]] = {answers, leaving}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                raise ClientLeft
            return answers.result()
        finally:
            leaving.cancel()
            answers.cancel()
            for future, image in zip(futures, images, strict=True):
                if future.cancel():  # the executor keeps it until a thread has looked at it
                    image.close()

    def _classified(self, image: ImageInput, top_k: int) -> Prediction:
        keep = self.classifier.settings.keep
        with self.classifier.within(self.limits.answer):
            prediction = self.classifier.classify(image, top_k=top_k, errors="report", keep=keep)
        outcome = "failed" if prediction.error is not None else "unknown" if prediction.unknown else "known"
        with self._lock:
            self.outcomes[outcome] += 1
        for listener in self.listeners:
            listener(image, prediction)
        return prediction

    def _admit(self, images: int) -> None:
        with self._lock:
            if self._images + images > self.limits.queue:
                raise Problem(
                    429, f"{self._images} images wait already, of {self.limits.queue} at most: try again soon"
                )
            self._images += images

    def _release(self, _: Future[Prediction]) -> None:
        with self._lock:
            self._images -= 1

    async def run(self, function: Callable[[], Result], *, by: str | None = None) -> Result:
        """Run something else than classifying in a thread.

        Args:
            function: To run.
            by: Who asks for it; what it changes says so. By default as the setting says.

        Raises:
            Problem: Too much is waiting.
        """

        def run() -> Result:
            with self.classifier.history.acting(by), self.classifier.within(self.limits.answer):
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
        """Wait for what has begun; the rest is left undone."""
        self._classifying.shutdown(cancel_futures=True)
        self._other.shutdown(cancel_futures=True)
