"""Paths, bytes, files, arrays and PIL images → an RGB ``PIL.Image``, and the hash of its content.

`read_image` gives both with one read. Every failure is an `ImageError`. Nothing changes the state of the process
(Pillow's globals, the filters of `warnings`), so that many threads may read images. `zsvec.inputs.headers` says how
much memory an image takes, and `zsvec.inputs.memory` who has to wait for it.
"""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from inspect import CO_GENERATOR
from pathlib import Path
from traceback import walk_tb
from typing import Any, BinaryIO, TypeAlias, TypedDict, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsvec.errors import ImageError, shown, without_password
from zsvec.inputs.decoding import (
    MAX_BYTES,
    Limits,
    Plan,
    check_array,
    decode,
    opened,
    plan_decoded,
    plan_encoded,
    recognised,
)
from zsvec.inputs.digests import digest_of, digest_of_parts
from zsvec.inputs.files import open_regular
from zsvec.inputs.headers import Reader
from zsvec.inputs.memory import ACCOUNT, DEFAULT
from zsvec.inputs.regions import Region

ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any] | Region
)

_CHUNK = 2**20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a path has one of the two slashes; a drive has one letter


class ImageLimits(TypedDict):
    """The limits of images, as arguments of `load_image` and of its like."""

    max_pixels: int | None
    image_memory: int


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image and the hash of its content.

    Attributes:
        image: Mode ``RGB``, fully decoded.
        content_hash: As `zsvec.inputs.images.content_hash` returns it.
        size: Width and height of what was read, upright; a JPEG may be decoded at a fraction of it.
    """

    image: Image.Image
    content_hash: str
    size: tuple[int, int]


@contextmanager
def reading(
    image: ImageInput,
    *,
    max_pixels: int | None = None,
    side: int | None = None,
    image_memory: int = DEFAULT,
    hashed: bool = True,
) -> Iterator[LoadedImage]:
    """`read_image` for a block of code, to whose end the image counts as memory that is taken.

    Without `hashed`, the hash is empty.
    """
    limits: ImageLimits = {"max_pixels": max_pixels, "image_memory": image_memory}
    with ExitStack() as held:
        loaded = read_held(image, held, side=side, hashed=hashed, **limits)
        try:
            yield loaded
        finally:
            del loaded  # before its memory is given back


def read_held(
    image: ImageInput,
    held: ExitStack,
    *,
    max_pixels: int | None = None,
    side: int | None = None,
    image_memory: int = DEFAULT,
    hashed: bool = True,
) -> LoadedImage:
    """`reading`, to the end of a stack, which is to have forgotten the image by then."""
    with _image_errors(image):
        return _load(image, Limits(max_pixels, image_memory), side, held, hashed=hashed)


def read_image(
    image: ImageInput, *, max_pixels: int | None = None, side: int | None = None, image_memory: int = DEFAULT
) -> LoadedImage:
    """`load_image` and `content_hash` with one read; the arguments are those of `load_image`.

    Raises:
        ImageError: As `load_image`.
    """
    with reading(image, max_pixels=max_pixels, side=side, image_memory=image_memory) as loaded:
        return loaded


def load_image(
    image: ImageInput, *, max_pixels: int | None = None, side: int | None = None, image_memory: int = DEFAULT
) -> Image.Image:
    """Decode an image into 8-bit RGB.

    The EXIF orientation is applied, alpha is composited on white, and the first frame of an animation is taken.
    Colour profiles are ignored. Grey of more than 8 bits is scaled by its white: 65535 in 16-bit images; in 32-bit
    integer and float images the least of 1, 255 and 65535 that no pixel exceeds. If there is none, or a pixel is
    negative, the darkest pixel becomes black and the brightest white.

    Args:
        image: A path; encoded bytes; a binary file, read from its position to the end and, if it can seek,
            put back; a PIL image, returned itself if it needs no change and is of no file; an array of shape
            (height, width) or (height, width, channels), channels being 1 (grey), 2 (grey, alpha), 3 (RGB) or
            4 (RGBA), and dtype uint8, uint16 (white is 65535), bool, or float within [0, 1]; or a `Region`, whose
            image is decoded as a whole.
        max_pixels: A larger image is refused by its header. By default 100 million, of a JPEG after `side`. For TIFF,
            Pillow's own ``MAX_IMAGE_PIXELS`` is a limit too, because its decoder warns above it.
        side: Pixels to which the shorter side will be scaled. A much larger JPEG file is then decoded at 1/2, 1/4
            or 1/8 of its size, but at least twice as large as `side`, in a fraction of the time.
        image_memory: Bytes that all threads together may take for images that are being decoded. An image that takes
            more is refused by its header; others wait until there is room.

    Returns:
        The image, mode ``RGB``, fully decoded.

    Raises:
        ImageError: The image is missing, damaged, truncated, empty, too large, of another format, or no image.
    """
    with reading(image, max_pixels=max_pixels, side=side, image_memory=image_memory, hashed=False) as loaded:
        return loaded.image


def content_hash(image: ImageInput, *, max_pixels: int | None = None, image_memory: int = DEFAULT) -> str:
    """SHA-256 of the content of an image, in hexadecimal.

    The content of a path, bytes or a file is the encoded bytes, which are not decoded; that of a PIL image, and of a
    `Region`, its size and its pixels in RGB; that of an array its dtype, shape and values. The arguments are those of
    `load_image`.

    Raises:
        ImageError: The image cannot be read, or is no image by its first bytes; or it is larger than `image_memory`.
    """
    limits = Limits(max_pixels, image_memory)
    with _image_errors(image):
        if isinstance(image, Region):
            with ExitStack() as held:
                return _load(image, limits, None, held, hashed=True).content_hash
        if isinstance(image, str | os.PathLike):
            with _opened_path(image) as file:
                return digest_of_parts(_parts(_reader(file, image_memory)))
        if _is_file(image) and _can_seek(image):
            with _put_back(image):
                return digest_of_parts(_parts(_reader(image, image_memory)))
        content = _content(image)
        if isinstance(content, Image.Image):
            plan = plan_decoded(content, limits)
            with ExitStack() as held:
                ACCOUNT.take(plan.memory, limits.memory, held)
                return digest_of(decode(content, plan))
        if isinstance(content, np.ndarray):
            check_array(content, limits)
        if isinstance(content, bytes):
            recognised(content[:16])
        return digest_of(content)


def source_of(image: ImageInput) -> str:
    """Name of an image in results: its path, ``name`` or ``filename``, else its kind, as ``bytes`` or ``array``."""
    if isinstance(image, Region):
        return f"{source_of(image.path)}#{image.fragment}"
    if isinstance(image, str | os.PathLike):
        path = os.fsdecode(image)
        return without_password(path) if _URL.match(path) else path
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


def taken(image: ImageInput, *, max_pixels: int | None = None, image_memory: int = DEFAULT) -> ImageInput:
    """The image as it is now, whatever its source makes of the object before the image is read.

    A source may use an array, a buffer or a file again for its next image, or close it. So arrays and PIL images are
    copied, and files read to their end; what cannot be read now is an error later. Paths are returned as they are. So
    are PIL images of files (`opened`), which must be read at once: a copy would be decoded, and large.
    """
    if isinstance(image, str | os.PathLike | bytes | Region) or opened(image):
        return image
    try:
        content = _content(image, image_memory)
        if isinstance(content, Image.Image):
            copy = content.copy()
            copy.filename = source_of(image)  # type: ignore[attr-defined]
            return copy
        if isinstance(content, np.ndarray):
            check_array(content, Limits(max_pixels, image_memory))
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
def _forgetting() -> Iterator[None]:
    """An error keeps the calls that it came through, but not what they had in memory: bytes, and half an image.

    What the caller was handling before is the caller's, and so are the calls of its own code: a generator would be
    closed. A file of the caller may raise errors that are the causes of each other.
    """
    seen = {id(sys.exception())}
    try:
        yield
    except Exception as error:
        left: list[BaseException | None] = [error]
        while left:
            one = left.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            left += one.__cause__, one.__context__
            for frame, _ in walk_tb(one.__traceback__):
                ours = str(frame.f_globals.get("__name__")).startswith(("zsvec.inputs.", "PIL."))
                if ours and not frame.f_code.co_flags & CO_GENERATOR:
                    with suppress(RuntimeError):  # it still runs
                        frame.clear()
        raise


@contextmanager
def _image_errors(image: ImageInput) -> Iterator[None]:
    """Add the image's name to our errors, and map those of Pillow and of the caller's file object."""
    source = source_of(image)
    name = repr(source) if isinstance(image, str | os.PathLike | Region) else source
    try:
        with _forgetting():
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


def _load(image: ImageInput, limits: Limits, side: int | None, held: ExitStack, *, hashed: bool) -> LoadedImage:
    """Decode an image, in memory that is taken before and given back when the stack ends.

    A file says its size, and in its header the size of the image. Only when both have room is it read.
    """
    if isinstance(image, Region):
        rgb = image.cut_from(_load(image.path, limits, None, held, hashed=False).image)
        return LoadedImage(rgb, digest_of(rgb) if hashed else "", rgb.size)
    plan: Plan
    content: bytes | NDArray[Any] | Image.Image
    with ExitStack() as files:
        file: BinaryIO | None = None
        if isinstance(image, str | os.PathLike):
            file = files.enter_context(_opened_path(image))
        elif _is_file(image):
            file = image if _can_seek(image) else None
        if file is None:
            content = _content(image)
            if isinstance(content, bytes):
                plan = plan_encoded(Reader(io.BytesIO(content), len(content)), limits, side)
            else:
                plan = plan_decoded(content, limits)
            ACCOUNT.take(plan.memory, limits.memory, held)
        else:
            files.enter_context(_put_back(file))
            reader = Reader(file, _size_of(file))
            expected = plan_encoded(reader, limits, side)
            ACCOUNT.take(expected.memory + reader.size, limits.memory, held)
            content = _whole(reader)
            plan = plan_encoded(Reader(io.BytesIO(content), len(content)), limits, side)
            if plan.memory > expected.memory:
                raise ImageError("it was changed while it was read; read it again")
    rgb = decode(content, plan)
    digest = digest_of(rgb if isinstance(content, Image.Image) else content) if hashed else ""
    return LoadedImage(rgb, digest, plan.size_of(rgb))


def _content(image: ImageInput, image_memory: int = DEFAULT) -> bytes | NDArray[Any] | Image.Image:
    """What is decoded: arrays and PIL images as they are, the bytes of all else but paths."""
    if isinstance(image, Image.Image | np.ndarray):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not _is_file(image):
        raise ImageError(f"{shown(image)} is no image; give a path, bytes, a binary file, a PIL image or an array")
    if not _can_seek(image):
        return _read_stream(image)
    with _put_back(image):
        return _whole(_reader(image, image_memory))


@contextmanager
def _opened_path(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    where = Path(os.fsdecode(path))
    try:
        mode = where.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError("it is a folder; give one of the files in it")
        if not stat.S_ISREG(mode):
            raise ImageError("it is a device, pipe or socket; give a regular file, or the bytes")
        file = open_regular(where)
    except OSError as error:
        if _URL.match(str(where)):
            raise ImageError("URLs are not fetched; download it, and give the file or its bytes") from None
        reason = error.strerror or error
        raise ImageError(f"{reason}; check the path and its permissions") from error
    with file:
        yield file


def _is_file(image: object) -> TypeGuard[BinaryIO]:
    return hasattr(image, "read") and not isinstance(image, Image.Image)


def _can_seek(file: BinaryIO) -> bool:
    if isinstance(file, io.TextIOBase):
        raise ImageError("the file is open in text mode; open it with mode 'rb'")
    seekable = getattr(file, "seekable", None)
    return bool(seekable and seekable())


@contextmanager
def _put_back(file: BinaryIO) -> Iterator[None]:
    """At its end, a file that can seek is where it was."""
    start = file.tell() if _can_seek(file) else None
    try:
        yield
    finally:
        if start is not None:
            file.seek(start)


def _size_of(file: BinaryIO) -> int:
    start = file.tell()
    file.seek(0, io.SEEK_END)
    size = file.tell() - start
    file.seek(start)
    return max(size, 0)


def _reader(file: BinaryIO, image_memory: int) -> Reader:
    """Of a file that begins like an image, and is no larger than one that is decoded."""
    reader = Reader(file, _size_of(file))
    recognised(reader.at(0, 16))
    if reader.size > image_memory:
        raise ImageError(f"{reader.size:,} bytes are more than image_memory={image_memory:,}; give a smaller image")
    return reader


def _parts(reader: Reader) -> Iterator[bytes]:
    return (reader.at(start, min(_CHUNK, reader.size - start)) for start in range(0, reader.size, _CHUNK))


def _whole(reader: Reader) -> bytes:
    data = reader.at(0, reader.size)
    if not isinstance(data, bytes):
        raise ImageError(f"its read() gives {type(data).__name__}, not bytes; open it with mode 'rb'")
    return data


def _read_stream(file: BinaryIO) -> bytes:
    """Read what does not say its size. Of what cannot be an image nothing is kept."""
    kept = io.BytesIO()
    known = False
    for chunk in _chunks(file):
        if not known and kept.tell() < 16:
            kept.write(chunk)
            with suppress(ImageError):
                known = bool(recognised(kept.getvalue()[:16]))
        elif known:
            kept.write(chunk)
    return kept.getvalue()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    size = 0
    while chunk := file.read(_CHUNK):
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise ImageError(f"its read() gives {type(chunk).__name__}, not bytes; open it with mode 'rb'")
        size += len(chunk)
        if size > MAX_BYTES:
            raise ImageError(f"it has more than {MAX_BYTES:,} bytes; give a smaller image")
        yield bytes(chunk)
