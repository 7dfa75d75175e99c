"""Image content → an 8-bit RGB ``PIL.Image``: formats, orientation, depth, alpha, and the limits of memory.

Errors here say what is wrong; `zsvec.inputs.images` adds which image it is.
"""

from __future__ import annotations

import io
import math
import struct
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from zsvec.errors import ImageError

MAX_PIXELS = 100_000_000
"""Largest image that is decoded by default.

Peak memory of each thread that decodes, measured on PNG and TIFF files, in bytes a pixel: 4 for RGB (400 MB), 8 for
RGBA or an image that is turned upright, 13 for 16-bit and 26 for 32-bit grey.
"""
MAX_BYTES = 2**30
"""Most bytes that are read of one image: above what `MAX_PIXELS` take, so that only an endless stream is cut off."""

# Raster formats that Pillow recognises by their first bytes and decodes in process, with their suffixes. Not EPS,
# which is a program, nor ICO, which Pillow decodes before its size is known. Some builds have no AVIF.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_DRAFT = 2  # a JPEG file is decoded at least this many times as large as it will be scaled to
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow brings these PNG samples to 8 bits, but not the transparent colour that they are compared with.
_TRANSPARENT_TO_8_BITS = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


def decode(content: bytes | NDArray[Any] | Image.Image, max_pixels: int, side: int | None = None) -> Image.Image:
    """Content in RGB, upright; see `zsvec.inputs.images.load_image`.

    Args:
        content: Encoded bytes, an array or a PIL image.
        max_pixels: A larger image is refused by its header.
        side: Pixels to which the shorter side will be scaled.

    Raises:
        ImageError: The content is no image, damaged, or too large.
        Exception: Whatever Pillow raises for damaged files.
    """
    if isinstance(content, bytes):
        image = _open(content, max_pixels, side)
    elif isinstance(content, Image.Image):
        image = content
        _check_size(image.size, image.format, max_pixels)
        image.load()
    else:
        check_array(content, max_pixels)
        image = _from_array(content)
    rgb = _to_rgb(image)
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        upright = rgb.transpose(turn)
        upright.info.clear()  # who reads it again must not turn it again
        return upright
    return rgb.copy() if rgb is content and opened(content) else rgb


def opened(image: object) -> bool:
    """Whether it is a PIL image of a file: its owner may turn it to another picture of the file, or close that."""
    return isinstance(image, ImageFile.ImageFile)


class _Encoded(io.BytesIO):
    """Encoded bytes that record whether a decoder asked for more than there are."""

    exhausted = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.exhausted = self.exhausted or (not data and size != 0)
        return data


def _open(data: bytes, max_pixels: int, side: int | None) -> Image.Image:
    # Not Image.open: above Pillow's own limit it warns before the size is known, and Python cannot silence a
    # warning in one thread only.
    if not data:
        raise ImageError("it is empty (0 bytes); give an image")
    Image.init()
    for name in (name for name in FORMATS if name in Image.OPEN):
        factory, accept = Image.OPEN[name]
        accepted = accept is not None and accept(data[:16])
        if isinstance(accepted, str):
            raise ImageError(f"{accepted}; convert it to PNG or JPEG")
        if accepted:
            break
    else:
        raise ImageError(f"unknown format, it begins with {data[:8]!r}; convert it to one of {', '.join(FORMATS)}")
    encoded = _Encoded(data)
    image = factory(encoded, "")
    _check_size(image.size, name, max_pixels)
    _fit_transparent_colour(image)
    if side is not None:
        scale = min(image.size) / (_DRAFT * side)
        if scale > 1:  # of no effect on other formats
            image.draft(None, (math.ceil(image.width / scale), math.ceil(image.height / scale)))
    image.load()
    # Pillow refuses a truncated file by itself, unless the application told it not to. It always reads past the end
    # of JPEG 2000; there, the end marker (FF D9) must follow the start of the data (FF 93).
    if ImageFile.LOAD_TRUNCATED_IMAGES and (
        b"\xff\xd9" not in data[data.find(b"\xff\x93") :] if name == "JPEG2000" else encoded.exhausted
    ):
        raise ImageError("image file is truncated; give the whole file")
    return image


def _check_size(size: tuple[int, int], format_name: str | None, max_pixels: int) -> None:
    width, height = size
    if min(size) <= 0:
        raise ImageError(f"it has no pixels ({width} × {height}); give an image")
    limit, name = max_pixels, "max_pixels"
    if format_name == "TIFF" and Image.MAX_IMAGE_PIXELS and limit > Image.MAX_IMAGE_PIXELS:
        limit, name = Image.MAX_IMAGE_PIXELS, "PIL.Image.MAX_IMAGE_PIXELS"
    if width * height > limit:
        raise ImageError(f"{width} × {height} pixels are more than {name}={limit}; scale it down, or raise that")


def _fit_transparent_colour(image: ImageFile.ImageFile) -> None:
    colour = image.info.get("transparency")
    scale = _TRANSPARENT_TO_8_BITS.get(str(image.tile[0][3])) if image.format == "PNG" else None
    if scale and isinstance(colour, tuple):
        image.info["transparency"] = tuple(int(value * scale) for value in colour)
    elif scale and colour is not None:
        image.info["transparency"] = int(colour * scale)


def _orientation(image: Image.Image) -> Any:
    # Broken metadata takes nothing from the pixels.
    with suppress(OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error, Warning):
        return image.getexif().get(ExifTags.Base.Orientation)
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"I", "F"}:
        return Image.fromarray(_wide_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = _16_to_8_bits(values)
        grey[values == image.info.get("transparency")] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow has no direct way from it to RGBA
            image = image.convert("LA")
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(image, mask=image)
        return rgb
    return image if image.mode == "RGB" else image.convert("RGB")


def _wide_to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("it has NaN or infinite pixels; replace them")
    if low >= 0 and high <= 65535:
        low, high = 0.0, next(white for white in (1.0, 255.0, 65535.0) if high <= white)
    scaled = (values.astype(np.float64) - low) * (255 / (high - low or 1))
    return np.rint(scaled).astype(np.uint8)


def _16_to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def check_array(array: NDArray[Any], max_pixels: int) -> None:
    """Check that shape and dtype are those of an image of at most `max_pixels`.

    Raises:
        ImageError: They are not.
    """
    shape, dtype = array.shape, array.dtype
    if len(shape) not in {2, 3} or shape[2:] not in {(), (1,), (2,), (3,), (4,)} or not array.size:
        raise ImageError(
            f"shape {shape} is no image; give (height, width) or (height, width, channels), channels 1 to 4"
        )
    if not (dtype.kind in "bf" or (dtype.kind == "u" and dtype.itemsize <= 2)):
        raise ImageError(f"dtype {dtype} is no image; give uint8, uint16, bool, or float within [0, 1]")
    _check_size((shape[1], shape[0]), None, max_pixels)


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # so written, NaN is refused too
            raise ImageError(f"{array.dtype} values from {low} to {high}; scale them to [0, 1], or give uint8")
        pixels = np.rint(array * 255).astype(np.uint8)
    elif array.dtype.kind == "b":
        pixels = array.astype(np.uint8) * 255
    else:
        pixels = _16_to_8_bits(array) if array.dtype.itemsize == 2 else array
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels))
