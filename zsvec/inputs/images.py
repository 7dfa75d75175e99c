"""Reads paths, bytes, files, arrays, PIL images and regions as RGB ``PIL.Image``, and hashes their content.

`reading` yields the image and the hash after reading the source once. Every failure is an `ImageError`. Reading is
thread-safe and does not change global state, such as globals of Pillow or filters of `warnings`. `zsvec.inputs.encoded`
computes the memory that an image takes, and `zsvec.inputs.memory` lets threads wait for memory.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from inspect import CO_GENERATOR
from itertools import chain
from pathlib import Path
from traceback import walk_tb
from typing import Any, BinaryIO, Protocol, TypeAlias, TypedDict, TypeGuard, TypeVar, Unpack, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsvec.errors import ImageError, InvalidInputError, shown, without_password
from zsvec.inputs.decoding import (
    MAX_BYTES,
    Limits,
    bands,
    channels_last,
    check_array,
    decode,
    opened,
    plan_decoded,
    plan_encoded,
)
from zsvec.inputs.encoded import Encoded, opening_memory, read_bytes, recognised
from zsvec.inputs.files import open_regular
from zsvec.inputs.memory import ACCOUNT, DEFAULT
from zsvec.inputs.shared import Lease, SharedImage
from zsvec.types import MAX_MARGIN


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image; accepted wherever zsvec takes an image.

    The whole image is decoded, at full size and upright. In a stream, consecutive regions of the same file, or of the
    same bytes, are cut from one decoded image. Regions of other images are cut before the source advances.

    Attributes:
        image: The image: a path, bytes, file, PIL image, array or tensor.
        box: Left, top, right and bottom in pixels of the upright image, as for `PIL.Image.Image.crop`. Fractions are
            rounded outwards. A box that is partly outside of the image is cut at the border. A box that is wholly
            outside, or has no width or no height, raises ImageError when the region is read.
        size: Width and height in pixels of the image in which the box was drawn, if known. A file of another size has
            been scaled or rotated since then, and is refused.
        margin: Fraction of the width and height of the box to add on each side, before the box is cut at the border.
    """

    image: ImageInput
    box: tuple[float, float, float, float]
    size: tuple[int, int] | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        numbers = list(map(_plain, self.box)) if isinstance(self.box, tuple) else []
        if len(numbers) != 4 or None in numbers:
            got = shown(self.box)
            raise InvalidInputError(
                f"a box must be a tuple of four numbers: left, top, right, bottom. Got {got} instead"
            )
        object.__setattr__(self, "box", tuple(numbers))
        object.__setattr__(self, "margin", checked_margin(self.margin))

    @property
    def fragment(self) -> str:
        """The rectangle as a URL fragment, as in W3C, Media Fragments URI 1.0 (2012), section 4.2.2, without margin."""
        if not self._is_bounded():
            return f"xyxy={','.join(map(_short, self.box))}"
        left, top = (max(0, math.floor(at)) for at in self.box[:2])
        right, bottom = (math.ceil(at) for at in self.box[2:])
        return f"xywh={left},{top},{right - left},{bottom - top}"

    def check(self) -> None:
        """Raises ImageError for a box that has no pixel in any image."""
        left, top, right, bottom = self.box
        if not self._is_bounded():
            got = ", ".join(map(_short, self.box))
            raise ImageError(
                f"the numbers of a box must be finite and below {_MAX_PIXEL:,}, got {got}; correct the box"
            )
        if left > right or top > bottom:
            raise ImageError(
                f"the box {self._shown()} has its left and right, or its top and bottom, swapped; give left, top, "
                "right, bottom, not left, top, width, height"
            )
        if left == right or top == bottom:
            raise ImageError(f"the box {self._shown()} is empty; give one with a width and a height")

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Returns the rectangle, with the margin, in whole pixels of an image of this size.

        Raises:
            ImageError: The box is unusable, or lies outside of the image.
        """
        self.check()
        width, height = size
        left, top, right, bottom = map(float, self.box)
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            raise ImageError(
                f"the box {self._shown()} does not lie in its {width} × {height} pixels; give one that does, in pixels "
                "of the upright image"
            )
        across, down = self.margin * (right - left), self.margin * (bottom - top)
        return (
            math.floor(max(0.0, left - across)),
            math.floor(max(0.0, top - down)),
            math.ceil(min(width, right + across)),
            math.ceil(min(height, bottom + down)),
        )

    def cut_from(self, image: Image.Image) -> Image.Image:
        """Returns the region of the decoded image; raises ImageError if the size or the box does not fit."""
        width, height = image.size
        if self.size is not None and image.size != tuple(self.size):
            raise ImageError(
                f"it has {width} × {height} pixels upright, and the box was drawn in {self.size[0]} × {self.size[1]}; "
                "give the file that was annotated, or annotate this one"
            )
        return image.crop(self.pixels(image.size))

    def _is_bounded(self) -> bool:
        return all(-_MAX_PIXEL < at < _MAX_PIXEL for at in self.box)  # false for NaN

    def _shown(self) -> str:
        return f"({', '.join(map(_short, self.box))})"


def checked_margin(margin: object) -> float:
    """Returns the margin of a box as a float; raises InvalidInputError unless it is a number from 0 to `MAX_MARGIN`."""
    number = _plain(margin)
    if number is not None and 0 <= number <= MAX_MARGIN:
        return float(number)
    raise InvalidInputError(f"margin must be a number from 0 to {MAX_MARGIN}. Got {shown(margin)} instead")


def _plain(number: object) -> int | float | None:
    """Returns a number of Python or numpy as one of Python; ``None`` for any other value."""
    if isinstance(number, int | np.integer):
        return int(number)
    return float(number) if isinstance(number, float | np.floating) else None


def _short(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else shown(number)


Item = TypeVar("Item")


class SupportsArray(Protocol):
    """An object that numpy converts to an array, such as a tensor of torch, on any device, or an array of JAX."""

    def __array__(self) -> NDArray[Any]:
        """Returns the array."""
        ...


ImageInput: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Image.Image
    | NDArray[Any]
    | SupportsArray
    | Region
)

_MAX_PIXEL = 2**31
_CHUNK_BYTES = 2**20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: pathlib merges two; two letters: a Windows drive has one


class ImageLimits(TypedDict, total=False):
    """The limits among the arguments of `load_image` and similar functions."""

    max_pixels: int | None
    image_memory: int


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image and the hash of its content.

    Attributes:
        image: Mode ``RGB``, fully decoded.
        content_hash: The result of `zsvec.inputs.images.content_hash`; empty unless requested.
        size: Width and height of the upright image at full scale. A JPEG may be decoded at a fraction of this size.
        cut_from: Content hash of the whole image that a region was cut from; empty for another image, or unless
            requested.
    """

    image: Image.Image
    content_hash: str
    size: tuple[int, int]
    cut_from: str = ""


