"""Helpers of the routes: dependencies, path parameters, conflict errors, atomic changes and small copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Path, Request
from pydantic import AfterValidator, WithJsonSchema
from starlette.responses import Response

from zsvec import Classifier
from zsvec.errors import CategoryNotFoundError, ChangeIdNeededError, InvalidInputError, ZSVecError
from zsvec.service.admission.queue import Work
from zsvec.service.api.schemas import HASH, NAME
from zsvec.service.auth.keys import Key
from zsvec.service.problems import Problem
from zsvec.types import SWITCH, Change, SmallImage


# Dependencies are async, because FastAPI runs sync functions in a thread, which takes longer than the function itself.
async def work_of(request: Request) -> Work:
    """Returns the executor of the service."""
    work: Work = request.app.state.work
    return work


async def author_of(request: Request) -> str | None:
    """Returns the name of the API key that the request used. The history records this name as the author.

    ``None`` if the service has no keys.
    """
    key: Key | None = request.state.key
    return key.name if key else None


async def check_query(request: Request) -> None:
    """Refuses query parameters that the description of the route does not have, and repeated ones."""
    operation = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    parameters = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
    known = {one["name"] for one in parameters}
    once = known - {one["name"] for one in parameters if one["schema"].get("type") == "array"}
    names = [name for name, _ in request.query_params.multi_items()]
    if unknown := sorted(set(names) - known):
        detail = f"the query may have {', '.join(sorted(known)) or 'no parameter'}, got {unknown[0]!r}"
        raise Problem(422, detail, error="unknown_parameter")
    if any(names.count(name) > 1 for name in once):
        raise Problem(422, "each parameter of the query must be given once", error="unknown_parameter")


def _decoded(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise Problem(422, "a name in a path must be UTF-8, percent-encoded") from None


Runs = Annotated[Work, Depends(work_of)]
By = Annotated[str | None, Depends(author_of)]
Name = Annotated[
    str,
    Path(description="Name of the category; encode `/` as `%2F`.", examples=["red panda"]),
    AfterValidator(_decoded),
    WithJsonSchema(NAME),
]
Hash = Annotated[str, Path(description="Content hash of the text or image.", pattern=HASH)]


@contextmanager
def of_state() -> Iterator[None]:
    """Maps InvalidInputError in the block to status 409, instead of 422.

    In such a block, the values are valid, but the state of the store does not allow the change. A missing category
    still has status 404.
    """
    try:
        yield
    except CategoryNotFoundError:
        raise
    except ChangeIdNeededError as exc:
        change = exc.change.id if isinstance(exc.change, Change) else None
        raise Problem(409, str(exc), error="change_id_needed", change=change) from exc
    except InvalidInputError as exc:
        raise Problem(409, str(exc)) from exc


def undo_change(classifier: Classifier, category: str | None = None, *, change: str | None) -> Change:
    """As `zsvec.curation.history.History.undo`.

    Raises:
        InvalidInputError: As there, or the change is a switch to other encoders: this service could not write to the
            former store.
    """
    effective = (one for one in classifier.history if not one.undone and one.id.startswith(change or ""))
    newest = next(effective, None) if category is None else None
    if newest is not None and newest.what == SWITCH:
        raise InvalidInputError(
            "the change must be another one than a switch to other encoders: stop the service, run "
            f"`zsvec undo {newest.id[:8]}`, and start it with the former encoders"
        )
    return classifier.history.undo(category, change=change)


@contextmanager
def whole_change(
    classifier: Classifier, kind: str, continues: str | None = None, *, more: bool = False
) -> Iterator[str]:
    """Records all writes of the block as one change, and undoes them if the block fails. Yields the id of the change.

    With `continues`, the writes belong to this earlier change, which is undone as a whole if the block fails. With
    `more`, later writes will continue the change, and calibrate.
    The writes are not undone if the history is disabled (setting ``history``), if another client has changed one of the
    categories since, or if the store is unavailable.
    """
    identifier = None
    try:
        with classifier.history.one_change(kind, continues=continues, more=more) as identifier:
            yield identifier
    except Exception:
        if identifier is not None:
            with suppress(ZSVecError):  # nothing may have been written
                classifier.history.undo(change=identifier)
        raise


def picture(request: Request, small: SmallImage | None, content_hash: str) -> Response:
    """Returns the small copy of an image as JPEG, or status 304 if the browser has cached the copy.

    Raises:
        Problem: There is no copy.
    """
    if small is None:
        detail = f"the store has no small copy of {content_hash[:12]}: see the setting `keep_images`"
        raise Problem(404, detail, error="copy_not_found")
    # Browsers may cache the copy but must revalidate, since the key may have changed.
    headers = {"Cache-Control": "private, no-cache", "ETag": f'"{content_hash}"'}
    if content_hash in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(small.content, media_type="image/jpeg", headers=headers)
