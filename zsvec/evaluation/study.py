"""What is evaluated: the references of a store on a sample of images, by any experts, strategy or change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.evaluation.metrics import (
    Doubles,
    blind_auroc,
    bootstrap,
    bootstrap_auroc,
    brier_score,
    calibration_floor,
    negative_log_likelihood,
    paper_auroc,
    paper_unknown_score,
    top_k,
    true_probability,
)
from zsvec.evaluation.splits import Split
from zsvec.method.calibrate.fit import expected_calibration_error, fit_calibration
from zsvec.method.predict.scoring import Scoring
from zsvec.method.similarities import References, category_names, image_experts
from zsvec.search.numpy_index import compare

_BATCH = 256


@dataclass(frozen=True, slots=True)
class Sample:
    """Test images.

    Attributes:
        sources: Where they come from.
        truth: Their categories; ``None`` for an image of no category.
        vectors: By encoder, float32 ``(n_images, dim)``.
    """

    sources: Sequence[str]
    truth: Sequence[str | None]
    vectors: Mapping[str, NDArray[np.float32]]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which images have a category, bool ``(n_images,)``."""
        return np.array([label is not None for label in self.truth], dtype=bool)

    @property
    def unknown_vectors(self) -> dict[str, NDArray[np.float32]]:
        """Vectors of the images of no category, by encoder, float32 ``(n_unknown, dim)``."""
        return {encoder: vectors[~self.known] for encoder, vectors in self.vectors.items()}

    def columns(self, categories: Sequence[str]) -> NDArray[np.intp]:
        """Position of each known image's category among some categories, int ``(n_known,)``; -1 if it is not there."""
        position = {category: i for i, category in enumerate(categories)}
        return np.array([position.get(label, -1) for label in self.truth if label is not None], dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered for the images of a sample.

    Attributes:
        categories: By name.
        probabilities: float64 ``(n_images, n_categories)``; rows sum to 1.
        novelty: float64 ``(n_images,)``, 0 to 1; without a calibration the distance of `Scores`, 0 to 2.
        unknown: bool ``(n_images,)``, whether each was called unknown.
        threshold: float64 ``(n_images,)``, novelty above which an image is called unknown; NaN where there is none.
    """

    categories: Sequence[str]
    probabilities: Doubles
    novelty: Doubles
    unknown: NDArray[np.bool_]
    threshold: Doubles


def answer(
    references: Mapping[str, References], sample: Sample, scoring: Scoring, false_unknown_rate: float
) -> Answers:
    """Classify a sample by references, which are calibrated first where the scoring uses a calibration.

    In batches of random images: a strategy may take it from a batch that its images are alike.

    Args:
        references: By expert.
        sample: Images to classify.
        scoring: From similarities to answers.
        false_unknown_rate: Target rate of unknown among images of known categories.
    """
    names = category_names(references)
    made = None
    if scoring.calibrated:
        temperatures = {expert: scoring.temperatures[expert] for expert in references}
        made = fit_calibration(
            references,
            temperatures,
            revision=0,
            aggregation=scoring.aggregation,
            top_m=scoring.top_m,
            false_unknown_rate=false_unknown_rate,
        )
    parts = []
    order = np.random.default_rng(0).permutation(len(sample.sources))
    for first in range(0, len(order), _BATCH):
        queries = {encoder: vectors[order[first : first + _BATCH]] for encoder, vectors in sample.vectors.items()}
        found = compare(references, names, queries, nearest=1)
        parts.append(scoring.scores(replace(found, calibration=made[0] if made else None)))

    def in_order(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(values)[np.argsort(order)]

    novelty = in_order([part.novelty for part in parts])
    return Answers(
        categories=names,
        probabilities=in_order([part.fused for part in parts]),
        novelty=np.where(np.isnan(novelty), in_order([part.distance for part in parts]), novelty),
        unknown=in_order([part.unknown for part in parts]),
        threshold=in_order([part.threshold for part in parts]),
    )


@dataclass
class Study:
    """One store and one sample.

    Attributes:
        references: Of the store, by expert.
        sample: Test images.
        scoring: As the store is classified by.
        false_unknown_rate: Target rate of every calibration.
        splits: Known and unknown categories for the AUROC of the paper.
        predictions: What was answered in each row so far, by table and row; everything that its metrics need.
    """

    references: Mapping[str, References]
    sample: Sample
    scoring: Scoring
    false_unknown_rate: float
    splits: Sequence[Split]
    predictions: dict[str, Any] = field(default_factory=dict)

    @property
    def image_experts(self) -> list[str]:
        """Experts with reference images."""
        return list(image_experts(self.references))

    def answers(self, references: Mapping[str, References], **choices: Any) -> Answers:
        """Classify the sample by some references.

        Args:
            references: By expert.
            **choices: Fields of the scoring to change.
        """
        return answer(references, self.sample, replace(self.scoring, **choices), self.false_unknown_rate)

    def row(self, table: str, name: str, answers: Answers) -> dict[str, Any]:
        """Metrics of a table's row. The answers are added to `predictions`.

        Returns:
            ``name``; ``values``, fractions and areas from 0 to 1 by key of `tables.COLUMNS`, ``None`` where there is
            nothing to measure; ``interval``, lower and upper end by key.
        """
        known = self.sample.known
        truth = self.sample.columns(answers.categories)
        probabilities = answers.probabilities[known]
        hits = {k: top_k(probabilities, truth, k) for k in (1, 3, 5)}
        values: dict[str, float | None] = {f"top{k}": float(hit.mean()) for k, hit in hits.items()}
        surprise = float(negative_log_likelihood(probabilities, truth).mean())
        values["nll"] = surprise if np.isfinite(surprise) else None
        values["brier"] = float(brier_score(probabilities, truth).mean())
        confidence = probabilities.max(axis=1)
        values["ece"] = expected_calibration_error(confidence, hits[1])
        values["ece_floor"] = calibration_floor(confidence)
        masks = [np.isin(answers.categories, list(split.known)) for split in self.splits]
        # Of experts that cover some categories only, a split may leave no image on one side.
        aurocs = [
            paper_auroc(probabilities, truth, mask) for mask in masks if len(np.unique(mask[truth[truth >= 0]])) > 1
        ]
        values["paper_auroc"] = float(np.mean(aurocs)) if aurocs else None
        interval = {f"top{k}": list(bootstrap(hit.astype(np.float64))) for k, hit in hits.items()}
        values["auroc"] = None
        if not known.all():
            values["auroc"] = blind_auroc(answers.novelty, ~known)
            interval["auroc"] = list(bootstrap_auroc(answers.novelty, ~known))
        self.predictions[f"{table}/{name}"] = {
            "categories": list(answers.categories),
            "top": np.argsort(-answers.probabilities, axis=1, kind="stable")[:, :5].tolist(),
            "probability": answers.probabilities.max(axis=1).tolist(),
            "sum_of_squares": (answers.probabilities**2).sum(axis=1).tolist(),
            "true_probability": self._true_probability(answers),
            "novelty": answers.novelty.tolist(),
            "unknown": answers.unknown.tolist(),
            "unknown_scores": [paper_unknown_score(answers.probabilities, mask).tolist() for mask in masks],
        }
        return {"name": name, "values": values, "interval": interval}

    def _true_probability(self, answers: Answers) -> list[float | None]:
        """Of each image's category; ``None`` for an image of no category."""
        known = self.sample.known
        own = iter(true_probability(answers.probabilities[known], self.sample.columns(answers.categories)).tolist())
        return [next(own) if is_known else None for is_known in known]
