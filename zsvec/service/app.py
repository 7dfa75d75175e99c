"""The application: routes, and what stands before them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from zsvec import Classifier, __version__
from zsvec.errors import ZSVecError
from zsvec.service import api, operations, pages
from zsvec.service.admission.backpressure import Backpressure
from zsvec.service.admission.connections import Connections
from zsvec.service.admission.work import ClientLeft, Limits, Work
from zsvec.service.api.description import ABOUT, completed
from zsvec.service.auth.guard import Guard
from zsvec.service.auth.keys import Keys
from zsvec.service.live import Live
from zsvec.service.metrics import Metrics
from zsvec.service.problems import Problem, answer, problem_of
from zsvec.service.requests import Requests

_log = logging.getLogger(__name__)

DESCRIPTION = "/v1/openapi.json"
"""Where the description of the API is."""
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


class _Service(FastAPI):
    """An application that describes itself whole."""

    def openapi(self) -> dict[str, Any]:
        """The description of the API."""
        if self.openapi_schema is None:
            self.openapi_schema = completed(super().openapi(), self.state.work.limits.images)
        return self.openapi_schema


def create_app(classifier: Classifier, *, keys: Keys | None = None, limits: Limits | None = None) -> FastAPI:
    """A service of a classifier, to be run by any server of ASGI applications, in one process.

    Its encoders are loaded when it starts. It does not close the classifier.

    Args:
        classifier: Classifies.
        keys: Who may ask; by default whoever reaches it, by a name of this machine.
        limits: What it takes.
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
        docs_url=None,  # their scripts come from elsewhere
        redoc_url=None,
        openapi_url=DESCRIPTION,
        redirect_slashes=False,
    )
    app.state.work = work
    app.state.keys = keys or Keys()
    app.state.connections = Connections()
    app.state.health = operations.Health(classifier)
    app.state.metrics = Metrics(work)
    app.state.live = Live(work, app.state.metrics, app.state.health.ending)
    for router in (api.router, operations.router, pages.router):
        app.include_router(router)
    _answer_errors(app)
    # The last one that is added stands first.
    app.add_middleware(Guard, keys=app.state.keys)
    app.add_middleware(_WholePaths)
    app.add_middleware(Backpressure, limits=chosen, connections=app.state.connections)
    app.add_middleware(Requests, metrics=app.state.metrics)
    return app


class _WholePaths:
    """Paths as they were sent: what is encoded stays so, that a name may have a ``/``. Queries must be UTF-8."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("raw_path"):
            scope["path"] = scope["raw_path"].partition(b"?")[0].decode("latin-1")
        try:
            unquote_to_bytes(scope.get("query_string", b"")).decode()
        except UnicodeDecodeError:
            # Nothing has checked the length of the body yet, so no further request of the connection is read.
            problem = Problem(422, "a query must be UTF-8, percent-encoded: this one is not", {"Connection": "close"})
            await answer(problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(request: Request, exc: Problem) -> Response:
        return pages.answered(request, exc) or answer(exc)

    @app.exception_handler(ZSVecError)
    async def known(request: Request, exc: ZSVecError) -> Response:
        found = problem_of(exc)
        if found.status >= 500:
            _log.warning("%s: %s", type(exc).__name__, exc)
        return pages.answered(request, found) or answer(found, type(exc).__name__)

    @app.exception_handler(HTTPException)
    async def other(request: Request, exc: HTTPException) -> Response:
        found = _explained(request, exc)
        return pages.answered(request, found) or answer(found)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, exc: RequestValidationError) -> Response:
        first = exc.errors()[0]
        found = Problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        return pages.answered(request, found) or answer(found)

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(ClientLeft)
    async def left(request: Request, exc: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; the log does


def _explained(request: Request, error: HTTPException) -> Problem:
    """An error of the framework as a problem; of a path or a method that there is not, with those that there are."""
    if error.status_code == 404 and error.detail == HTTPStatus.NOT_FOUND.phrase:
        return Problem(404, f"there is nothing at this path: {DESCRIPTION} describes those that there are")
    if error.status_code == 405:
        taken = ", ".join(method for method in _METHODS if _is_taken(request, method))
        return Problem(405, f"{request.method} is not taken at this path: use {taken}", {"Allow": taken})
    return Problem(error.status_code, str(error.detail), error.headers)


def _is_taken(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)
