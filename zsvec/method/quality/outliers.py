"""Which values are far below the others, and which images are far from the others."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats


def closeness(nearest: Floats, starts: NDArray[np.intp]) -> Floats:
    """How near images are to others beyond what is usual, float32 ``(n_images,)``.

    Usual is the median of the category, or that of all where it is smaller: of a category whose images differ much,
    not all are strange.

    Args:
        nearest: float32 ``(n_images,)``, how near each is to others; NaN where nothing is known.
        starts: int ``(n_categories + 1,)``; category ``c`` has the images ``starts[c]:starts[c + 1]``.
    """
    beyond = nearest - _median(nearest)
    for start, end in pairwise(starts.tolist()):
        beyond[start:end] = np.fmax(beyond[start:end], nearest[start:end] - _median(nearest[start:end]))
    return beyond


def _median(values: Floats) -> np.float32:
    there = values[~np.isnan(values)]
    return np.float32(np.median(there) if there.size else np.nan)


def far_below(values: NDArray[np.floating], fence: float) -> list[int]:
    """Positions of the values below a fence (Tukey, "Exploratory data analysis", 1977), the lowest first.

    Args:
        values: float ``(n,)``; NaN counts as not there. Fewer than four have none below a fence.
        fence: How far below the lower quartile it is, in distances of the quartiles. Tukey calls what is below 1.5
            outside, and below 3 far out.
    """
    there = values[~np.isnan(values)]
    if not there.size:
        return []
    lower, upper = np.quantile(there, (0.25, 0.75))
    found = np.flatnonzero(values < lower - fence * (upper - lower))
    return [int(position) for position in found[np.argsort(values[found], kind="stable")]]
