"""Paths, bytes, files, arrays and PIL images → an RGB ``PIL.Image``, and the hash of its content.

`read_image` gives both with one read. Every failure is an `ImageError`. Nothing changes the state of the process
(Pillow's globals, the filters of `warnings`), so that many threads may read images. `zsvec.inputs.decoding` says how
much memory an image takes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsvec.errors import ImageError
from zsvec.inputs.decoding import MAX_BYTES, MAX_PIXELS, check_array, decode, opened

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]

_CHUNK = 2**20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a path has one of the two slashes; a drive has one letter


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image and the hash of its content.

    Attributes:
        image: Mode ``RGB``, fully decoded.
        content_hash: As `zsvec.inputs.images.content_hash` returns it.
    """

    image: Image.Image
    content_hash: str


def read_image(image: ImageInput, *, max_pixels: int = MAX_PIXELS, side: int | None = None) -> LoadedImage:
    """`load_image` and `content_hash` with one read; the arguments are those of `load_image`.

    Raises:
        ImageError: As `load_image`.
    """
    with _image_errors(image):
        content = _content(image)
        rgb = decode(content, max_pixels, side)
        return LoadedImage(rgb, _digest(rgb if isinstance(content, Image.Image) else content, max_pixels))


def load_image(image: ImageInput, *, max_pixels: int = MAX_PIXELS, side: int | None = None) -> Image.Image:
    """Decode an image into 8-bit RGB.

    The EXIF orientation is applied, alpha is composited on white, and the first frame of an animation is taken.
    Colour profiles are ignored. Grey of more than 8 bits is scaled by its white: 65535 in 16-bit images; in 32-bit
    integer and float images the least of 1, 255 and 65535 that no pixel exceeds. If there is none, or a pixel is
    negative, the darkest pixel becomes black and the brightest white.

    Args:
        image: A path; encoded bytes; a binary file, read from its position to the end and, if it can seek,
            put back; a PIL image, returned itself if it needs no change and is of no file; or an array of shape
            (height, width) or (height, width, channels), channels being 1 (grey), 2 (grey, alpha), 3 (RGB) or
            4 (RGBA), and dtype uint8, uint16 (white is 65535), bool, or float within [0, 1].
        max_pixels: A larger image is refused by its header. For TIFF, Pillow's own ``MAX_IMAGE_PIXELS`` is a limit
            too, because its decoder warns above it.
        side: Pixels to which the shorter side will be scaled. A much larger JPEG file is then decoded at 1/2, 1/4
            or 1/8 of its size, but at least twice as large as `side`, in a fraction of the time.

    Returns:
        The image, mode ``RGB``, fully decoded.

    Raises:
        ImageError: The image is missing, damaged, truncated, empty, too large, of another format, or no image.
    """
    with _image_errors(image):
        return decode(_content(image), max_pixels, side)


def content_hash(image: ImageInput, *, max_pixels: int = MAX_PIXELS) -> str:
    """SHA-256 of the content of an image, in hexadecimal.

    The content of a path, bytes or a file is the encoded bytes, which are not decoded; that of a PIL image its size
    and its pixels in RGB; that of an array its dtype, shape and values. These two have at most `max_pixels`.

    Raises:
        ImageError: The image cannot be read, or is no image.
    """
    with _image_errors(image):
        content = _content(image)
        return _digest(decode(content, max_pixels) if isinstance(content, Image.Image) else content, max_pixels)


def source_of(image: ImageInput) -> str:
    """Name of an image in results: its path, ``name`` or ``filename``, else its kind, as ``bytes`` or ``array``."""
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


def taken(image: ImageInput, *, max_pixels: int = MAX_PIXELS) -> ImageInput:
    """The image as it is now, whatever its source makes of the object before the image is read.

    A source may use an array, a buffer or a file again for its next image, or close it. So arrays and PIL images are
    copied, and files read to their end; what cannot be read now is an error later. Paths are returned as they are. So
    are PIL images of files (`opened`), which must be read at once: a copy would be decoded, and large.
    """
    if isinstance(image, str | os.PathLike | bytes) or opened(image):
        return image
    try:
        content = _content(image)
        if isinstance(content, Image.Image):
            copy = content.copy()
            copy.filename = source_of(image)  # type: ignore[attr-defined]
            return copy
        if isinstance(content, np.ndarray):
            check_array(content, max_pixels)
            return content.copy()
    except Exception as error:  # noqa: BLE001 - not handled here: who reads the file gets it
        return _TakenFile(source_of(image), error)
    return _TakenFile(source_of(image), content) if hasattr(image, "read") else content


class _TakenFile(io.BytesIO):
    """What is left to be read in a file, or why that cannot be read."""

    def __init__(self, name: str, content: bytes | Exception) -> None:
        super().__init__(b"" if isinstance(content, Exception) else content)
        self.name = name
        self._error = content if isinstance(content, Exception) else None

    def read(self, size: int | None = -1, /) -> bytes:
        if self._error is not None:
            raise self._error
        return super().read(size)


@contextmanager
def _image_errors(image: ImageInput) -> Iterator[None]:
    """Add the image's name to our errors, and map those of Pillow and of the caller's file object."""
    source = source_of(image)
    name = repr(source) if isinstance(image, str | os.PathLike) else source
    try:
        yield
    except ImageError as error:
        raise ImageError(f"cannot read {name}: {error}") from error.__cause__
    except Image.DecompressionBombError as error:
        raise ImageError(f"cannot read {name}: {error} Scale it down") from error
    # All exceptions: for damaged files Pillow raises OSError, SyntaxError, ValueError, TypeError, IndexError,
    # RuntimeError, struct.error and, where warnings are errors, UserWarning (all seen while fuzzing), and a file
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
        if _URL.match(str(path)):
            raise ImageError("URLs are not fetched; download it, and give the file or its bytes") from error
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
        if size > MAX_BYTES:
            raise ImageError(f"it has more than {MAX_BYTES:,} bytes; give a smaller image")
        chunks.append(chunk)
    if start is not None:
        file.seek(start)
    return b"".join(chunks)


def _digest(content: bytes | NDArray[Any] | Image.Image, max_pixels: int) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if isinstance(content, Image.Image):
        kind, values = f"{content.mode} {content.size}", memoryview(content.tobytes())
    else:
        check_array(content, max_pixels)
        kind, values = f"{content.dtype.str} {content.shape}", np.ascontiguousarray(content).data
    digest = hashlib.sha256(kind.encode())
    digest.update(values)
    return digest.hexdigest()
