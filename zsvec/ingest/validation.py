"""What is given to a classifier, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Literal, TypeVar, get_args

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


def checked_count(name: str, value: object, most: int | None = None) -> int:
    """Returns a whole number from 1 up, numpy's too; raises InvalidInputError for anything else, or above `most`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):  # type: ignore[operator]
        to = "up" if most is None else f"to {most:,}"
        raise InvalidInputError(f"{name} must be a whole number from 1 {to}. Got {shown(value)} instead")
    return int(value)  # type: ignore[call-overload,no-any-return]


def checked_batch_size(value: object) -> int:
    """Returns the number of images that an encoder takes at once; raises InvalidInputError for anything else."""
    return checked_count("batch_size", value, LARGEST_BATCH)


def check_answers(top_k: object, errors: object) -> None:
    """Raises InvalidInputError for an unusable number of categories, or way to answer for an unreadable image."""
    checked_count("top_k", top_k)
    checked_choice("errors", errors, ("raise", "report"))


def checked_choice(name: str, value: object, choices: tuple[Choice, ...]) -> Choice:
    """Returns one of several texts; raises InvalidInputError for anything else."""
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    *others, last = map(repr, choices)
    raise InvalidInputError(f"{name} must be {', '.join(others)} or {last}. Got {shown(value)} instead")


def checked_flag(name: str, value: object) -> bool:
    """Returns a truth value, numpy's too; raises InvalidInputError for anything else."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InvalidInputError(f"{name} must be True or False. Got {shown(value)} instead")


def checked_callback(name: str, value: Callback | None) -> Callback | None:
    """Returns a function or ``None``; raises InvalidInputError for anything else."""
    if value is None or callable(value):
        return value
    raise InvalidInputError(f"{name} must be a function or None. Got {shown(value)} instead")


def checked_keep(value: object) -> Keep:
    """Returns which images wait in the inbox; raises InvalidInputError for anything else."""
    return checked_choice("keep", value, get_args(Keep))


def checked_wait(max_wait_ms: float | None) -> float | None:
    """Returns milliseconds from 0 up as seconds, ``None`` as it is; raises InvalidInputError for anything else."""
    if max_wait_ms is None:
        return None
    if not (isinstance(max_wait_ms, Real) and max_wait_ms >= 0 and _is_finite(max_wait_ms)):
        raise InvalidInputError(f"max_wait_ms must be a number from 0 up. Got {shown(max_wait_ms)} instead")
    return float(max_wait_ms) / 1000


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond every float
        return False


def checked_hash(content_hash: object) -> str:
    """Returns a content hash; raises InvalidInputError for a value that can be none."""
    return _checked_hash("hash", content_hash, content_hash)


def checked_hashes(hashes: object) -> frozenset[str]:
    """Returns one or several content hashes as a set.

    Raises:
        InvalidInputError: There is none, or a value that can be none.
    """
    if isinstance(hashes, str):
        return frozenset([_checked_hash("hashes", hashes, hashes)])
    if not is_several(hashes) or isinstance(hashes, Mapping):
        raise _no_hash("hashes", hashes)
    found = frozenset(_checked_hash("hashes", one, hashes) for one in hashes)
    if not found:
        raise _no_hash("hashes", hashes)
    return found


def _checked_hash(name: str, content_hash: object, given: object) -> str:
    if isinstance(content_hash, str) and _HASH.fullmatch(content_hash):
        return content_hash
    raise _no_hash(name, given)


def _no_hash(name: str, given: object) -> InvalidInputError:
    return InvalidInputError(
        f"{name} must be {'a content hash' if name == 'hash' else 'one or more content hashes'} of 64 characters. "
        f"Got {shown(given)} instead: `zsvec show --json` and `zsvec inbox --json` list them"
    )


def checked_queries(vectors: Mapping[str, ArrayLike], fingerprints: Mapping[str, Fingerprint]) -> Vectors:
    """Vectors of images that were embedded elsewhere, with rows of unit norm.

    Args:
        vectors: By encoder, float ``(n_images, dim)`` of any norm.
        fingerprints: Of all encoders.

    Raises:
        InvalidInputError: Vectors are of other encoders or of another shape, zero, or not finite.
    """
    if not isinstance(vectors, Mapping):
        raise InvalidInputError(f"vectors must be a mapping of encoders to arrays. Got {shown(vectors)} instead")
    if set(vectors) != set(fingerprints):
        given = ", ".join(map(str, vectors)) or "none"
        raise InvalidInputError(f"vectors must be given of the encoders {', '.join(fingerprints)}. Got {given}")
    queries = {name: checked_vectors(rows, fingerprints[name].dim, name=name) for name, rows in vectors.items()}
    counts = {name: len(rows) for name, rows in queries.items()}
    if len(set(counts.values())) > 1:
        raise InvalidInputError(f"each encoder must have vectors of the same images. Got {counts}")
    return queries
