"""The page *Live*."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec.service.pages.rendering import render

router = APIRouter()


@router.get("/live")
async def live(request: Request) -> Response:
    """The page."""
    return render(request, "live.html", tab="/live")