@contextmanager
def reading(
    image: ImageInput, *, side: int | None = None, hashed: bool = True, **limits: Unpack[ImageLimits]
) -> Iterator[LoadedImage]:
    """Reads an image once, and yields the image with its hash.

    The memory of the image stays reserved until the end of the block. The arguments and errors are as in `load_image`.
    If `hashed` is false, the hashes are empty.
    """
    with ExitStack() as held:
        loaded = read_held(image, held, side=side, hashed=hashed, **limits)
        try:
            yield loaded
        finally:
            del loaded  # before its memory is released


def read_held(
    image: ImageInput, held: ExitStack, *, side: int | None = None, hashed: bool = True, **limits: Unpack[ImageLimits]
) -> LoadedImage:
    """Reads an image like `reading`, but reserves the memory until `held` is closed. Drop the image before that."""
    with _image_errors(image):
        return _load(image, Limits(**limits), side, held, hashed=hashed)


def load_image(
    image: ImageInput, *, max_pixels: int | None = None, side: int | None = None, image_memory: int = DEFAULT
) -> Image.Image:
    """Decodes an image into 8-bit RGB.

    The EXIF orientation is applied, alpha is composited on white, and the first frame of an animation is taken. Colour
    profiles are ignored. Grayscale of more than 8 bits is scaled to 8 bits. White is 65535 in 16-bit images; in 32-bit
    integer and float images, white is the smallest of 1, 255 and 65535 that no pixel exceeds. If pixels are negative or
    exceed 65535, the darkest pixel becomes black and the brightest becomes white.

    Args:
        image: A path, encoded bytes, a `Region`, a binary file, a PIL image, an array or a tensor. A binary file is
            read from the current position to the end; a seekable file is then reset to that position. A PIL image is
            returned unchanged if it is RGB and upright and does not read from a file. An array or a tensor has the
            shape (height, width), (height, width, channels) with 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA)
            channels, or (channels, height, width) with 1, 3 or 4 channels; and the dtype uint8, uint16 (white is
            65535), bool, or float within [0, 1]. A shape that may be both, such as (3, 224, 3), is refused.
        max_pixels: Maximum number of pixels. A larger image is refused after its header is read. The default is 100
            million, and applies to a JPEG after the reduction by `side`. A TIFF must also respect Pillow's
            ``MAX_IMAGE_PIXELS``, because the decoder warns above that limit.
        side: Length in pixels to which the caller will scale the shorter side. To save time, a much larger JPEG is then
            decoded at 1/2, 1/4 or 1/8 of its size, with a shorter side of at least twice `side`.
        image_memory: Maximum bytes of memory for images that are being decoded, over all threads. An image that takes
            more is refused after its header is read. Other images wait until enough memory is free.

    Returns:
        The image, mode ``RGB``, fully decoded.

    Raises:
        ImageError: The image is missing, damaged, truncated, empty, too large or in an unsupported format, or the value
            is not one image.
    """
    with reading(image, max_pixels=max_pixels, side=side, image_memory=image_memory, hashed=False) as loaded:
        return loaded.image


