"""The logarithmic opinion pool (Genest & Zidek, 1986): adds the evidence of the experts, in nats.

An expert that does not cover a category gives *neutral* evidence: the mean evidence for a wrong category. So a category
neither gains nor loses because an expert has no references of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles, Floats, slices
from zsvec.method.calibration import GDA, Calibration, LogLinear
from zsvec.method.predict.reference_aggregation import Similarities, aggregate_experts
from zsvec.method.similarities import ExpertSimilarities, References, SearchResult, category_names
from zsvec.types import encoder_and_modality

Similarity = Mapping[str, Mapping[str, Floats]]
"""By expert and aggregation, float32 ``(n_images, n_categories)``; NaN for categories without references."""

# Evidence from category means is the log-likelihood ratio of a category and a Gaussian around the background's mean.
# Without a bound, an image unlike every category would be assigned to some category with certainty. The bound assumes
# that one image in a hundred may look like anything (the contaminated normal of Tukey, 1960), so images far from every
# category stay undecided.
LEAST = float(np.log(0.01))
"""Lower bound of the evidence from category means, nats."""
_BLOCK = 2**24  # similarities of an expert in memory at once


def expert_evidence(
    coefficients: Mapping[str, Mapping[str, float]], similarities: Similarity, least: float | None = None
) -> Doubles:
    """Returns the evidence of each expert: the sum of its aggregations times their coefficients.

    Args:
        coefficients: By expert and aggregation, nats per unit of similarity.
        similarities: By expert, in the order of the result, and by aggregation.
        least: Lower bound of the evidence of experts with a `GDA` coefficient, nats: `LEAST` times the scale of all
            evidence. ``None``: no bound.

    Returns:
        float64 ``(n_experts, n_images, n_categories)``, nats; NaN for categories that the expert does not cover.
    """
    n_images, n_categories = next(iter(next(iter(similarities.values())).values())).shape
    evidence = np.empty((len(similarities), n_images, n_categories))
    for said, (expert, similarity) in zip(evidence, similarities.items(), strict=True):
        (first, c), *others = coefficients[expert].items()
        np.multiply(c, similarity[first], out=said, dtype=np.float64)
        for name, c in others:
            said += np.multiply(c, similarity[name], dtype=np.float64)
        if least is not None and GDA in coefficients[expert]:
            scale = least / LEAST  # the curve towards the bound is scaled with the evidence
            said /= scale
            _bound(said)
            said *= scale
    return evidence


def _bound(evidence: Doubles) -> None:
    """Replaces evidence by ln(exp(evidence) + exp(LEAST)). Faster than `numpy.logaddexp`, which is not vectorised."""
    evidence -= LEAST
    soft = np.minimum(evidence, 30.0)  # beyond 30, the other term is lost in rounding
    np.exp(soft, out=soft)
    soft += 1
    np.log(soft, out=soft)
    np.maximum(evidence, soft, out=evidence)
    evidence += LEAST


def log_linear(
    evidence: Doubles, experts: Sequence[str], neutral: Mapping[str, float], weights: Doubles | None = None
) -> Doubles:
    """Returns the evidence of all experts together for each category. Its softmax is the fused distribution.

    Args:
        evidence: float64 ``(n_experts, n_images, n_categories)``, nats; NaN for categories that the expert does not
            cover.
        experts: Names of the experts.
        neutral: Nats of evidence for a category that a set of experts does not cover, by the `pattern` of this set. A
            set without an entry uses the sum over its experts. An expert without an entry uses the mean likelihood of
            each image over the categories that the expert covers.
        weights: float64 ``(n_experts, n_images)``, factors of the evidence; 1 by default.

    Returns:
        float64 ``(n_images, n_categories)``, log-likelihood ratio of each category against a wrong category, nats; -inf
        for a category that no expert covers.
    """
    coverage = ~np.isnan(evidence[:, 0])

    def absent(chosen: NDArray[np.bool_]) -> Doubles:
        said = neutral_evidence(evidence, experts, neutral, chosen)
        return (said if weights is None else said * weights[chosen].mean(axis=0))[:, None]

    whole = bool(coverage.all())
    filled = evidence if whole else np.where(coverage[:, None], evidence, 0.0)
    total: Doubles = filled.sum(axis=0) if weights is None else np.einsum("en,enc->nc", weights, filled)
    if not whole:
        total[:, ~coverage.any(axis=0)] = -np.inf
        sets, of_category = covering_sets(coverage)
        for number, covering in enumerate(sets):
            if covering.any() and not covering.all():
                total[:, of_category == number] += absent(~covering)
    total -= absent(np.ones(len(experts), dtype=bool))
    return total


def neutral_evidence(
    evidence: Doubles, experts: Sequence[str], neutral: Mapping[str, float], chosen: NDArray[np.bool_]
) -> Doubles:
    """Returns the joint evidence of a set of experts for a category that none of them covers.

    Args:
        evidence: As in `log_linear`.
        experts: As in `log_linear`.
        neutral: As in `log_linear`. The experts of a set without an entry are assumed to be independent.
        chosen: bool ``(n_experts,)``, whether each expert is in the set.

    Returns:
        float64 ``(n_images,)``, nats.
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
    """Returns the distinct sets of experts that cover a category.

    Args:
        coverage: bool ``(n_experts, n_categories)``.

    Returns:
        bool ``(n_sets, n_experts)``, the sets; int ``(n_categories,)``, the row of each category's set.
    """
    if coverage.all():
        return coverage[:, :1].T, np.zeros(coverage.shape[1], dtype=np.intp)
    packed = np.packbits(coverage, axis=0)  # eight experts a byte, so that categories are compared faster
    codes, axis = (packed[0], None) if len(packed) == 1 else (packed, 1)
    _, first, set_of_each = np.unique(codes, axis=axis, return_index=True, return_inverse=True)
    return coverage[:, first].T, set_of_each.ravel()


