"""Each request: its id, its line in the log, its figures, and the headers that all answers have."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsvec.service.metrics import Metrics
from zsvec.service.problems import Problem, answer

_log = logging.getLogger("zsvec.requests")

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none at all, browsers send forms with an Origin of null
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}


class Requests:
    """Stands before all else.

    Args:
        app: What answers.
        metrics: Counts.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["key"] = None
        begun, code = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = identity
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                if scope["app"].state.health.ending.is_set():
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:  # by the server, which ends
            if code:
                raise
            detail = "the service has ended before this was done: a change may be done yet. Look, and ask again"
            await answer(Problem(503, detail))(scope, receive, sending)
        except Exception:
            _log.exception("request %s failed", identity)
            if code:
                raise
            detail = f"zsvec failed: the log says why, at request {identity}"
            await answer(Problem(500, detail))(scope, receive, sending)
        finally:
            self._count(scope, identity, code, time.perf_counter() - begun)

    def _count(self, scope: Scope, identity: str, code: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        key = scope["state"].get("key")
        self._metrics.requests.labels(route, str(code)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        facts = {
            "id": identity,
            "method": scope["method"],
            "route": route,
            "code": code,
            "seconds": round(seconds, 6),
            "key": key and key.name,
        }
        _log.info("%(method)s %(route)s %(code)s in %(seconds).3f s", facts, extra={"request": facts})
