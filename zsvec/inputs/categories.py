"""Category definitions as users give them, and the checks of names, texts, images, vectors and metadata."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from zsvec.errors import CONTROLS, SURROGATES, InvalidInputError, shown
from zsvec.inputs.images import ImageInput

LONGEST_NAME = 500
LONGEST_TEXT = 20_000
LONGEST_METADATA = 100_000
_DEEPEST_METADATA = 32  # far below 128: deeper records make the log of the embedded engine unreadable

_AROUND = r"[\s\x1c-\x1f]*"  # stripped by Python
_INSIDE, _VISIBLE, _FIRST = f"[^{CONTROLS}]", rf"[^\s{CONTROLS}]", rf"[^.\s{CONTROLS}]"
NAME_PATTERN = rf"^{_AROUND}({_FIRST}({_INSIDE}*{_VISIBLE})?|\.{_FIRST}|\.{_INSIDE}+{_VISIBLE}){_AROUND}$"
"""Regular expression of Python and of ECMA 262 for the name of a category."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceImage:
    """A reference image with metadata.

    Attributes:
        image: The image.
        source: Origin of the image; by default its path.
        prompt: The prompt that the image was generated from.
        vectors: Vector of each image encoder, float32 ``(dim,)``, unit norm. An image with vectors is not embedded
            again.
        group: Name of a group of related images within the category: a burst, a video, a session. Images of a group
            are no evidence for each other, so calibration leaves them out together.
    """

    image: ImageInput
    source: str | None = None
    prompt: str | None = None
    vectors: Mapping[str, NDArray[np.float32]] | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryInput:
    """The definition of a category.

    Attributes:
        name: The label.
        texts: Definition texts. ``None``: the name, in each encoder's prompt, unless the category exists.
        images: Reference images; iterated once, possibly in another thread.
        vectors: References embedded elsewhere with the same encoder: by expert, such as ``clip:image``, float
            ``(n, dim)`` of any norm. If several encoders have the same number of rows, rows of the same position belong
            to the same image.
        metadata: JSON to keep with the category.
    """

    name: str
    texts: Sequence[str] | None = None
    images: Iterable[ImageInput | ReferenceImage] = ()
    vectors: Mapping[str, ArrayLike] = field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None


def is_several(value: object) -> TypeGuard[Iterable[Any]]:
    """Returns whether a value is iterable, and neither a text nor a number of numpy."""
    one = isinstance(value, str | bytes | bytearray | np.generic) or (isinstance(value, np.ndarray) and not value.ndim)
    return not one and isinstance(value, Iterable)


def checked_path(name: str, path: object) -> Path:
    """Returns a path, of an existing file or not; raises InvalidInputError if no file can have this path."""
    try:
        found = Path(cast("str", path))
        if b"\0" not in os.fsencode(found):
            return found
    except (TypeError, ValueError):  # no path, or a text that no file system encodes
        pass
    raise InvalidInputError(f"{name} must be a path. Got {shown(path)} instead")


def checked_category(category: object) -> CategoryInput:
    """Returns a category with name, texts and metadata in their stored form, or raises InvalidInputError.

    Images are not iterated. Vectors are not checked: `checked_vectors` needs their dimension.
    """
    if not isinstance(category, CategoryInput):
        raise InvalidInputError(f"categories must be CategoryInput objects. Got {shown(category)} instead")
    if not isinstance(category.vectors, Mapping):
        raise InvalidInputError(
            f"vectors must be a mapping of experts to arrays. Got {shown(category.vectors)} instead"
        )
    return replace(
        category,
        name=checked_name(category.name),
        texts=None if category.texts is None else _checked_texts(category.texts),
        images=checked_images(category.images),
        metadata=None if category.metadata is None else checked_metadata(category.metadata),
    )


def checked_name(name: object) -> str:
    """Returns a category name in its stored form: composed Unicode, without surrounding space.

    Raises:
        InvalidInputError: The name is no text, empty, longer than `LONGEST_NAME`, has control characters or marks of
            the writing direction, or is ``.`` or ``..``, which browsers remove from URLs.
    """
    checked = _short_text(name, "a category name")
    if checked in {".", ".."}:
        raise InvalidInputError(f"a category name must not be that of a folder. Got {checked!r}: take another name")
    return checked


def checked_group(group: object) -> str:
    """Returns the group of a reference image in its stored form; raises as `checked_name`."""
    return _short_text(group, "the group of a reference image")


