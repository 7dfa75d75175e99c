"""Converts the similarities of a search to predictions (paper, sections 3.2 and 3.3).

Similarities → aggregation → logits of each expert → strategy → novelty → predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.arrays import Doubles, largest, slices
from zsvec.method.calibration import Calibration, LogLinear
from zsvec.method.predict.candidates import candidate_sets
from zsvec.method.predict.fusion import STRATEGIES, choose_strategy, limit
from zsvec.method.predict.labels import chosen_labels, label_probabilities, label_thresholds
from zsvec.method.predict.logits import entropy, expert_logits
from zsvec.method.predict.novelty import Novelty, image_novelty, largest_probability, prior_novelty, word_deviations
from zsvec.method.predict.opinion_pool import Similarity
from zsvec.method.predict.reference_aggregation import aggregate_experts
from zsvec.method.similarities import SearchResult
from zsvec.types import CalibrationState, CandidateSets, ExpertOutput, Prediction, Ranking, ThresholdProgress

_Choice = tuple[Calibration | None, str, LogLinear, LogLinear]  # calibration, strategy, pools for fusion and novelty
_CACHED = 2**16  # probabilities of an expert that fit a core's cache besides other arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores(Novelty):
    """Distributions over the categories for a batch of images, and the novelty of the images.

    Attributes:
        probabilities: float64 ``(n_experts, n_images, n_categories)``, distribution of each expert; 0 for categories
            that the expert does not cover.
        confidence: float64 ``(n_experts, n_images)``, weight of each expert.
        fused: float64 ``(n_images, n_categories)``; rows sum to 1.
        fusion: The strategy that ran, a name in `fusion.STRATEGIES`.
        calibration: ``none`` if no calibration was used, ``stale`` if categories have changed since, otherwise
            ``current``.
        threshold_progress: Progress of the calibration towards a threshold, if any.
        candidate_sets: `Prediction.candidate_sets` of each image.
        label_probabilities: float64 ``(n_images, n_categories)``, 0 to 1, whether each image belongs to each category;
            ``None`` if an image belongs to one category.
        label_thresholds: float64 ``(n_categories,)``, 0 to 1: the probability from which on an image belongs to a
            category; ``None`` without `label_probabilities`.
    """

    probabilities: Doubles
    confidence: Doubles
    fused: Doubles
    fusion: str
    calibration: CalibrationState
    threshold_progress: ThresholdProgress | None
    candidate_sets: Sequence[CandidateSets | None]
    label_probabilities: Doubles | None = None
    label_thresholds: Doubles | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Settings of aggregation, fusion and novelty.

    Attributes:
        temperatures: By expert, the divisor of similarities before the softmax if no calibration is used.
        fixed_temperatures: By expert, temperatures that a calibration does not replace.
        aggregation: A name in `reference_aggregation.AGGREGATIONS`.
        top_m: Number of references that ``top_mean`` averages; at least 1.
        fusion: A name in `fusion.STRATEGIES`.
        weights: By expert, the confidence under the ``fixed`` strategy. Experts without an entry have 1.
        calibrated: Whether to use the calibration of the store.
        unknown_above: Novelty above which an image is unknown, 0 to 1. ``None``: 0.5 if the calibration has a threshold
            for the image's best category, or if a prior applies; otherwise the image is not unknown. Ignored without a
            novelty.
        unknown_per_category: Whether each category with enough references has a separate threshold.
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

    def predict(self, found: SearchResult, sources: Sequence[str], top_k: int) -> list[Prediction]:
        """Returns one prediction per image.

        Args:
            found: The result of a search; at least one expert has references.
            sources: Sources of the images.
            top_k: Number of categories in each ranking; at least 1.
        """
        return [one for _, answers in self.predict_in_parts(found, sources, top_k) for one in answers]

    def predict_in_parts(
        self, found: SearchResult, sources: Sequence[str], top_k: int, *, related: bool = True
    ) -> list[tuple[Scores, list[Prediction]]]:
        """Returns scores and predictions of consecutive parts of the images.

        The arrays of a part fit a core's cache, except under a joint strategy.

        Args:
            found: As in `predict`.
            sources: As in `predict`.
            top_k: As in `predict`.
            related: Whether a caller gave the images as one batch. A joint strategy, whose result for an image depends
                on the whole batch, scores such a batch as one part, and other images one by one.
        """
        size = max(1, _CACHED // len(found.categories))
        if STRATEGIES[self.fusion].joint:
            size = max(1, len(found)) if related else 1
        choice = self._choose(found)
        similarities = self._aggregate(found, choice)  # for the whole batch, because products of few rows are slow
        out = []
        for rows in slices(len(found), size):
            part = found.of(rows)
            some = {name: {how: values[rows] for how, values in one.items()} for name, one in similarities.items()}
            scores = self._scores(part, some, choice)
            out.append((scores, predictions(part, scores, sources[rows], top_k)))
        return out

    def scores(self, found: SearchResult) -> Scores:
        """Returns each expert's distribution and confidence, the fused distribution, and the novelty of the images.

        Args:
            found: The result of a search; at least one expert has references.
        """
        choice = self._choose(found)
        return self._scores(found, self._aggregate(found, choice), choice)

    def _choose(self, found: SearchResult) -> _Choice:
        calibration = self.calibration(found)
        temperatures = self.chosen_temperatures(calibration)
        return calibration, *choose_strategy(self.fusion, found, calibration, temperatures, self.aggregation)

    def _aggregate(self, found: SearchResult, choice: _Choice) -> Similarity:
        calibration, _, *pools = choice
        wanted = {
            expert.name: [self.aggregation, *(name for pool in pools for name in pool.coefficients[expert.name])]
            for expert in found.experts
        }
        return aggregate_experts(found, wanted, self.top_m, calibration.backgrounds if calibration else {})

    def _scores(self, found: SearchResult, similarities: Similarity, choice: _Choice) -> Scores:
        calibration, strategy, pool, novelty_pool = choice
        temperatures = self.chosen_temperatures(calibration)
        logits, novelty_logits = expert_logits(
            found,
            similarities,
            (pool, novelty_pool),
            aggregation=self.aggregation,
            temperatures=[temperatures[expert.name] for expert in found.experts],
            weights=[self.weights.get(expert.name, 1.0) for expert in found.experts],
        )
        fused = STRATEGIES[strategy].function(logits)
        prior = None
        if calibration is not None:
            prior = prior_novelty(novelty_logits, similarities, calibration, self.temperatures)
        novelty = image_novelty(
            novelty_logits,
            prior=prior,
            words=word_deviations(novelty_logits, similarities, self.aggregation),
            unknown_above=self.unknown_above,
            per_category=self.unknown_per_category,
        )
        probabilities = fused.probabilities
        if calibration is not None and prior is not None:
            covered = np.any(logits.coverage, axis=0)
            images = [expert.modality == "image" for expert in found.experts]
            pictured = np.any(logits.coverage[images], axis=0)
            judged = ~np.isnan(prior) & np.take(pictured, probabilities.argmax(axis=1))
            doubted = np.where(judged, prior, novelty.novelty)
            probabilities = limit(probabilities, largest_probability(doubted, calibration, int(covered.sum())), covered)
        labels = novelty_logits.pool.labels
        return Scores(
            probabilities=logits.probabilities,
            confidence=fused.confidence,
            fused=probabilities,
            novelty=novelty.novelty,
            threshold=novelty.threshold,
            unknown=novelty.unknown,
            distance=novelty.distance,
            basis=novelty.basis,
            rank=novelty.rank,
            fusion=strategy,
            calibration="none" if calibration is None else "stale" if found.stale else "current",
            threshold_progress=calibration.threshold_progress if calibration else None,
            candidate_sets=candidate_sets(logits, calibration.scale if calibration else 1.0),
            label_probabilities=label_probabilities(novelty_logits.pooled, labels) if labels else None,
            label_thresholds=label_thresholds(found.categories, labels) if labels else None,
        )

    def compares_words(self, found: SearchResult) -> bool:
        """Returns whether the novelty of an image may need words: the store has too few references for a threshold."""
        calibration = self.calibration(found)
        return self.calibrated and (calibration is None or calibration.threshold_progress is not None)

    def calibration(self, found: SearchResult) -> Calibration | None:
        """Returns the stored calibration if it was made for these settings and covers all experts, else ``None``."""
        calibration = found.calibration
        if calibration is None or not self.calibrated:
            return None
        names = [expert.name for expert in found.experts]
        return calibration if calibration.fits(names, self.aggregation, self.top_m) else None

    def chosen_temperatures(self, calibration: Calibration | None) -> dict[str, float]:
        """Returns the temperature of each expert: the fixed one, else the calibrated one, else the default."""
        fitted = {name: expert.temperature for name, expert in calibration.experts.items()} if calibration else {}
        return {**self.temperatures, **fitted, **self.fixed_temperatures}


def predictions(found: SearchResult, scores: Scores, sources: Sequence[str], top_k: int) -> list[Prediction]:
    """Returns one prediction per image.

    Args:
        found: The result of the search.
        scores: Scores of the same images.
        sources: Sources of the images.
        top_k: Number of categories in each ranking; at least 1.
    """
    shares = scores.confidence / scores.confidence.sum(axis=0)
    entropies = entropy(scores.probabilities)
    fused = rankings(scores.fused, np.arange(len(found.categories)), found.categories, top_k)
    by_expert = [
        rankings(p, expert.coverage, found.categories, top_k)
        for p, expert in zip(scores.probabilities, found.experts, strict=True)
    ]
    paths = found.tree.paths(scores.fused, scores.unknown) if found.tree else None
    labels: list[Ranking] = [()] * len(sources)
    if scores.label_probabilities is not None and scores.label_thresholds is not None:
        labels = chosen_labels(scores.label_probabilities, scores.label_thresholds, found.categories)
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
                novelty=None if scores.basis[i] is None else float(scores.novelty[i]),
                novelty_basis=scores.basis[i],
                distance=float(scores.distance[i]),
                ranking=fused[i],
                candidate_sets=scores.candidate_sets[i],
                path=paths[i] if paths else (),
                labels=labels[i],
                experts=experts,
                fusion=scores.fusion,
                calibration=scores.calibration,
                threshold_progress=scores.threshold_progress,
                incomplete=found.incomplete,
                stale_seconds=found.stale_seconds,
                revision=found.revision,
            )
        )
    return out


def rankings(probabilities: Doubles, categories: NDArray[np.intp], names: Sequence[str], k: int) -> list[Ranking]:
    """Returns the ``k`` most probable of some categories for each image, best first; ties are in the order of columns.

    Args:
        probabilities: float64 ``(n_images, n_categories)``.
        categories: int ``(n,)``, ascending: the columns to rank.
        names: Names of all columns.
        k: Maximum length of a ranking, at least 1.
    """
    every = len(categories) == probabilities.shape[1]
    columns = categories[largest(probabilities if every else probabilities.take(categories, axis=1), k)]
    best = np.take_along_axis(probabilities, columns, axis=1)
    return [
        tuple(zip(map(names.__getitem__, image), p, strict=True))
        for image, p in zip(columns.tolist(), best.tolist(), strict=True)
    ]
