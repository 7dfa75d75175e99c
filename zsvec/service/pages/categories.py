"""The page *Categories*: all of them, as cards."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec.service.pages.rendering import render

router = APIRouter()


@router.get("/categories")
async def show(request: Request) -> Response:
    """The page."""
    return render(request, "categories.html", tab="/categories")