def _short_text(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(f"{what} must be a str. Got {shown(text)} instead")
    composed = unicodedata.normalize("NFC", text).strip()
    if not any(unicodedata.category(character) not in {"Cf", "Zs"} for character in composed):
        raise InvalidInputError(f"{what} must not be empty. Got {shown(text)}")
    if len(composed) > LONGEST_NAME:
        raise InvalidInputError(
            f"{what} may have at most {LONGEST_NAME} characters. Got {len(composed)}, {composed[:40]!r}…"
        )
    if re.search(f"[{CONTROLS}{SURROGATES}]", composed):
        raise InvalidInputError(f"{what} must be printable in one line. Got {shown(composed)}")
    return composed


def _checked_texts(texts: object) -> list[str]:
    if not is_several(texts):
        raise InvalidInputError(f"texts must be a list of str. Got {shown(texts)} instead")
    return [_checked_text(text) for text in texts]


def _checked_text(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InvalidInputError(f"a definition text must be a str that is not empty. Got {shown(text)} instead")
    if len(text) > LONGEST_TEXT:
        raise InvalidInputError(
            f"a definition text may have at most {LONGEST_TEXT:,} characters. Got {len(text):,}, {text[:40]!r}…"
        )
    if re.search(f"[{SURROGATES}]", text):
        raise InvalidInputError(f"a definition text must be valid Unicode. Got {shown(text)}")
    return text.strip()


def checked_images(images: object) -> Iterable[Any]:
    """Returns an iterable of images; raises InvalidInputError for one image or another value.

    One image is refused because a path would be iterated by letter, an array by row.
    """
    alone = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | np.generic)
    row_by_row = isinstance(images, np.ndarray) and images.ndim < (1 if images.dtype == object else 4)
    iterable = hasattr(type(images), "__iter__") or hasattr(type(images), "__getitem__")
    if alone or row_by_row or hasattr(images, "read") or not iterable:
        got = f"an array of shape {images.shape}" if isinstance(images, np.ndarray) else shown(images)
        raise InvalidInputError(f"images must be a list, or another iterable, of images. Got {got} instead")
    return cast("Iterable[Any]", images)


def checked_vectors(vectors: ArrayLike, dim: int, *, name: str) -> NDArray[np.float32]:
    """Returns vectors with rows of unit L2 norm, float32 ``(n, dim)``.

    Args:
        vectors: Numbers of this shape, rows of any norm.
        dim: Dimension of the encoder.
        name: Expert or encoder, for messages.

    Raises:
        InvalidInputError: The values are no numbers, of another shape, or a row is zero or not finite.
    """
    try:
        rows = as_numbers(vectors)
    except Exception as exc:  # arrays of other libraries may raise anything
        raise InvalidInputError(
            f"vectors of {name} must be numbers of the shape (n, {dim}). Got {shown(vectors)} instead"
        ) from exc
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise InvalidInputError(f"vectors of {name} must have the shape (n, {dim}). Got {rows.shape} instead")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unusable = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if unusable.size:
        raise InvalidInputError(
            f"vectors of {name} must be finite and not zero; rows that are not: {unusable[:5].tolist()}"
        )
    unit: NDArray[np.float32] = (rows / norms).astype(np.float32)
    return unit


def as_numbers(values: object) -> NDArray[np.float64]:
    """Returns an array of real numbers; raises TypeError for texts and complex, and any error of the conversion.

    In float64, the norm of a finite float32 row neither overflows nor underflows.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biufO":
        raise TypeError(f"{array.dtype} are no real numbers")
    return np.asarray(array, dtype=np.float64)


def checked_metadata(metadata: object) -> dict[str, Any]:
    """Returns metadata in its stored form.

    Raises:
        InvalidInputError: The metadata is no JSON object, has numbers beyond 64 bits, or is too long or too deep.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata must be a mapping of str to JSON. Got {shown(metadata)} instead")
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
        text.encode()
        plain: dict[str, Any] = json.loads(text, parse_int=_int64)
        depth = _depth(plain)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidInputError(f"metadata must be a JSON object: {exc}") from exc
    if len(text) > LONGEST_METADATA or depth > _DEEPEST_METADATA:
        raise InvalidInputError(
            f"metadata may have at most {LONGEST_METADATA:,} characters as JSON and {_DEEPEST_METADATA} levels. "
            f"Got {len(text):,} and {depth}, {text[:40]}…"
        )
    return plain


def _int64(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"the number {digits[:20]}… has more than 64 bits")
    return value


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, dict | list) else 0


def as_words(name: str) -> str:
    """Returns a category name with spaces for underscores, which folder names often have."""
    return " ".join(name.replace("_", " ").split())
