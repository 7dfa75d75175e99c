"""From the similarities that a search found to predictions with their evidence (paper, sections 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsvec.aggregate import aggregate
from zsvec.fusion import confidences, entropy, fuse, softmax
from zsvec.search import Found
from zsvec.types import ExpertOutput, Prediction, Ranking

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Distributions over the categories for a batch of images.

    Attributes:
        probabilities: Of each expert, float64 ``(n_experts, n_images, n_categories)``; 0 for what it does not know.
        known: bool ``(n_experts, n_categories)``, whether the expert has references of the category.
        confidence: float64 ``(n_experts, n_images)``.
        fused: float64 ``(n_images, n_categories)``; rows sum to 1.
    """

    probabilities: Doubles
    known: NDArray[np.bool_]
    confidence: Doubles
    fused: Doubles


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How similarities become predictions.

    Attributes:
        temperatures: By expert, what its similarities are divided by before the softmax.
        aggregation: A name in `aggregate.AGGREGATIONS`.
        top_m: References that ``top_mean`` averages.
        fusion: A name in `fusion.CONFIDENCES`, or ``fixed``.
        weights: By expert, its confidence under ``fixed``; 1 if it is not named.
        unknown_above: Novelty above which an image is unknown; ``None``: none is.
    """

    temperatures: Mapping[str, float]
    aggregation: str = "top_mean"
    top_m: int = 5
    fusion: str = "inverse_entropy"
    weights: Mapping[str, float] = field(default_factory=dict)
    unknown_above: float | None = None

    def predict(self, found: Found, sources: Sequence[str], top_k: int) -> list[Prediction]:
        """One prediction per image.

        Args:
            found: Of a search; at least one expert has references.
            sources: What to call the images.
            top_k: Categories in the rankings.
        """
        scores = self.scores(found)
        shares = scores.confidence / scores.confidence.sum(axis=0)
        entropies = entropy(scores.probabilities)
        fused = _rankings(scores.fused, found.categories, top_k)
        rankings = [
            _rankings(p[:, k], _named(found.categories, k), top_k)
            for p, k in zip(scores.probabilities, scores.known, strict=True)
        ]
        predictions = []
        for i, source in enumerate(sources):
            experts = {
                expert.name: ExpertOutput(
                    weight=float(shares[e, i]),
                    entropy=float(entropies[e, i]),
                    ranking=rankings[e][i],
                    neighbors=expert.nearest[i],
                )
                for e, expert in enumerate(found.experts)
            }
            novelty = novelty_of(experts)
            label, probability = fused[i][0]
            predictions.append(
                Prediction(
                    source=source,
                    label=label,
                    probability=probability,
                    unknown=self.unknown_above is not None and novelty > self.unknown_above,
                    novelty=novelty,
                    ranking=fused[i],
                    experts=experts,
                )
            )
        return predictions

    def scores(self, found: Found) -> Scores:
        """The distribution of each expert, its confidence, and what they fuse to."""
        logits = self.logits(found)
        known = ~np.isnan(logits[:, 0])
        probabilities = softmax(logits)
        fixed = np.array([self.weights.get(expert.name, 1.0) for expert in found.experts])
        confidence = confidences(probabilities, known, self.fusion, fixed)
        return Scores(probabilities, known, confidence, fuse(probabilities, known, confidence))

    def logits(self, found: Found) -> NDArray[np.float32]:
        """Similarity per category ÷ temperature, float32 ``(n_experts, n_images, n_categories)``.

        NaN where an expert has no reference of a category; columns in the order of `Found.categories`.
        """
        n_images = len(found.experts[0].similarities.values)
        out = np.full((len(found.experts), n_images, len(found.categories)), np.nan, dtype=np.float32)
        for logits, expert in zip(out, found.experts, strict=True):
            similarity = aggregate(expert.similarities, self.aggregation, self.top_m)
            logits[:, expert.categories] = similarity / np.float32(self.temperatures[expert.name])
        return out


def novelty_of(experts: Mapping[str, ExpertOutput]) -> float:
    """How far an image is from every category: from similarities, as a softmax forgets distance.

    The distance (1 - cosine) to the nearest reference image, under the encoder that sees it farthest;
    to the nearest text where there are no images. 0 to 2.
    """
    images = {name: expert for name, expert in experts.items() if name.endswith(":image")}
    distances = [1 - e.neighbors[0].similarity for e in (images or experts).values() if e.neighbors]
    return float(np.clip(max(distances, default=2), 0, 2))


def _named(categories: Sequence[str], known: NDArray[np.bool_]) -> list[str]:
    return [name for name, is_known in zip(categories, known, strict=True) if is_known]


def _rankings(probabilities: Doubles, names: Sequence[str], k: int) -> list[Ranking]:
    """The ``k`` most probable categories of each row, best first; of equal ones the first by name."""
    k = min(k, len(names))
    kth = np.partition(probabilities, -k, axis=1)[:, -k]
    rankings = []
    for row, least in zip(probabilities, kth, strict=True):
        candidates = np.flatnonzero(row >= least)  # the k best, and all that tie with the last of them
        best = candidates[np.argsort(-row[candidates], kind="stable")][:k]
        rankings.append(tuple((names[c], float(row[c])) for c in best))
    return rankings
