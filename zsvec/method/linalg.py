"""The largest values of the rows of a matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FEW = 16  # values up to which one pass for each finds them faster than to sort all


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
    rows = np.arange(n)
    columns = np.empty((n, min(k, m)), dtype=np.intp)
    taken = np.empty(columns.shape, dtype=values.dtype)
    for rank in range(columns.shape[1]):
        columns[:, rank] = values.argmax(axis=1)
        taken[:, rank] = values[rows, columns[:, rank]]
        values[rows, columns[:, rank]] = -np.inf
    values[rows[:, None], columns] = taken
    return columns
