"""Images against references without a search: the evidence of a pool, for those who have the references at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zsvec.method.arrays import Doubles, Floats
from zsvec.method.calibration import Calibration, LogLinear
from zsvec.method.predict.aggregation import Similarities, aggregate_experts, classwise_similarities
from zsvec.method.predict.opinion_pool import expert_evidence, log_linear
from zsvec.method.similarities import ExpertSimilarities, References, SearchResult
from zsvec.types import encoder_and_modality

_BLOCK = 2**24  # similarities of an expert in memory at once


def pooled_evidence(
    references: Mapping[str, References],
    queries: Mapping[str, Floats],
    pool: LogLinear,
    calibration: Calibration,
) -> tuple[list[str], Doubles]:
    """Evidence of all experts together, as a search in this process that sees every reference would give it.

    Args:
        references: By expert.
        queries: By encoder, float32 ``(n_images, dim)``, unit rows; the same images in each, at least one. Experts
            of other encoders are left out.
        pool: Gives the coefficients.
        calibration: The pool is of it.

    Returns:
        The categories that have references, by name; and float64 ``(n_images, n_categories)``, nats.
    """
    there = {
        expert: found
        for expert, found in references.items()
        if found.names and encoder_and_modality(expert)[0] in queries
    }
    categories = sorted(set().union(*(found.names for found in there.values())))
    n_images = len(next(iter(queries.values())))
    size = max(1, _BLOCK // max((len(found.vectors) for found in there.values()), default=1))
    parts = []
    for first in range(0, n_images, size):
        block = {encoder: vectors[first : first + size] for encoder, vectors in queries.items()}
        compared = SearchResult(tuple(categories), _compared(there, categories, block), block)
        classwise = classwise_similarities(compared, pool.coefficients, calibration.backgrounds)
        similarities = aggregate_experts(compared, pool.coefficients, calibration.top_m, classwise)
        evidence = expert_evidence(pool.coefficients, similarities, pool.least)
        parts.append(log_linear(evidence, list(similarities), pool.neutral))
    return categories, np.concatenate(parts)


def _compared(
    references: Mapping[str, References], categories: Sequence[str], queries: Mapping[str, Floats]
) -> tuple[ExpertSimilarities, ...]:
    """Each expert's similarities of some images to all its references."""
    return tuple(
        ExpertSimilarities(
            name=expert,
            coverage=np.searchsorted(categories, found.names),
            similarities=Similarities.of_all(queries[encoder_and_modality(expert)[0]] @ found.vectors.T, found),
            nearest=(),
            class_means=found.sum_up,
        )
        for expert, found in references.items()
    )
