"""The routes of the store as a whole: what is in it, what is doubtful, what was changed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zsvec import checked_name
from zsvec.service.api import schemas
from zsvec.service.api.common import OF_BODY, By, Runs, body_of, of_state, problems
from zsvec.service.problems import JSON
from zsvec.service.uploads import sent_json

router = APIRouter(prefix="/v1", tags=["store"])


@router.get("/info", summary="Say what is in the store", response_model=dict[str, Any], responses=problems(409))
async def info(work: Runs) -> Response:
    """Its place, size, encoders, calibration, and the versions of its engine."""
    return JSON(await work.run(work.classifier.info))


@router.get("/audit", summary="Audit the references", response_model=list[schemas.Finding], responses=problems(409))
async def audit(work: Runs) -> Response:
    """A summary, then what is doubtful among the reference images. All of them are compared: it takes time."""
    return JSON(await work.run(lambda: list(work.classifier.references.audit().lines())))


@router.get(
    "/history", summary="List what was changed", response_model=list[schemas.Change], responses=problems(409, 422)
)
async def history(
    work: Runs, category: Annotated[schemas.CategoryName | None, Query(description="Only changes of this one.")] = None
) -> Response:
    """What can be taken back, or was, newest first."""
    changes = work.classifier.history
    found = await work.run(lambda: list(changes) if category is None else changes.of(category))
    return JSON([change.to_dict() for change in found])


@router.post(
    "/undo",
    summary="Take a change back",
    response_model=schemas.Change,
    responses=problems(*OF_BODY, 409),
    openapi_extra=body_of(schemas.UndoGiven),
)
async def undo(request: Request, work: Runs, by: By) -> Response:
    """The change. Its categories become what they were before; that is a change, too."""
    given = await sent_json(request, schemas.UndoGiven)

    def undone() -> dict[str, Any]:
        category = None if given.category is None else checked_name(given.category)
        with of_state():
            return work.classifier.history.undo(category, change=given.change).to_dict()

    return JSON(await work.run(undone, by=by))
