"""Matrix products beside a neural network on the same cores.

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
