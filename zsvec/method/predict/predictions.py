"""Scores of a batch → predictions with their evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.linalg import largest
from zsvec.method.predict.logits import entropy
from zsvec.method.similarities import SearchResult
from zsvec.types import CalibrationState, ExpertOutput, Prediction, Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Distributions over the categories for a batch of images, and how novel these are.

    Attributes:
        probabilities: Of each expert, float64 ``(n_experts, n_images, n_categories)``; 0 for what it does not cover.
        coverage: bool ``(n_experts, n_categories)``, whether the expert has references of the category.
        confidence: float64 ``(n_experts, n_images)``.
        fused: float64 ``(n_images, n_categories)``; rows sum to 1.
        novelty: float64 ``(n_images,)``, 0 to 1; NaN without a calibration.
        threshold: float64 ``(n_images,)``, novelty above which each is unknown; NaN where that cannot be told.
        unknown: bool ``(n_images,)``, whether each is called unknown.
        distance: float64 ``(n_images,)``, 0 to 2, of `novelty.distances`.
        rank: float64 ``(n_images,)``, 0 to 0.95, of `novelty.ranks`; NaN where that is not known.
        fusion: The strategy that ran, a name in `fusion.STRATEGIES`.
        calibration: Whether by a calibration, and by one of the present categories.
    """

    probabilities: Doubles
    coverage: NDArray[np.bool_]
    confidence: Doubles
    fused: Doubles
    novelty: Doubles
    threshold: Doubles
    unknown: NDArray[np.bool_]
    distance: Doubles
    rank: Doubles
    fusion: str
    calibration: CalibrationState


def predictions(found: SearchResult, scores: Scores, sources: Sequence[str], top_k: int) -> list[Prediction]:
    """One prediction per image.

    Args:
        found: The answer of the search.
        scores: Of the same images.
        sources: Where the images come from.
        top_k: Categories in the rankings; at least 1.
    """
    shares = scores.confidence / scores.confidence.sum(axis=0)
    entropies = entropy(scores.probabilities)
    fused = rankings(scores.fused, np.arange(len(found.categories)), found.categories, top_k)
    by_expert = [
        rankings(p, expert.coverage, found.categories, top_k)
        for p, expert in zip(scores.probabilities, found.experts, strict=True)
    ]
    out = []
    for i, source in enumerate(sources):
        experts = {
            expert.name: ExpertOutput(
                weight=float(shares[e, i]),
                entropy=float(entropies[e, i]),
                ranking=by_expert[e][i],
                neighbors=expert.nearest[i],
            )
            for e, expert in enumerate(found.experts)
        }
        nearest, probability = fused[i][0]
        unknown = bool(scores.unknown[i])
        out.append(
            Prediction(
                source=source,
                label=None if unknown else nearest,
                nearest=nearest,
                probability=probability,
                unknown=unknown,
                novelty=None if scores.calibration == "none" else float(scores.novelty[i]),
                distance=float(scores.distance[i]),
                ranking=fused[i],
                experts=experts,
                fusion=scores.fusion,
                calibration=scores.calibration,
                incomplete=found.incomplete,
                stale_seconds=found.stale_seconds,
            )
        )
    return out


def rankings(probabilities: Doubles, categories: NDArray[np.intp], names: Sequence[str], k: int) -> list[Ranking]:
    """The ``k`` most probable of some categories for each image, best first; of equal ones the first by name.

    Args:
        probabilities: float64 ``(n_images, n_categories)``.
        categories: The columns to choose from, int ``(n,)``, ascending.
        names: Of all categories, in the order of the columns.
        k: At least 1.
    """
    columns = categories[largest(probabilities.take(categories, axis=1), k)]
    best = np.take_along_axis(probabilities, columns, axis=1)
    return [
        tuple(zip(map(names.__getitem__, image), p, strict=True))
        for image, p in zip(columns.tolist(), best.tolist(), strict=True)
    ]
