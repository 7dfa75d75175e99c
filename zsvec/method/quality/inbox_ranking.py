"""Active learning: uncertain images, images to label next, and near-duplicates among images without a label.

The criteria are calibrated quantities of a `Prediction`: whether the image is unknown, the margin of its first category
over the second, and the experts' weight on other categories than the fused one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zsvec.types import Prediction

Reals = NDArray[np.floating]

ALIKE = 0.95
"""Least cosine, under every encoder, of two near-duplicates."""

_CLOSE = 0.3  # margin, in probability, below which an image is uncertain
_DISPUTED = 0.5  # share of the experts' weight on other categories above which an image is uncertain
_COMPARED = 100  # most urgent images that are compared with each other


def margin(prediction: Prediction) -> float:
    """Probability of the first category minus that of the second, 0 to 1.

    For a ranking of one category (``top_k=1``), the least possible margin.
    """
    first, *others = [probability for _, probability in prediction.ranking[:2]]
    return first - others[0] if others else max(0.0, 2 * first - 1)


def at_odds(prediction: Prediction) -> float:
    """Share of the experts' weight on other categories than the fused one, 0 to 1."""
    experts = [expert for expert in prediction.experts.values() if expert.ranking]
    return sum(expert.weight for expert in experts if expert.ranking[0][0] != prediction.nearest)


def uncertainty(prediction: Prediction) -> Literal["unknown", "close", "disputed"] | None:
    """Reason why a label of the image is informative: no category fits, two do, or the experts disagree."""
    if prediction.error is not None or not prediction.ranking:
        return None
    if prediction.unknown:
        return "unknown"
    if margin(prediction) < _CLOSE:
        return "close"
    return "disputed" if at_odds(prediction) > _DISPUTED else None


def distinct(vectors: Mapping[str, Reals], *, first: int = 0) -> list[int]:
    """Rows that are no near-duplicate of an earlier kept row, ascending.

    Args:
        vectors: By encoder, float ``(n_images, dim)``, rows of unit norm; the same images in each.
        first: Rows before this one are always kept, and not returned.
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
    """Informativeness of a label, 0 to 1: by margin, disagreement of the experts, and novelty of unknown images."""
    novelty = prediction.novelty or 0.0 if prediction.unknown else 0.0
    return max(1 - margin(prediction), at_odds(prediction), novelty)


def most_useful(urgencies: Reals, nearness: Reals, vectors: Mapping[str, Reals], number: int) -> list[int]:
    """Rows of diverse images with informative labels, most useful first.

    Greedy facility location (Wei, Iyer & Bilmes, "Submodularity in data subset selection and active learning", 2015):
    each step picks the urgent image that, times its own urgency, brings the urgent images nearest to a labelled image.
    The nearness of two images is their least cosine over encoders.

    Args:
        urgencies: float ``(n_images,)``, 0 to 1.
        nearness: float ``(n_images,)``, cosine to the nearest reference, the least over encoders, -1 to 1.
        vectors: By encoder, float ``(n_images, dim)``, rows of unit norm.
        number: Number of rows, at most ``n_images``. Rows beyond the first `_COMPARED` follow by urgency alone.
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