def content_hash(image: ImageInput, *, max_pixels: int | None = None, image_memory: int = DEFAULT) -> str:
    """Returns the SHA-256 of the content of an image, in hexadecimal.

    For a path, bytes or a file, the encoded bytes are hashed without decoding. For a PIL image or a `Region`, the size
    and the RGB pixels are hashed. For an array or a tensor, the dtype, the shape with the channels last and the values
    are hashed. The arguments are as in `load_image`.

    Raises:
        ImageError: The image cannot be read, does not begin like an image, or is larger than `image_memory`.
    """
    limits = Limits(max_pixels, image_memory)
    with _image_errors(image), ExitStack() as held:
        if isinstance(image, Region):
            return _load(image, limits, None, held, hashed=True).content_hash
        content = held.enter_context(_content_of(image))
        if isinstance(content, Encoded):
            _check_size(content, image_memory)
            return _digest(iter(partial(content.read, _CHUNK_BYTES), b""))
        if isinstance(content, np.ndarray):
            check_array(content, limits)
            return _digest_of(content)
        plan = plan_decoded(content, limits)
        ACCOUNT.take(plan.memory, limits.image_memory, held)
        return _digest_of(decode(content, plan))


def source_of(image: ImageInput) -> str:
    """Returns the name of an image in results: its path, ``name`` or ``filename``, or else a kind such as ``array``."""
    if isinstance(image, Region):
        return f"{source_of(image.image)}#{image.fragment}"
    if isinstance(image, SharedImage | Lease):
        return image.source if isinstance(image, SharedImage) else image.shared.source
    if isinstance(image, str | os.PathLike):
        path = os.fsdecode(image)
        return without_password(path) if _URL.match(path) else path
    if isinstance(image, bytes | bytearray | memoryview):
        return "bytes"
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "")) or "image"
    if is_array(image):
        return "array"
    if hasattr(image, "read"):
        name = getattr(image, "name", None)
        return name if isinstance(name, str) and name else "file"
    return type(image).__name__


def read_file(path: str | os.PathLike[str], **limits: Unpack[ImageLimits]) -> ImageInput:
    """Returns the content of an image file in memory, so that later changes of the file do not matter.

    Raises:
        ImageError: The file cannot be read, does not begin like an image, or is larger than `image_memory`.
    """
    with _image_errors(path), _opened_path(path) as file:
        content = Encoded(file, on_disk=True)
        _check_size(content, Limits(**limits).image_memory)
        return _TakenFile(source_of(path), content.at(0, content.size))


