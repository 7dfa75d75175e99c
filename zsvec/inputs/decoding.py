"""Decodes image content to an upright 8-bit RGB ``PIL.Image``, within limits of size and memory.

`zsvec.inputs.images` adds the name of the image to the errors.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from zsvec.errors import ImageError
from zsvec.inputs.encoded import Encoded, canvas_of, check_scans, count_numbers, open_encoded
from zsvec.inputs.memory import DEFAULT

MAX_PIXELS = 100_000_000
"""Default maximum number of pixels of an image; for a JPEG, after the reduction by `side` in `load_image`."""
MAX_BYTES = 2**28
"""Maximum number of bytes that are read from a stream of unknown size."""
LONGEST_SIDE = 1_000_000
"""Maximum width and height in pixels. Decoders of raw rows take time that grows with the square of the row length."""

_BAND_PIXELS = 2**18  # pixels converted at once

_DRAFT_FACTOR = 2  # minimum ratio of the decoded shorter side of a JPEG to `side` in `load_image`
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Factors that convert the transparent colour of a PNG to 8 bits, by raw mode. Pillow converts only the samples.
_TRANSPARENT_TO_8_BITS = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of pixels and memory for reading images.

    Attributes:
        max_pixels: Maximum number of pixels of an image; by default, `MAX_PIXELS` decoded pixels.
        image_memory: Maximum bytes of memory for all images that are being decoded.
    """

    max_pixels: int | None = None
    image_memory: int = DEFAULT


@dataclass(frozen=True, slots=True)
class Plan:
    """The memory and the scale for decoding one image.

    Attributes:
        memory: Bytes of memory that decoding takes, without the encoded bytes.
        size: Width and height in pixels of an encoded image; ``None`` for an array or a PIL image.
        scale: Divisor of the width and height of a JPEG: 1, 2, 4 or 8.
    """

    memory: int
    size: tuple[int, int] | None = None
    scale: int = 1

    def size_of(self, decoded: Image.Image) -> tuple[int, int]:
        """Returns width and height of the image at full scale, in the orientation of the decoded image."""
        width, height = self.size or decoded.size
        turned = (width - height) * (decoded.width - decoded.height) < 0
        return (height, width) if turned else (width, height)


def plan_encoded(file: Encoded, limits: Limits, side: int | None) -> Plan:
    """Plans the decoding of an encoded image from its header; `side` is as in `load_image`.

    Raises:
        ImageError: The content is not an image, or is too large.
        Exception: The file is damaged. Pillow may raise any exception.
    """
    if file.format == "WEBP" and (canvas := canvas_of(file)) != (0, 0):
        _check_pixels(canvas, limits, "WEBP")
        if 8 * math.prod(canvas) > limits.image_memory:
            raise ImageError(f"{canvas[0]} × {canvas[1]} pixels take more than image_memory={limits.image_memory:,}")
    header = open_encoded(file)
    size, name = header.image.size, header.image.format
    scale = 1
    if name == "JPEG" and side is not None:
        scale = max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(size) >= scale * _DRAFT_FACTOR * side)
    _check_pixels(size, limits, name, scale)
    return Plan(header.memory(scale), size, scale)


def plan_decoded(content: NDArray[Any] | Image.Image, limits: Limits) -> Plan:
    """Plans the conversion of an array or a PIL image to RGB; raises the errors of `plan_encoded`."""
    if isinstance(content, Image.Image):
        _check_pixels(content.size, limits, content.format)
        lazy = opened(content) and bool(getattr(content, "tile", None))
        turned = lazy or _orientation(content) in _TURNS  # a PNG's orientation is unknown before decoding
        if content.mode == "RGB" and not content.has_transparency_data:
            made = lazy + (opened(content) or turned)  # the rotated image replaces the copy
        else:
            made = lazy + 1 + turned
        return Plan(content.width * content.height * 4 * made + 2**20)
    check_array(content, limits)
    return Plan(content.shape[0] * content.shape[1] * 4 + 2**20)


def decode(content: bytes | NDArray[Any] | Image.Image, plan: Plan) -> Image.Image:
    """Decodes content to upright RGB, as planned; raises the errors of `plan_encoded`."""
    if isinstance(content, bytes):
        image = _open(content, plan)
    elif isinstance(content, Image.Image):
        image = content
        image.load()
    else:
        image = _from_array(content)
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image)
    del image  # frees the memory before the result is rotated
    if turn is not None:
        upright = rgb.transpose(turn)
        upright.info.clear()  # a second reader must not rotate the image again
        return upright
    return rgb.copy() if rgb is content and opened(content) else rgb


def opened(image: object) -> bool:
    """Returns whether an image is a PIL image that reads from a file.

    The owner of such an image may select another frame or close the file.
    """
    return isinstance(image, ImageFile.ImageFile)


