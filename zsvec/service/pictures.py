"""Small copies of images as answers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from zsvec.service.problems import Problem
from zsvec.store import SmallImage

_KEPT = "private, no-cache"  # shown again only to who may see it


def picture(request: Request, small: SmallImage | None, content_hash: str) -> Response:
    """The small copy of an image, a JPEG; nothing but that it is unchanged, where the browser has it.

    Args:
        request: Who asks.
        small: The copy.
        content_hash: Of the image.

    Raises:
        Problem: There is none.
    """
    if small is None:
        raise Problem(404, f"the store has no small copy of {content_hash[:12]}: it may keep none (`keep_images`)")
    headers = {"Cache-Control": _KEPT, "ETag": f'"{content_hash}"'}
    if content_hash in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(small.content, media_type="image/jpeg", headers=headers)
