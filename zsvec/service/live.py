"""What the service does now, told once a second to those who watch.

One task reads the figures and makes small copies of the last images, as long as anybody watches; all watchers get the
same event. Who reads slowly gets the newest one when it has read the last, so nothing piles up.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from zsvec import ImageInput, StreamStats
from zsvec.errors import ZSVecError
from zsvec.service.admission.work import Work
from zsvec.service.metrics import Figures, Metrics
from zsvec.types import Prediction

SHOWN = 12
"""Images that are shown."""

_EVERY = 1.0  # seconds from event to event
_WINDOW = 10  # events over which rates and means are taken
_COPIES = 4  # images of one event, at most
_COPYING = 0.1  # seconds of one event after which no copy is begun: large images take long
_LONGEST = 120  # characters of a name
_STAGES = ("decode", "preprocess", "encode", "search", "fuse")


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that was classified.

    Attributes:
        name: How it was called.
        prediction: Its answer.
        small: A JPEG; ``None`` of one that could not be read.
        identity: Names it; nobody can guess it.
    """

    name: str
    prediction: Prediction
    small: bytes | None
    identity: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    def to_dict(self) -> dict[str, Any]:
        """What the page needs of it."""
        return {
            "id": self.identity,
            "name": self.name,
            "picture": self.small is not None,
            "failed": self.prediction.error is not None,
            "unknown": self.prediction.unknown,
            "nearest": _short(self.prediction.nearest or ""),
            "probability": self.prediction.probability,
        }


class Live:
    """Tells what the service does. For one event loop; images are seen in any thread.

    Args:
        work: Does it.
        metrics: Has the figures.
        ending: Set when the service ends; so do all who watch, then.
    """

    def __init__(self, work: Work, metrics: Metrics, ending: asyncio.Event) -> None:
        self._work = work
        self._metrics = metrics
        self._ending = ending
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._event = ""
        self._told = asyncio.Event()  # set by the next event, which has another one
        self._waiting: deque[tuple[ImageInput, Prediction]] | None = None  # nobody watches
        self._seen: deque[Seen] = deque(maxlen=SHOWN)
        work.listeners.append(self._see)

    def picture(self, identity: str) -> bytes | None:
        """The small copy of an image that is shown; ``None`` if there is none."""
        return next((one.small for one in list(self._seen) if one.identity == identity), None)

    async def events(self) -> AsyncGenerator[str, None]:
        """What is done, as JSON, about once a second; ends when the service does."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._tell())
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            while not self._ending.is_set():
                told = asyncio.ensure_future(self._told.wait())
                await asyncio.wait({told, ending}, return_when=asyncio.FIRST_COMPLETED)
                told.cancel()
                if self._ending.is_set() or not self._event:
                    return
                yield self._event
        finally:
            ending.cancel()
            self._watchers -= 1

    async def _tell(self) -> None:
        """Make an event each second, until nobody watches."""
        self._waiting = deque(maxlen=_COPIES)
        past: deque[tuple[float, Figures]] = deque(maxlen=_WINDOW + 1)
        try:
            while self._watchers and not self._ending.is_set():
                self._publish(await asyncio.to_thread(self._read, past))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), _EVERY)
        finally:
            self._task = self._waiting = None
            self._seen.clear()
            self._publish("")

    def _publish(self, event: str) -> None:
        self._event = event
        told, self._told = self._told, asyncio.Event()
        told.set()

    def _see(self, image: ImageInput, prediction: Prediction) -> None:
        if (waiting := self._waiting) is not None:
            waiting.append((image, prediction))

    def _read(self, past: deque[tuple[float, Figures]]) -> str:
        self._copy()
        found = self._metrics.figures()
        past.append((time.monotonic(), found))
        event = {
            **_rates(past),
            "outcomes": found.outcomes,
            "queue": found.queued,
            "room": self._work.limits.queue,
            "codes": found.codes,
            "references": found.references,
            "images": [one.to_dict() for one in reversed(self._seen)],
        }
        return json.dumps(event)

    def _copy(self) -> None:
        """Make small copies of the images that came since, for as long as that may take."""
        begun = time.monotonic()
        while self._waiting and time.monotonic() - begun < _COPYING:
            image, prediction = self._waiting.popleft()
            small = None
            if prediction.error is None:
                with suppress(ZSVecError):
                    small = self._work.classifier.thumbnail(image)
            self._seen.append(Seen(_short(prediction.source), prediction, small))


def _rates(past: deque[tuple[float, Figures]]) -> dict[str, Any]:
    """Of the last second and of the last few; the stages and batches of these, or of all time where there was none."""
    now, found = past[-1]
    then, before = past[0]
    last, previous = past[-2] if len(past) > 1 else past[-1]
    since = _since(found.stats, before.stats)
    since = since if sum(since.batches.values()) else found.stats
    images, batches = _images(since), sum(since.batches.values())
    stages = {stage: since.busy.get(stage, 0.0) / images if images else None for stage in _STAGES}
    return {
        "rate": _rate(sum(found.outcomes.values()) - sum(previous.outcomes.values()), now - last),
        "mean_rate": _rate(sum(found.outcomes.values()) - sum(before.outcomes.values()), now - then),
        "stages": stages,
        "batch": images / batches if batches else None,
    }


def _rate(number: int, seconds: float) -> float:
    return number / seconds if seconds else 0.0


def _images(stats: StreamStats) -> int:
    return sum(size * number for size, number in stats.batches.items())


def _since(now: StreamStats, before: StreamStats) -> StreamStats:
    def less(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key: value - other.get(key, 0) for key, value in one.items()}

    return StreamStats(busy=less(now.busy, before.busy), batches=less(now.batches, before.batches))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