def is_array(value: object) -> TypeGuard[SupportsArray]:
    """Returns whether a value is an array, a tensor or another object that numpy converts, but not a scalar."""
    return hasattr(type(value), "__array__") and not isinstance(value, np.generic)


def is_one_image(value: object) -> bool:
    """Returns whether a value stands for one image, readable or not, and not for several images.

    Several images are an iterable such as a list, a generator or a column of a data frame, or an array or a tensor with
    four dimensions, of which the first counts the images. Numbers in one dimension, and a table, are no images.
    """
    if isinstance(value, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | np.generic | Region):
        return True
    if is_array(value):
        kind = getattr(getattr(value, "dtype", None), "kind", "O")
        dims = len(getattr(value, "shape", ()))
        return dims in {0, 2, 3} or (dims == 1 and kind in "biufcmM")
    iterable = hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")
    return hasattr(value, "read") or isinstance(value, Mapping) or not iterable


def taken(image: ImageInput, **limits: Unpack[ImageLimits]) -> ImageInput:
    """Returns a copy of an image that stays valid when the caller reuses or closes the original object.

    Arrays and PIL images are copied, files are read to the end, and regions of these are cut. An error of copying is
    raised when the copy is read. Paths, bytes and regions of these are returned unchanged. PIL images that read from a
    file (`opened`) are returned unchanged too, because a copy would be decoded and large; read such an image at once.
    """
    if isinstance(image, str | os.PathLike | bytes) or opened(image):
        return image
    if isinstance(image, Region) and isinstance(image.image, str | os.PathLike | bytes | Lease):
        return image
    try:
        if isinstance(image, Region):
            with ExitStack() as held:
                cut = _load(image, Limits(**limits), None, held, hashed=True)
            cut.image.filename = source_of(image)  # type: ignore[attr-defined]
            cut.image.cut_from = cut.cut_from  # type: ignore[attr-defined]
            return cut.image
        with _content_of(image) as content:
            if isinstance(content, Image.Image):
                copy = content.copy()
                copy.filename = source_of(image)  # type: ignore[attr-defined]
                copy.cut_from = _cut_from(content)  # type: ignore[attr-defined]
                return copy
            if isinstance(content, np.ndarray):
                check_array(content, Limits(**limits))
                return content.copy()
            if hasattr(image, "read"):
                _check_size(content, Limits(**limits).image_memory)
                return _TakenFile(source_of(image), content.at(0, content.size))
            return content.at(0, content.size)
    except Exception as error:  # noqa: BLE001 - raised when the copy is read
        return _TakenFile(source_of(image), error)


def shared(image: ImageInput, **limits: Unpack[ImageLimits]) -> SharedImage:
    """Returns an image that is decoded once for all of its regions. The caller must not change it meanwhile."""

    def load(held: ExitStack) -> LoadedImage:
        return _load(image, Limits(**limits), None, held, hashed=True)

    return SharedImage(source_of(image), load)


def share(images: Iterable[Item], **limits: Unpack[ImageLimits]) -> Iterator[Item]:
    """Yields images, and lets consecutive regions of the same file or bytes share one decoded image.

    The image of each such region becomes a `Lease`, to be closed when the region was read.
    """
    current: SharedImage | None = None
    try:
        for image in images:
            mark = _mark_of(image.image) if isinstance(image, Region) else None
            if current is not None and mark != current.mark:
                current.leave()
                current = None
            if mark is None:
                yield image
                continue
            region = cast("Region", image)
            whole: Any = region.image
            if current is None:
                current = whole if isinstance(whole, SharedImage) else shared(whole, **limits)
                current.mark = mark
            yield cast("Item", replace(region, image=cast("Any", current.lease())))
    finally:
        if current is not None:
            current.leave()


def shared_by(image: object) -> SharedImage | None:
    """Returns the image of a region that `share` has yielded; ``None`` for any other image."""
    lease = _lease_of(image)
    return lease.shared if lease else None