def pattern(experts: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    """Returns a name for a set of experts: their sorted names, joined by ``+``.

    Args:
        experts: Names of all experts.
        chosen: bool ``(n_experts,)``, whether each expert is in the set.
    """
    return "+".join(sorted(expert for expert, is_in in zip(experts, chosen, strict=True) if is_in))


def pooled_evidence(
    references: Mapping[str, References],
    queries: Mapping[str, Floats],
    pool: LogLinear,
    calibration: Calibration,
) -> tuple[list[str], Doubles]:
    """Returns the evidence of all experts together for images that are compared with every reference.

    Args:
        references: References of each expert, by name.
        queries: By encoder, float32 ``(n_images, dim)``, unit rows. Every encoder has the same images, at least one.
            Experts of other encoders are ignored.
        pool: A pool of the calibration.
        calibration: Calibration that has the backgrounds.

    Returns:
        The categories that have references, ascending; and float64 ``(n_images, n_categories)``, nats.
    """
    used = {
        expert: found
        for expert, found in references.items()
        if found.names and encoder_and_modality(expert)[0] in queries
    }
    categories = category_names(used)
    size = max(1, _BLOCK // max((len(found.vectors) for found in used.values()), default=1))
    parts = []
    for rows in slices(len(next(iter(queries.values()))), size):
        block = {encoder: vectors[rows] for encoder, vectors in queries.items()}
        experts = tuple(
            ExpertSimilarities(
                name=expert,
                coverage=np.searchsorted(categories, found.names),
                similarities=Similarities.of_all(block[encoder_and_modality(expert)[0]] @ found.vectors.T, found),
                nearest=(),
                class_means=found.sum_up,
            )
            for expert, found in used.items()
        )
        compared = SearchResult(tuple(categories), experts, block)
        similarities = aggregate_experts(compared, pool.coefficients, calibration.top_m, calibration.backgrounds)
        evidence = expert_evidence(pool.coefficients, similarities, pool.least)
        parts.append(log_linear(evidence, list(similarities), pool.neutral))
    return categories, np.concatenate(parts)
