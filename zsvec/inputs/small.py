"""Small copies of images for display: JPEGs of a few kilobytes."""

from __future__ import annotations

import io

from PIL import Image

from zsvec.errors import ImageError
from zsvec.inputs.images import load_image

SIDE = 256
"""Maximum length of the shorter side, in pixels."""
LARGEST = 20_000
"""Maximum size of the JPEG, in bytes."""

_LONGER_SIDE = 1024  # maximum length of the longer side, in pixels
_QUALITIES = (80, 65, 50, 35)
_HALVINGS = 4  # most halvings of the sides, for images that are too large at every quality
_IMAGE_MEMORY = 64 * 2**20


def small_copy(image: Image.Image) -> bytes:
    """Returns a small JPEG of an image, with at most `LARGEST` bytes.

    The shorter side has at most `SIDE` pixels, and the longer side at most 1,024. The JPEG contains only pixels:
    comments, EXIF, XMP and colour profiles are left out.

    Args:
        image: An upright image of mode ``RGB``. A smaller image is not enlarged.
    """
    scale = min(1.0, SIDE / min(image.size), _LONGER_SIDE / max(image.size))
    for halving in range(_HALVINGS + 1):
        width, height = (max(1, round(side * scale / 2**halving)) for side in image.size)
        small = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
        small.info = {}  # else Pillow copies comments into the JPEG
        for quality in _QUALITIES:
            file = io.BytesIO()
            small.save(file, "JPEG", quality=quality)
            if file.tell() <= LARGEST:
                return file.getvalue()
    return file.getvalue()


def open_small(content: bytes) -> Image.Image:
    """Decodes a small copy, which any writer to the store may have forged; raises ImageError for unusable content."""
    if len(content) > LARGEST:
        raise ImageError(f"a small copy has at most {LARGEST:,} bytes. Got {len(content):,}")
    return load_image(content, max_pixels=SIDE * _LONGER_SIDE, image_memory=_IMAGE_MEMORY)
