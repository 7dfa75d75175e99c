"""The logarithmic opinion pool (Genest & Zidek, 1986): evidence of the experts adds up, in nats.

An expert that does not cover a category gives *neutral* evidence for it: what it says of a wrong category on
average. So a category neither gains nor loses by an expert that has no reference of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles, Floats
from zsvec.method.calibration import GDA

Similarity = Mapping[str, Mapping[str, Floats]]
"""By expert and aggregation, float32 ``(n_images, n_categories)``; NaN where the expert has no reference."""

# What means say is against a category around their centre, and has no bound: an image like no category would be one of
# them for certain. With it, what is far from every category tells them apart no more, as if one image in a hundred were
# like anything (the contaminated normal of Tukey, 1960).
LEAST = float(np.log(0.01))
"""What the evidence of means does not fall below, nats."""


def expert_evidence(
    coefficients: Mapping[str, Mapping[str, float]], similarities: Similarity, least: float | None = None
) -> Doubles:
    """Evidence of each expert: the sum of its aggregations, each times its coefficient.

    Args:
        coefficients: By expert and aggregation, nats per unit of similarity.
        similarities: By expert, in the order of the result, and aggregation.
        least: What that of means does not fall below, nats, negative: `LEAST`, times what all evidence was scaled by.

    Returns:
        float64 ``(n_experts, n_images, n_categories)``, nats; NaN where the expert has none.
    """
    evidence = []
    for expert, similarity in similarities.items():
        by_name = coefficients[expert]
        said = np.zeros(next(iter(similarity.values())).shape)
        for name, c in by_name.items():
            said += np.multiply(c, similarity[name], dtype=np.float64)
        if least is not None and GDA in by_name:
            scale = least / LEAST  # scaled evidence nears the bound by the same curve, scaled
            said = scale * _bounded(said / scale)
        evidence.append(said)
    return np.stack(evidence)


def _bounded(evidence: Doubles) -> Doubles:
    """ln(exp(evidence) + exp(LEAST)), by the logarithm and the exponential that numpy has for many numbers at once."""
    above = evidence - LEAST
    soft: Doubles = np.minimum(above, 30.0)  # above that, the other is below rounding
    np.exp(soft, out=soft)
    soft += 1
    np.log(soft, out=soft)
    np.maximum(above, soft, out=soft)
    soft += LEAST
    return soft


def log_linear(
    evidence: Doubles, experts: Sequence[str], neutral: Mapping[str, float], weights: Doubles | None = None
) -> Doubles:
    """Evidence of all experts together for each category; its softmax is the fused distribution.

    Args:
        evidence: float64 ``(n_experts, n_images, n_categories)``, nats; NaN where the expert has no reference.
        experts: Their names.
        neutral: Evidence for a category that these experts do not cover, by their `pattern`. For experts that are
            not named it is the mean likelihood over the categories of each image.
        weights: float64 ``(n_experts, n_images)``, factors of the evidence; by default 1.

    Returns:
        float64 ``(n_images, n_categories)``: log-likelihood ratio of each category against a wrong one, nats;
        -inf for a category that no expert covers.
    """
    coverage = ~np.isnan(evidence[:, 0])
    weights = np.ones(evidence.shape[:2]) if weights is None else weights

    def absent(chosen: NDArray[np.bool_]) -> Doubles:
        said: Doubles = neutral_evidence(evidence, experts, neutral, chosen) * weights[chosen].mean(axis=0)
        return said[:, None]

    whole = bool(coverage.all())
    filled = evidence if whole else np.where(coverage[:, None], evidence, 0.0)
    total: Doubles = np.einsum("en,enc->nc", weights, filled)
    if not whole:
        total[:, ~coverage.any(axis=0)] = -np.inf
        sets, of_category = covering_sets(coverage)
        for number, covering in enumerate(sets):
            if covering.any() and not covering.all():
                total[:, of_category == number] += absent(~covering)
    return total - absent(np.ones(len(experts), dtype=bool))


def neutral_evidence(
    evidence: Doubles, experts: Sequence[str], neutral: Mapping[str, float], chosen: NDArray[np.bool_]
) -> Doubles:
    """Evidence of some experts together for a category that they do not cover, float64 ``(n_images,)``, nats.

    Args:
        evidence: As in `log_linear`.
        experts: As in `log_linear`.
        neutral: As in `log_linear`; experts that are not named together are taken to be independent.
        chosen: bool ``(n_experts,)``, the experts.
    """
    name = pattern(experts, chosen)
    if name in neutral:
        return np.full(evidence.shape[1], neutral[name])
    if np.count_nonzero(chosen) > 1:
        alone = np.eye(len(experts), dtype=bool)[chosen]
        total: Doubles = np.sum([neutral_evidence(evidence, experts, neutral, one) for one in alone], axis=0)
        return total
    said = evidence[chosen].sum(axis=0)
    said = said[:, ~np.isnan(said[0])]
    if not said.shape[1]:
        return np.zeros(len(said))
    top = said.max(axis=1)
    mean: Doubles = top + np.log(np.exp(said - top[:, None]).mean(axis=1))
    return mean


def covering_sets(coverage: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """The sets of experts that cover some category.

    Args:
        coverage: bool ``(n_experts, n_categories)``.

    Returns:
        bool ``(n_sets, n_experts)``, all different; int ``(n_categories,)``, the set of each category.
    """
    if coverage.all():
        return coverage[:, :1].T, np.zeros(coverage.shape[1], dtype=np.intp)
    packed = np.packbits(coverage, axis=0)  # eight experts to a byte: categories are compared faster
    codes, axis = (packed[0], None) if len(packed) == 1 else (packed, 1)
    _, first, set_of_each = np.unique(codes, axis=axis, return_index=True, return_inverse=True)
    return coverage[:, first].T, set_of_each.ravel()


def pattern(experts: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    """A name for some of the experts, whatever their order.

    Args:
        experts: All names.
        chosen: bool ``(n_experts,)``.
    """
    return "+".join(sorted(expert for expert, is_in in zip(experts, chosen, strict=True) if is_in))
