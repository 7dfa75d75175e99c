"""What strategies and single experts make of a trial, and how it compares over the draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from standing.sets import Images
from standing.trials import Numbers, Trial
from zsvec.encoders.spec import TEMPERATURES
from zsvec.evaluation.ablations import laid_out
from zsvec.evaluation.metrics import (
    Doubles,
    Labels,
    blind_auroc,
    brier_score,
    calibration_floor,
    negative_log_likelihood,
    top_k,
)
from zsvec.method.calibrate.fit import expected_calibration_error, fit_calibration
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibration import CENTRED, GDA, Calibration
from zsvec.method.predict.aggregation import aggregate_experts, classwise_similarities
from zsvec.method.predict.scoring import Scoring
from zsvec.method.similarities import References, SearchResult, category_names, image_experts
from zsvec.search.numpy_index import compare
from zsvec.types import encoder_and_modality, expert_name


@dataclass(frozen=True)
class Asked:
    """A trial, ready to be asked.

    Attributes:
        images: Of the set.
        trial: The references, and the images to classify.
        references: By expert.
        calibration: Learned from them, with all that any strategy takes; ``None`` if they teach nothing.
        sample: What it was learned from; ``None`` likewise.
    """

    images: Images
    trial: Trial
    references: Mapping[str, References]
    calibration: Calibration | None
    sample: LeftOut | None

    @classmethod
    def of(cls, images: Images, trial: Trial) -> Asked:
        """With the references of a trial, calibrated."""
        labels = [name for _, name in trial.rows]
        numbers = [number for number, _ in trial.rows]
        texts = [i for i, name in enumerate(images.owners) if name in set(labels)]
        references = {
            expert_name(encoder, "image"): _references(vectors[numbers], labels, [f"{n:08d}" for n in numbers])
            for encoder, vectors in images.vectors.items()
        } | {
            expert_name(encoder, "text"): _references(
                vectors[texts], [images.owners[i] for i in texts], [f"text {i}" for i in texts]
            )
            for encoder, vectors in images.texts.items()
        }
        scoring = _scoring(references)
        fitted = fit_calibration(
            references,
            scoring.temperatures,
            revision=0,
            aggregation=scoring.aggregation,
            top_m=scoring.top_m,
            false_unknown_rate=trial.rate,
        )
        return cls(images, trial, references, *(fitted or (None, None)))

    def found(self, numbers: Numbers) -> SearchResult:
        """Some images, compared with the references."""
        queries = {encoder: vectors[numbers] for encoder, vectors in self.images.vectors.items()}
        found = compare(self.references, category_names(self.references), queries, nearest=1)
        return replace(found, calibration=self.calibration)

    def strategy(self, fusion: str, batches: Sequence[Numbers]) -> dict[str, float]:
        """What a strategy makes of some batches; shares of images and areas in %."""
        scoring = replace(_scoring(self.references), fusion=fusion)
        parts = [scoring.scores(self.found(batch)) for batch in batches]
        known, truth = self._truth(np.concatenate(batches))
        p: Doubles = np.concatenate([part.fused for part in parts])[known]
        right = top_k(p, truth, 1)
        surprise = np.minimum(negative_log_likelihood(p, truth), -np.log(np.finfo(float).tiny))
        found = {
            "top1": 100 * float(right.mean()),
            "nll": float(surprise.mean()),
            "brier": float(brier_score(p, truth).mean()),
            "ece": 100 * expected_calibration_error(p.max(axis=1), right),
            "floor": 100 * calibration_floor(p.max(axis=1)),
            "unknown": 100 * float(np.concatenate([part.unknown for part in parts])[known].mean()),
        }
        if not known.all():
            novelty = np.concatenate([part.novelty if self.calibration else part.distance for part in parts])
            found["auroc"] = 100 * blind_auroc(novelty, ~known)
        is_few = np.isin(np.array(category_names(self.references))[truth], list(self.trial.few))
        if is_few.any():
            found["few"] = 100 * float(right[is_few].mean())
        return found

    def singles(self, batches: Sequence[Numbers]) -> dict[str, dict[str, float]]:
        """How often each single expert is right: texts, and for each image encoder its aggregations."""
        numbers = np.concatenate(batches)
        backgrounds = self.calibration.backgrounds if self.calibration else {}
        wanted = {
            expert: ["top_mean"]
            + ["prototype"] * (expert in image_experts(self.references))
            + [CENTRED, GDA] * (expert in backgrounds)
            for expert in self.references
        }
        found = self.found(numbers)
        classwise = classwise_similarities(found, wanted, backgrounds)
        similarities = aggregate_experts(found, wanted, _scoring(self.references).top_m, classwise)
        known, truth = self._truth(numbers)
        return {
            f"{expert} {aggregation}": {"top1": 100 * float((values[known].argmax(axis=1) == truth).mean())}
            for expert, by_aggregation in similarities.items()
            for aggregation, values in by_aggregation.items()
        }

    def _truth(self, numbers: Numbers) -> tuple[NDArray[np.bool_], Labels]:
        """Which images have a category, and its position."""
        labels = [self.trial.truth.get(number) for number in numbers.tolist()]
        position = {name: i for i, name in enumerate(category_names(self.references))}
        known = np.array([label is not None for label in labels])
        return known, np.array([position[label] for label in labels if label is not None], dtype=np.intp)


def _references(vectors: NDArray[np.float32], labels: Sequence[str], hashes: Sequence[str]) -> References:
    return laid_out(vectors, labels, hashes, [""] * len(labels))


def _scoring(references: Mapping[str, References]) -> Scoring:
    return Scoring(temperatures={expert: TEMPERATURES[encoder_and_modality(expert)[1]] for expert in references})


@dataclass(frozen=True)
class Compared:
    """A figure over the draws, and by how much it is above that of another."""

    mean: float
    error: float
    gain: float
    gain_error: float

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float]) -> Compared:
        """Of as many values as draws; NaN where a draw had nothing to measure."""
        own, gains = np.array(values), np.array(values) - np.array(others)

        def error(values: Doubles) -> float:
            measured = values[~np.isnan(values)]
            return float(measured.std(ddof=1) / np.sqrt(len(measured))) if len(measured) > 1 else float("nan")

        return cls(float(np.nanmean(own)), error(own), float(np.nanmean(gains)), error(gains))

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        return {key: None if np.isnan(value) else value for key, value in vars(self).items()}

    def shown(self, digits: int) -> str:
        """The mean with its error, where there is one."""
        return f"{self.mean:.{digits}f}{_error(self.error, digits)}"

    def gained(self, digits: int) -> str:
        """The gain likewise."""
        return f"{self.gain:+.{digits}f}{_error(self.gain_error, digits)}"


def _error(error: float, digits: int) -> str:
    return "" if np.isnan(error) else f" ±{error:.{digits}f}"


@dataclass
class Condition:
    """What was measured in one condition, a dictionary a draw.

    Attributes:
        by_name: By strategy, and by single expert.
    """

    by_name: dict[str, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))

    def compared(self, name: str, baseline: str) -> dict[str, Compared]:
        """All figures of a strategy that another has too, against those."""
        own, others = self.by_name[name], self.by_name[baseline]
        both = zip(own, others, strict=True)
        keys = dict.fromkeys(key for draw, other in both for key in draw if key in other)
        return {
            key: Compared.of([draw.get(key, np.nan) for draw in own], [draw.get(key, np.nan) for draw in others])
            for key in keys
        }

    def best_single(self, strategies: Sequence[str]) -> str:
        """The single expert that is right most often, of those that there were in every draw."""
        draws = len(self.by_name[strategies[0]])
        alone = [name for name, found in self.by_name.items() if name not in strategies and len(found) == draws]
        return max(alone, key=lambda name: float(np.mean([draw["top1"] for draw in self.by_name[name]])))
