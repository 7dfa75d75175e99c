"""Images without a label: which are uncertain, which to label next, and which are nearly the same.

All is said by the calibrated quantities of a `Prediction`: whether the image is unknown, how far its first category is
ahead of its second, and how much of the experts' weight is on another category than the fused one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zsvec.types import Prediction

Reals = NDArray[np.floating]

ALIKE = 0.95
"""Cosine under every encoder, from which on two images are nearly the same."""

_CLOSE = 0.3  # margin of the first category over the second, in probability, below which an image is uncertain
_DISPUTED = 0.5  # share of the experts' weight for another category than the fused one, above which it is
_COMPARED = 100  # of the most urgent images, with each other


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


def uncertainty(prediction: Prediction) -> Literal["unknown", "close", "disputed"] | None:
    """Returns why a label of the image would tell much: no category fits, two do, or the experts are at odds."""
    if prediction.error is not None or not prediction.ranking:
        return None
    if prediction.unknown:
        return "unknown"
    if margin(prediction) < _CLOSE:
        return "close"
    return "disputed" if at_odds(prediction) > _DISPUTED else None


def distinct(vectors: Mapping[str, Reals], *, first: int = 0) -> list[int]:
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
    """How much a label of the image would tell, 0 to 1: by margin, by experts at odds, and if unknown, by novelty."""
    novelty = prediction.novelty or 0.0 if prediction.unknown else 0.0
    return max(1 - margin(prediction), at_odds(prediction), novelty)


def most_useful(urgencies: Reals, nearness: Reals, vectors: Mapping[str, Reals], number: int) -> list[int]:
    """Rows of images whose label would tell much and that differ from each other, the most useful first.

    Each is the one of the most urgent images that, times its own urgency, brings the urgent images nearest to something
    labelled: facility location (Wei, Iyer & Bilmes, "Submodularity in data subset selection and active learning",
    2015), greedily. How near two images are is the cosine under the encoder that sees them farthest.

    Args:
        urgencies: float ``(n_images,)``, 0 to 1.
        nearness: float ``(n_images,)``, cosine of each to the nearest reference, under the encoder that sees it
            farthest, -1 to 1.
        vectors: By encoder, float ``(n_images, dim)``, rows of unit norm.
        number: How many, at most ``n_images``. Beyond the first `_COMPARED`, they are by urgency alone.
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
