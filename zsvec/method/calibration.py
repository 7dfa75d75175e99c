"""The record of a calibration: what `zsvec.method.fit` learned from the references, as it is kept with the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.types import CALIBRATION_FORMAT

Doubles = NDArray[np.float64]

# What the format calls the fields that have other names here.
_STORED_NAMES = {"false_unknown_rate": "false_alarms", "coefficients": "slopes"}


@dataclass(frozen=True, slots=True)
class ExpertCalibration:
    """What is known of one expert.

    Attributes:
        temperature: What its similarities are divided by before the softmax.
        spread: Standard deviation of an image's similarities to the categories that are not its own; of few
            pairs of categories it is drawn towards the profile's temperature.
        images: On how many images it was tried; 0: its temperature is its spread, or the profile's.
        accuracy: Fraction of them whose category it says, 0 to 1: its reliability. ``None`` without images.
    """

    temperature: float
    spread: float
    images: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class LogLinear:
    """A logarithmic opinion pool.

    Attributes:
        coefficients: By expert and aggregation, nats of evidence per unit of similarity.
        neutral: Evidence of experts, joined by `fusion.pattern`, for a category that they have no reference of.
        thresholds: By the experts that know a category, joined likewise: the evidence that is exceeded by
            all but the false alarms among images of such a category.
        category_thresholds: The same, by category, of those with enough references.
        learned: Whether images could be left out to learn the coefficients from; if not, experts weigh the same.
    """

    coefficients: Mapping[str, Mapping[str, float]]
    neutral: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    category_thresholds: Mapping[str, float] = field(default_factory=dict)
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration of a store.

    Attributes:
        revision: Largest ``rev`` in the catalog that it was made from.
        aggregation: The aggregation it was made for.
        top_m: References that ``top_mean`` averaged.
        false_unknown_rate: Fraction of the images of known categories that may be called unknown.
        images: Reference images that were left out.
        experts: By name.
        plain: Log-linear fusion of the experts.
        views: The same of two aggregations of each expert.
    """

    revision: int
    aggregation: str
    top_m: int
    false_unknown_rate: float
    images: int
    experts: Mapping[str, ExpertCalibration]
    plain: LogLinear
    views: LogLinear

    def fits(self, experts: Collection[str], aggregation: str, top_m: int) -> bool:
        """Whether it is of these experts and of this aggregation."""
        by_top_mean = "top_mean" in (aggregation, other_view(aggregation))
        same = self.aggregation == aggregation and (self.top_m == top_m or not by_top_mean)
        return same and set(experts) <= self.experts.keys()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the store."""
        return {"format": CALIBRATION_FORMAT, **_renamed(asdict(self), _STORED_NAMES)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Calibration | None:
        """What `to_dict` gave; ``None`` for nothing, and for what another version of zsvec wrote."""
        if not values or values.get("format") != CALIBRATION_FORMAT:
            return None
        fields = _renamed(values, {stored: name for name, stored in _STORED_NAMES.items()})
        del fields["format"]
        experts = {name: ExpertCalibration(**expert) for name, expert in fields["experts"].items()}
        pools = {name: LogLinear(**fields[name]) for name in ("plain", "views")}
        return cls(**{**fields, "experts": experts, **pools})


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The same record with other names of its fields, those of its pools included."""
    renamed = {names.get(name, name): value for name, value in values.items()}
    for pool in ("plain", "views"):
        renamed[pool] = {names.get(name, name): value for name, value in renamed[pool].items()}
    return renamed


def uncalibrated(temperatures: Mapping[str, float], aggregation: str) -> LogLinear:
    """Equal weights over given temperatures. k experts count as √k, for they are neither independent nor the same."""
    share = 1 / np.sqrt(max(1, len(temperatures)))
    return LogLinear({expert: {aggregation: share / t} for expert, t in temperatures.items()})


def other_view(aggregation: str) -> str:
    """The aggregation that is looked at besides the chosen one: the prototype, or for it the nearest references."""
    return "top_mean" if aggregation == "prototype" else "prototype"


def expert_evidence(
    coefficients: Mapping[str, Mapping[str, float]], views: Mapping[str, Mapping[str, NDArray[np.float32]]]
) -> Doubles:
    """Evidence of each expert in nats, float64 ``(n_experts, n_images, n_categories)``; NaN where it has none."""
    return np.stack(
        [
            np.sum(
                [coefficient * of[view].astype(np.float64) for view, coefficient in coefficients[expert].items()],
                axis=0,
            )
            for expert, of in views.items()
        ]
    )
