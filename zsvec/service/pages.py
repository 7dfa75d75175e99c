"""The pages for people."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from zsvec.service.problems import Problem

router = APIRouter(include_in_schema=False)


def answered(request: Request, problem: Problem) -> Response | None:
    """A problem as a page says it; ``None`` for a program."""
    return None
