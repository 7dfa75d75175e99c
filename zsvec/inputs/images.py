"""Anything that holds an image → an RGB ``PIL.Image``, within limits; and the hash of its content.

`read_image` gives both with one read. Every failure is an `ImageError`. Nothing here changes the
state of the process (Pillow's globals, the filters of `warnings`), so that it may run in many threads.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import reprlib
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from zsvec.errors import ImageError, InvalidInputError

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]

MAX_PIXELS = 100_000_000
DRAFT = 2

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

_MAX_BYTES = 2**30  # more than MAX_PIXELS of 16-bit RGBA take: an endless stream must end somewhere
_CHUNK = 2**20
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


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image and the hash of what it was loaded from.

    Attributes:
        image: Mode ``RGB``, fully decoded.
        content_hash: As `content_hash` gives it.
    """

    image: Image.Image
    content_hash: str


def read_image(image: ImageInput, *, max_pixels: int = MAX_PIXELS, side: int | None = None) -> LoadedImage:
    """`load_image` and `content_hash` with one read.

    Raises:
        ImageError: As `load_image`.
    """
    with _image_errors(image):
        content = _content(image)
        rgb = _decode(content, max_pixels, side)
        return LoadedImage(rgb, _digest(rgb if isinstance(content, Image.Image) else content))


def load_image(image: ImageInput, *, max_pixels: int = MAX_PIXELS, side: int | None = None) -> Image.Image:
    """Decode an image into 8-bit RGB.

    The EXIF orientation is applied, alpha is composited on white, of an animation the first frame is taken;
    colour profiles are ignored. Wide grey is scaled to 8 bits by what is white in it: 65535 in 16-bit
    images; in 32-bit integer and float images the least of 1, 255 and 65535 that no pixel exceeds, and if
    there is none, or a pixel is negative, the darkest pixel turns black and the brightest white.

    Args:
        image: A path; encoded bytes; a binary file, read from its position to the end and, if it can seek,
            put back; a PIL image, itself returned if nothing has to be done to it; or an array of shape
            (height, width) or (height, width, channels), channels being 1 (grey), 2 (grey, alpha), 3 (RGB)
            or 4 (RGBA), and dtype uint8, uint16 (white is 65535), bool, or float within [0, 1].
        max_pixels: A larger image is refused by its header. Pillow's own ``MAX_IMAGE_PIXELS`` holds
            as well for TIFF, where its decoder warns above it.
        side: To how many pixels the shorter side will be scaled. A JPEG file that is much larger is then decoded
            at 1/2, 1/4 or 1/8 of its size, `DRAFT` times as large as that or more, which is faster by as much.

    Returns:
        The image, mode ``RGB``, fully decoded.

    Raises:
        ImageError: It is missing, damaged, truncated, empty, too large, of another format, or no image.
    """
    with _image_errors(image):
        return _decode(_content(image), max_pixels, side)


def content_hash(image: ImageInput, *, max_pixels: int = MAX_PIXELS) -> str:
    """SHA-256 of what an image consists of, in hexadecimal.

    Of the encoded bytes for a path, bytes and a file, alike, which are not decoded; of the size and the pixels
    in RGB for a PIL image, which is held to `max_pixels`; of dtype, shape and values for an array.

    Raises:
        ImageError: It cannot be read, or is no image.
    """
    with _image_errors(image):
        content = _content(image)
        return _digest(_decode(content, max_pixels) if isinstance(content, Image.Image) else content)


def source_of(image: ImageInput) -> str:
    """Name of an image in results: its path, its file's or its ``filename``; else ``bytes``, ``array`` and so on."""
    if isinstance(image, str | os.PathLike):
        return os.fsdecode(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return "bytes"
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "")) or "image"
    if isinstance(image, np.ndarray):
        return "array"
    if hasattr(image, "read"):
        name = getattr(image, "name", None)
        return name if isinstance(name, str) and name else "file"
    return type(image).__name__


