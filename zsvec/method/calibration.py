"""The record of a calibration in the store. `zsvec.method.calibrate.fit` learns the calibration from references."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from zsvec.method.predict.background import Background
from zsvec.types import CALIBRATION_FORMAT, ThresholdProgress, encoder_and_modality

LOG_COUNT = "log_count"
"""Logarithm of a category's number of references, the same for every image; used like an aggregation."""
CENTRED = "centred"
"""Cosine of an image and a category mean, relative to the mean of all categories; used like an aggregation."""
GDA = "gda"
"""Gaussian discriminant, nats; used like an aggregation."""

COVERAGES = tuple(round(0.01 * percent, 2) for percent in range(50, 100))
"""Coverages of sets of categories, ascending; `LogLinear.odds` has a quantile for each."""

_POOLS = ("plain", "aggregations", "classwise")
_LARGEST = 1e9  # of a number in a record: much larger ones would absorb evidence in a sum, and overflow in a product


@dataclass(frozen=True, slots=True)
class ExpertCalibration:
    """The calibration of one expert.

    Attributes:
        temperature: Divisor of the expert's similarities before the softmax; greater than 0.
        spread: Standard deviation of an image's similarities to wrong categories. With few pairs of categories, the
            value is moved towards the profile's temperature. If the similarities do not vary, the value is the
            profile's temperature.
        images: Number of left-out images that the temperature was fitted on. Without such images, `temperature` equals
            `spread`.
        accuracy: Fraction of the left-out images that the expert alone classifies correctly, 0 to 1. ``None`` without
            left-out images.
        wrong: Mean similarity of left-out images to wrong categories, -1 to 1. ``None`` without such similarities.
    """

    temperature: float
    spread: float
    images: int
    accuracy: float | None
    wrong: float | None


@dataclass(frozen=True, slots=True)
class LabelModel:
    """Decides for each category separately whether an image belongs to it (multi-label classification).

    One logistic regression serves all categories. Its features are the evidence for the category, and the mean and the
    maximum of the evidence over all categories.

    Attributes:
        intercept: Log odds of a yes if all features are 0, nats.
        own: Coefficient of the evidence for the category.
        mean: Coefficient of the mean evidence of the image.
        largest: Coefficient of the largest evidence of the image.
        threshold: Probability of a yes from which on an image belongs to a category, 0 to 1.
        category_thresholds: Thresholds by category, for categories with enough images.
        false_positive_rate: Fraction of the images without a category that may get this category, between 0 and 1.
            ``None`` for the threshold with the largest F1 score over all categories.
        images: Number of left-out images that the model was learned from.
    """

    intercept: float
    own: float
    mean: float
    largest: float
    threshold: float
    category_thresholds: Mapping[str, float] = field(default_factory=dict)
    false_positive_rate: float | None = None
    images: int = 0


@dataclass(frozen=True, slots=True)
class LogLinear:
    """A logarithmic opinion pool: the coefficients of `opinion_pool.log_linear`, and the thresholds of unknown images.

    Attributes:
        coefficients: By expert and aggregation, nats of evidence per unit of similarity. If categories have unequal
            numbers of references, also nats per unit of `LOG_COUNT`.
        neutral: Nats of evidence for a category that a set of experts does not cover, by the `opinion_pool.pattern` of
            this set.
        thresholds: Nats, by the pattern of the experts that cover a category. The largest evidence of a new image of
            such a category is below the threshold with a probability of `Calibration.false_unknown_rate`.
        category_thresholds: Thresholds by category, for categories with enough references.
        early: Thresholds from too few images, by pattern, for patterns without an entry in `thresholds`: nats, and the
            number of images as a share of the number that a threshold takes, from 0 to less than 1.
        learned: Whether the coefficients were learned from left-out images. Otherwise all experts have equal weights.
        noise: Learned fraction of references with uninformative labels, 0 to 1.
        least: Lower bound of the evidence from category means, nats; ``None`` for a pool without category means.
        shares: By expert, the standard deviation of the evidence for wrong categories, summed over aggregations, nats.
            The share measures the influence of the expert on the choice between categories.
        quantiles: By the pattern of the experts that cover a category, the 5, 10, … 95 % quantiles of the largest
            evidence of left-out images of such categories, nats.
        odds: By the pattern of the experts that cover a category, log odds that left-out images of such categories have
            for their own category with each of the first `COVERAGES`, descending, nats before scaling.
        category_odds: As `odds`, by category, for categories with enough images.
        labels: Decides which categories an image belongs to. ``None`` in a store of one category an image, or if
            nothing could be learned (`Calibration.multilabel`).
    """

    coefficients: Mapping[str, Mapping[str, float]]
    neutral: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    category_thresholds: Mapping[str, float] = field(default_factory=dict)
    early: Mapping[str, Sequence[float]] = field(default_factory=dict)
    learned: bool = False
    noise: float = 0.0
    least: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    quantiles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    odds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    category_odds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    labels: LabelModel | None = None


