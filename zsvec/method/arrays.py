"""Types of arrays, the key of a reference, and operations on the rows of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
"""Vectors, similarities and logits."""

Doubles = NDArray[np.float64]
"""Probabilities, and sums that must be precise."""

Key = tuple[str, str]
"""Category and content hash. A reference has the same key under every encoder."""

Product = Callable[[Floats, Floats], Floats]
"""Function from float32 ``(n, dim)`` and ``(m, dim)`` to the dot products of all pairs of rows, float32 ``(n, m)``."""

_SORTED_ABOVE = 16  # above this k, sorting a row is faster than k passes over it
_CACHED = 2**18  # numbers that fit a core's cache
_LARGEST = 700.0  # nats; the exponential of a larger number may overflow


def product(a: Floats, b: Floats) -> Floats:
    """Returns the dot products of all pairs of rows, computed with numpy. All numbers must be finite."""
    # For vectors of 5 numbers, a kernel of OpenBLAS for AVX-512 adds uninitialised lanes. The sums that it returns are
    # right, but the contents of these lanes may make numpy warn of an invalid value.
    with np.errstate(invalid="ignore"):
        found: Floats = a @ b.T
    return found


def logistic(odds: Doubles) -> Doubles:
    """Converts log odds, nats, to probabilities, 0 to 1."""
    # The same as scipy.special.expit, but scipy.special takes 0.1 s to import.
    found: Doubles = 1 / (1 + np.exp(np.minimum(-odds, _LARGEST)))
    return found


def slices(n: int, size: int) -> Iterator[slice]:
    """Returns consecutive slices of at most ``size`` elements that cover ``range(n)``."""
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def largest(values: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Returns the columns of the ``k`` largest values of each row, largest first; ties are in column order.

    Args:
        values: float ``(n, m)``, finite. The array is modified during the call and restored before the return.
        k: Number of columns, at least 0.

    Returns:
        int ``(n, min(k, m))``.
    """
    n, m = values.shape
    if k > _SORTED_ABOVE:
        return np.argsort(-values, axis=1, kind="stable")[:, :k]
    columns = np.empty((n, min(k, m)), dtype=np.intp)
    for part in slices(n, max(1, _CACHED // m)):
        columns[part] = _selected(values[part], columns.shape[1])
    return columns


def _selected(values: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    rows = np.arange(len(values))
    columns = np.empty((len(values), k), dtype=np.intp)
    taken = np.empty(columns.shape, dtype=values.dtype)
    for rank in range(k):
        columns[:, rank] = values.argmax(axis=1)
        taken[:, rank] = values[rows, columns[:, rank]]
        values[rows, columns[:, rank]] = -np.inf
    values[rows[:, None], columns] = taken
    return columns