def _open(data: bytes, plan: Plan) -> Image.Image:
    file = Encoded(io.BytesIO(data))
    header = open_encoded(file)
    image = header.image
    if Plan(header.memory(plan.scale), image.size, plan.scale) != plan:
        raise ImageError("the file changed during the read; read it again")
    if image.format == "JPEG":
        check_scans(data)
        image.draft(None, (image.width // plan.scale, image.height // plan.scale))
    elif image.format == "PNG":
        _fit_transparent_colour(image)
    image.load()
    # Pillow refuses truncated files, unless the application disabled that.
    if ImageFile.LOAD_TRUNCATED_IMAGES and file.exhausted:
        raise ImageError("image file is truncated; give the whole file")
    return image


def _check_pixels(size: tuple[int, int], limits: Limits, format_name: str | None, scale: int = 1) -> None:
    width, height = size
    if min(size) <= 0:
        raise ImageError(f"it has no pixels ({width} × {height}); give an image")
    limit, name = limits.max_pixels or MAX_PIXELS * scale**2, "max_pixels"
    if format_name == "TIFF" and Image.MAX_IMAGE_PIXELS and limit > Image.MAX_IMAGE_PIXELS:
        limit, name = Image.MAX_IMAGE_PIXELS, "PIL.Image.MAX_IMAGE_PIXELS"
    if width * height > limit:
        raise ImageError(f"{width} × {height} pixels are more than {name}={limit}; scale it down, or raise that")
    if max(size) > LONGEST_SIDE:
        raise ImageError(f"{width} × {height} pixels: a side is longer than {LONGEST_SIDE}; cut it")


def _fit_transparent_colour(image: ImageFile.ImageFile) -> None:
    colour = image.info.get("transparency")
    scale = _TRANSPARENT_TO_8_BITS.get(str(image.tile[0][3]))
    if scale and isinstance(colour, tuple):
        image.info["transparency"] = tuple(int(value * scale) for value in colour)
    elif scale and colour is not None:
        image.info["transparency"] = int(colour * scale)


def _orientation(image: Image.Image) -> Any:
    # Broken metadata must not prevent reading the pixels.
    with suppress(ImageError, OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error, Warning):
        exif = image.info.get("exif")
        text = image.info.get("Raw profile type exif")  # of a PNG
        if exif is None and text is not None:
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        if isinstance(exif, bytes):
            tags = exif.removeprefix(b"Exif\0\0")
            count_numbers(Encoded(io.BytesIO(tags)))
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    scale = _grey_scale(image)
    rgb = Image.new("RGB", image.size)
    for box in bands(image.size):  # only source and result are whole images in memory
        rgb.paste(_band_to_rgb(image.crop(box), scale), box)
    return rgb


def bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yields boxes of a few rows each that together cover an image; conversion box by box saves memory."""
    width, height = size
    rows = max(_BAND_PIXELS // width, 1)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _band_to_rgb(image: Image.Image, scale: tuple[float, float]) -> Image.Image:
    if image.mode in {"I", "F"}:
        low, high = scale
        scaled = (np.asarray(image).astype(np.float64) - low) * (255 / (high - low or 1))
        return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = _16_to_8_bits(values)
        grey[values == image.info.get("transparency")] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow has no direct conversion to RGBA
            image = image.convert("LA")
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(image, mask=image)
        return rgb
    return image.convert("RGB")


def _grey_scale(image: Image.Image) -> tuple[float, float]:
    if image.mode not in {"I", "F"}:
        return 0.0, 255.0
    parts = (np.asarray(image.crop(box)) for box in bands(image.size))
    extremes = np.array([(part.min(), part.max()) for part in parts], np.float64)
    low, high = float(extremes.min()), float(extremes.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("it has NaN or infinite pixels; replace them")
    if low >= 0 and high <= 65535:
        low, high = 0.0, next(white for white in (1.0, 255.0, 65535.0) if high <= white)
    return low, high


def _16_to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def channels_last(array: NDArray[Any]) -> NDArray[Any]:
    """Returns a view of shape (height, width, channels) of an array of shape (channels, height, width).

    An array of another shape is returned unchanged. Raises ImageError if both shapes are possible.
    """
    if array.ndim != 3 or array.shape[0] not in {1, 3, 4}:
        return array
    if array.shape[2] <= 4:
        raise ImageError(
            f"shape {array.shape} may be (height, width, channels) or (channels, height, width); enlarge the image so "
            "that it has more than 4 pixels each way, or give a PIL image"
        )
    return array.transpose(1, 2, 0)


def check_array(array: NDArray[Any], limits: Limits) -> None:
    """Checks shape and dtype of an array; raises ImageError if the array is not an image or is too large."""
    shape, dtype = array.shape, array.dtype
    if len(shape) == 4:
        raise ImageError(f"shape {shape} is a batch; give one of its images")
    if len(shape) not in {2, 3} or shape[2:] not in {(), (1,), (2,), (3,), (4,)} or not array.size:
        raise ImageError(
            f"shape {shape} is no image; give (height, width), (height, width, channels) or (channels, height, width)"
        )
    if not (dtype.kind in "bf" or (dtype.kind == "u" and dtype.itemsize <= 2)):
        raise ImageError(f"dtype {dtype} is no image; give uint8, uint16, bool, or float within [0, 1]")
    _check_pixels((shape[1], shape[0]), limits, None)


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # refuses NaN too
            raise ImageError(f"{array.dtype} values from {low} to {high}; scale them to [0, 1], or give uint8")
    if array.shape[2:] == (1,):
        array = array.squeeze(2)
    rgb = Image.new("RGB", (array.shape[1], array.shape[0]))
    for box in bands(rgb.size):  # only the result is a whole image in memory
        rgb.paste(_band_to_rgb(Image.fromarray(_to_8_bits(array[box[1] : box[3]])), (0.0, 255.0)), box)
    return rgb


def _to_8_bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype.kind == "f":
        return np.asarray(np.rint(array * 255), np.uint8)
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    return _16_to_8_bits(array) if array.dtype.itemsize == 2 else np.asarray(array, np.uint8)