@dataclass(frozen=True, slots=True)
class CascadeRule:
    """The calibration of one encoder alone, and the rule by which this encoder settles images without the others.

    The encoder settles an image if its prediction reaches both limits: the log odds and the evidence. See
    `zsvec.method.calibrate.cascade`.

    Attributes:
        calibration: Calibration of the experts of the encoder. In a record without backgrounds, because the calibration
            of the store has the same.
        fusion: The strategy that the rule was learned for, a name in `fusion.STRATEGIES`.
        odds: Least log odds of the most probable category against all other categories, nats before scaling.
        above: Least evidence above the threshold of unknown images, nats before scaling.
        settled: Fraction of the left-out images that the encoder settles, 0 to 1.
    """

    calibration: Calibration
    fusion: str
    odds: float
    above: float
    settled: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the record that the store keeps as JSON, without backgrounds."""
        fields = {name: getattr(self, name) for name in ("fusion", "odds", "above", "settled")}
        return {**fields, "calibration": replace(self.calibration, backgrounds={}).to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], backgrounds: Mapping[str, Background]) -> CascadeRule:
        """Reads a record of `to_dict`, with the backgrounds of the store's calibration.

        Raises:
            ValueError: The record is damaged.
        """
        record = {**values["calibration"], "backgrounds": {}}
        if record.get("format") != CALIBRATION_FORMAT or "cascade" in record:
            raise ValueError("the calibration of one encoder must have no rule of a cascade")
        made = Calibration._read(record)
        own = {name: background for name, background in backgrounds.items() if name in made.experts}
        made = replace(made, backgrounds=own if made.classwise else {})
        if not made._sound():
            raise ValueError("the calibration of one encoder is damaged")
        return cls(**{**values, "calibration": made})


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration of a store.

    Attributes:
        revision: Largest ``rev`` in the catalog from which the references were read.
        aggregation: The aggregation that the calibration was made for.
        top_m: Number of references that ``top_mean`` averaged.
        false_unknown_rate: Fraction of the images of the store's categories that may be called unknown, 0 to 1.
        images: Number of reference images that were left out.
        experts: Calibration of each expert, by name.
        plain: Log-linear pool of one aggregation of each expert.
        aggregations: Log-linear pool of two aggregations of each expert.
        classwise: Log-linear pool of the centred prototype and the discriminant of each image expert with a
            background, and of one aggregation of each other expert. ``None`` if there were no backgrounds.
        backgrounds: Background of each image expert with enough references.
        scale: Factor of all evidence, fitted on labelled images; 1 without labelled images.
        threshold_progress: Progress towards a threshold for categories with reference images. ``None`` if there is such
            a threshold.
        attached: Digest of the points of attached collections; empty without any.
        multilabel: Whether an image of the store may belong to several categories. The pools may have no `labels`
            nevertheless: nothing can be learned if no image can be left out, or if every image is in every category.
        cascade: Rule of each encoder that settles images without the others; empty unless learned.
    """

    revision: int
    aggregation: str
    top_m: int
    false_unknown_rate: float
    images: int
    experts: Mapping[str, ExpertCalibration]
    plain: LogLinear
    aggregations: LogLinear
    classwise: LogLinear | None = None
    backgrounds: Mapping[str, Background] = field(default_factory=dict)
    scale: float = 1.0
    threshold_progress: ThresholdProgress | None = None
    attached: str = ""
    multilabel: bool = False
    cascade: Mapping[str, CascadeRule] = field(default_factory=dict)

    def fits(self, experts: Collection[str], aggregation: str, top_m: int) -> bool:
        """Returns whether the calibration covers these experts and fits this aggregation and, if used, ``top_m``."""
        by_top_mean = "top_mean" in (aggregation, other_aggregation(aggregation))
        same = self.aggregation == aggregation and (self.top_m == top_m or not by_top_mean)
        return same and set(experts) <= self.experts.keys()

    def to_dict(self) -> dict[str, Any]:
        """Returns the record that the store keeps as JSON."""
        backgrounds = {expert: background.to_dict() for expert, background in self.backgrounds.items()}
        rules = {encoder: rule.to_dict() for encoder, rule in self.cascade.items()}
        fields = {**asdict(replace(self, backgrounds={}, cascade={})), "backgrounds": backgrounds, "cascade": rules}
        if not self.attached:
            del fields["attached"]
        if not rules:
            del fields["cascade"]
        return {"format": CALIBRATION_FORMAT, **fields}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Calibration | None:
        """Reads a record of `to_dict`. Returns ``None`` for an empty, damaged or invalid record, or another format."""
        if not values or values.get("format") != CALIBRATION_FORMAT:
            return None
        try:
            made = cls._read(values)
            return made if made._sound() else None
        # Another version or a malicious writer may have written the record.
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return None

    @classmethod
    def _read(cls, values: Mapping[str, Any]) -> Calibration:
        fields = {name: value for name, value in values.items() if name != "format"}
        experts = {name: ExpertCalibration(**expert) for name, expert in fields["experts"].items()}
        pools = {name: _pool_from(fields[name]) for name in _POOLS if fields.get(name)}
        backgrounds = {name: Background.from_dict(kept) for name, kept in fields["backgrounds"].items()}
        progress = ThresholdProgress.from_dict(fields.get("threshold_progress"))
        rules = {name: CascadeRule.from_dict(rule, backgrounds) for name, rule in fields.get("cascade", {}).items()}
        read = {
            "experts": experts,
            **pools,
            "backgrounds": backgrounds,
            "threshold_progress": progress,
            "cascade": rules,
        }
        return cls(**{**fields, **read})

    def _sound(self) -> bool:
        """Returns whether the numbers are valid. Invalid numbers may also raise the errors that `from_dict` catches."""
        positive = [self.scale]
        others: list[float] = [self.images, self.top_m]
        own: dict[str, set[str]] = {}  # experts by encoder
        for name, expert in self.experts.items():
            positive += [expert.temperature, expert.spread]
            others += [expert.images, *(one for one in (expert.accuracy, expert.wrong) if one is not None)]
            own.setdefault(encoder_and_modality(name)[0], set()).add(name)
        several, of_means = other_aggregation(self.aggregation), dict.fromkeys(self.backgrounds, (CENTRED, GDA))
        return (
            isinstance(self.revision, int)
            and isinstance(self.attached, str)
            and isinstance(self.multilabel, bool)
            and _moderate([*others, *positive])
            and min(positive) >= 1 / _LARGEST
            and 0 < self.false_unknown_rate < 1
            and self.backgrounds.keys() <= self.experts.keys()
            and self._adds_up(self.plain, {})
            and self._adds_up(self.aggregations, dict.fromkeys(self.experts, (several,)))
            and (self.classwise is None or self._adds_up(self.classwise, of_means))
            and all(self._settles(own.get(encoder, set()), rule) for encoder, rule in self.cascade.items())
        )

    def _settles(self, own: set[str], rule: CascadeRule) -> bool:
        """Returns whether the rule of an encoder with these experts is valid."""
        made = rule.calibration
        return (
            made.fits(own, self.aggregation, self.top_m)
            and made.experts.keys() == own < self.experts.keys()
            and isinstance(rule.fusion, str)
            and _moderate([rule.odds, rule.above, rule.settled])
            and rule.above > 0
            and 0 <= rule.settled <= 1
        )

    def _adds_up(self, pool: LogLinear, more: Mapping[str, Collection[str]]) -> bool:
        """Returns whether a pool is valid. `more` names further permitted coefficients of each expert."""
        numbers = (pool.neutral, pool.thresholds, pool.category_thresholds, pool.shares, *pool.coefficients.values())
        return (
            _moderate([pool.noise, *(number for by_name in numbers for number in by_name.values())])
            and _moderate([value for values in (*pool.quantiles.values(), *pool.early.values()) for value in values])
            and all(0 <= share < 1 for _, share in pool.early.values())
            and all(map(_descend, (*pool.odds.values(), *pool.category_odds.values())))
            and (pool.least is None or (_moderate([pool.least]) and pool.least < 0))
            and (pool.labels is None or _decides(pool.labels))
            and pool.coefficients.keys() == pool.shares.keys() == self.experts.keys()
            and min(pool.shares.values()) >= 1 / _LARGEST
            and all(pool.coefficients.values())
            and all(
                by_name.keys() <= {self.aggregation, LOG_COUNT, *more.get(expert, ())}
                for expert, by_name in pool.coefficients.items()
            )
        )


