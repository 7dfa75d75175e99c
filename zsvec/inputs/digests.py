"""The hash of an image's content: of encoded bytes, or of pixels with what says how to read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from zsvec.inputs.decoding import bands


def digest_of(content: bytes | NDArray[Any] | Image.Image) -> str:
    """SHA-256 in hexadecimal: of bytes; of mode, size and pixels of a PIL image; of dtype, shape and values."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if isinstance(content, Image.Image):
        kind = f"{content.mode} {content.size}"
        parts: Iterable[bytes] = (content.crop(box).tobytes() for box in bands(content.size))
    else:
        kind = f"{content.dtype.str} {content.shape}"
        boxes = bands((content.shape[1], content.shape[0]))
        parts = (content[top:bottom].tobytes() for _, top, _, bottom in boxes)
    return digest_of_parts(chain([kind.encode()], parts))


def digest_of_parts(parts: Iterable[bytes]) -> str:
    """SHA-256 of bytes that come in parts, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
