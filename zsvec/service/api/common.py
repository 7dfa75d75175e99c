"""What the routes share: who asks, what runs it, names in paths, and the problems that they answer with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, Path, Request
from pydantic import AfterValidator, BaseModel, WithJsonSchema
from starlette.responses import Response

from zsvec import Classifier
from zsvec.errors import CategoryNotFoundError, InvalidInputError, ZSVecError
from zsvec.service.admission.work import Work
from zsvec.service.api.schemas import HASH, NAME, TEXT
from zsvec.service.auth.keys import Key
from zsvec.service.problems import RETRY, Problem
from zsvec.types import SmallImage


def work_of(request: Request) -> Work:
    """What runs requests."""
    work: Work = request.app.state.work
    return work


def by(request: Request) -> str | None:
    """Who asks, where that is known."""
    key: Key | None = request.state.key
    return key.name if key else None


# FastAPI runs what is not async in a thread: for these, that would take longer than all else that it does.
async def _runs(request: Request) -> Work:
    return work_of(request)


async def _by(request: Request) -> str | None:
    return by(request)


def _decoded(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise Problem(422, "a name in a path is UTF-8, percent-encoded: this one is not") from None


Runs = Annotated[Work, Depends(_runs)]
By = Annotated[str | None, Depends(_by)]
Name = Annotated[
    str,
    Path(description="Name of the category. In a path, a `/` in it is sent as `%2F`.", examples=["red panda"]),
    AfterValidator(_decoded),
    WithJsonSchema(NAME),
]
Hash = Annotated[str, Path(description="Content hash of the text or image.", pattern=HASH)]


@contextmanager
def of_state() -> Iterator[None]:
    """Values that can be used, though not now: a Problem of the state of the store, not of the request."""
    try:
        yield
    except CategoryNotFoundError:
        raise
    except InvalidInputError as exc:
        raise Problem(409, str(exc)) from exc


@contextmanager
def whole_change(classifier: Classifier, what: str) -> Iterator[str]:
    """All writes of a block as one change, whose id it gets; if the block fails, what it has written is taken back.

    That cannot be, and what was written stays, without a history (setting ``history``), where others have changed one
    of the categories since, and while the store is away.

    Args:
        classifier: Whose categories are changed.
        what: The change, in one word, as the history has it.
    """
    try:
        with classifier.history.one_change(what) as identifier:
            yield identifier
    except Exception:
        with suppress(ZSVecError):  # as where nothing was written
            classifier.history.undo(change=identifier)
        raise


_SAID = {
    400: "The body cannot be read",
    401: "No key, or none of this service",
    403: "The key may not do this, or a page of another origin asks",
    404: "There is no such thing",
    408: "The body did not come",
    409: "Others changed it at every attempt, or the state of the store does not allow it",
    413: "The body, or the number of images, is too large",
    415: "The body has another type than those that are taken",
    422: "A value cannot be used",
    429: "Too much is waiting: try again after the seconds of `Retry-After`",
    503: "The store is away: try again after the seconds of `Retry-After`",
}
OF_BODY = (400, 408, 413, 415, 422)
"""Problems of requests that send something."""


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """How a description says that a route answers with these, beside those of all routes."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    again = {"headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}}
    return {
        code: {"description": _SAID[code], "content": content, **(again if code in RETRY else {})}
        for code in sorted({*codes, 401, 403, 429, 503})
    }


OF_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The copy of this `ETag` is still right"},
    **problems(404, 409, 422),
}
"""How a description says that a route answers with a small copy of an image."""


def picture(request: Request, small: SmallImage | None, content_hash: str) -> Response:
    """The small copy of an image, a JPEG; 304 where the browser has it.

    Args:
        request: Asks for it.
        small: The copy.
        content_hash: Of the image.

    Raises:
        Problem: There is no copy.
    """
    if small is None:
        raise Problem(404, f"the store has no small copy of {content_hash[:12]}: it may keep none (`keep_images`)")
    # Browsers may keep it, but must ask each time: the key may be another one by then.
    headers = {"Cache-Control": "private, no-cache", "ETag": f'"{content_hash}"'}
    if content_hash in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(small.content, media_type="image/jpeg", headers=headers)


def body_of(model: type[BaseModel], *, form: bool = False, raw: bool = False) -> dict[str, Any]:
    """How a description says what a route reads of its body by itself.

    Args:
        model: As JSON.
        form: Whether a form with the same fields will do.
        raw: Whether an image will do.
    """
    image = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    if form:
        required = [name for name, field in model.model_fields.items() if field.is_required()]
        kinds = {
            "images": {"type": "array", "items": image, **({"minItems": 1} if "images" in required else {})},
            "texts": {"type": "array", "items": TEXT},
            "metadata": {"type": "object"},  # as JSON
        }
        fields = {name: kinds[name] for name in model.model_fields}
        described: dict[str, Any] = {"type": "object", "properties": fields, "additionalProperties": False}
        if required:
            described["required"] = required
        content["multipart/form-data"] = {"schema": described}
    if raw:
        content |= {"image/*": {"schema": image}, "application/octet-stream": {"schema": image}}
    return {"requestBody": {"required": True, "content": content}}
