"""Matrices row by row: some after the other, and the largest values of each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_FEW = 16  # values up to which one pass for each finds them faster than to sort all
_CACHED = 2**18  # numbers that stay in a core's cache from one pass to the next


def slices(n: int, size: int) -> Iterator[slice]:
    """All of ``n`` in turn, ``size`` together."""
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def largest(values: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Columns of the ``k`` largest values of each row, largest first; of equal ones the first.

    Args:
        values: float ``(n, m)``, finite; changed meanwhile, and as it was when this returns.
        k: At least 1.

    Returns:
        int ``(n, min(k, m))``.
    """
    n, m = values.shape
    if k > _FEW:
        return np.argsort(-values, axis=1, kind="stable")[:, :k]
    columns = np.empty((n, min(k, m)), dtype=np.intp)
    for part in slices(n, max(1, _CACHED // m)):
        columns[part] = _picked(values[part], columns.shape[1])
    return columns


def _picked(values: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    rows = np.arange(len(values))
    columns = np.empty((len(values), k), dtype=np.intp)
    taken = np.empty(columns.shape, dtype=values.dtype)
    for rank in range(k):
        columns[:, rank] = values.argmax(axis=1)
        taken[:, rank] = values[rows, columns[:, rank]]
        values[rows, columns[:, rank]] = -np.inf
    values[rows[:, None], columns] = taken
    return columns
