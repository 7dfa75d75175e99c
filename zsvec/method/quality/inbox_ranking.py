"""Active learning: images to label next, and near-duplicates among images without a label.

The criteria are calibrated quantities of a `Prediction`: whether the image is unknown, the margin of the most probable
category over the second, and how strongly the experts disagree.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zsvec.types import Prediction

Reals = NDArray[np.floating]

ALIKE = 0.95
"""Least cosine of two near-duplicates, under every encoder."""

_COMPARED = 100  # number of most urgent images that are compared with each other


def distinct(vectors: Mapping[str, Reals], *, first: int = 0) -> list[int]:
    """Returns the rows that are not near-duplicates of an earlier kept row, ascending.

    Args:
        vectors: By encoder, float ``(n_images, dim)``, unit rows. Every encoder has the same images.
        first: Rows before this row are always kept, and not returned.
    """
    if not vectors:
        return []
    n = len(next(iter(vectors.values())))
    alike = np.min([rows[first:] @ rows.T for rows in vectors.values()], axis=0) >= ALIKE
    stays = np.zeros(n, dtype=bool)
    stays[:first] = True
    for row in range(first, n):
        stays[row] = not (alike[row - first] & stays).any()
    return [int(row) for row in np.flatnonzero(stays) if row >= first]


def urgency(prediction: Prediction) -> float:
    """Returns how informative a label of the image would be, 0 to 1.

    The urgency is the largest of 1 - `Prediction.margin`, `Prediction.at_odds` and, for an unknown image, the novelty.
    """
    novelty = prediction.novelty or 0.0 if prediction.unknown else 0.0
    return max(1 - prediction.margin, prediction.at_odds, novelty)


def most_useful(urgencies: Reals, nearness: Reals, vectors: Mapping[str, Reals], number: int) -> list[int]:
    """Returns the rows of diverse images with informative labels, most useful first.

    Uses greedy facility location (Wei, Iyer & Bilmes, "Submodularity in data subset selection and active learning",
    2015). Each step picks, from the `_COMPARED` most urgent images, the image i with the largest gain
    u_i · Σ_j u_j · max(c_ij - n_j, 0). Here u_i is the urgency of image i, c_ij the smallest cosine of images i and j
    over the encoders, and n_j the largest cosine of image j to a reference or a picked image.

    Args:
        urgencies: float ``(n_images,)``, 0 to 1.
        nearness: float ``(n_images,)``, cosine to the nearest reference, -1 to 1; the smallest over encoders.
        vectors: By encoder, float ``(n_images, dim)``, unit rows.
        number: Number of rows, at most ``n_images``. After the first `_COMPARED` rows, urgency alone determines the
            order.
    """
    by_urgency = np.argsort(-urgencies, kind="stable")
    first = by_urgency[:_COMPARED]
    cosines = np.min([rows @ rows[first].T for rows in vectors.values()], axis=0)
    near, left, chosen = nearness.astype(np.float64), np.ones(len(first), dtype=bool), list[int]()
    for _ in range(min(number, len(first))):
        gains = urgencies @ np.maximum(cosines - near[:, None], 0) * urgencies[first]
        column = int(np.where(left, gains, -1).argmax())
        left[column] = False
        chosen.append(int(first[column]))
        near = np.maximum(near, cosines[:, column])
    return [*chosen, *map(int, by_urgency[_COMPARED:number])]
