"""Errors as HTTP responses: problem details (RFC 9457). The member ``error`` has one of the codes in `CODES`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias

from starlette.responses import Response
from starlette.types import Scope

from zsvec.errors import (
    CategoryNotFoundError,
    ChangeIdNeededError,
    ConflictError,
    EncoderMismatchError,
    ImageError,
    InvalidInputError,
    LastReferenceError,
    MissingExtraError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    VersionConflictError,
    WeightsUnavailableError,
    ZSVecError,
    without_password,
)

CODES: Mapping[str, tuple[int, str]] = {
    "bad_request": (400, "The body, the form or a header cannot be parsed."),
    "key_needed": (401, "The service has keys, and the request has none. Send `Authorization: Bearer KEY`."),
    "key_invalid": (401, "The key is not one of this service."),
    "key_read_only": (403, "The key may only read. Use a key with the right `write`."),
    "cross_origin": (403, "A page of another origin sent the request."),
    "untrusted_host": (
        403,
        "The service has no keys, and the request has the host of another machine or came by a proxy.",
    ),
    "not_found": (404, "There is no such file or image."),
    "unknown_path": (404, "The service has no such path. `/v1/openapi.json` lists the paths of the API."),
    "category_not_found": (404, "There is no category of this name."),
    "reference_not_found": (404, "The category has no reference with this hash."),
    "copy_not_found": (404, "The store has no small copy of this image (setting `keep_images`)."),
    "method_not_allowed": (405, "The path does not take this method. The header `Allow` lists those it takes."),
    "body_stalled": (408, "The body stalled or was too slow. Send the request again."),
    "conflict": (409, "Other writers changed a category at every attempt. Send the request again later."),
    "last_reference": (409, "A category would have no reference. Remove the category, or merge it into another."),
    "name_taken": (409, "There is a category of the new name already. Merge the two, or take another name."),
    "not_possible": (409, "The values are valid, but the state of the store does not allow the change."),
    "change_id_needed": (
        409,
        "The last change is not your own, or concerns many images. To undo it, give its id: `change`.",
    ),
    "store_refuses": (409, "The state of the store does not allow the request, such as a store without categories."),
    "encoder_mismatch": (409, "The store was made with other encoders than those of the service."),
    "list_expired": (410, "The service no longer keeps the list of this cursor. Ask for the first page again."),
    "version_conflict": (
        412,
        "`If-Match` or `If-None-Match` does not hold. Read the category again, and repeat the change.",
    ),
    "too_large": (413, "The body, the form or the JSON is too large. Send several requests."),
    "unsupported_media_type": (415, "The body must have another media type, or text must be UTF-8."),
    "invalid_input": (422, "A value in the path, the query, a header or the body cannot be used."),
    "invalid_image": (422, "An image cannot be read: damaged, too large, or not an image."),
    "too_many_images": (422, "A request has more images than the service takes at once. Send several requests."),
    "invalid_cursor": (422, "The cursor is not the `next` of a page of this list."),
    "unknown_parameter": (422, "The query has a parameter that the route does not take, or one twice."),
    "busy": (429, "Too many requests wait. `Retry-After` has the seconds until the next attempt."),
    "internal_error": (500, "zsvec failed. The log of the service has the cause, at the id in `X-Request-ID`."),
    "unavailable": (503, "The service starts, ends, or has no room for temporary files."),
    "store_unavailable": (503, "The store does not answer, is full, or refuses access."),
    "store_locked": (503, "Another process has the embedded store open."),
    "weights_unavailable": (503, "The weights of an encoder cannot be loaded."),
    "missing_extra": (503, "An optional package is not installed in the service."),
}
"""Status and meaning of each problem, by code."""
TYPES = "https://github.com/zsvec/zsvec/blob/main/zsvec/docs/problems.md"
"""Page that describes the problems. The code is the anchor, so that both together are the type of a problem."""
_USUAL = {400: "bad_request", 401: "key_needed", 403: "cross_origin", 404: "not_found", 409: "not_possible"}
_USUAL |= {422: "invalid_input", 503: "unavailable"} | {
    status: code for code, (status, _) in CODES.items() if status in (405, 408, 410, 412, 413, 415, 429, 500)
}
# The first matching class decides.
_OF_CLASS: tuple[tuple[type[ZSVecError], str], ...] = (
    (CategoryNotFoundError, "category_not_found"),
    (ChangeIdNeededError, "change_id_needed"),
    (InvalidInputError, "invalid_input"),
    (ImageError, "invalid_image"),
    (VersionConflictError, "version_conflict"),
    (LastReferenceError, "last_reference"),
    (ConflictError, "conflict"),
    (StoreUnavailableError, "store_unavailable"),
    (StoreLockedError, "store_locked"),
    (EncoderMismatchError, "encoder_mismatch"),
    (WeightsUnavailableError, "weights_unavailable"),
    (MissingExtraError, "missing_extra"),
    (StoreError, "store_refuses"),
    (ZSVecError, "internal_error"),
)
_MAX_DETAIL = 2000  # characters
_RETRY_AFTER_S = {429: "1", 503: "5"}


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """A refused or failed request.

    Attributes:
        detail: Message for programs and their authors.
        error: Code of the problem, in `CODES`. ``None`` for the usual code of the status.
        said: Sentence for the users of pages. ``None`` for the sentence of `error`, or else of the status.
        change: Id of the change to undo, for `change_id_needed`.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        error: str | None = None,
        said: str | None = None,
        change: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail if len(detail) <= _MAX_DETAIL else f"{detail[:_MAX_DETAIL]}…"  # may quote the request
        retry = {"Retry-After": _RETRY_AFTER_S[status]} if status in _RETRY_AFTER_S else {}
        self.headers = {**retry, **(headers or {})}
        self.error = error or _USUAL.get(status, "internal_error")
        self.said = said
        self.change = change


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
    code = next(code for kind, code in _OF_CLASS if isinstance(error, kind))
    status, meaning = CODES[code]
    said = None
    if isinstance(error, CategoryNotFoundError) and error.name:
        said = f"There is no category “{error.name}”. It may have been renamed or removed."
    # Failures of the service itself are explained in the log, because these messages name folders and hosts.
    is_of_service = status >= 500 or code == "encoder_mismatch"
    return Problem(
        status, f"{meaning} The log of the service says more." if is_of_service else str(error), error=code, said=said
    )


def refusal(status: int, sentence: str) -> Problem:
    """Returns the problem of a page, with a sentence for its users."""
    return Problem(status, sentence, said=sentence)


def answer(problem: Problem, location: str = "") -> Response:
    """Returns the response for a problem. The detail does not name the location of the store."""
    detail = problem.detail
    place = location.partition(" (namespace ")[0]
    for name in (location, place, place.removeprefix("the missing folder ")):
        if "/" in name or "\\" in name:
            detail = detail.replace(name, "the store")
    body = {
        "type": f"{TYPES}#{problem.error}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": without_password(detail),
        "error": problem.error,
        **({"change": problem.change} if problem.change else {}),
    }
    return JSON(body, problem.status, headers=problem.headers, media_type="application/problem+json")
