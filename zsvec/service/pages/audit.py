"""The page *Audit*."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec.service.pages.rendering import render

router = APIRouter()


@router.get("/audit")
async def audit(request: Request) -> Response:
    """The page."""
    return render(request, "audit.html", tab="/audit")