@contextmanager
def released(image: object) -> Iterator[None]:
    """Ends the lease of a region that `share` has yielded, after the block. Does nothing for any other image."""
    lease = _lease_of(image)
    with closing(lease) if lease else nullcontext():
        yield


def _lease_of(image: object) -> Lease | None:
    whole: object = image.image if isinstance(image, Region) else None
    return whole if isinstance(whole, Lease) else None


def _mark_of(image: object) -> Hashable:
    """Returns equal values for images of the same content, or ``None`` for an image that its owner may change."""
    if isinstance(image, SharedImage | bytes):
        return id(image)
    if isinstance(image, str | os.PathLike):
        with suppress(OSError, ValueError):  # reading it raises the error
            found = os.stat(image)  # noqa: PTH116 - a path may be bytes
            return os.fsdecode(image), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return None


class _TakenFile(io.BytesIO):
    """The content of a file in memory, or the error of reading the file, which `read` raises."""

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
    """Converts all errors of the block to an ImageError with the name of the image.

    Fuzzing found OSError, SyntaxError, ValueError, TypeError, IndexError, RuntimeError, struct.error and, where
    warnings are errors, UserWarning from Pillow. A file object of the caller may raise anything.
    """
    source, handled = source_of(image), sys.exception()
    name = repr(source) if isinstance(image, str | os.PathLike | Region) else source
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised as an ImageError
        _forget_images(error, handled)
        cause: BaseException | None = error
        if isinstance(error, ImageError):
            reason, cause = str(error), error.__cause__
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"{error} Scale it down"
        else:
            damage = str(error).strip() or type(error).__name__
            reason = f"{damage}; damaged or unsupported, save it anew as PNG or JPEG"
        raise ImageError(f"cannot read {name}: {reason}") from cause


def _forget_images(error: Exception, handled: BaseException | None) -> None:
    """Clears local variables in the traceback of an error, to free encoded bytes and partly decoded images.

    Frames of the caller are not cleared, because clearing the frame of a generator closes the generator. The exception
    that the caller is handling is not touched either. `seen` ends the loop if errors of a caller's file object are
    causes of each other.
    """
    seen = {id(handled)}
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
                with suppress(RuntimeError):  # the frame is running
                    frame.clear()


def _load(image: ImageInput, limits: Limits, side: int | None, held: ExitStack, *, hashed: bool) -> LoadedImage:
    """Reserves memory until the stack is closed, and decodes an image.

    A file is read as a whole only after memory is reserved for its bytes and for the image that its header describes.
    """
    if isinstance(image, Region):
        image.check()  # before the image is decoded
        lease = _lease_of(image)
        whole = lease.shared.whole(held) if lease else _load(image.image, limits, None, held, hashed=hashed)
        rgb = image.cut_from(whole.image)
        # A region of a region was cut from the outer image.
        return LoadedImage(rgb, _digest_of(rgb) if hashed else "", rgb.size, whole.cut_from or whole.content_hash)
    content: bytes | NDArray[Any] | Image.Image
    with _content_of(image) as given:
        if isinstance(given, Encoded):
            # Released before the next reservation: a thread that holds memory must not wait for more.
            with ExitStack() as opening:
                ACCOUNT.take(min(opening_memory(given), limits.image_memory), limits.image_memory, opening)
                plan = plan_encoded(given, limits, side)
            ACCOUNT.take(plan.memory + given.size * given.on_disk, limits.image_memory, held)
            content = given.at(0, given.size)
        else:
            content, plan = given, plan_decoded(given, limits)
            ACCOUNT.take(plan.memory, limits.image_memory, held)
    rgb = decode(content, plan)
    digest = _digest_of(rgb if isinstance(content, Image.Image) else content) if hashed else ""
    return LoadedImage(rgb, digest, plan.size_of(rgb), _cut_from(content))


def _cut_from(content: object) -> str:
    """Returns the content hash of the image that `taken` has cut a region from; empty for any other content."""
    found = getattr(content, "cut_from", "") if isinstance(content, Image.Image) else ""
    return found if isinstance(found, str) else ""


