"""Category definitions, and checks of names, texts, images, vectors and metadata."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsvec.errors import CONTROLS, SURROGATES, InvalidInputError, shown
from zsvec.inputs.images import ImageInput, is_one_image
from zsvec.types import LONGEST_NAME, MAX_LEVELS, PARENT_MARK

LONGEST_TEXT = 20_000
LONGEST_METADATA = 100_000
_DEEPEST_METADATA = 32  # nested levels; the embedded engine cannot read its log beyond 128

_AROUND = r"[\s\x1c-\x1f\x85]*"  # whitespace that `str.strip` removes; \s of ECMA 262 has no \x85
_INSIDE, _VISIBLE, _FIRST = f"[^{CONTROLS}]", rf"[^\s{CONTROLS}]", rf"[^.\s{CONTROLS}]"
NAME_PATTERN = rf"^{_AROUND}({_FIRST}({_INSIDE}*{_VISIBLE})?|\.{_FIRST}|\.{_INSIDE}+{_VISIBLE}){_AROUND}$"
"""Regular expression for category names, valid in Python and in ECMA 262."""
_PART = NAME_PATTERN[1 + len(_AROUND) : -1 - len(_AROUND)].replace(CONTROLS, f">{CONTROLS}")  # a name without '>'
PARENT_PATTERN = rf"^{_AROUND}({_PART}({_AROUND}>{_AROUND}{_PART}){{0,{MAX_LEVELS - 1}}}{_AROUND})?$"
"""Regular expression for parents, valid in Python and in ECMA 262."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceImage:
    """A reference image with metadata.

    Attributes:
        image: The image.
        source: Origin of the image; by default, its path or name.
        prompt: The prompt that the image was generated from.
        vectors: Precomputed vectors by image encoder, each float32 ``(dim,)`` of unit norm. An image with vectors is
            not embedded again.
        group: Name of a group of related images of the category, such as a burst, a video or a session. Images of the
            same group are not independent evidence, so calibration leaves out the whole group together.
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
        texts: Definition texts. With ``None``, a new category is defined by its name in each encoder's prompt, and an
            existing category keeps its texts.
        images: Reference images; iterated once, possibly in another thread. ``None`` means not given. If there are
            no texts and no vectors, there must be at least one image.
        vectors: References that were embedded elsewhere with the same encoder. The key is the expert, such as
            ``clip:image``; the value is a float array ``(n, dim)`` with rows of any norm. If all arrays of a modality
            have the same number of rows, row i of each array belongs to the same image or text.
        sources: Name of each row of `vectors` in the evidence of predictions: a path, a URL or an id of your own. If
            given, every array has as many rows as there are sources. By default, ``vector``.
        metadata: JSON object that is stored with the category.
        parent: The names above the category in the tree, topmost first: ``animal > bird``. Each name is a category, or
            a group that exists because categories name it. With ``None``, an existing category keeps its parent; an
            empty text removes the parent.
    """

    name: str
    texts: Sequence[str] | None = None
    images: Iterable[ImageInput | ReferenceImage] | None = None
    vectors: Mapping[str, ArrayLike] = field(default_factory=dict)
    sources: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None
    parent: str | None = None


def is_several(value: object) -> TypeGuard[Iterable[Any]]:
    """Returns whether a value is iterable and is not a text, bytes or a numpy scalar."""
    one = isinstance(value, str | bytes | bytearray | np.generic) or (isinstance(value, np.ndarray) and not value.ndim)
    return not one and isinstance(value, Iterable)


def checked_path(name: str, path: object) -> Path:
    """Returns the value as a path, which need not exist; raises InvalidInputError if the value cannot be a path.

    Empty text is no path: `pathlib` would take the working directory.
    """
    try:
        found = Path(cast("str", path))
        if path != "" and b"\0" not in os.fsencode(found):
            return found
    except (TypeError, ValueError):  # not a path, or text that the file system cannot encode
        pass
    raise InvalidInputError(f"{name} must be a path. Got {shown(path)} instead")


def checked_category(category: object) -> CategoryInput:
    """Returns a category with name, texts, sources, metadata and parent in stored form.

    Raises InvalidInputError for invalid values. If only images are given, the first one is taken from their iterable,
    to see that there is one. Vectors are not checked, because `checked_vectors` needs their dimension.
    """
    if not isinstance(category, CategoryInput):
        raise InvalidInputError(f"categories must be CategoryInput objects. Got {shown(category)} instead")
    if not isinstance(category.vectors, Mapping):
        raise InvalidInputError(
            f"vectors must be a mapping of experts to arrays. Got {shown(category.vectors)} instead"
        )
    name = checked_name(category.name)
    texts = None if category.texts is None else checked_texts(category.texts, "texts", "a definition text")
    images = None if category.images is None else checked_images(category.images)
    if images is not None and not texts and _are_empty(category.vectors):
        images = _not_empty(images, name)
    return replace(
        category,
        name=name,
        texts=texts,
        images=images,
        sources=None if category.sources is None else checked_texts(category.sources, "sources", "a source"),
        metadata=None if category.metadata is None else checked_metadata(category.metadata),
        parent=None if category.parent is None else checked_parent(category.parent, name),
    )


def _are_empty(vectors: Mapping[str, ArrayLike]) -> bool:
    try:
        return all(np.shape(rows)[:1] == (0,) for rows in vectors.values())
    except Exception:  # noqa: BLE001 - no array, which `checked_vectors` reports
        return False


