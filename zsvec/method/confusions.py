"""Which categories the stored references are mistaken for: beyond the paper, which asks a language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zsvec.method.calibration import LogLinear, expert_evidence
from zsvec.method.fusion import log_linear, softmax
from zsvec.method.leave_one_out import LeftOut

_RARE = 0.02  # of the probability of a category's images, below which another is not confused with it


@dataclass(frozen=True, slots=True)
class Confusions:
    """What becomes of the reference images of a store when each is classified by the others.

    Attributes:
        lost: By category that has images, how much of their probability goes to other categories, 0 to 1.
        partners: By category, those that get a noticeable part of it, most first.
    """

    lost: Mapping[str, float] = field(default_factory=dict)
    partners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def confusions(sample: LeftOut, pool: LogLinear) -> Confusions:
    """Measure by probabilities, which say more than mistakes where a category has few images.

    Args:
        sample: Left-out reference images.
        pool: What they are classified with.
    """
    evidence = expert_evidence(pool.coefficients, sample.views)
    probabilities = np.empty(evidence.shape[1:])
    for some in _alike_in_gaps(evidence):
        probabilities[some] = softmax(log_linear(evidence[:, some], list(sample.views), pool.neutral))
    lost, partners = {}, {}
    for position in np.unique(sample.labels):
        mean = probabilities[sample.labels == position].mean(axis=0)
        name = sample.categories[position]
        lost[name] = float(1 - mean[position])
        mean[position] = 0
        others = [other for other in np.argsort(-mean, kind="stable") if mean[other] >= _RARE]
        partners[name] = tuple(sample.categories[other] for other in others)
    return Confusions(lost, partners)


def _alike_in_gaps(evidence: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
    """Images of which the same experts have no evidence of the same categories.

    The only image of its category is compared with none of its own, so that it counts as one of a category that
    the experts of images have no reference of.
    """
    gaps = np.isnan(evidence).swapaxes(0, 1).reshape(evidence.shape[1], -1)
    _, pattern = np.unique(gaps, axis=0, return_inverse=True)
    for number in range(pattern.max() + 1):
        yield np.flatnonzero(pattern.ravel() == number)
