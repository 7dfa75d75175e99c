"""From the similarities that a search found to predictions, in one straight line (paper, sections 3.2 and 3.3).

similarities → aggregation → logits of each expert → strategy → novelty → predictions: a module each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zsvec.method import DEFAULT_STRATEGY
from zsvec.method.calibration import Calibration
from zsvec.method.predict.aggregation import aggregate_in_parts
from zsvec.method.predict.fusion import STRATEGIES, choose_strategy
from zsvec.method.predict.logits import expert_logits
from zsvec.method.predict.novelty import image_novelty
from zsvec.method.predict.opinion_pool import Similarity
from zsvec.method.predict.predictions import Scores, predictions
from zsvec.method.similarities import SearchResult
from zsvec.types import Prediction

_CACHED = 2**16  # numbers of one kind of a part: with those of the other kinds, they fit a core's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How similarities become predictions.

    Attributes:
        temperatures: By expert, the divisor of its similarities before the softmax where no calibration has one.
        fixed_temperatures: The same, of experts whose temperature no calibration changes.
        aggregation: A name in `aggregation.AGGREGATIONS`.
        top_m: References that ``top_mean`` averages; at least 1.
        fusion: A name in `fusion.STRATEGIES`.
        weights: By expert, its confidence under ``fixed``; 1 if it is not named.
        calibrated: Whether to use the calibration of the store.
        unknown_above: Novelty above which an image is unknown, 0 to 1; ``None``: 0.5 where there is a threshold.
            Without effect where there is no calibration.
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

    def predict(self, found: SearchResult, sources: Sequence[str], top_k: int) -> list[Prediction]:
        """One prediction per image.

        Args:
            found: The answer of a search; at least one expert has references.
            sources: Where the images come from.
            top_k: Categories in the rankings; at least 1.
        """
        return [one for _, answers in self.predict_in_parts(found, sources, top_k) for one in answers]

    def predict_in_parts(
        self, found: SearchResult, sources: Sequence[str], top_k: int, *, related: bool = True
    ) -> list[tuple[Scores, list[Prediction]]]:
        """`predict`, some images after the other, with their scores; as many together as fit a core's cache.

        Args:
            found: As `predict`.
            sources: As `predict`.
            top_k: As `predict`.
            related: Whether the images are a batch of somebody's, whose images may help each other.
        """
        joint = STRATEGIES[self.fusion].joint
        size = max(1, _CACHED // len(found.categories)) if not joint else None if related else 1
        parts = self._in_parts(found, size)
        return [(scores, predictions(part, scores, sources[rows], top_k)) for rows, part, scores in parts]

    def scores(self, found: SearchResult) -> Scores:
        """The distribution of each expert, its confidence, what they fuse to, and how novel the images are.

        Args:
            found: The answer of a search; at least one expert has references.
        """
        ((_, _, scores),) = self._in_parts(found, None)
        return scores

    def _in_parts(self, found: SearchResult, size: int | None) -> list[tuple[slice, SearchResult, Scores]]:
        """The scores of some images after the other: which images these are, what was found for them, and the scores.

        Args:
            found: The answer of a search; at least one expert has references.
            size: Images of a part, at least 1; ``None``: all.
        """
        names = [expert.name for expert in found.experts]
        calibration = self.calibration(found)
        temperatures = self.chosen_temperatures(calibration)
        strategy, pool, novelty_pool = choose_strategy(self.fusion, found, calibration, temperatures, self.aggregation)
        wanted = {
            name: [self.aggregation, *pool.coefficients[name], *novelty_pool.coefficients[name]] for name in names
        }

        def scored(rows: slice, part: SearchResult, similarities: Similarity) -> tuple[slice, SearchResult, Scores]:
            logits, novelty_logits = expert_logits(
                part,
                similarities,
                (pool, novelty_pool),
                aggregation=self.aggregation,
                temperatures=[temperatures[name] for name in names],
                weights=[self.weights.get(name, 1.0) for name in names],
            )
            fused = STRATEGIES[strategy].function(logits)
            novelty = image_novelty(
                novelty_logits,
                calibrated=calibration is not None,
                unknown_above=self.unknown_above,
                per_category=self.unknown_per_category,
            )
            scores = Scores(
                probabilities=logits.probabilities,
                coverage=logits.coverage,
                confidence=fused.confidence,
                fused=fused.probabilities,
                novelty=novelty.novelty,
                threshold=novelty.threshold,
                unknown=novelty.unknown,
                distance=novelty.distance,
                rank=novelty.rank,
                fusion=strategy,
                calibration="none" if calibration is None else "stale" if found.stale else "current",
            )
            return rows, part, scores

        backgrounds = calibration.backgrounds if calibration else {}
        return aggregate_in_parts(found, wanted, self.top_m, backgrounds, size, scored)

    def calibration(self, found: SearchResult) -> Calibration | None:
        """The calibration of the store, if it was made for this way of scoring and for all the experts."""
        calibration = found.calibration
        if calibration is None or not self.calibrated:
            return None
        names = [expert.name for expert in found.experts]
        return calibration if calibration.fits(names, self.aggregation, self.top_m) else None

    def chosen_temperatures(self, calibration: Calibration | None) -> dict[str, float]:
        """By expert: the temperature that is fixed, else the calibrated one, else the default."""
        fitted = {name: expert.temperature for name, expert in calibration.experts.items()} if calibration else {}
        return {**self.temperatures, **fitted, **self.fixed_temperatures}
