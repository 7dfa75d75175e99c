"""Routes of the whole store: contents, audit, history, undo."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zsvec import checked_name
from zsvec.service.api import schemas
from zsvec.service.api.common import By, Runs, of_state
from zsvec.service.api.description import PROBLEM, body_of
from zsvec.service.problems import JSON
from zsvec.service.uploads import sent_json

router = APIRouter(prefix="/v1", tags=["store"], responses=PROBLEM)


@router.get("/info", response_model=dict[str, Any])
async def info(work: Runs) -> Response:
    """Returns the location, size, encoders, calibration and engine versions of the store."""
    return JSON(await work.run(work.classifier.info))


@router.get("/audit", response_model=list[schemas.Finding])
async def audit(work: Runs) -> Response:
    """Returns a summary, then label errors, near-duplicates and other findings.

    The audit compares all reference images with each other, which is slow in large stores.
    """
    return JSON(await work.run(lambda: list(work.classifier.references.audit().lines())))


@router.get("/history", response_model=list[schemas.Change])
async def history(
    work: Runs, category: Annotated[schemas.CategoryName | None, Query(description="Changes of this category.")] = None
) -> Response:
    """Returns the changes that can be undone or were undone, newest first."""
    changes = work.classifier.history
    found = await work.run(lambda: list(changes) if category is None else changes.of(category))
    return JSON([change.to_dict() for change in found])


@router.post("/undo", response_model=schemas.Change, openapi_extra=body_of(schemas.UndoGiven))
async def undo(request: Request, work: Runs, by: By) -> Response:
    """Restores the categories of a change to the state before the change, and returns the change.

    An undo is itself a change, which can be undone by id.
    """
    given = await sent_json(request, schemas.UndoGiven)

    def undone() -> dict[str, Any]:
        category = None if given.category is None else checked_name(given.category)
        with of_state():
            return work.classifier.history.undo(category, change=given.change).to_dict()

    return JSON(await work.run(undone, by=by))
