"""Matrix products beside a neural network on the same cores, and the largest of their values.

Threads of OpenBLAS spin for tens of milliseconds after a product, waiting for the next one, and a network
that runs meanwhile gets what they leave: a product of microseconds cost a batch of EfficientNet-Lite0 a
fifth of its speed on two cores. So products that one thread makes in a millisecond or two are left to one.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

_LARGE = 2**27  # multiplications from which more threads gain more than their waiting costs
_FEW = 16  # values up to which one pass for each finds them faster than to sort all

_blas = ThreadpoolController()
_lock = threading.Lock()  # the limit is one of the whole process


def rows_times_rows(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Dot products of all rows of two matrices: cosines, where the rows have unit norm.

    Args:
        a: float32 ``(n, d)``.
        b: float32 ``(m, d)``.

    Returns:
        float32 ``(n, m)``.
    """
    if a.size * len(b) >= _LARGE:
        return a @ b.T
    with _lock, _blas.limit(limits=1, user_api="blas"):
        return a @ b.T


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
