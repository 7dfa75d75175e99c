"""Templates: whole pages, parts of them, and problems in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from zsvec.errors import without_password
from zsvec.service.auth.guard import FOR_WRITERS
from zsvec.service.auth.keys import Key
from zsvec.service.pages import static
from zsvec.service.pages.words import how_much
from zsvec.service.problems import Problem
from zsvec.types import counted

_TABS = (
    ("/", "Classify"),
    ("/categories", "Categories"),
    ("/inbox", "Inbox"),
    ("/audit", "Audit"),
    ("/live", "Live"),
)
_FOR_PROGRAMS = ("/v1/", "/health/", "/metrics", "/static/")
_SAID = {
    400: "The page sent something that could not be read.",
    403: "This is not allowed.",
    404: "This is not there.",
    405: "This cannot be done here.",
    408: "The upload stopped on the way. Try again.",
    409: "This cannot be done.",
    413: "This is too much at once.",
    415: "The page sent something that could not be read.",
    422: "This cannot be used.",
    429: "Too much is being done at once. Try again in a moment.",
    503: "The service cannot do this at the moment.",
}


class _HTML(HTMLResponse):
    def render(self, content: Any) -> bytes:
        return str(content).encode(errors="backslashreplace")


def category_path(name: str) -> str:
    """Path of the page of a category."""
    return f"/categories/{quote(name, safe='')}"


def _picture_path(category: str, content_hash: str) -> str:
    """Path of the small copy of a reference image."""
    return f"/v1/categories/{quote(category, safe='')}/references/{content_hash}/image"


def percent(share: float) -> str:
    """A share as people say it; nothing is ever quite sure, or quite impossible."""
    if share > 0.995:
        return "over 99 %"
    return "under 1 %" if share < 0.005 else f"{100 * share:.0f} %"


_templates = Environment(
    loader=PackageLoader("zsvec.service"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals.update(static=static.address, counted=counted, picture_path=_picture_path, how_much=how_much)
_templates.filters.update(category_path=category_path, percent=percent)


def may_change(request: Request) -> bool:
    """Whether who asks may change something."""
    key: Key | None = request.state.key
    return key is None or key.right == "write"


def is_part(request: Request) -> bool:
    """Whether a script of the page asks for a part of it, and not for a whole one to take that out of."""
    return "hx-request" in request.headers and "hx-boosted" not in request.headers


def render(
    request: Request, template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> Response:
    """A page, or a part of one.

    Args:
        request: Who asks.
        template: Name of the file in ``templates``.
        status: Of the answer.
        headers: Of the answer.
        values: Of the template, beside `may_change`, the keys and the tabs.
    """
    key: Key | None = request.state.key
    tabs = [tab for tab in _TABS if may_change(request) or tab[0] not in FOR_WRITERS]
    common = {
        "may_change": may_change(request),
        "key_name": key.name if key else None,
        "keys": bool(request.app.state.keys),
        "tabs": tabs,
        "tab": None,
    }
    text = _templates.get_template(template).render({**common, **values})
    return _HTML(text, status, headers=headers)


def events(**named: Any) -> dict[str, str]:
    """The header by which an answer tells the page that something has happened: events by name, with their details."""
    return {"HX-Trigger": json.dumps({f"zsvec:{name}": details for name, details in named.items()})}


def answered(request: Request, problem: Problem) -> Response | None:
    """A problem as a page says it; ``None`` for a program."""
    if request.url.path.startswith(_FOR_PROGRAMS):
        return None
    if not is_part(request) and "text/html" not in request.headers.get("accept", ""):
        return None
    said = _SAID.get(problem.status) or f"{HTTPStatus(problem.status).phrase}."
    no_page = problem.status == 404 and "route" not in request.scope
    detail = "No page has this address." if no_page else without_password(problem.detail)
    template = "problem_toast.html" if is_part(request) else "problem.html"
    return render(request, template, problem.status, problem.headers, said=said, detail=detail)