def _not_empty(images: Iterable[Any], name: str) -> Iterable[Any]:
    """Returns the images after a look at the first; raises InvalidInputError if there is none, as of an empty glob."""
    each = iter(images)
    for first in each:
        return chain([first], each)
    raise InvalidInputError(
        f"the images of category {name!r} must not be empty without texts or vectors. Give an image, or leave images "
        "out, so that the name alone defines a new category"
    )


def checked_name(name: object) -> str:
    """Returns a category name in stored form: Unicode normal form NFC, without surrounding whitespace.

    Raises:
        InvalidInputError: The name is not text, is empty, is longer than `LONGEST_NAME`, contains control characters or
            marks of the writing direction, or is ``.`` or ``..``, which browsers remove from URLs.
    """
    checked = _short_text(name, "a category name")
    if checked in {".", ".."}:
        raise InvalidInputError(f"a category name must not be that of a folder. Got {checked!r}: take another name")
    return checked


def checked_parent(parent: object, name: str | None = None) -> str:
    """Returns a parent in stored form: valid names, topmost first, with ``>`` between them; empty without names.

    Args:
        parent: The parent.
        name: The category, in stored form, if known.

    Raises:
        InvalidInputError: The parent is not text, names the category, has an invalid name, more than `MAX_LEVELS` names
            or more than `LONGEST_NAME` characters.
    """
    if not isinstance(parent, str):
        raise InvalidInputError(f"parent must be a text such as 'animal > bird'. Got {shown(parent)} instead")
    if not parent.strip():
        return ""
    parts = parent.split(PARENT_MARK.strip(), MAX_LEVELS)
    if len(parts) > MAX_LEVELS:
        raise InvalidInputError(f"a parent may have at most {MAX_LEVELS} names. Got more, {parent[:40]!r}…")
    names = [checked_name(part) for part in parts]
    if name in names:
        raise InvalidInputError(f"the parent of {name!r} must not name the category itself. Got {parent!r}")
    checked = PARENT_MARK.join(names)
    if len(checked) > LONGEST_NAME:
        raise InvalidInputError(
            f"a parent may have at most {LONGEST_NAME} characters. Got {len(checked)}, {checked[:40]!r}…"
        )
    return checked


def checked_group(group: object) -> str:
    """Returns the group of a reference image in stored form.

    The rules are those of `checked_name`, but ``.`` and ``..`` are valid.
    """
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


def checked_texts(texts: object, name: str, what: str) -> list[str]:
    """Returns texts in stored form: without surrounding whitespace.

    Args:
        texts: An iterable of str.
        name: Name of the argument, for error messages.
        what: Name of one text, for error messages.

    Raises:
        InvalidInputError: The value is a single text or no iterable, or a text is empty, too long or not Unicode.
    """
    if not is_several(texts):
        raise InvalidInputError(f"{name} must be a list of str. Got {shown(texts)} instead")
    return [_checked_text(text, what) for text in texts]


def _checked_text(text: object, what: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InvalidInputError(f"{what} must be a str that is not empty. Got {shown(text)} instead")
    if len(text) > LONGEST_TEXT:
        raise InvalidInputError(
            f"{what} may have at most {LONGEST_TEXT:,} characters. Got {len(text):,}, {text[:40]!r}…"
        )
    if re.search(f"[{SURROGATES}]", text):
        raise InvalidInputError(f"{what} must be valid Unicode. Got {shown(text)}")
    return text.strip()


def checked_images(images: object) -> Iterable[Any]:
    """Returns `images` if it is an iterable of images; raises InvalidInputError for a single image or another value.

    A single path would be iterated letter by letter, a single array row by row, and a data frame column by column.
    """
    if is_one_image(images):
        got = f"an array of shape {tuple(images.shape)}" if hasattr(images, "shape") else shown(images)
        raise InvalidInputError(f"images must be a list, or another iterable, of images. Got {got} instead")
    return cast("Iterable[Any]", images)


def checked_vectors(vectors: ArrayLike, dim: int, *, name: str) -> NDArray[np.float32]:
    """Returns vectors with rows scaled to unit L2 norm, float32 ``(n, dim)``.

    Args:
        vectors: Numbers of shape ``(n, dim)``, with rows of any norm.
        dim: Dimension of the encoder.
        name: Name of the expert or encoder, for error messages.

    Raises:
        InvalidInputError: The values are not numbers or have another shape, or a row is zero or not finite.
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
    """Returns the values as a float64 array of real numbers.

    In float64, the norm of a finite float32 row can neither overflow nor underflow. Raises TypeError for texts and
    complex numbers, and any error of the conversion.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biufO":
        raise TypeError(f"{array.dtype} are no real numbers")
    return np.asarray(array, dtype=np.float64)


def checked_metadata(metadata: object) -> dict[str, Any]:
    """Returns metadata in its stored form.

    Raises:
        InvalidInputError: The metadata is not a JSON object, contains integers beyond 64 bits, or is too long or too
            deep.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata must be a mapping of str to JSON. Got {shown(metadata)} instead")
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
        text.encode()
        plain: dict[str, Any] = json.loads(text, parse_int=_int64)
        depth = depth_of(plain)
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


def depth_of(value: object) -> int:
    """Returns the number of nested levels of a JSON value; 0 for a number or a text."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth_of, inner), default=0) if isinstance(value, dict | list) else 0


def as_words(name: str) -> str:
    """Returns a category name with spaces instead of underscores, which are common in folder names."""
    return " ".join(name.replace("_", " ").split())
