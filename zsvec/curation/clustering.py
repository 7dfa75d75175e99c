"""Groups of unknown images that look alike, each perhaps a category that is missing.

Groups are dense places with sparse ones between them (HDBSCAN: Campello, Moulavi & Sander, "Density-based clustering
based on hierarchical density estimates", 2013). So neither their number nor how alike two images must be is asked for,
and most images may belong to none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST = 5
"""Images that make a group."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Images that look alike.

    Attributes:
        rows: Theirs, the most typical first.
        likeness: Mean cosine of two of them, over all encoders, -1 to 1.
    """

    rows: Sequence[int]
    likeness: float


def groups_of(vectors: Mapping[str, NDArray[np.float32]]) -> list[Alike]:
    """Groups of images, the largest first; of groups of one size, the one that is more alike.

    Args:
        vectors: By encoder, float32 ``(n_images, dim)``, rows of unit norm; the same images in each.
    """
    cosines: NDArray[np.float64] = np.mean([rows @ rows.T for rows in vectors.values()], axis=0, dtype=np.float64)
    if len(cosines) < FEWEST:
        return []
    from sklearn.cluster import HDBSCAN  # slow to import, and needed here alone

    distances = np.clip(1 - cosines, 0, 2)
    found = HDBSCAN(FEWEST, metric="precomputed", copy=True).fit(distances).labels_
    if found.max() < 0:  # not several: perhaps one, which many more images belong to if it may always be alone
        found = HDBSCAN(FEWEST, metric="precomputed", copy=True, allow_single_cluster=True).fit(distances).labels_
    groups = [_group(np.flatnonzero(found == label), cosines) for label in range(found.max() + 1)]
    return sorted(groups, key=lambda group: (-len(group.rows), -group.likeness))


def _group(rows: NDArray[np.intp], cosines: NDArray[np.float64]) -> Alike:
    inner = cosines[np.ix_(rows, rows)]
    beside = (inner.sum(axis=1) - inner.diagonal()) / (len(rows) - 1)
    return Alike([int(row) for row in rows[np.argsort(-beside, kind="stable")]], float(beside.mean()))
