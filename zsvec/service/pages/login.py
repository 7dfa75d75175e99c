"""The page that asks for a key, and keeps it in a cookie that no script can read."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from zsvec.service.auth.guard import COOKIE, LOGIN, is_encrypted
from zsvec.service.auth.keys import Keys
from zsvec.service.pages.rendering import render
from zsvec.service.uploads import sent_form

router = APIRouter()

_KEPT = 30 * 24 * 3600  # seconds: a phone would be asked at each start of its browser otherwise


@router.get(LOGIN)
async def ask(request: Request) -> Response:
    """The page; where nobody is asked for a key, the first page instead."""
    keys: Keys = request.app.state.keys
    return render(request, "login.html", wrong=False) if keys else RedirectResponse("/", 303)


@router.post(LOGIN)
async def login(request: Request) -> Response:
    """Take a key. It comes in the body, so that it is in no address, no log and no history of a browser."""
    keys: Keys = request.app.state.keys
    _, fields = await sent_form(request, 0)
    given = fields.get("key", [""])[0].strip()
    if keys and keys.find(given) is None:
        return render(request, "login.html", 401, wrong=True)
    response = RedirectResponse("/", 303)
    if keys:
        response.set_cookie(
            COOKIE, given, max_age=_KEPT, path="/", secure=is_encrypted(request), httponly=True, samesite="strict"
        )
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Forget the key, and the pictures that the browser keeps."""
    response = RedirectResponse(LOGIN, 303, headers={"Clear-Site-Data": '"cache"'})
    response.delete_cookie(COOKIE, path="/", secure=is_encrypted(request), httponly=True, samesite="strict")
    return response
