"""The paper's fusion (section 3.3): distributions of the experts, weighted by their confidence.

An expert may cover only some categories: its distribution is over those, and it has no say on how likely
the others are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.predict.logits import entropy

_SILENT = 1e-6  # confidence of an expert that compares nothing: it covers fewer than two categories
_RESTART = 1e-15  # joins experts that share no category, so that each gets an equal hearing


def max_confidence(probabilities: Doubles) -> Doubles:
    """The largest probability (paper, option 1), float64 ``(...,)``, 0 to 1."""
    largest: Doubles = probabilities.max(axis=-1)
    return largest


def inverse_entropy(probabilities: Doubles) -> Doubles:
    """1 / (H + 1e-6), H in nats (paper, option 2 and its default), float64 ``(...,)``."""
    return 1.0 / (entropy(probabilities) + 1e-6)


def neg_exp_entropy(probabilities: Doubles) -> Doubles:
    """exp(-H), H in nats (paper, option 3), float64 ``(...,)``, 0 to 1."""
    return np.exp(-entropy(probabilities))


def confidences(
    probabilities: Doubles, coverage: NDArray[np.bool_], confidence: Callable[[Doubles], Doubles]
) -> Doubles:
    """Weight of each expert for each image.

    Args:
        probabilities: float64 ``(n_experts, n_images, n_categories)``, from `softmax`.
        coverage: bool ``(n_experts, n_categories)``, whether the expert has references of the category.
        confidence: From such distributions to a positive number each, such as `inverse_entropy`.

    Returns:
        float64 ``(n_experts, n_images)``, positive. An expert that covers fewer than two categories
        compares nothing: its weight is next to nothing, whatever its distribution.
    """
    weight = confidence(probabilities)
    weight[coverage.sum(axis=1) < 2] = _SILENT
    return weight


def fuse(probabilities: Doubles, coverage: NDArray[np.bool_], confidence: Doubles) -> Doubles:
    """One distribution per image from those of the experts, weighted by their confidence.

    Where every expert covers every category this is the paper's sum of confidence × probability,
    normalised. Otherwise a category must neither lose nor gain by the experts that have no reference
    of it. So the fused ``q`` is the distribution that each expert ``e`` leaves as it is outside of
    what it covers, and re-divides inside: with ``w`` the confidences and ``K_e`` what ``e`` covers,

        q(c) · Σ_{e covers c} w_e  =  Σ_{e covers c} w_e · p_e(c) · q(K_e)

    This ``q`` is the stationary distribution of a Markov chain over the categories: each step picks an
    expert by its confidence, which draws the next category if it covers the present one. It is found
    exactly, as a chain over the experts, which are few.

    Args:
        probabilities: float64 ``(n_experts, n_images, n_categories)``, from `softmax`.
        coverage: bool ``(n_experts, n_categories)``; every expert covers at least one category.
        confidence: float64 ``(n_experts, n_images)``, positive.

    Returns:
        float64 ``(n_images, n_categories)``; rows sum to 1. A category that no expert covers has 0.
    """
    if coverage.all():
        fused = np.einsum("en,enc->nc", confidence, probabilities)
    else:
        covered = coverage.astype(np.float64)
        total = confidence.T @ covered  # (n_images, n_categories)
        share = np.divide(probabilities, total, out=np.zeros_like(probabilities), where=total > 0)
        common = share @ covered.T  # (n_experts, n_images, n_experts)
        handover = np.einsum("enf,fn->nef", common + _RESTART / confidence.sum(axis=0)[None, :, None], confidence)
        fused = np.einsum("ne,enc->nc", _stationary(handover), share)
    normalised: Doubles = fused / fused.sum(axis=1, keepdims=True)
    return normalised


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
