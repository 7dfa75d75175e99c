"""The page *Live*: rates, stages and recent images, sent once a second as server-sent events.

While a client watches, a task reads the statistics and makes small copies of recent images. All clients get the same
events. A slow client skips events, so that events do not pile up.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, TypeAlias

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from zsvec import ImageInput, StreamStats
from zsvec.errors import ZSVecError
from zsvec.service.admission.queue import Work
from zsvec.service.operations import Metrics
from zsvec.service.pages.rendering import render, verdict
from zsvec.service.problems import Problem
from zsvec.types import Prediction

router = APIRouter(prefix="/live")

SHOWN = 12
"""Number of recent images on the page."""
_EVENT_INTERVAL_S = 1.0
_WINDOW = 10  # events for mean rates and stage times
_COPIES = 4  # maximum number of copies that are made for one event
_COPY_TIME_S = 0.1  # after this time, no other copy is begun
_MAX_NAME = 120  # characters
_STAGES = ("decode", "preprocess", "encode", "search", "fuse")
_RECONNECT_MS = 2000
_CACHE_CONTROL = "private, max-age=3600"

_Totals: TypeAlias = tuple[float, int, StreamStats]  # monotonic seconds, number of images, statistics


class Live:
    """Events of a service. Must be used in one event loop, but images may be classified in any thread."""

    def __init__(self, work: Work, metrics: Metrics, ending: asyncio.Event) -> None:
        self._work = work
        self._metrics = metrics
        self._ending = ending
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._event = ""
        self._published = asyncio.Event()  # replaced at each event
        self._waiting: deque[tuple[ImageInput, Prediction]] | None = None  # None: no client watches
        self._shown: deque[tuple[dict[str, Any], bytes | None]] = deque(maxlen=SHOWN)
        work.listeners.append(self._see)

    def picture(self, identity: str) -> bytes | None:
        """Returns the small copy of a recent image as JPEG, or ``None``."""
        return next((small for image, small in list(self._shown) if image["id"] == identity), None)

    async def events(self) -> AsyncGenerator[str, None]:
        """Yields a JSON object about once a second, until the service shuts down."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            while self._task is not None:  # a slow client may come back after the last event
                await self._published.wait()
                if not self._event:
                    return
                yield self._event
        finally:
            self._watchers -= 1

    async def _run(self) -> None:
        self._waiting = deque(maxlen=_COPIES)
        past: deque[_Totals] = deque(maxlen=_WINDOW + 1)
        try:
            while self._watchers and not self._ending.is_set():
                self._publish(await asyncio.to_thread(self._read, past))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), _EVENT_INTERVAL_S)
        finally:
            self._task = self._waiting = None
            self._shown.clear()
            self._publish("")

    def _publish(self, event: str) -> None:
        self._event = event
        published, self._published = self._published, asyncio.Event()
        published.set()

    def _see(self, image: ImageInput, prediction: Prediction) -> None:
        if (waiting := self._waiting) is not None:
            waiting.append((image, prediction))

    def _read(self, past: deque[_Totals]) -> str:
        self._copy()
        work = self._work
        references, _ = self._metrics.read_store()
        past.append((time.monotonic(), work.outcomes.total(), work.classifier.stats))
        event = {
            **_rates(past),
            "outcomes": work.outcomes,
            "settled": sum(past[-1][2].settled.values()),
            "no_cascade": past[-1][2].no_cascade or "",
            "queue": work.queued,
            "room": work.limits.queue,
            "codes": self._metrics.codes(),
            "references": references,
            "images": [image for image, _ in reversed(self._shown)],
        }
        return json.dumps(event)

    def _copy(self) -> None:
        begun = time.monotonic()
        while self._waiting and time.monotonic() - begun < _COPY_TIME_S:
            image, prediction = self._waiting.popleft()
            small = None
            if prediction.error is None:
                with suppress(ZSVecError):
                    small = self._work.classifier.thumbnail(image)
            shown = {
                "id": secrets.token_urlsafe(16),
                "name": _short(prediction.source),
                "picture": small is not None,
                "verdict": "unread" if prediction.error is not None else verdict(prediction),
                "nearest": _short(prediction.nearest or ""),
                "probability": prediction.probability,
            }
            self._shown.append((shown, small))


def _rates(past: deque[_Totals]) -> dict[str, Any]:
    """Returns the current and mean image rates, the seconds per image of each stage, and the mean batch size.

    Stage times and batch size cover the events in `past`. If no batch ran in that time, both cover the time since the
    classifier was opened.
    """
    now, done, stats = past[-1]
    first, done_first, stats_first = past[0]
    last, done_last, _ = past[-2] if len(past) > 1 else past[-1]
    base = stats_first if stats.batches != stats_first.batches else StreamStats()
    batches = Counter(stats.batches)
    batches.subtract(base.batches)
    images = sum(size * number for size, number in batches.items())
    busy = {stage: stats.busy.get(stage, 0.0) - base.busy.get(stage, 0.0) for stage in _STAGES}
    return {
        "rate": _rate(done - done_last, now - last),
        "mean_rate": _rate(done - done_first, now - first),
        "stages": {stage: seconds / images if images else None for stage, seconds in busy.items()},
        "batch": images / batches.total() if images else None,
    }


def _rate(images: int, seconds: float) -> float:
    return images / seconds if seconds else 0.0


def _short(text: str) -> str:
    return text if len(text) <= _MAX_NAME else f"{text[: _MAX_NAME - 1]}…"


@router.get("")
async def show(request: Request) -> Response:
    """Shows the page."""
    return render(request, "live.html", tab="/live", shown=SHOWN)


@router.get("/events")
async def events(request: Request) -> Response:
    """Streams the events."""
    if request.app.state.health.ending.is_set():
        raise Problem(503, "the service is shutting down")
    return _Events(_lines(request.app.state.live))


async def _lines(live: Live) -> AsyncGenerator[str, None]:
    yield f"retry: {_RECONNECT_MS}\n\n"
    async with aclosing(live.events()) as published:
        async for event in published:
            yield f"data: {event}\n\n"


class _Events(StreamingResponse):
    """A response of server-sent events. Closes `lines` when the client disconnects, even if an event is unsent."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[str, None]) -> None:
        super().__init__(lines, headers={"X-Accel-Buffering": "no"})  # otherwise, nginx buffers events
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._lines.aclose()


@router.get("/images/{identity}")
async def picture(request: Request, identity: str) -> Response:
    """Shows the small copy of a recent image."""
    small = request.app.state.live.picture(identity)
    if small is None:
        raise Problem(404, "this image is no longer shown: reload the page")
    return Response(small, media_type="image/jpeg", headers={"Cache-Control": _CACHE_CONTROL})
