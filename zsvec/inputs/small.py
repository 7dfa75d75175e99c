"""Small copies of images, for people to look at: a JPEG of a few kilobytes, whatever the image is."""

from __future__ import annotations

import io

from PIL import Image

from zsvec.errors import ImageError
from zsvec.inputs.images import load_image

SIDE = 256
"""Pixels of the shorter side at most."""
LARGEST = 20_000
"""Bytes at most."""

_LONGER = 1024  # pixels of the longer side at most
_QUALITIES = (80, 65, 50, 35)
_HALVINGS = 4  # of the sides, for what has too much detail at any quality
_MEMORY = 64 * 2**20


def small_copy(image: Image.Image) -> bytes:
    """Returns a JPEG of an image: at most `SIDE` pixels on its shorter side, 1,024 on its longer one, `LARGEST` bytes.

    The JPEG has the pixels alone: comments, EXIF, XMP and colour profiles of the image are left out.

    Args:
        image: Mode ``RGB``, upright. A smaller one is not made larger.
    """
    scale = min(1.0, SIDE / min(image.size), _LONGER / max(image.size))
    for halving in range(_HALVINGS + 1):
        width, height = (max(1, round(side * scale / 2**halving)) for side in image.size)
        small = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
        small.info = {}  # Pillow writes a comment of it into the JPEG
        for quality in _QUALITIES:
            file = io.BytesIO()
            small.save(file, "JPEG", quality=quality)
            if file.tell() <= LARGEST:
                return file.getvalue()
    return file.getvalue()


def open_small(content: bytes) -> Image.Image:
    """The picture of a small copy, which anybody may have made.

    Raises:
        ImageError: It is no image, or a larger one.
    """
    if len(content) > LARGEST:
        raise ImageError(f"a small copy has at most {LARGEST:,} bytes. Got {len(content):,}")
    return load_image(content, max_pixels=SIDE * _LONGER, image_memory=_MEMORY)
