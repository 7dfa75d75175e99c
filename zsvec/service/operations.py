"""What who runs the service asks it: whether it is alive and ready, and its figures."""

from __future__ import annotations

import asyncio
import logging
import time

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from zsvec import Classifier
from zsvec.errors import ZSVecError
from zsvec.service.metrics import PATIENCE
from zsvec.service.problems import JSON, Problem

_log = logging.getLogger(__name__)

_FRESH = 1.0  # seconds for which an answer of the store counts
_AGAIN = 5.0  # seconds after which loading is tried again

router = APIRouter(include_in_schema=False)


class Health:
    """Whether the service can answer.

    Args:
        classifier: Answers.

    Attributes:
        ending: Set when the service is to end: it takes no new connections soon.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self.ending = asyncio.Event()
        self._loaded = False
        self._loading = "the encoders are being loaded"
        self._said: tuple[float, str] = (float("-inf"), "")
        self._asking = asyncio.Lock()

    async def load(self) -> None:
        """Load the encoders; whatever fails is tried again."""
        while True:
            try:
                await asyncio.to_thread(self._classifier.load)
                self._loaded = True
            except ZSVecError as exc:
                _log.warning("the encoders cannot be loaded: %s", exc)
            except Exception:  # noqa: BLE001 - a defect, which is logged whole
                _log.exception("the encoders cannot be loaded")
            else:
                return
            self._loading = "the encoders cannot be loaded: the log says why"
            await asyncio.sleep(_AGAIN)

    async def problem(self) -> str:
        """Why it is not ready; empty if it is."""
        if self.ending.is_set():
            return "it is ending"
        if not self._loaded:
            return self._loading
        async with self._asking:  # once for all who want to know
            if time.monotonic() - self._said[0] > _FRESH:
                said = await asyncio.to_thread(self._ask_store)
                self._said = (time.monotonic(), said)
            return self._said[1]

    def _ask_store(self) -> str:
        try:
            with self._classifier.within(PATIENCE):
                self._classifier.ping()
        except ZSVecError as exc:
            _log.warning("the store does not answer: %s", exc)
            return "the store does not answer"
        return ""


@router.api_route("/health/live", methods=["GET", "HEAD"])
async def live() -> Response:
    """Whether the process answers."""
    return JSON({"status": "ok"})


@router.api_route("/health/ready", methods=["GET", "HEAD"])
async def ready(request: Request) -> Response:
    """Whether it can classify: the encoders are loaded, and the store answers."""
    if said := await request.app.state.health.problem():
        raise Problem(503, said)
    return JSON({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The figures, for Prometheus."""
    found = await asyncio.to_thread(request.app.state.metrics.text)  # not behind what waits for the store
    return Response(found, media_type=CONTENT_TYPE_LATEST)
