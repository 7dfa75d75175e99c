"""The page *Live*: what the service does now, told once a second."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from zsvec.service.live import SHOWN, Live
from zsvec.service.pages.rendering import render
from zsvec.service.problems import Problem

router = APIRouter(prefix="/live")

_AGAIN = 2000  # milliseconds after which a browser connects again
_KEPT = "private, max-age=3600"


@router.get("")
async def show(request: Request) -> Response:
    """The page."""
    return render(request, "live.html", tab="/live", shown=SHOWN)


@router.get("/events")
async def events(request: Request) -> Response:
    """What is done, as server-sent events."""
    if request.app.state.health.ending.is_set():
        raise Problem(503, "the service is ending")
    return _Events(_lines(request.app.state.live))


async def _lines(live: Live) -> AsyncGenerator[str, None]:
    yield f"retry: {_AGAIN}\n\n"
    async with aclosing(live.events()) as told:
        async for event in told:
            yield f"data: {event}\n\n"


class _Events(StreamingResponse):
    """Server-sent events. Whoever leaves watches no more at once, even if the last event was not taken."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[str, None]) -> None:
        super().__init__(lines, headers={"X-Accel-Buffering": "no"})  # nginx would wait for more
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._lines.aclose()


@router.get("/images/{identity}")
async def picture(request: Request, identity: str) -> Response:
    """The small copy of an image that is shown."""
    small = request.app.state.live.picture(identity)
    if small is None:
        raise Problem(404, "this image is shown no more")
    return Response(small, media_type="image/jpeg", headers={"Cache-Control": _KEPT})