def find_images(folder: Path) -> list[Path]:
    """Image files under a folder, by their suffix, sorted; hidden files and folders are left out.

    Linked folders are followed, and each folder is visited once.

    Raises:
        InvalidInputError: The folder, or one under it, is missing, is no folder, or cannot be listed.
    """

    def refuse(error: OSError) -> None:
        reason = f"cannot list the folder {error.filename!r}: {error.strerror}"
        raise InvalidInputError(f"{reason}; give an existing folder that you may read") from error

    found, visited = [], set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(root, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    return sorted(found)


@contextmanager
def _image_errors(image: ImageInput) -> Iterator[None]:
    """Name the image in errors of ours, and map those of Pillow and of the caller's file object."""
    source = source_of(image)
    name = repr(source) if isinstance(image, str | os.PathLike) else source
    try:
        yield
    except ImageError as error:
        raise ImageError(f"cannot read {name}: {error}") from error.__cause__
    except Image.DecompressionBombError as error:
        raise ImageError(f"cannot read {name}: {error} Scale it down") from error
    # Not a list: for damaged files Pillow raises OSError, SyntaxError, ValueError, TypeError, IndexError,
    # RuntimeError, struct.error and, where warnings are errors, UserWarning (all seen while fuzzing); a file
    # object of the caller may raise anything.
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise ImageError(
            f"cannot read {name}: {reason}; damaged or unsupported, save it anew as PNG or JPEG"
        ) from error


def _content(image: ImageInput) -> bytes | NDArray[Any] | Image.Image:
    if isinstance(image, Image.Image | np.ndarray):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return _read_path(Path(os.fsdecode(image)))
    if hasattr(image, "read"):
        return _read_file(image)
    raise ImageError(f"{reprlib.repr(image)} is no image; give a path, bytes, a binary file, a PIL image or an array")


def _read_path(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError("it is a folder; give one of the files in it")
        # Opening a pipe waits for its writer, and a device may never end.
        if not stat.S_ISREG(mode):
            raise ImageError("it is a device, pipe or socket; give a regular file, or the bytes")
        with path.open("rb") as file:
            return _read_file(file)
    except OSError as error:
        reason = error.strerror or error
        raise ImageError(f"{reason}; check the path and its permissions") from error


def _read_file(file: BinaryIO) -> bytes:
    if isinstance(file, io.TextIOBase):
        raise ImageError("the file is open in text mode; open it with mode 'rb'")
    seekable = getattr(file, "seekable", None)
    start = file.tell() if seekable and seekable() else None
    chunks: list[bytes] = []
    size = 0
    while chunk := file.read(_CHUNK):
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise ImageError(f"its read() gives {type(chunk).__name__}, not bytes; open it with mode 'rb'")
        size += len(chunk)
        if size > _MAX_BYTES:
            raise ImageError(f"it has more than {_MAX_BYTES:,} bytes; give a smaller image")
        chunks.append(chunk)
    if start is not None:
        file.seek(start)
    return b"".join(chunks)


def _digest(content: bytes | NDArray[Any] | Image.Image) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if isinstance(content, Image.Image):
        kind, values = f"{content.mode} {content.size}", memoryview(content.tobytes())
    else:
        _check_array(content)
        kind, values = f"{content.dtype.str} {content.shape}", np.ascontiguousarray(content).data
    digest = hashlib.sha256(kind.encode())
    digest.update(values)
    return digest.hexdigest()


def _decode(content: bytes | NDArray[Any] | Image.Image, max_pixels: int, side: int | None = None) -> Image.Image:
    if isinstance(content, bytes):
        image = _open(content, max_pixels, side)
    elif isinstance(content, Image.Image):
        image = content
        _check_size(image.size, image.format, max_pixels)
        image.load()
    else:
        _check_array(content)
        _check_size((content.shape[1], content.shape[0]), None, max_pixels)
        image = _from_array(content)
    rgb = _to_rgb(image)
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


class _Encoded(io.BytesIO):
    """Encoded bytes that remember whether a decoder asked for more than there are."""

    exhausted = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.exhausted = self.exhausted or (not data and size != 0)
        return data


def _open(data: bytes, max_pixels: int, side: int | None) -> Image.Image:
    # Not Image.open: above Pillow's own limit it warns before the size can be known, and Python has no
    # way to silence a warning in one thread only.
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
        scale = min(image.size) / (DRAFT * side)
        if scale > 1:  # of no effect on other formats
            image.draft(None, (math.ceil(image.width / scale), math.ceil(image.height / scale)))
    image.load()
    # Pillow refuses a truncated file by itself, unless the application told it not to. Of JPEG 2000 it always
    # reads past the end; there, the end marker (FF D9) must follow the start of the data (FF 93).
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


def _check_array(array: NDArray[Any]) -> None:
    shape, dtype = array.shape, array.dtype
    if len(shape) not in {2, 3} or shape[2:] not in {(), (1,), (2,), (3,), (4,)} or not array.size:
        raise ImageError(
            f"shape {shape} is no image; give (height, width) or (height, width, channels), channels 1 to 4"
        )
    if not (dtype.kind in "bf" or (dtype.kind == "u" and dtype.itemsize <= 2)):
        raise ImageError(f"dtype {dtype} is no image; give uint8, uint16, bool, or float within [0, 1]")


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
