"""What the stored references say about the experts: temperatures, weights, and how far is far.

Every reference image is scored against all the others (`leave_one_out`), which gives labelled examples
without images, labels or encoders beyond what the store has. From them:

- the *temperature* of each expert, by cross-entropy (Guo et al., 2017), drawn towards the spread of its
  similarities to wrong categories; with one reference a category nothing can be left out, and it is that spread;
- the *coefficients* of log-linear fusion: how many nats of evidence a unit of similarity is worth (Genest & Zidek,
  1986: the logarithmic opinion pool), drawn towards equal weights of the experts;
- what an expert would say of a category that it has no reference of: *neutral* evidence, such that the
  likelihood ratio of a wrong category is 1 on average. Categories known by texts, by images or by both
  compete fairly by it;
- the *thresholds*: below which evidence the wanted fraction of the images of known categories falls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

from zsvec.method.calibration import (
    Calibration,
    ExpertCalibration,
    LogLinear,
    expert_evidence,
    other_view,
)
from zsvec.method.fusion import log_linear, neutral_evidence, pattern, softmax
from zsvec.method.leave_one_out import LeftOut, leave_one_out
from zsvec.method.similarities import References, category_names

Doubles = NDArray[np.float64]

FALSE_UNKNOWN_RATE = 0.05
LARGEST_SAMPLE = 2048  # images that are left out at most, and fewer where there are many categories:
_LARGEST_TABLE = 2_000_000  # images by categories, but no fewer than
_SMALLEST_SAMPLE = 256
_SHRINKAGE = 1.0  # strength of a prior, as the curvature that so many images give in squared log units
_FEWEST = 20  # images from which a threshold can be told, and pairs of categories from which a spread
_ROUNDING = 1e-6  # a spread below is none
_WIDEST = 100.0  # factor by which a temperature may differ from the spread


@dataclass(frozen=True, slots=True)
class Quality:
    """How fusion does on the left-out reference images.

    Attributes:
        top1: Fraction whose category is the most probable, 0 to 1.
        cross_entropy: Mean of -ln(probability of the true category), nats.
        ece: Expected calibration error, 0 to 1.
    """

    top1: float
    cross_entropy: float
    ece: float


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What a calibration did.

    Attributes:
        calibration: The new one.
        before: Log-linear fusion of the left-out images, which the new one was learned from, as it was; ``None``:
            none of them has another reference to be found by.
        after: And as it is.
    """

    calibration: Calibration
    before: Quality | None
    after: Quality | None

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec calibrate --json`` prints."""
        made = self.calibration
        return {
            "images": made.images,
            "false_unknown_rate": made.false_unknown_rate,
            "threshold": made.views.thresholds,
            "experts": {name: asdict(of) for name, of in made.experts.items()},
            "before": self.before and asdict(self.before),
            "after": self.after and asdict(self.after),
        }


def largest_sample(n_categories: int) -> int:
    """How many reference images of a store with so many categories are left out at most."""
    return min(LARGEST_SAMPLE, max(_SMALLEST_SAMPLE, _LARGEST_TABLE // max(1, n_categories)))


def calibrate(
    references: Mapping[str, References],
    temperatures: Mapping[str, float],
    *,
    revision: int,
    aggregation: str,
    top_m: int,
    false_unknown_rate: float,
    most: int | None = None,
) -> tuple[Calibration, LeftOut] | None:
    """Calibrate a store from its references.

    With one reference a category, image experts cannot be tried: their temperature is the spread of their
    similarities to other categories, their weights are equal, and there is no threshold. An expert that
    covers few categories is tried on those. With two categories the spread is that over all images. The same
    picture twice in a category vouches for nothing.

    Args:
        references: By expert, all of them.
        temperatures: By expert, taken where there is nothing to learn from.
        revision: Largest ``rev`` of the catalog that they are from.
        aggregation: A name in `aggregate.AGGREGATIONS`.
        top_m: References that ``top_mean`` averages.
        false_unknown_rate: Fraction of known images that may be called unknown, between 0 and 1.
        most: Reference images that are left out at most; by default `largest_sample`.

    Returns:
        The calibration, and what it was learned from; ``None`` if there are no reference images or fewer
        than two categories.
    """
    other = other_view(aggregation)
    limit = largest_sample(len(category_names(references))) if most is None else most
    sample = leave_one_out(references, (aggregation, other), top_m, limit)
    if sample is None:
        return None
    tried = {
        (expert, view): _try(similarity, sample.labels, temperatures[expert])
        for expert, views in sample.views.items()
        for view, similarity in views.items()
    }
    return Calibration(
        revision=revision,
        aggregation=aggregation,
        top_m=top_m,
        false_unknown_rate=false_unknown_rate,
        images=len(sample.labels),
        experts={expert: tried[expert, aggregation] for expert in sample.views},
        plain=_pool(sample, tried, (aggregation,), false_unknown_rate),
        views=_pool(sample, tried, (aggregation, other), false_unknown_rate),
    ), sample


def _try(similarity: NDArray[np.float32], labels: NDArray[np.intp], default: float) -> ExpertCalibration:
    """Temperature and reliability of one expert from its similarities, float32 ``(n_images, n_categories)``."""
    own = np.take_along_axis(similarity, labels[:, None], axis=1)[:, 0]
    wrong = similarity.astype(np.float64)
    wrong[np.arange(len(labels)), labels] = np.nan
    spread = _spread(wrong)
    # A spread of a few pairs of categories is hardly one: it is drawn towards what the profile says.
    pairs = sum((~np.isnan(wrong[labels == own])).any(axis=0).sum() for own in np.unique(labels))
    trust = pairs / (pairs + _FEWEST)
    spread = float(np.exp(trust * np.log(spread) + (1 - trust) * np.log(default))) if spread > _ROUNDING else default
    tried = ~np.isnan(own) & ~np.isnan(wrong).all(axis=1)
    if not tried.any():
        return ExpertCalibration(spread if np.isfinite(wrong).any() else default, spread, 0, None)
    logits = np.where(np.isnan(similarity[tried]), -np.inf, similarity[tried]).astype(np.float64)
    truth = labels[tried]

    def cost(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        entropy = logsumexp(scaled, axis=1) - scaled[np.arange(len(truth)), truth]
        return float(entropy.sum() + _SHRINKAGE * (log_temperature - np.log(spread)) ** 2)

    bounds = np.log(spread) + np.log(_WIDEST) * np.array([-1, 1])
    fitted = minimize_scalar(cost, bounds=bounds, method="bounded")
    accuracy = float((logits.argmax(axis=1) == truth).mean())
    return ExpertCalibration(float(np.exp(fitted.x)), spread, len(truth), accuracy)


def _spread(wrong: Doubles) -> float:
    """Standard deviation of an image's similarities to wrong categories, or over all images if each has one."""
    several = wrong[(~np.isnan(wrong)).sum(axis=1) > 1]
    if len(several):
        return float(np.sqrt(np.nanvar(several, axis=1).mean()))
    present = wrong[np.isfinite(wrong)]
    return float(present.std()) if present.size else 0.0


