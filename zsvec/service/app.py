"""The ASGI application: routes, error handlers and middleware."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsvec import Classifier, __version__
from zsvec.errors import ZSVecError
from zsvec.service import api, operations, pages
from zsvec.service.admission.bodies import Backpressure
from zsvec.service.admission.connections import Connections
from zsvec.service.admission.queue import ClientLeft, Limits, Work
from zsvec.service.api.description import ABOUT, completed
from zsvec.service.api.paging import Lists
from zsvec.service.auth.guard import Guard
from zsvec.service.auth.keys import Keys
from zsvec.service.label_studio import LabelStudio
from zsvec.service.label_studio import router as label_studio_router
from zsvec.service.operations import Health, Metrics
from zsvec.service.pages.comparisons import Comparisons
from zsvec.service.pages.image_map import ImageMap
from zsvec.service.pages.live import Live
from zsvec.service.problems import Problem, answer, problem_of

_log = logging.getLogger(__name__)
_access_log = logging.getLogger("zsvec.requests")

DESCRIPTION = "/v1/openapi.json"
"""Path of the OpenAPI description."""
_API = "/v1/"
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send forms with "Origin: null"
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}


class _Service(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = completed(
                super().openapi(), self.state.work.limits.images, keys=bool(self.state.keys)
            )
        return self.openapi_schema


def create_app(
    classifier: Classifier,
    *,
    keys: Keys | None = None,
    limits: Limits | None = None,
    label_studio: LabelStudio | None = None,
) -> FastAPI:
    """Creates the ASGI application that serves a classifier. The application must run in one process.

    The encoders are loaded at start-up. The classifier is not closed at shutdown.

    Args:
        classifier: The classifier that makes predictions and changes.
        keys: API keys of clients. By default, clients need no key, but the Host header must name this machine.
        limits: Limits of requests.
        label_studio: The Label Studio that the service is a machine learning backend of, if any.
    """
    chosen = limits or Limits()
    work = Work(classifier, chosen)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(app.state.health.load())
        yield
        loading.cancel()
        await asyncio.to_thread(work.close)

    app = _Service(
        title="zsvec",
        version=__version__,
        summary="Image classification whose categories live in Qdrant",
        description=ABOUT,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        docs_url=None,  # loads scripts from a CDN; `zsvec.service.pages.docs` is in its place
        redoc_url=None,
        openapi_url=DESCRIPTION,
        redirect_slashes=False,
    )
    app.state.work = work
    app.state.keys = keys or Keys()
    app.state.connections = Connections()
    app.state.lists = Lists(lambda: {change.id for change in classifier.history if change.what == "forget"})
    app.state.health = Health(classifier)
    app.state.metrics = Metrics(work)
    app.state.image_map = ImageMap(work)
    app.state.comparisons = Comparisons(work)
    app.state.live = Live(work, app.state.metrics, app.state.health.ending)
    for router in (api.router, operations.router, pages.router):
        app.include_router(router)
    if label_studio is not None:
        app.state.label_studio = label_studio
        app.include_router(label_studio_router)
    for kind in (Problem, ZSVecError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_error)
    for left in (ClientDisconnect, ClientLeft):
        app.add_exception_handler(left, _answer_left_client)
    # The last middleware is the outermost.
    app.add_middleware(_Head)
    app.add_middleware(Guard, keys=app.state.keys, answer=_answer)
    app.add_middleware(_RawPaths)
    app.add_middleware(Backpressure, limits=chosen, connections=app.state.connections, answer=_answer)
    app.add_middleware(_AccessLog, metrics=app.state.metrics)
    return app


# Errors


async def _answer_error(request: Request, error: Any) -> Response:
    problem = _problem_of(request, error)
    if isinstance(error, ZSVecError) and problem.status >= 500:
        _log.warning("%s: %s", type(error).__name__, error)
    return _answer(request.scope, problem)


def _answer(scope: Scope, problem: Problem) -> Response:
    """Returns a page or a part of a page for a browser, and JSON for a program."""
    return pages.answered(Request(scope), problem) or answer(problem, scope["app"].state.work.classifier.location)


async def _answer_left_client(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # appears only in the log


def _problem_of(request: Request, error: Problem | ZSVecError | RequestValidationError | HTTPException) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, ZSVecError):
        return problem_of(error)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return Problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if error.status_code == 404 and error.detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"there is nothing at this path: {DESCRIPTION} lists the paths of the API"
        return Problem(404, detail, error="unknown_path")
    if error.status_code == 405:
        taken = ", ".join(method for method in _METHODS if _is_taken(request, method))
        return Problem(405, f"{request.method} is not allowed at this path: use {taken}", {"Allow": taken})
    return Problem(error.status_code, str(error.detail), error.headers)


def _is_taken(request: Request, method: str) -> bool:
    if method == "HEAD" and request.scope["path"].startswith(_API):
        method = "GET"
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)


# Middleware


class _Head:
    """Answers HEAD as GET in the API. The server leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or not scope["path"].startswith(_API):
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            scope["method"] = "HEAD"  # which the server and the log read
            await send(message)

        scope["method"] = "GET"
        try:
            await self._app(scope, receive, sending)
        finally:
            scope["method"] = "HEAD"


class _RawPaths:
    """Routes by the percent-encoded path, so that names may contain ``%2F``. Refuses queries that are not UTF-8."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("raw_path"):
            scope["path"] = scope["raw_path"].partition(b"?")[0].decode("latin-1")
        try:
            unquote_to_bytes(scope.get("query_string", b"")).decode()
        except UnicodeDecodeError:
            # The guard has not checked the length of the body yet, so no other request of the connection is safe.
            problem = Problem(422, "the query must be UTF-8, percent-encoded", {"Connection": "close"})
            await _answer(scope, problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class _AccessLog:
    """Logs and counts each request. Adds the request id and security headers to the response."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
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
        except asyncio.CancelledError:  # the server cancels requests at shutdown
            if code:
                raise
            detail = "the service shut down during the request. Check whether the change was made, then try again"
            await _answer(scope, Problem(503, detail))(scope, receive, sending)
        except Exception:
            _access_log.exception("request %s failed", identity)
            if code:
                raise
            detail = f"zsvec failed: see the log of the service, at request {identity}"
            await _answer(scope, Problem(500, detail))(scope, receive, sending)
        finally:
            self._record(scope, identity, code, time.perf_counter() - begun)

    def _record(self, scope: Scope, identity: str, code: int, seconds: float) -> None:
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
        _access_log.info("%(method)s %(route)s %(code)s in %(seconds).3f s", facts, extra={"request": facts})