def _pool_from(values: Mapping[str, Any]) -> LogLinear:
    pool = LogLinear(**values)
    labels: Any = pool.labels
    return pool if labels is None else replace(pool, labels=LabelModel(**labels))


def _decides(model: LabelModel) -> bool:
    """Returns whether the numbers of a model of labels are valid."""
    rates = [model.threshold, *model.category_thresholds.values()]
    rates += [] if model.false_positive_rate is None else [model.false_positive_rate]
    numbers = [model.intercept, model.own, model.mean, model.largest, model.images, *rates]
    return _moderate(numbers) and min(rates) >= 0 and max(rates) <= 1


def _moderate(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and abs(value) <= _LARGEST for value in values)  # false for NaN


def _descend(values: Sequence[Any]) -> bool:
    return _moderate(values) and 0 < len(values) <= len(COVERAGES) and all(a >= b for a, b in pairwise(values))


def uncalibrated(temperatures: Mapping[str, float], aggregation: str) -> LogLinear:
    """Returns a pool in which all experts have equal weights.

    The coefficient of each of k experts is 1 / (√k · temperature). Together k experts count as √k, because experts are
    neither independent (k) nor identical (1).

    Args:
        temperatures: Temperature of each expert.
        aggregation: The only aggregation of each expert.
    """
    share = 1 / np.sqrt(max(1, len(temperatures)))
    return LogLinear(
        {expert: {aggregation: share / t} for expert, t in temperatures.items()},
        shares=dict.fromkeys(temperatures, float(share)),
    )


def other_aggregation(aggregation: str) -> str:
    """Returns the second aggregation of a pool: ``top_mean`` for ``prototype``, otherwise ``prototype``."""
    return "top_mean" if aggregation == "prototype" else "prototype"
