"""The page *Inbox*."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec.service.pages.rendering import render

router = APIRouter()


@router.get("/inbox")
async def inbox(request: Request) -> Response:
    """The page."""
    return render(request, "inbox.html", tab="/inbox")
