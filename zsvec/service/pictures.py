"""Small copies of images as answers."""

from __future__ import annotations

from starlette.responses import Response

from zsvec.service.problems import Problem
from zsvec.store import SmallImage

_KEPT = "private, max-age=31536000, immutable"  # its hash names its content


def picture(small: SmallImage | None, content_hash: str) -> Response:
    """The small copy of an image, a JPEG.

    Args:
        small: The copy.
        content_hash: Of the image.

    Raises:
        Problem: There is none.
    """
    if small is None:
        raise Problem(404, f"the store has no small copy of {content_hash[:12]}: it may keep none (`keep_images`)")
    return Response(small.content, media_type="image/jpeg", headers={"Cache-Control": _KEPT})