def _pool(
    sample: LeftOut,
    tried: Mapping[tuple[str, str], ExpertCalibration],
    views: Sequence[str],
    false_unknown_rate: float,
) -> LogLinear:
    experts = list(sample.views)
    keys = [
        (expert, view)
        for expert in experts
        for view in views
        # With one reference a category all aggregations are the same.
        if view == views[0] or not _same(sample.views[expert][view], sample.views[expert][views[0]])
    ]
    scaled = np.stack([sample.views[e][view] / np.float32(tried[e, view].temperature) for e, view in keys])
    views_of = Counter(expert for expert, _ in keys)
    start = np.array([1 / (views_of[expert] * np.sqrt(len(experts))) for expert, _ in keys])
    weights, learned = _weights(scaled, sample, [experts.index(expert) for expert, _ in keys], start)
    coefficients: dict[str, dict[str, float]] = {}
    for (expert, view), weight in zip(keys, weights, strict=True):
        coefficients.setdefault(expert, {})[view] = float(weight / tried[expert, view].temperature)
    evidence = expert_evidence(coefficients, sample.views)
    neutral = _neutral(evidence, sample)

    def thresholds(cases: Iterable[tuple[str, NDArray[np.bool_], NDArray[np.bool_]]]) -> dict[str, float]:
        """By name: from those of the chosen images whose category is known to whom it says."""
        found = {name: _largest(evidence, sample, neutral, known, chosen) for name, known, chosen in cases}
        return {name: float(np.quantile(of, false_unknown_rate)) for name, of in found.items() if len(of) >= _FEWEST}

    everywhere = np.ones(len(sample.labels), dtype=bool)
    of_category = (sample.labels == position for position in range(len(sample.categories)))
    return LogLinear(
        coefficients,
        neutral,
        thresholds((pattern(experts, known), known, everywhere) for known in np.unique(sample.known, axis=1).T),
        thresholds(
            (name, sample.known[:, position], chosen)
            for position, (name, chosen) in enumerate(zip(sample.categories, of_category, strict=True))
            if np.count_nonzero(chosen) >= _FEWEST
        ),
        learned,
    )


def _same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return bool(np.allclose(a, b, atol=1e-5, equal_nan=True))


