"""Images without a label: which are uncertain, which to label next, and which are nearly the same.

All is said by the calibrated quantities of a `Prediction`: whether the image is unknown, how far its first category is
ahead of its second, and how much of the experts' weight is on another category than the fused one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zsvec.types import Prediction

Floats = NDArray[np.floating]

ALIKE = 0.95
"""Cosine under every encoder, from which on two images are nearly the same."""
CLOSE = 0.3
"""Margin of the first category over the second, in probability, below which an image is uncertain."""
AT_ODDS = 0.5
"""Share of the experts' weight for another category than the fused one, above which an image is uncertain."""

_LEAST = 1e-6  # that an urgency or a distance counts


def margin(prediction: Prediction) -> float:
    """How far the first category is ahead of the second, in probability, 0 to 1.

    Of a ranking with one category (``top_k=1``), the least that it can be.
    """
    first, *others = [probability for _, probability in prediction.ranking[:2]]
    return first - others[0] if others else max(0.0, 2 * first - 1)


def at_odds(prediction: Prediction) -> float:
    """Share of the experts' weight that is for another category than the fused one, 0 to 1."""
    experts = [expert for expert in prediction.experts.values() if expert.ranking]
    return sum(expert.weight for expert in experts if expert.ranking[0][0] != prediction.nearest)


def uncertain(prediction: Prediction) -> bool:
    """Whether a label of the image would tell much: it is unknown, or a close call, or experts are at odds."""
    if prediction.error is not None or not prediction.ranking:
        return False
    return prediction.unknown or margin(prediction) < CLOSE or at_odds(prediction) > AT_ODDS


def distinct(vectors: Mapping[str, Floats], *, first: int = 0) -> list[int]:
    """Rows that nearly equal no earlier row that stays, ascending.

    Args:
        vectors: By encoder, float ``(n_images, dim)``, rows of unit norm; the same images in each.
        first: Rows before this one stay in any case, and are not given.
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
    """How much a label of the image would tell, 0 to 1."""
    return 1 - margin(prediction)


def most_useful(urgencies: Floats, vectors: Mapping[str, Floats], number: int) -> list[int]:
    """Rows of images whose label would tell much and that differ from each other, the most useful first.

    Args:
        urgencies: float ``(n_images,)``, 0 to 1.
        vectors: By encoder, float ``(n_images, dim)``, rows of unit norm.
        number: How many, at most ``n_images``.
    """
    distance = np.ones(len(urgencies))
    chosen: list[int] = []
    for _ in range(number):
        worth = (urgencies + _LEAST) * np.maximum(distance, _LEAST)
        worth[chosen] = -1
        row = int(worth.argmax())
        chosen.append(row)
        cosine = np.mean([rows @ rows[row] for rows in vectors.values()], axis=0)
        distance = np.minimum(distance, 1 - cosine)
    return chosen
