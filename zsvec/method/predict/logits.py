"""Converts similarities per category to the distribution and the evidence (nats) of each expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.calibration import LogLinear
from zsvec.method.predict.opinion_pool import Similarity, expert_evidence, log_linear
from zsvec.method.similarities import SearchResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """Distributions and evidence of the experts for a batch of images: the input of a fusion strategy.

    Attributes:
        found: The result of the search.
        coverage: bool ``(n_experts, n_categories)``, whether the expert has references of the category.
        probabilities: float64 ``(n_experts, n_images, n_categories)``, distribution of each expert; 0 for categories
            that the expert does not cover.
        evidence: float64 ``(n_experts, n_images, n_categories)``, evidence of each expert, nats; NaN for categories
            that the expert does not cover.
        pooled: float64 ``(n_images, n_categories)``, evidence of all experts together, nats.
        pool: The pool that the evidence was computed with.
        shares: float64 ``(n_experts,)``, `LogLinear.shares`.
        weights: float64 ``(n_experts,)``, fixed confidences from the settings.
    """

    found: SearchResult
    coverage: NDArray[np.bool_]
    probabilities: Doubles
    evidence: Doubles
    pooled: Doubles
    pool: LogLinear
    shares: Doubles
    weights: Doubles

    @property
    def experts(self) -> list[str]:
        """Names of the experts."""
        return [expert.name for expert in self.found.experts]


def expert_logits(
    found: SearchResult,
    similarities: Similarity,
    pools: tuple[LogLinear, LogLinear],
    *,
    aggregation: str,
    temperatures: Sequence[float],
    weights: Sequence[float],
) -> tuple[Logits, Logits]:
    """Converts similarities per category to the distribution and the evidence of each expert.

    Args:
        found: The result of the search.
        similarities: By expert, in the order of `found`, and by aggregation.
        pools: The pools for fusion and for novelty.
        aggregation: The aggregation whose similarities, divided by the temperature, are the logits of the distribution.
        temperatures: Temperature of each expert.
        weights: Fixed confidence of each expert, from the settings.

    Returns:
        The logits for fusion and for novelty; the same object if both pools are the same object.
    """
    names = list(similarities)
    similarity = np.stack([similarities[name][aggregation] for name in names])
    probabilities = softmax(similarity / np.array(temperatures, dtype=np.float32)[:, None, None])

    def by(pool: LogLinear) -> Logits:
        evidence = expert_evidence(pool.coefficients, similarities, pool.least)
        return Logits(
            found=found,
            coverage=~np.isnan(similarity[:, 0]),
            probabilities=probabilities,
            evidence=evidence,
            pooled=log_linear(evidence, names, pool.neutral),
            pool=pool,
            shares=np.array([pool.shares[name] for name in names]),
            weights=np.array(weights, dtype=np.float64),
        )

    fused, novelty = pools
    logits = by(fused)
    return logits, logits if novelty is fused else by(novelty)


def softmax(logits: NDArray[np.floating]) -> Doubles:
    """Returns the distribution over the categories that an expert covers.

    Args:
        logits: float ``(..., n_categories)``; NaN for categories that the expert does not cover.

    Returns:
        float64 of the same shape. Rows sum to 1; categories that are not covered have 0. A row of NaN gives a row of
        zeros.
    """
    weights: Doubles = logits.astype(np.float64)
    weights[np.isnan(weights)] = -np.inf
    top = weights.max(axis=-1, keepdims=True, initial=-np.inf)
    weights -= np.where(np.isfinite(top), top, 0.0)
    np.exp(weights, out=weights)
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total > 0, total, 1.0)
    return weights


def logsumexp(logits: Doubles) -> Doubles:
    """Returns the logarithm of the sum of the exponentials of each row, float64 ``(...,)``.

    Args:
        logits: float64 ``(..., n)``, without NaN. Each row has a finite value; other values may be -inf.
    """
    top = logits.max(axis=-1, keepdims=True)
    logs: Doubles = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return logs


def entropy(probabilities: Doubles) -> Doubles:
    """Returns the Shannon entropy in nats, float64 ``(...,)``, 0 to ln(n_categories).

    Args:
        probabilities: float64 ``(..., n_categories)``, from `softmax`.
    """
    logs: Doubles = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    nats: Doubles = np.maximum(-(probabilities * logs).sum(axis=-1), 0.0)
    return nats
