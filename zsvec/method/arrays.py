"""The arrays of the method, by their numbers, and the key of a reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
"""Vectors, similarities and logits."""

Doubles = NDArray[np.float64]
"""Probabilities, and sums whose rounding matters."""

Key = tuple[str, str]
"""Category and content hash: the same reference under every encoder."""
