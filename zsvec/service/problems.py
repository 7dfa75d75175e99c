"""Errors as HTTP responses: problem details (RFC 9457), with the class of the error in the member ``error``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias

from starlette.responses import Response
from starlette.types import Scope

from zsvec.errors import (
    CategoryNotFoundError,
    ConflictError,
    ImageError,
    InvalidInputError,
    MissingExtraError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    VersionConflictError,
    WeightsUnavailableError,
    ZSVecError,
    without_password,
)

# The first matching class decides.
_STATUS: tuple[tuple[type[ZSVecError], int], ...] = (
    (CategoryNotFoundError, 404),
    (InvalidInputError, 422),
    (ImageError, 422),
    (VersionConflictError, 412),
    (ConflictError, 409),
    (StoreUnavailableError, 503),
    (StoreLockedError, 503),
    (WeightsUnavailableError, 503),
    (MissingExtraError, 503),
    (StoreError, 409),  # the state of the store does not allow the request
)
_MAX_DETAIL = 2000  # characters
_RETRY_AFTER_S = {429: "1", 503: "5"}


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """A refused or failed request.

    Attributes:
        detail: Message for programs and their authors.
        error: Name of a class in `zsvec.errors`, if an error of zsvec is the cause.
        said: Sentence for the users of pages. ``None`` for the sentence of `error`, or else of the status.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        error: str | None = None,
        said: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail if len(detail) <= _MAX_DETAIL else f"{detail[:_MAX_DETAIL]}…"  # may quote the request
        retry = {"Retry-After": _RETRY_AFTER_S[status]} if status in _RETRY_AFTER_S else {}
        self.headers = {**retry, **(headers or {})}
        self.error = error
        self.said = said


Answer: TypeAlias = Callable[[Scope, Problem], Response]
"""Returns the response for a refused request of a browser or a program."""


class JSON(Response):
    """A JSON response. Lone surrogates are escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the body."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(errors="backslashreplace")


def problem_of(error: ZSVecError) -> Problem:
    """Returns the problem for an error of zsvec."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    said = None
    if isinstance(error, CategoryNotFoundError) and error.name:
        said = f"There is no category “{error.name}”. It may have been renamed or removed."
    return Problem(status, str(error), error=type(error).__name__, said=said)


def refusal(status: int, sentence: str) -> Problem:
    """Returns the problem of a page, with a sentence for its users."""
    return Problem(status, sentence, said=sentence)


def answer(problem: Problem) -> Response:
    """Returns the response for a problem."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": without_password(problem.detail),
        **({"error": problem.error} if problem.error else {}),
    }
    return JSON(body, problem.status, headers=problem.headers, media_type="application/problem+json")
