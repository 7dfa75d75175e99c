"""Routes of the whole store: contents, audit, history, undo."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from zsvec import __version__, checked_name
from zsvec.service.api import schemas
from zsvec.service.api.common import By, Runs, check_query, of_state, undo_change
from zsvec.service.api.description import PROBLEM, body_of
from zsvec.service.api.images import MAX_TOP_K
from zsvec.service.api.paging import MAX_LIMIT, Page
from zsvec.service.problems import JSON
from zsvec.service.uploads import sent_json
from zsvec.types import Change

_END_OF_TIME = 10**18  # microseconds since 1970

router = APIRouter(prefix="/v1", tags=["store"], responses=PROBLEM, dependencies=[Depends(check_query)])


@router.get("/info", response_model=schemas.Info)
async def info(work: Runs) -> Response:
    """Returns the version and limits of the service, and the size, encoders and calibration of the store."""

    def read() -> Response:
        limits = work.limits
        about = {
            "version": __version__,
            "limits": {
                "images": limits.images,
                "body_bytes": limits.body_bytes,
                "queue": limits.queue,
                "top_k": MAX_TOP_K,
                "page": MAX_LIMIT,
            },
        }
        found = work.classifier.info()
        return JSON({name: about.get(name) or found[name] for name in schemas.Info.model_fields})

    return await work.run(read)


@router.get("/audit", response_model=schemas.FindingPage)
async def audit(request: Request, work: Runs, paging: Page) -> Response:
    """Returns a summary, then label errors, near-duplicates and other findings.

    The audit compares all reference images with each other, which is slow in large stores. All pages are of the audit
    of the first page.
    """

    def listed() -> Response:
        found, after = request.app.state.lists.page(
            paging, lambda: list(work.classifier.references.audit().lines()), "audit"
        )
        return JSON({"items": found, "next": after})

    return await work.run(listed)


@router.get("/history", response_model=schemas.ChangePage)
async def history(
    work: Runs,
    paging: Page,
    category: Annotated[schemas.CategoryName | None, Query(description="Changes of this category.")] = None,
) -> Response:
    """Returns the changes that can be undone or were undone, newest first, by the time of their first write."""

    def listed() -> Response:
        changes = work.classifier.history
        every = list(changes) if category is None else changes.of(category)
        found, after = paging.page(sorted(every, key=_age), _age, "history", category or "")
        return JSON({"items": [change.to_dict() for change in found], "next": after})

    return await work.run(listed)


def _age(change: Change) -> list[str]:
    # A change that goes on between two pages has another `at`.
    return [f"{_END_OF_TIME - round(change.begun.timestamp() * 1e6):018}", change.id]


@router.post("/undo", response_model=schemas.Change, openapi_extra=body_of(schemas.UndoGiven))
async def undo(request: Request, work: Runs, by: By) -> Response:
    """Restores the categories of a change to the state before the change, and returns the change.

    An undo is itself a change, which can be undone by id. `left_out` has the categories that are not as the undo left
    them.
    """
    given = await sent_json(request, schemas.UndoGiven)

    def undone() -> dict[str, Any]:
        category = None if given.category is None else checked_name(given.category)
        with of_state():
            return undo_change(work.classifier, category, change=given.change).to_dict()

    return JSON(await work.run(undone, by=by))
