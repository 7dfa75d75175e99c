"""Calibration: learns temperatures, coefficients and thresholds of unknown images from the references.

Every reference image is scored against all other references (`leave_one_out`). From these labelled examples,
calibration learns:

- the *temperature* of each expert and the *coefficients* of log-linear fusion (`coefficients`);
- *neutral* evidence and the *thresholds* of unknown images (`thresholds`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.calibrate.cascade import learn_cascade
from zsvec.method.calibrate.coefficients import calibrate_expert, learn_coefficients
from zsvec.method.calibrate.labels import learn_labels
from zsvec.method.calibrate.leave_one_out import LeftOut, largest_sample, leave_one_out
from zsvec.method.calibrate.thresholds import (
    balanced_neutral,
    learn_category_thresholds,
    learn_neutral,
    learn_thresholds,
    threshold_progress,
)
from zsvec.method.calibration import (
    CENTRED,
    GDA,
    LOG_COUNT,
    Calibration,
    ExpertCalibration,
    LabelModel,
    LogLinear,
    other_aggregation,
)
from zsvec.method.predict.background import Background
from zsvec.method.predict.gda import covering_most, describes, learn_backgrounds
from zsvec.method.predict.logits import softmax
from zsvec.method.predict.opinion_pool import LEAST, expert_evidence, log_linear
from zsvec.method.quality.label_errors import Suspect
from zsvec.method.similarities import References, category_names
from zsvec.types import counted

FALSE_UNKNOWN_RATE = 0.05
"""Default fraction of the images of a store's categories that may be called unknown."""


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """How to decide which categories an image belongs to, in a store of several labels an image.

    Attributes:
        false_positive_rate: Fraction of the images without a category that may get this category, between 0 and 1.
            ``None`` chooses the threshold with the largest F1 score.
    """

    false_positive_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of fusion on labelled images.

    Attributes:
        top1: Fraction of images whose most probable category is right, 0 to 1.
        cross_entropy: Mean of -ln(probability of the true category), nats.
        ece: Expected calibration error, 0 to 1.
    """

    top1: float
    cross_entropy: float
    ece: float


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """A calibration, and the quality of classification before and after.

    Attributes:
        calibration: The new calibration.
        before: Quality of the former log-linear fusion, on the images that the new calibration was learned from.
            ``None`` if none of these images has another reference of its category.
        after: Quality of the new fusion on the same images.
        suspects: Reference images that probably have a wrong category, most doubtful first. Only the left-out images
            (`Calibration.images`) and the images that are in several categories are checked.
        labelled_before: Quality of the new fusion on the labelled images, before the evidence was scaled
            (`Calibration.scale`). ``None`` without labelled images.
        labelled_after: Quality on the same images after scaling.
        notes: Sentences on unexpected results: nothing has changed, something cannot be learned yet, or something was
            dropped.
    """

    calibration: Calibration
    before: Quality | None
    after: Quality | None
    suspects: Sequence[Suspect] = ()
    labelled_before: Quality | None = None
    labelled_after: Quality | None = None
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        made = self.calibration
        if made.threshold_progress is None:
            known = f"{1 - made.false_unknown_rate:.1%} of these images"
            unknown = f"an image is unknown if it is farther from every category than {known}"
        else:
            unknown = f"no threshold yet: {made.threshold_progress}"
        return f"learned from {counted(made.images, 'reference image')}; {unknown}"

    def to_dict(self) -> dict[str, Any]:
        """The object that ``zsvec calibrate --json`` prints."""
        made = self.calibration
        return {
            "images": made.images,
            "false_unknown_rate": made.false_unknown_rate,
            "threshold": made.aggregations.thresholds,
            "threshold_progress": made.threshold_progress and asdict(made.threshold_progress),
            "experts": {name: asdict(expert) for name, expert in made.experts.items()},
            "before": self.before and asdict(self.before),
            "after": self.after and asdict(self.after),
            "scale": made.scale,
            "labelled_before": self.labelled_before and asdict(self.labelled_before),
            "labelled_after": self.labelled_after and asdict(self.labelled_after),
            "suspects": [asdict(suspect) for suspect in self.suspects],
        }


def fit_calibration(
    references: Mapping[str, References],
    temperatures: Mapping[str, float],
    *,
    revision: int,
    aggregation: str,
    top_m: int,
    false_unknown_rate: float,
    former: Calibration | None = None,
    labels: LabelSettings | None = None,
    cascade: str | None = None,
) -> tuple[Calibration, LeftOut] | None:
    """Calibrates a store from its references.

    With one reference per category, no image can be left out for image experts. Then the temperature is the spread of
    similarities to other categories, weights are equal, and there is no threshold. An expert that covers few categories
    is fitted on these categories. With two categories, the spread is taken over all images. Copies of a picture within
    a category are left out together.

    Args:
        references: All references of the store, by expert.
        temperatures: By expert, the profile's temperature; see `ExpertCalibration.spread`.
        revision: Largest ``rev`` in the catalog from which the references were read.
        aggregation: A name in `reference_aggregation.AGGREGATIONS`.
        top_m: Number of references that ``top_mean`` averages.
        false_unknown_rate: Fraction of the images of these categories that may be called unknown, between 0 and 1.
        former: A calibration of these experts. Its backgrounds and its pool of category means are reused if the number
            of references is about the same and most references are unchanged. By default everything is learned anew.
        labels: How to learn to which categories an image belongs; ``None`` if an image belongs to one category. A
            Gaussian discriminant assumes one category an image, so there is none where an image may have several.
        cascade: Strategy for which to learn which images an encoder settles alone; ``None`` learns no such rule.

    Returns:
        The calibration, and the left-out images. ``None`` without reference images, or with fewer than two categories.
    """
    other = other_aggregation(aggregation)
    limit = largest_sample(len(category_names(references)))
    sizes = {expert: len(stored.vectors) for expert, stored in references.items()}
    several = labels is not None
    kept = former if former and not several and holds(former, sizes) else None
    most = covering_most(references)
    if kept and not (
        kept.backgrounds.keys() == most.keys()
        and all(describes(known, most[expert]) for expert, known in kept.backgrounds.items())
    ):
        kept = None
    if kept and cascade and kept.false_unknown_rate != false_unknown_rate:  # changes which images a cascade may settle
        kept = None
    backgrounds = {} if kept or several else learn_backgrounds(references)
    sample = leave_one_out(references, (aggregation, other), top_m, limit, backgrounds, multilabel=several)
    if sample is None:
        return None
    fitted = {
        (expert, name): calibrate_expert(similarity, sample.labels, temperatures[expert])
        for expert, similarities in sample.aggregations.items()
        for name, similarity in similarities.items()
        if name != LOG_COUNT
    }
    of_one = partial(
        _of_one_aggregation,
        fitted=fitted,
        revision=revision,
        aggregation=aggregation,
        top_m=top_m,
        false_unknown_rate=false_unknown_rate,
        labels=labels,
    )
    fit = partial(_fit_exact, of_one=of_one, fitted=fitted, backgrounds=backgrounds, labels=labels)
    made = fit(sample)
    if kept:
        rules = kept.cascade if cascade and sample.coverage.all() else {}
        made = replace(made, classwise=kept.classwise, backgrounds=kept.backgrounds, cascade=rules)
    elif cascade and not several:
        made = replace(made, cascade=learn_cascade(made, sample, fit, cascade))
    return made, sample


def _fit_exact(
    sample: LeftOut,
    *,
    of_one: Callable[[LeftOut], Calibration],
    fitted: Mapping[tuple[str, str], ExpertCalibration],
    backgrounds: Mapping[str, Background],
    labels: LabelSettings | None,
) -> Calibration:
    """Returns the calibration of experts that were compared with every reference; `of_one` has one aggregation."""
    plain = of_one(sample)
    aggregation, false_unknown_rate = plain.aggregation, plain.false_unknown_rate
    own = {expert: background for expert, background in backgrounds.items() if expert in sample.aggregations}
    classwise_pool = None
    if own:
        of_means = {expert: [CENTRED, GDA] if expert in own else [aggregation] for expert in sample.aggregations}
        classwise_pool, _ = _pool(sample, fitted, of_means, false_unknown_rate, least=LEAST)
        if not classwise_pool.learned:  # every category is a single scene, so no image can be left out
            classwise_pool, own = None, {}
    two = _distinct(sample, (aggregation, other_aggregation(aggregation)))
    of_two, n_images = _pool(sample, fitted, two, false_unknown_rate, labels)
    return replace(
        plain,
        aggregations=of_two,
        classwise=classwise_pool,
        backgrounds={name: learned.kept() for name, learned in own.items()},
        threshold_progress=threshold_progress(sample, n_images, false_unknown_rate),
    )


def fit_sample(
    sample: LeftOut,
    temperatures: Mapping[str, float],
    *,
    revision: int,
    aggregation: str,
    top_m: int,
    false_unknown_rate: float,
    labels: LabelSettings | None = None,
    cascade: str | None = None,
) -> Calibration:
    """Calibrates a store that is too large to compare every reference, from a sample of its images.

    The calibration has one aggregation of each expert, as the search of such a store has.

    Args:
        sample: Result of `leave_one_out.left_out_of_search`, with this aggregation.
        temperatures: As in `fit_calibration`.
        revision: As in `fit_calibration`.
        aggregation: As in `fit_calibration`.
        top_m: As in `fit_calibration`.
        false_unknown_rate: As in `fit_calibration`.
        labels: As in `fit_calibration`.
        cascade: As in `fit_calibration`.
    """
    fitted = {
        (expert, aggregation): calibrate_expert(found[aggregation], sample.labels, temperatures[expert])
        for expert, found in sample.aggregations.items()
    }
    fit = partial(
        _of_one_aggregation,
        fitted=fitted,
        revision=revision,
        aggregation=aggregation,
        top_m=top_m,
        false_unknown_rate=false_unknown_rate,
        labels=labels,
    )
    made = fit(sample)
    return replace(made, cascade=learn_cascade(made, sample, fit, cascade)) if cascade and labels is None else made


def _of_one_aggregation(
    sample: LeftOut,
    fitted: Mapping[tuple[str, str], ExpertCalibration],
    *,
    revision: int,
    aggregation: str,
    top_m: int,
    false_unknown_rate: float,
    labels: LabelSettings | None,
) -> Calibration:
    """Returns a calibration with one aggregation of each expert. `fitted` has each expert with this aggregation."""
    of_one = {expert: [aggregation] for expert in sample.aggregations}
    pool, n_images = _pool(sample, fitted, of_one, false_unknown_rate, labels)
    return Calibration(
        revision=revision,
        aggregation=aggregation,
        top_m=top_m,
        false_unknown_rate=false_unknown_rate,
        images=len(sample.labels),
        experts={expert: fitted[expert, aggregation] for expert in sample.aggregations},
        plain=pool,
        aggregations=pool,
        threshold_progress=threshold_progress(sample, n_images, false_unknown_rate),
        multilabel=labels is not None,
    )


def holds(calibration: Calibration, references: Mapping[str, int]) -> bool:
    """Returns whether the experts and the numbers of references still fit the backgrounds of a calibration.

    Args:
        calibration: Calibration of the store.
        references: Present number of references by expert.
    """
    if calibration.classwise is None or calibration.classwise.coefficients.keys() != references.keys():
        return False
    return not any(background.outdated(references[expert]) for expert, background in calibration.backgrounds.items())


def _pool(
    sample: LeftOut,
    fitted: Mapping[tuple[str, str], ExpertCalibration],
    aggregations: Mapping[str, Sequence[str]],
    false_unknown_rate: float,
    labels: LabelSettings | None = None,
    *,
    least: float | None = None,
) -> tuple[LogLinear, int]:
    """Learns a pool. Returns the pool, and the number of images of `learn_thresholds`."""
    # Similarity to nearest references depends much on the number of references. An offset that is learned without
    # categories of one reference does not hold for them. So only pools of category means leave these categories out.
    answers = sample if least is None else sample.judged()
    pool = replace(learn_coefficients(answers, fitted, aggregations), least=least)
    evidence = expert_evidence(pool.coefficients, sample.aggregations, least)
    neutral = learn_neutral(evidence, sample)
    if least is not None:
        neutral |= balanced_neutral(evidence, sample, neutral)
    own = learn_category_thresholds(evidence, sample, neutral, false_unknown_rate)
    pool, n_images = learn_thresholds(
        replace(pool, neutral=neutral, category_thresholds=own), evidence, sample, false_unknown_rate
    )
    return (replace(pool, labels=_labels(pool, sample, labels)) if labels else pool), n_images


def _labels(pool: LogLinear, sample: LeftOut, settings: LabelSettings) -> LabelModel | None:
    """Learns the labels of images from a sample with a row for each category of an image; uses one row an image."""
    evidence = expert_evidence(pool.coefficients, sample.aggregations, pool.least)
    _, first = np.unique(sample.hashes, return_index=True)
    chosen = first[sample.complete(evidence)[first]]
    if not chosen.size:
        return None
    pooled = log_linear(evidence[:, chosen], list(sample.aggregations), pool.neutral)
    return learn_labels(pooled, sample.belongs()[chosen], sample.categories, settings.false_positive_rate)


def _distinct(sample: LeftOut, aggregations: Sequence[str]) -> dict[str, list[str]]:
    """Returns, by expert, the aggregations without duplicates of the first.

    With one reference per category, for example, all aggregations are equal.
    """
    first, *others = aggregations
    return {
        expert: [
            first,
            *(name for name in others if not np.allclose(found[name], found[first], atol=1e-5, equal_nan=True)),
        ]
        for expert, found in sample.aggregations.items()
    }


def quality(pool: LogLinear, sample: LeftOut) -> Quality | None:
    """Measures a pool on left-out images. Returns ``None`` if no image has another reference of its category.

    An image of several categories counts once for each of them.
    """
    evidence = expert_evidence(pool.coefficients, sample.aggregations, pool.least)
    complete = sample.complete(evidence)
    if not complete.any():
        return None
    probabilities = softmax(log_linear(evidence[:, complete], list(sample.aggregations), pool.neutral))
    return quality_of(probabilities, sample.labels[complete])


def quality_of(probabilities: Doubles, truth: NDArray[np.intp]) -> Quality:
    """Measures the quality of probabilities.

    Args:
        probabilities: float64 ``(n_images, n_categories)``, at least one image.
        truth: int ``(n_images,)``, column index of each image's category.
    """
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
    """Returns the mean gap between confidence and accuracy over bins of equal width (Guo et al., 2017), 0 to 1.

    Args:
        probabilities: Probabilities of the predicted categories, 0 to 1.
        right: Whether each prediction is right.
        bins: Number of bins.
    """
    confidence, hit = np.asarray(probabilities, dtype=np.float64), np.asarray(right, dtype=np.float64)
    bin_of_each = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(bin_of_each, weights=hit - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def calibration_floor(confidence: Doubles, simulations: int = 200, seed: int = 0) -> float:
    """Returns the expected calibration error that perfectly calibrated answers have by chance alone.

    On few images, even perfectly calibrated answers have an error above 0. Each simulation decides at random which
    answers are right: the confidence of an answer is the probability that the answer is right.

    Args:
        confidence: Probabilities of the answers, float64 ``(n_images,)``, 0 to 1; one or more.
        simulations: Number of simulations to average, 1 or more.
        seed: Seed of the simulations. The same confidences have the same floor in any order.

    Returns:
        0 to 1; 0 if all answers have confidence 0 or 1.

    Source: the consistency resampling of Bröcker & Smith (2007), for the error of Guo et al. (2017).
    """
    ordered, rng = np.sort(confidence), np.random.default_rng(seed)
    draws = (rng.random(len(ordered)) < ordered for _ in range(simulations))
    return float(np.mean([expected_calibration_error(ordered, right) for right in draws]))
