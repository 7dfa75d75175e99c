"""Logits of several experts → one distribution per image (paper, section 3.3).

An expert may know only some categories: its logit of any other is NaN, its distribution is over
those it knows, and it has no say on how likely the rest is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_SILENT = 1e-6  # confidence of an expert that compares nothing: it knows fewer than two categories
_RESTART = 1e-15  # joins experts that share no category, so that each gets an equal hearing


def softmax(logits: NDArray[np.floating]) -> Doubles:
    """Distribution over the categories that an expert knows.

    Args:
        logits: float ``(..., n_categories)``; NaN where the expert has no reference.

    Returns:
        float64 of the same shape; rows sum to 1, unknown categories have 0. A row of NaN gives zeros.
    """
    weights: Doubles = logits.astype(np.float64)
    weights[np.isnan(weights)] = -np.inf
    top = weights.max(axis=-1, keepdims=True, initial=-np.inf)
    weights -= np.where(np.isfinite(top), top, 0.0)
    np.exp(weights, out=weights)
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total > 0, total, 1.0)
    return weights


def entropy(probabilities: Doubles) -> Doubles:
    """Shannon entropy in nats, float64 ``(...,)``, 0 to ln n_categories."""
    logs: Doubles = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    nats: Doubles = np.maximum(-(probabilities * logs).sum(axis=-1), 0.0)
    return nats


def max_confidence(probabilities: Doubles) -> Doubles:
    """The largest probability (paper, option 1)."""
    largest: Doubles = probabilities.max(axis=-1)
    return largest


def inverse_entropy(probabilities: Doubles) -> Doubles:
    """1 / (H + 1e-6), H in nats (paper, option 2 and its default)."""
    return 1.0 / (entropy(probabilities) + 1e-6)


def neg_exp_entropy(probabilities: Doubles) -> Doubles:
    """exp(-H), H in nats (paper, option 3)."""
    return np.exp(-entropy(probabilities))


CONFIDENCES: Mapping[str, Callable[[Doubles], Doubles]] = {
    "max": max_confidence,
    "inverse_entropy": inverse_entropy,
    "neg_exp_entropy": neg_exp_entropy,
}


LOG_LINEAR = ("log_linear", "log_linear_views", "transductive")
STRATEGIES = (*CONFIDENCES, "fixed", *LOG_LINEAR)
DEFAULT_STRATEGY = "log_linear_views"


def confidences(probabilities: Doubles, known: NDArray[np.bool_], method: str, fixed: Doubles) -> Doubles:
    """Weight of each expert for each image.

    Args:
        probabilities: float64 ``(n_experts, n_images, n_categories)``, from `softmax`.
        known: bool ``(n_experts, n_categories)``, whether the expert has references of the category.
        method: A name in `CONFIDENCES`, or ``fixed``.
        fixed: float64 ``(n_experts,)``, the weights of ``fixed``; positive.

    Returns:
        float64 ``(n_experts, n_images)``, positive. An expert that knows fewer than two categories
        compares nothing: its certainty is worth `_SILENT`, whatever the method.
    """
    if method == "fixed":
        out = np.repeat(fixed[:, None], probabilities.shape[1], axis=1)
    else:
        out = CONFIDENCES[method](probabilities)
    out[known.sum(axis=1) < 2] = _SILENT
    return out


def fuse(probabilities: Doubles, known: NDArray[np.bool_], confidence: Doubles) -> Doubles:
    """One distribution per image from those of the experts, weighted by their confidence.

    Where every expert knows every category this is the paper's sum of confidence × probability,
    normalised. Otherwise a category must neither lose nor gain by the experts that have no reference
    of it. So the fused ``q`` is the distribution that each expert ``e`` leaves as it is outside of
    what it knows, and re-divides inside: with ``w`` the confidences and ``K_e`` what ``e`` knows,

        q(c) · Σ_{e knows c} w_e  =  Σ_{e knows c} w_e · p_e(c) · q(K_e)

    which makes ``q`` the time that a walk spends in each category: experts ring at the rate of their
    confidence, and one who knows the present category draws the next. It is found exactly, experts
    being few.

    Args:
        probabilities: float64 ``(n_experts, n_images, n_categories)``, from `softmax`.
        known: bool ``(n_experts, n_categories)``; every expert knows at least one category.
        confidence: float64 ``(n_experts, n_images)``, positive.

    Returns:
        float64 ``(n_images, n_categories)``; rows sum to 1. A category that no expert knows has 0.
    """
    if known.all():
        fused = np.einsum("en,enc->nc", confidence, probabilities)
    else:
        total = confidence.T @ known.astype(np.float64)  # (n_images, n_categories)
        share = np.divide(probabilities, total, out=np.zeros_like(probabilities), where=total > 0)
        known_by = share @ known.T.astype(np.float64)  # (n_experts, n_images, n_experts)
        handover = np.einsum("enf,fn->nef", known_by + _RESTART / confidence.sum(axis=0)[None, :, None], confidence)
        fused = np.einsum("ne,enc->nc", _stationary(handover), share)
    normalised: Doubles = fused / fused.sum(axis=1, keepdims=True)
    return normalised


def pattern(experts: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    """A name for some of the experts."""
    return "+".join(sorted(expert for expert, is_in in zip(experts, chosen, strict=True) if is_in))


def log_linear(
    evidence: Doubles, experts: Sequence[str], neutral: Mapping[str, float], weights: Doubles | None = None
) -> Doubles:
    """The logarithmic opinion pool (Genest & Zidek, 1986): evidence adds up; its softmax is the fused distribution.

    An expert that has no reference of a category gives neutral evidence of it, what it says of a wrong
    category on average. So a category neither gains nor loses by what it lacks.

    Args:
        evidence: float64 ``(n_experts, n_images, n_categories)``, nats; NaN where the expert has no reference.
        experts: Their names.
        neutral: Evidence for a category that these experts lack, by their `pattern`. Of what is not named
            it is the mean likelihood over the categories of each image.
        weights: float64 ``(n_experts, n_images)``, how much each counts for an image; all 1 if not given.

    Returns:
        float64 ``(n_images, n_categories)``: log-likelihood ratio of each category against a wrong one, nats;
        -inf for a category that no expert knows.
    """
    known = ~np.isnan(evidence[:, 0])
    weights = np.ones(evidence.shape[:2]) if weights is None else weights

    def absent(chosen: NDArray[np.bool_]) -> Doubles:
        said: Doubles = neutral_evidence(evidence, experts, neutral, chosen) * weights[chosen].mean(axis=0)
        return said[:, None]

    whole = bool(known.all())
    total: Doubles = np.einsum("en,enc->nc", weights, evidence if whole else np.where(known[:, None], evidence, 0.0))
    if not whole:
        total[:, ~known.any(axis=0)] = -np.inf
        for missing in np.unique(~known, axis=1).T:
            if missing.any() and not missing.all():
                total[:, (~known == missing[:, None]).all(axis=0)] += absent(missing)
    return total - absent(np.ones(len(experts), dtype=bool))


def neutral_evidence(
    evidence: Doubles, experts: Sequence[str], neutral: Mapping[str, float], chosen: NDArray[np.bool_]
) -> Doubles:
    """What some experts together say of a category that they have no reference of, float64 ``(n_images,)``, nats.

    Args:
        evidence: As in `log_linear`.
        experts: As in `log_linear`.
        neutral: As in `log_linear`; experts who are not named together are taken to be independent.
        chosen: bool ``(n_experts,)``, which.
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


def _stationary(transitions: Doubles) -> Doubles:
    """Stationary distributions of small Markov chains, float64 ``(n, k, k)`` → ``(n, k)``.

    By the elimination of Grassmann, Taksar and Heyman (1985), which subtracts nothing and so stays
    accurate when confidences differ by many orders of magnitude.
    """
    chain = transitions.copy()
    k = chain.shape[1]
    for last in range(k - 1, 0, -1):
        leaving = chain[:, last, :last].sum(axis=1, keepdims=True)
        chain[:, :last, last] /= leaving
        chain[:, :last, :last] += chain[:, :last, last, None] * chain[:, last, None, :last]
    out = np.zeros(chain.shape[:2])
    out[:, 0] = 1.0
    for state in range(1, k):
        out[:, state] = (out[:, :state] * chain[:, :state, state]).sum(axis=1)
    stationary: Doubles = out / out.sum(axis=1, keepdims=True)
    return stationary
