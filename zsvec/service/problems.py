"""Errors as the service answers them: problem details (RFC 9457), one member more with the error's class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from zsvec.errors import (
    CategoryNotFoundError,
    ConflictError,
    ImageError,
    InvalidInputError,
    MissingExtraError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    WeightsUnavailableError,
    ZSVecError,
    without_password,
)

# The first class that an error is of decides.
_STATUS: tuple[tuple[type[ZSVecError], int], ...] = (
    (CategoryNotFoundError, 404),
    (InvalidInputError, 422),
    (ImageError, 422),
    (ConflictError, 409),
    (StoreUnavailableError, 503),
    (StoreLockedError, 503),
    (WeightsUnavailableError, 503),
    (MissingExtraError, 503),
    (StoreError, 409),  # what is in the store, or is not, does not allow it
)
_LONGEST = 2000  # characters of a detail
RETRY = {429: "1", 503: "5"}
"""Seconds after which what was answered by a status may be tried again."""


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """An answer that is a problem.

    Args:
        status: Of HTTP.
        detail: What happened, with which value, and what to do.
        headers: Of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail if len(detail) <= _LONGEST else f"{detail[:_LONGEST]}…"  # it may have what was sent
        self.headers = {**({"Retry-After": RETRY[status]} if status in RETRY else {}), **(headers or {})}


class JSON(Response):
    """JSON, whatever characters are in it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes; a character that is none, such as half of a pair, is escaped."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(errors="backslashreplace")


def problem_of(error: ZSVecError) -> Problem:
    """The problem that an error of zsvec is."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return Problem(status, str(error))


def answer(problem: Problem, error: str | None = None) -> Response:
    """The answer that a problem is.

    Args:
        problem: It.
        error: Name of the class in `zsvec.errors`, if it is one of these.
    """
    body = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": without_password(problem.detail),
        **({"error": error} if error else {}),
    }
    return JSON(body, problem.status, headers=problem.headers, media_type="application/problem+json")
