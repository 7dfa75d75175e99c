"""The route that classifies."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from zsvec.service.api import schemas
from zsvec.service.api.common import OF_BODY, Runs, body_of, problems
from zsvec.service.problems import JSON, Problem
from zsvec.service.uploads import sent_images

_MOST_IN_RANKING = 1000

router = APIRouter(prefix="/v1", tags=["classify"])


@router.post(
    "/classify",
    summary="Classify images",
    response_model=list[schemas.Prediction],
    responses=problems(*OF_BODY, 409),
    openapi_extra=body_of(schemas.Images, form=True, raw=True),
)
async def classify(
    request: Request,
    work: Runs,
    top_k: Annotated[int, Query(ge=1, le=_MOST_IN_RANKING, description="Categories in the rankings.")] = 5,
    explain: Annotated[bool, Query(description="Whether to give the evidence of each expert.")] = False,
) -> Response:
    """Each image has an answer of its own, in order; one that cannot be read has its `error`.

    Images are sent as files `images` of a form, as the body itself, or as base64 in JSON. No URL is fetched.
    """
    if work.full:
        raise Problem(429, f"{work.queued} images wait already: try again soon")
    images = await sent_images(request, work.limits.images)
    found = await work.classify(images, top_k, request.receive)
    return JSON([(one if explain else replace(one, experts={})).to_dict() for one in found])