def _weights(
    scaled: NDArray[np.float32], sample: LeftOut, expert: Sequence[int], start: Doubles
) -> tuple[Doubles, bool]:
    """Positive weights of log-linear fusion by cross-entropy, with a normal prior of their logarithms at `start`.

    For a category that an expert lacks it says what it says of wrong ones on average. Experts that could not
    be tried keep their weight.

    Args:
        scaled: Similarities ÷ temperature, float32 ``(n_views, n_images, n_categories)``.
        sample: Of which they are.
        expert: Whose each view is, as a row of ``sample.known``.
        start: float64 ``(n_views,)``, what the weights are without examples.

    Returns:
        The weights, and whether there were examples to learn them from.
    """
    wrong = sample.labels[:, None] != np.arange(len(sample.categories))
    filled = scaled.astype(np.float64)
    tried = np.zeros(len(filled), dtype=bool)
    for view, known in enumerate(sample.known[list(expert)]):
        seen = filled[view][wrong & ~np.isnan(filled[view])]
        if seen.size:
            tried[view] = True
            filled[view][:, ~known] = logsumexp(seen) - np.log(seen.size)
    usable = ~np.isnan(filled[tried]).any(axis=(0, 2))
    if not tried.any() or len(np.unique(sample.labels[usable])) < 2:
        return start, False  # images of one category would teach that it is always that one
    logits, truth, prior = filled[tried][:, usable], sample.labels[usable], np.log(start[tried])
    right = logits[:, np.arange(len(truth)), truth]

    def cost(logs: Doubles) -> tuple[float, Doubles]:
        weight = np.exp(logs)
        fused = np.tensordot(weight, logits, axes=1)
        total = logsumexp(fused, axis=1)
        expected = np.einsum("nc,vnc->vn", np.exp(fused - total[:, None]), logits)
        off = logs - prior
        return (
            float((total - weight @ right).sum() + _SHRINKAGE * off @ off),
            (expected - right).sum(axis=1) * weight + 2 * _SHRINKAGE * off,
        )

    limits = [(log - np.log(_WIDEST), log + np.log(_WIDEST)) for log in prior]
    weights = start.copy()
    weights[tried] = np.exp(minimize(cost, prior, jac=True, method="L-BFGS-B", bounds=limits).x)
    return weights, True


def _neutral(evidence: Doubles, sample: LeftOut) -> dict[str, float]:
    """What experts say of wrong categories, as evidence whose likelihood ratio is 1 on average over those.

    For all experts together, each alone, and those that lack a reference of some category.
    """
    experts = list(sample.views)
    everyone = np.ones((len(experts), 1), dtype=bool)
    sets = np.unique(np.hstack([everyone, np.eye(len(experts), dtype=bool), ~sample.known]), axis=1).T
    wrong = sample.labels[:, None] != np.arange(len(sample.categories))
    neutral = {}
    for chosen in sets[sets.any(axis=1)]:
        together = evidence[chosen].sum(axis=0)[wrong]
        together = together[~np.isnan(together)]
        if together.size:
            neutral[pattern(experts, chosen)] = float(logsumexp(together) - np.log(together.size))
    return neutral


def _largest(
    evidence: Doubles,
    sample: LeftOut,
    neutral: Mapping[str, float],
    known: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
) -> Doubles:
    """The largest evidence for any category, of each image as if its own were known to some experts only.

    Args:
        evidence: Of the sample, from `expert_evidence`.
        sample: Of which images are used that can be compared with everything, so their number is smaller.
        neutral: From `_neutral`.
        known: bool ``(n_experts,)``, who knows the category of the image.
        chosen: bool ``(n_images,)``, images to look at.
    """
    experts = list(sample.views)
    labels = sample.labels[chosen]
    evidence, images = evidence[:, chosen], np.arange(len(labels))
    own = evidence[:, images, labels]
    # What stands in the place of an image's own category is replaced below; a gap there is none of the expert's.
    evidence[:, images, labels] = np.where(sample.known[:, labels], np.nan_to_num(own), np.nan)
    complete = ~np.isnan(own[known]).any(axis=0) & (np.isnan(evidence) == ~sample.known[:, None]).all(axis=(0, 2))
    if not complete.any():
        return np.empty(0)
    evidence, own, labels = evidence[:, complete], own[:, complete], labels[complete]
    total = log_linear(evidence, experts, neutral)
    rest = neutral_evidence(evidence, experts, neutral, ~known) if not known.all() else 0.0
    against = neutral_evidence(evidence, experts, neutral, np.ones(len(experts), dtype=bool))
    total[np.arange(len(total)), labels] = own[known].sum(axis=0) + rest - against
    largest: Doubles = total.max(axis=1)
    return largest


def quality(pool: LogLinear, sample: LeftOut) -> Quality | None:
    """How a fusion does on the left-out images; ``None`` if none of them has another reference of its category."""
    evidence = expert_evidence(pool.coefficients, sample.views)
    complete = (np.isnan(evidence) == ~sample.known[:, None]).all(axis=(0, 2))
    if not complete.any():
        return None
    probabilities = softmax(log_linear(evidence[:, complete], list(sample.views), pool.neutral))
    truth = sample.labels[complete]
    right = probabilities.argmax(axis=1) == truth
    own = np.maximum(probabilities[np.arange(len(truth)), truth], np.finfo(float).tiny)
    return Quality(
        top1=float(right.mean()),
        cross_entropy=float(-np.log(own).mean()),
        ece=expected_calibration_error(probabilities.max(axis=1), right),
    )


def expected_calibration_error(
    probabilities: Sequence[float] | Doubles, right: Sequence[bool] | NDArray[np.bool_], bins: int = 15
) -> float:
    """Mean distance of confidence and accuracy over bins of equal width (Guo et al., 2017), 0 to 1.

    Args:
        probabilities: Of the categories that were answered.
        right: Whether they were.
        bins: How many.
    """
    confidence, hit = np.asarray(probabilities, dtype=np.float64), np.asarray(right, dtype=np.float64)
    of_bin = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(of_bin, weights=hit - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
