"""Pictures of stored images for notebooks."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL.Image import Image

from zsvec.errors import ImageError, InvalidInputError
from zsvec.notebook import Html, picture
from zsvec.types import is_attached

MAX_PICTURES = 100
"""Maximum number of pictures in one value."""
_SIZE = (160, 96)  # maximum width and height in pixels: about 4 kB


class Pictures:
    """Finds pictures by content hash, at most `MAX_PICTURES`.

    Every picture is decoded and encoded again, because any writer to the store may have forged it.

    Args:
        read: Returns the small copy of a stored image, if there is one.
        own: Hash of an image that need not be stored, and the image.
    """

    def __init__(self, read: Callable[[str], Image | None], own: tuple[str | None, Image] | None = None) -> None:
        self._read = read
        self._own = own
        self._left = MAX_PICTURES

    def find(self, content_hash: str, caption: str, description: str) -> Html | None:
        """Returns a picture with its caption and description; ``None`` without a readable copy."""
        if not self._left or is_attached(content_hash):
            return None
        try:
            image = self._own[1] if self._own and self._own[0] == content_hash else self._read(content_hash)
        except (ImageError, InvalidInputError):  # a forged copy, or a forged hash
            return None
        if image is None:
            return None
        self._left -= 1
        small, file = image.convert("RGB"), io.BytesIO()
        small.thumbnail(_SIZE)
        small.info = {}  # else Pillow copies comments into the JPEG
        small.save(file, "JPEG", quality=80)
        return picture(file.getvalue(), caption, description)
