"""What explains left-out images best: weights of what is known of them, by cross-entropy, and noise of their labels.

Some references have the wrong label. The *noise*, the fraction of labels that say nothing, explains them better than
diffident weights do (as the lapse rate of psychophysics: Wichmann & Hill, 2001). Categories weigh the same, however
many references each has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.predict.logits import logsumexp

SHRINKAGE = 1.0
"""Strength of a prior, as the curvature that so many images give in squared log units."""
WIDEST = 100.0
"""Factor by which a fitted number may differ from its prior."""
_STIFF = 4.0  # of the prior of weights of either sign. A left-out image has one reference less in its own category than
# others have, and by a large weight of their number it would be recognised.
_BLOCK = 2**20  # logits in double precision at once: they stay in the cache
_LITTLE = 0.02  # noise from which the search begins
# Many wrong labels are explained by diffident weights too, and either explanation is a valley of its own. So where no
# more images than this are right, the search begins again, with much noise and larger weights.
_MOSTLY = 0.75
_MUCH = 0.5
_SHARPER = 4.0


def least_cross_entropy(
    logits: NDArray[np.floating], truth: NDArray[np.intp], start: Doubles, clean_images: float
) -> tuple[Doubles, Doubles, float]:
    """Weights and noise of the least mean over categories of the cross-entropy of their images, with priors.

    Args:
        logits: float ``(n_features, n_images, n_categories)``; first those of positive weight.
        truth: int ``(n_images,)``, the category of each image, as a column.
        start: float64 ``(n_positive,)``, the mode of a log-normal prior of the positive weights.
        clean_images: Strength of the prior of the noise, Beta(1, 1 + this): as if so many more images had been seen,
            all of them with the right label.

    Returns:
        The positive weights, those of either sign, and the noise.
    """
    from scipy.optimize import minimize  # slow to import, and not needed to classify

    n_positive, n_categories = len(start), logits.shape[2]
    prior = np.concatenate([np.log(start), np.zeros(len(logits) - n_positive)])
    right = logits[:, np.arange(len(truth)), truth].astype(np.float64)
    n_of = np.bincount(truth)
    stiff = np.append(np.ones(n_positive), np.full(len(logits) - n_positive, _STIFF))
    share = len(truth) / np.count_nonzero(n_of) / n_of[truth]
    size = max(1, _BLOCK // (len(logits) * n_categories))

    def weights_of(free: Doubles) -> Doubles:
        return np.concatenate([np.exp(free[:n_positive]), free[n_positive:-1]])

    def cost(free: Doubles) -> tuple[float, Doubles]:
        weight = weights_of(free)
        clean, lapse = 1 / (1 + np.exp(free[-1])), 1 / (1 + np.exp(-free[-1]))
        total, expected = np.empty(len(truth)), np.empty((len(logits), len(truth)))
        for first in range(0, len(truth), size):
            block = slice(first, first + size)
            some = logits[:, block].astype(np.float64)
            fused = np.tensordot(weight, some, axes=1)
            total[block] = logsumexp(fused)
            expected[:, block] = np.einsum("nc,vnc->vn", np.exp(fused - total[block, None]), some)
        own = clean * np.exp(weight @ right - total)
        said = own + lapse / n_categories
        by_weight = (expected - right) @ (share * own / said)
        by_weight[:n_positive] *= weight[:n_positive]
        off = (free[:-1] - prior) * stiff
        by_noise = clean_images * lapse - clean * lapse * (share / said) @ (1 / n_categories - own / clean)
        return (
            float(SHRINKAGE * off @ off - share @ np.log(said) - clean_images * np.log(clean)),
            np.append(by_weight + 2 * SHRINKAGE * off * stiff, by_noise),
        )

    widest = [np.log(WIDEST)] * n_positive + [WIDEST] * (len(prior) - n_positive)
    limits = [(p - w, p + w) for p, w in zip(prior, widest, strict=True)]

    def search(noise: float, factor: float) -> Any:
        first = np.append(prior, np.log(noise / (1 - noise)))
        first[:n_positive] += np.log(factor)
        return minimize(cost, first, jac=True, method="L-BFGS-B", bounds=[*limits, (-12.0, 12.0)])

    def right_share(weight: Doubles) -> float:
        blocks = (slice(first, first + size) for first in range(0, len(truth), size))
        best = [np.tensordot(weight, logits[:, block], axes=1).argmax(axis=1) for block in blocks]
        return float((np.concatenate(best) == truth).mean())

    found = search(_LITTLE, 1.0)
    if right_share(weights_of(found.x)) <= _MOSTLY:
        found = min(found, search(_MUCH, _SHARPER), key=lambda result: float(result.fun))
    positive, free = np.split(weights_of(found.x), [n_positive])
    return positive, free, float(1 / (1 + np.exp(-found.x[-1])))
