"""What is given to a classifier, checked."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from numbers import Real
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from zsvec.embedding import Vectors
from zsvec.errors import InvalidInputError
from zsvec.inputs.categories import checked_vectors
from zsvec.types import Fingerprint

Errors = Literal["raise", "report"]


def checked_count(name: str, value: object) -> int:
    """A whole number from 1 up, numpy's too; InvalidInputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidInputError(f"{name} must be a whole number from 1 up. Got {value!r} instead")
    return int(value)


def check_answers(top_k: object, errors: object) -> None:
    """InvalidInputError for what is no number of categories, or no way to answer for an image that cannot be read."""
    checked_count("top_k", top_k)
    if errors not in ("raise", "report"):
        raise InvalidInputError(f"errors must be 'raise' or 'report'. Got {errors!r} instead")


def checked_wait(max_wait_ms: float | None) -> float | None:
    """Milliseconds from 0 up as seconds, ``None`` as it is; InvalidInputError for anything else."""
    if max_wait_ms is None:
        return None
    if not (isinstance(max_wait_ms, Real) and 0 <= max_wait_ms < float("inf")):
        raise InvalidInputError(f"max_wait_ms must be a number from 0 up. Got {max_wait_ms!r} instead")
    return float(max_wait_ms) / 1000


def checked_queries(vectors: Mapping[str, ArrayLike], fingerprints: Mapping[str, Fingerprint]) -> Vectors:
    """Vectors of images that were embedded elsewhere, with rows of unit norm.

    Args:
        vectors: By encoder, float ``(n_images, dim)`` of any norm.
        fingerprints: Of all encoders.

    Raises:
        InvalidInputError: Vectors are of other encoders or of another shape, zero, or not finite.
    """
    if not isinstance(vectors, Mapping):
        raise InvalidInputError(f"vectors must be a mapping of encoders to arrays. Got {reprlib.repr(vectors)} instead")
    if set(vectors) != set(fingerprints):
        given = ", ".join(map(str, vectors)) or "none"
        raise InvalidInputError(f"vectors must be given of the encoders {', '.join(fingerprints)}. Got {given}")
    queries = {name: checked_vectors(rows, fingerprints[name].dim, name=name) for name, rows in vectors.items()}
    counts = {name: len(rows) for name, rows in queries.items()}
    if len(set(counts.values())) > 1:
        raise InvalidInputError(f"each encoder must have vectors of the same images. Got {counts}")
    return queries
