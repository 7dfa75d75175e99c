"""From the similarities that a search found to predictions with their evidence (paper, sections 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsvec.method.aggregation import aggregate
from zsvec.method.calibration import Calibration, LogLinear, expert_evidence, uncalibrated
from zsvec.method.fusion import (
    DEFAULT_STRATEGY,
    LOG_LINEAR,
    confidences,
    entropy,
    fuse,
    log_linear,
    neg_exp_entropy,
    pattern,
    softmax,
)
from zsvec.method.linalg import largest, rows_times_rows
from zsvec.method.novelty import distances, image_experts, novelty
from zsvec.method.similarities import ExpertSimilarities, Found
from zsvec.method.transduction import Prototypes, transduce
from zsvec.types import CalibrationState, ExpertOutput, Prediction, Ranking, encoder_and_modality

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Distributions over the categories for a batch of images.

    Attributes:
        probabilities: Of each expert, float64 ``(n_experts, n_images, n_categories)``; 0 for what it does not know.
        known: bool ``(n_experts, n_categories)``, whether the expert has references of the category.
        confidence: float64 ``(n_experts, n_images)``.
        fused: float64 ``(n_images, n_categories)``; rows sum to 1.
        novelty: float64 ``(n_images,)``.
        threshold: float64 ``(n_images,)``, novelty above which each is unknown; NaN where that cannot be told.
        distance: float64 ``(n_images,)``, 1 - the largest cosine to a reference.
        fusion: The strategy that ran.
    """

    probabilities: Doubles
    known: NDArray[np.bool_]
    confidence: Doubles
    fused: Doubles
    novelty: Doubles
    threshold: NDArray[np.float64]
    distance: Doubles
    fusion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How similarities become predictions.

    Attributes:
        temperatures: By expert, what its similarities are divided by before the softmax, if no calibration says.
        fixed_temperatures: Those of experts that no calibration changes.
        aggregation: A name in `aggregate.AGGREGATIONS`.
        top_m: References that ``top_mean`` averages.
        fusion: A name in `fusion.STRATEGIES`.
        weights: By expert, its confidence under ``fixed``; 1 if it is not named.
        calibrated: Whether to use the calibration of the store.
        unknown_above: Novelty above which an image is unknown; ``None``: 0.5 where there is a threshold.
        unknown_per_category: Whether categories with enough references have thresholds of their own.
    """

    temperatures: Mapping[str, float]
    fixed_temperatures: Mapping[str, float] = field(default_factory=dict)
    aggregation: str = "top_mean"
    top_m: int = 5
    fusion: str = DEFAULT_STRATEGY
    weights: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = True
    unknown_above: float | None = None
    unknown_per_category: bool = False

    def predict(self, found: Found, sources: Sequence[str], top_k: int) -> list[Prediction]:
        """One prediction per image.

        Args:
            found: Of a search; at least one expert has references.
            sources: What to call the images.
            top_k: Categories in the rankings.
        """
        calibration = self.calibration(found)
        state: CalibrationState = "none" if calibration is None else "stale" if found.stale else "current"
        scores = self.scores(found)
        shares = scores.confidence / scores.confidence.sum(axis=0)
        entropies = entropy(scores.probabilities)
        fused = _rankings(scores.fused, np.arange(len(found.categories)), found.categories, top_k)
        rankings = [
            _rankings(p, expert.coverage, found.categories, top_k)
            for p, expert in zip(scores.probabilities, found.experts, strict=True)
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
            nearest, probability = fused[i][0]
            unknown = bool(scores.novelty[i] > scores.threshold[i])
            predictions.append(
                Prediction(
                    source=source,
                    label=None if unknown else nearest,
                    nearest=nearest,
                    probability=probability,
                    unknown=unknown,
                    novelty=None if calibration is None else float(scores.novelty[i]),
                    distance=float(scores.distance[i]),
                    ranking=fused[i],
                    experts=experts,
                    fusion=scores.fusion,
                    calibration=state,
                )
            )
        return predictions

    def calibration(self, found: Found) -> Calibration | None:
        """The calibration of the store, if it was made for this way of scoring and for all the experts."""
        calibration = found.calibration
        if calibration is None or not self.calibrated:
            return None
        names = [expert.name for expert in found.experts]
        return calibration if calibration.fits(names, self.aggregation, self.top_m) else None

    def scores(self, found: Found) -> Scores:
        """The distribution of each expert, its confidence, what they fuse to, and how novel the images are."""
        calibration = self.calibration(found)
        names = [expert.name for expert in found.experts]
        temperatures = {**self.temperatures, **_temperatures(calibration), **self.fixed_temperatures}
        pool = self._pool(found, calibration, temperatures)
        views = self._views(found, pool)
        similarity = np.stack([views[name][self.aggregation] for name in names])
        scale = np.array([temperatures[name] for name in names], dtype=np.float32)
        known = ~np.isnan(similarity[:, 0])
        probabilities = softmax(similarity / scale[:, None, None])
        said = expert_evidence(pool.coefficients, views)
        evidence = log_linear(said, names, pool.neutral)
        if self.fusion in LOG_LINEAR:
            confidence = _shares(pool, names, calibration, temperatures)[:, None].repeat(len(evidence), axis=1)
            decisive = evidence
            if not pool.learned and len(names) > 1:
                # Nothing is known of their worth in general, so it is taken from each image (paper, option 3).
                weights = neg_exp_entropy(probabilities)
                weights = weights * len(names) / weights.sum(axis=0)
                confidence = confidence * weights
                decisive = log_linear(said, names, pool.neutral, weights)
            if self.fusion == "transductive" and found.exact:
                decisive = transduce(decisive, [_prototypes(found, expert, pool) for expert in image_experts(found)])
            fused = softmax(decisive)
        else:
            fixed = np.array([self.weights.get(name, 1.0) for name in names])
            confidence = confidences(probabilities, known, self.fusion, fixed)
            fused = fuse(probabilities, known, confidence)
        if calibration is not None:
            novel, threshold = self._novelty(found, pool, evidence, known)
            if self.unknown_above is not None:
                threshold = np.full(len(fused), self.unknown_above)
        else:
            novel = threshold = np.full(len(fused), np.nan)
        ran = self.fusion
        if self.fusion in ("log_linear_views", "transductive") and (calibration is None or not found.exact):
            ran = "log_linear"
        return Scores(probabilities, known, confidence, fused, novel, threshold, distances(found), ran)

    def _pool(self, found: Found, calibration: Calibration | None, temperatures: Mapping[str, float]) -> LogLinear:
        if calibration is None:
            return uncalibrated({expert.name: temperatures[expert.name] for expert in found.experts}, self.aggregation)
        # A prototype is known only where every reference was compared.
        return calibration.views if found.exact and self.fusion != "log_linear" else calibration.plain

    def _views(self, found: Found, pool: LogLinear) -> dict[str, dict[str, NDArray[np.float32]]]:
        """Similarity per category, float32 ``(n_images, n_categories)``, by expert and aggregation.

        NaN where an expert has no reference of a category; columns in the order of `Found.categories`.
        """
        out: dict[str, dict[str, NDArray[np.float32]]] = {}
        for expert in found.experts:
            for name in {self.aggregation: None, **pool.coefficients[expert.name]}:
                values = np.full((len(expert.similarities), len(found.categories)), np.nan, dtype=np.float32)
                values[:, expert.coverage] = aggregate(expert.similarities, name, self.top_m)
                out.setdefault(expert.name, {})[name] = values
        return out

    def _novelty(
        self, found: Found, pool: LogLinear, evidence: Doubles, known: NDArray[np.bool_]
    ) -> tuple[Doubles, Doubles]:
        """Novelty of each image, and the threshold that it is compared with: NaN where none is known."""
        names = [expert.name for expert in found.experts]
        # Eight experts to a byte: columns of them are compared faster.
        _, first, kind = np.unique(np.packbits(known, axis=0), axis=1, return_index=True, return_inverse=True)
        limits = np.array([pool.thresholds.get(pattern(names, who), np.nan) for who in known[:, first].T])[kind]
        if self.unknown_per_category:
            limits = np.array(
                [pool.category_thresholds.get(c, limit) for c, limit in zip(found.categories, limits, strict=True)]
            )
        nearest = evidence.argmax(axis=1)
        limit = limits[nearest]
        # Without a threshold, the odds that it is of a category: one random wrong category for each that there is.
        even = np.where(np.isnan(limit), np.log(len(found.categories)), limit)
        return novelty(evidence.max(axis=1), even), np.where(np.isnan(limit), np.nan, 0.5)


def _temperatures(calibration: Calibration | None) -> dict[str, float]:
    return {name: of.temperature for name, of in calibration.experts.items()} if calibration else {}


def _shares(
    pool: LogLinear, names: Sequence[str], calibration: Calibration | None, temperatures: Mapping[str, float]
) -> Doubles:
    """How far each expert moves the evidence between categories, float64 ``(n_experts,)``."""
    spread = {name: calibration.experts[name].spread if calibration else temperatures[name] for name in names}
    return np.array([sum(pool.coefficients[name].values()) * spread[name] for name in names])


def _prototypes(found: Found, expert: ExpertSimilarities, pool: LogLinear) -> Prototypes:
    coefficients = pool.coefficients[expert.name]
    query = found.queries[encoder_and_modality(expert.name)[0]]
    return Prototypes(
        # Where all aggregations are the same, half of the weight is the prototype's.
        coefficient=coefficients.get("prototype", sum(coefficients.values()) / 2),
        categories=expert.coverage,
        counts=expert.similarities.counts,
        means=aggregate(expert.similarities, "mean", 1),
        norms=expert.similarities.norms,
        gram=rows_times_rows(query, query),
    )


def _rankings(probabilities: Doubles, categories: NDArray[np.intp], names: Sequence[str], k: int) -> list[Ranking]:
    """The ``k`` most probable of some categories for each image, best first; of equal ones the first by name.

    Args:
        probabilities: float64 ``(n_images, n_categories)``.
        categories: Which, ascending.
        names: Of all.
        k: At least 1.
    """
    columns = categories[largest(probabilities.take(categories, axis=1), k)]
    best = np.take_along_axis(probabilities, columns, axis=1)
    return [
        tuple(zip(map(names.__getitem__, image), p, strict=True))
        for image, p in zip(columns.tolist(), best.tolist(), strict=True)
    ]