@contextmanager
def _content_of(image: ImageInput) -> Iterator[Encoded | NDArray[Any] | Image.Image]:
    """Yields a PIL image unchanged, arrays and tensors with the channels last, and other images as `Encoded`.

    Resets the position of a seekable file.
    """
    if isinstance(image, Image.Image):
        yield image
    elif is_array(image):
        yield channels_last(as_array(image))
    elif isinstance(image, bytes | bytearray | memoryview):
        yield Encoded(io.BytesIO(bytes(image)))
    elif isinstance(image, str | os.PathLike):
        with _opened_path(image) as file:
            yield Encoded(file, on_disk=True)
    elif isinstance(image, Region) or not hasattr(image, "read"):
        raise ImageError(
            f"{shown(image)} is no image; give a path, bytes, a binary file, a PIL image, an array or a tensor"
        )
    elif isinstance(image, io.TextIOBase):
        raise ImageError("the file is open in text mode; open it with mode 'rb'")
    elif not getattr(image, "seekable", lambda: False)():
        yield Encoded(io.BytesIO(_read_stream(cast("BinaryIO", image))))
    else:
        file = cast("BinaryIO", image)
        start = file.tell()
        try:
            yield Encoded(file, on_disk=True)
        finally:
            file.seek(start)


def as_array(image: Any) -> NDArray[Any]:
    """Returns an array of the same values. The values of a tensor are copied only from another device."""
    if isinstance(image, np.ndarray):
        return image
    if hasattr(image, "detach") and hasattr(image, "cpu"):  # a tensor of torch
        image = image.detach().cpu()
        if str(image.dtype) == "torch.bfloat16":  # numpy has no such numbers
            image = image.float()
    return np.asarray(image)


@contextmanager
def _opened_path(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    where = os.fsdecode(path)
    if not where:
        raise ImageError("the path is empty; give the path of an image")
    try:
        file = open_regular(Path(where))
    except IsADirectoryError:
        raise ImageError("it is a folder; give one of the files in it") from None
    except OSError as error:
        if os.path.exists(where) and not os.path.isfile(where):  # noqa: PTH110, PTH113 - Path's raise for long names
            raise ImageError("it is a device, pipe or socket; give a regular file, or the bytes") from None
        if _URL.match(where):
            raise ImageError("URLs are not fetched; download it, and give the file or its bytes") from None
        reason = error.strerror or error
        raise ImageError(f"{reason}; check the path and its permissions") from error
    with file:
        yield file


def _check_size(content: Encoded, image_memory: int) -> None:
    """Raises ImageError for a file that does not begin like an image or is larger than `image_memory`."""
    recognised(content.at(0, 16))
    content.seek(0)
    if content.size > image_memory:
        raise ImageError(f"{content.size:,} bytes are more than image_memory={image_memory:,}; give a smaller image")


def _read_stream(file: BinaryIO) -> bytes:
    """Reads a file of unknown size; raises ImageError as soon as the content is too large or cannot be an image."""
    kept = io.BytesIO()
    while chunk := read_bytes(file, _CHUNK_BYTES):
        kept.write(chunk)
        if kept.tell() > MAX_BYTES:
            raise ImageError(f"it has more than {MAX_BYTES:,} bytes; give a smaller image")
        if kept.tell() >= 16:
            recognised(bytes(kept.getbuffer()[:16]))
    return kept.getvalue()


def _digest_of(content: bytes | NDArray[Any] | Image.Image) -> str:
    """Returns the SHA-256 of bytes, of a PIL image (mode, size, pixels) or of an array (dtype, shape, values)."""
    if isinstance(content, bytes):
        return _digest([content])
    if isinstance(content, Image.Image):
        kind = f"{content.mode} {content.size}"
        parts: Iterable[bytes] = (content.crop(box).tobytes() for box in bands(content.size))
    else:
        kind = f"{content.dtype.str} {content.shape}"
        boxes = bands((content.shape[1], content.shape[0]))
        parts = (content[top:bottom].tobytes() for _, top, _, bottom in boxes)
    return _digest(chain([kind.encode()], parts))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
