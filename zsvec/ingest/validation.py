"""Checks of a classifier's arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Mapping
from numbers import Real
from typing import Literal, TypeGuard, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike

from zsvec.encoders.spec import LARGEST_BATCH
from zsvec.errors import InvalidInputError, shown
from zsvec.ingest.embedding import Vectors
from zsvec.inputs.categories import checked_vectors, is_several
from zsvec.types import Fingerprint, Keep

Errors = Literal["raise", "report"]
Choice = TypeVar("Choice", bound=str)
Callback = TypeVar("Callback", bound=Callable[..., object])

_HASH = re.compile("[0-9A-Za-z]{1,64}")
_LISTS = "`zsvec show --json` and `zsvec inbox --json` list hashes"


def checked_count(name: str, value: object, most: int | None = None) -> int:
    """Returns a Python or numpy integer as int; raises InvalidInputError below 1, above `most` or for another type."""
    if not _is_whole(value) or value < 1 or (most is not None and value > most):
        to = "up" if most is None else f"to {most:,}"
        raise InvalidInputError(f"{name} must be a whole number from 1 {to}. Got {shown(value)} instead")
    return int(value)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def checked_versions(versions: object) -> Container[int]:
    """Returns versions of a category as a set; a range, and a container that cannot be iterated, as they are.

    Raises InvalidInputError for any other value, and for a version that is not a whole number from 0 up.
    """
    if isinstance(versions, range) or (isinstance(versions, Container) and not isinstance(versions, Iterable)):
        return versions
    if is_several(versions) and isinstance(versions, Container) and not isinstance(versions, Mapping):
        found = list(versions)
        if all(_is_whole(version) and version >= 0 for version in found):
            return frozenset(map(int, found))
    raise InvalidInputError(
        f"versions must be a set, or another collection, of whole numbers from 0 up. Got {shown(versions)} instead"
    )


def checked_batch_size(value: object) -> int:
    """Returns a batch size from 1 to `LARGEST_BATCH`; raises InvalidInputError for any other value."""
    return checked_count("batch_size", value, LARGEST_BATCH)


def check_answers(top_k: object, errors: object) -> None:
    """Raises InvalidInputError if `top_k` is not a whole number from 1 up, or `errors` is not one of `Errors`."""
    checked_count("top_k", top_k)
    checked_choice("errors", errors, ("raise", "report"))


def checked_choice(name: str, value: object, choices: tuple[Choice, ...]) -> Choice:
    """Returns the choice that equals the value; raises InvalidInputError if there is none."""
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    *others, last = map(repr, choices)
    raise InvalidInputError(f"{name} must be {', '.join(others)} or {last}. Got {shown(value)} instead")


def checked_flag(name: str, value: object) -> bool:
    """Returns a Python or numpy bool as bool; raises InvalidInputError for any other value."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InvalidInputError(f"{name} must be True or False. Got {shown(value)} instead")


def checked_callback(name: str, value: Callback | None) -> Callback | None:
    """Returns a function or ``None``; raises InvalidInputError for any other value."""
    if value is None or callable(value):
        return value
    raise InvalidInputError(f"{name} must be a function or None. Got {shown(value)} instead")


def checked_keep(value: object) -> Keep:
    """Returns one of the values of `Keep`; raises InvalidInputError for any other value."""
    return checked_choice("keep", value, get_args(Keep))


def checked_wait(max_wait_ms: object) -> float | None:
    """Converts non-negative milliseconds to seconds, and keeps ``None``; raises InvalidInputError for other values."""
    if max_wait_ms is None:
        return None
    try:
        milliseconds = float(max_wait_ms) if isinstance(max_wait_ms, Real) else math.nan
    except OverflowError:  # an int that is too large for a float
        milliseconds = math.inf
    if not 0 <= milliseconds < math.inf:
        raise InvalidInputError(f"max_wait_ms must be a number from 0 up. Got {shown(max_wait_ms)} instead")
    return milliseconds / 1000


def checked_hash(content_hash: object) -> str:
    """Returns a content hash; raises InvalidInputError for any other value."""
    if _is_hash(content_hash):
        return content_hash
    raise InvalidInputError(
        f"hash must be a content hash of 64 characters. Got {shown(content_hash)} instead: {_LISTS}"
    )


def checked_hashes(hashes: object) -> frozenset[str]:
    """Returns one or several content hashes as a set; raises InvalidInputError for an empty list or an invalid hash."""
    several = [hashes] if isinstance(hashes, str) else hashes
    found = list(several) if is_several(several) and not isinstance(several, Mapping) else []
    if not found or not all(map(_is_hash, found)):
        raise InvalidInputError(
            f"hashes must be one or more content hashes of 64 characters. Got {shown(hashes)} instead: {_LISTS}"
        )
    return frozenset(found)


def _is_hash(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(_HASH.fullmatch(value))


def checked_queries(vectors: Mapping[str, ArrayLike], fingerprints: Mapping[str, Fingerprint]) -> Vectors:
    """Returns vectors by encoder, with rows scaled to unit norm.

    Raises:
        InvalidInputError: A vector is invalid, there is no encoder, an encoder is unknown, or the numbers of rows
            differ.
    """
    if not isinstance(vectors, Mapping):
        raise InvalidInputError(f"vectors must be a mapping of encoders to arrays. Got {shown(vectors)} instead")
    if not vectors or not vectors.keys() <= fingerprints.keys():
        given = ", ".join(map(str, vectors)) or "none"
        raise InvalidInputError(f"vectors must be of some of the encoders {', '.join(fingerprints)}. Got {given}")
    queries = {name: checked_vectors(rows, fingerprints[name].dim, name=name) for name, rows in vectors.items()}
    counts = {name: len(rows) for name, rows in queries.items()}
    if len(set(counts.values())) > 1:
        raise InvalidInputError(f"each encoder must have vectors of the same images. Got {counts}")
    return queries
