"""Sign-in: stores the key of a browser in a cookie that no script can read."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from zsvec.service.auth.guard import COOKIE, LOGIN, is_encrypted
from zsvec.service.auth.keys import Keys
from zsvec.service.pages.rendering import render
from zsvec.service.uploads import sent_form

router = APIRouter()

_MAX_AGE_S = 30 * 24 * 3600  # phones discard session cookies often


@router.get(LOGIN)
async def show(request: Request) -> Response:
    """Shows the page, or redirects to the first page if the service has no keys."""
    keys: Keys = request.app.state.keys
    return render(request, "login.html", wrong=False) if keys else RedirectResponse("/", 303)


@router.post(LOGIN)
async def login(request: Request) -> Response:
    """Signs in with a key. The key is in the body, so that no address, log or history contains it."""
    keys: Keys = request.app.state.keys
    _, fields = await sent_form(request, 0)
    given = fields.get("key", [""])[0].strip()
    if keys and keys.find(given) is None:
        return render(request, "login.html", 401, wrong=True)
    response = RedirectResponse("/", 303)
    if keys:
        response.set_cookie(
            COOKIE, given, max_age=_MAX_AGE_S, path="/", secure=is_encrypted(request), httponly=True, samesite="strict"
        )
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Signs out: deletes the cookie, the photos in the browser's cache, and the list of the page Classify.

    Browsers obey the header over HTTPS and on this machine only; the page to sign in deletes the list as well.
    """
    response = RedirectResponse(LOGIN, 303, headers={"Clear-Site-Data": '"cache", "storage"'})
    response.delete_cookie(COOKIE, path="/", secure=is_encrypted(request), httponly=True, samesite="strict")
    return response
