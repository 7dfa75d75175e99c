"""Measures which categories are confused, on the stored references (the paper asks a language model)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibration import LogLinear
from zsvec.method.predict.logits import softmax
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear

_RARE = 0.02  # least mean probability at which another category is a partner


@dataclass(frozen=True, slots=True)
class Confusions:
    """Confusion among the reference images of a store. Each image is classified by the other references.

    Attributes:
        lost: For each category with images, the mean probability that its images have another category, 0 to 1.
        partners: For each category with images, the other categories with a mean probability of at least 2 %, most
            probable first.
    """

    lost: Mapping[str, float] = field(default_factory=dict)
    partners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def confusions(sample: LeftOut, pool: LogLinear) -> Confusions:
    """Measures confusion by probabilities, because counts of mistakes are less precise for categories with few images.

    Args:
        sample: Left-out reference images.
        pool: The pool that classifies the images.
    """
    evidence = expert_evidence(pool.coefficients, sample.aggregations, pool.least)
    experts = list(sample.aggregations)
    # One image at a time, because `log_linear` takes coverage from the first image, and coverage differs: an image
    # expert does not cover the category of a left-out image if the category has no other image.
    single = [evidence[:, [i]] for i in range(len(sample.labels))]
    probabilities = np.concatenate([softmax(log_linear(one, experts, pool.neutral)) for one in single])
    lost, partners = {}, {}
    for position in np.unique(sample.labels):
        mean = probabilities[sample.labels == position].mean(axis=0)
        name = sample.categories[position]
        lost[name] = float(1 - mean[position])
        mean[position] = 0
        others = [other for other in np.argsort(-mean, kind="stable") if mean[other] >= _RARE]
        partners[name] = tuple(sample.categories[other] for other in others)
    return Confusions(lost, partners)
