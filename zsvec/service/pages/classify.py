"""The page *Classify*."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec.service.pages.rendering import render

router = APIRouter()


@router.get("/")
async def show(request: Request) -> Response:
    """The page."""
    return render(request, "classify.html", tab="/")
