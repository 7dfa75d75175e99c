"""Sets of categories, one of which is right with a wanted probability: conformal prediction (Vovk et al., 2005).

Each left-out reference image has log odds for its own category, from the evidence of all experts. The set of a new
image has the categories with log odds above a quantile of these. The *coverage* of a set is the probability
that the set has the right category. Leaving out needs no images for calibration alone (jackknife: Barber et al.,
"Predictive inference with the jackknife+", 2021; for few references: CAOS, arXiv 2601.05219). Categories with enough
left-out images have separate quantiles (Mondrian conformal prediction).

The log odds compare a category with all other categories. With the evidence alone instead, sets were up to 1.4 times
as large, and covered more than asked for (cifar10, 3 and 10 references). Fused probabilities have the same order, but
are rounded near 1, and limited if references are few.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Doubles
from zsvec.method.calibration import COVERAGES
from zsvec.method.predict.logits import Logits
from zsvec.method.predict.opinion_pool import covering_sets, pattern
from zsvec.types import CandidateSets

MOST = 100
"""Maximum number of categories in a set. Larger sets promise nothing."""


def log_odds(evidence: Doubles, images: NDArray[np.intp], categories: NDArray[np.intp]) -> Doubles:
    """Returns the log odds of categories against all other categories.

    Args:
        evidence: float64 ``(n_images, n_categories)``, nats, from `opinion_pool.log_linear`.
        images: int, row of each pair of an image and a category.
        categories: int, column of each pair; of a shape that broadcasts with ``images``.

    Returns:
        float64 of the common shape, nats.
    """
    rows, best = np.arange(len(evidence)), evidence.argmax(axis=1)
    top = evidence[rows, best]
    odds = evidence - top[:, None]
    np.exp(odds, out=odds)  # of each category to the best
    odds[rows, best] = 0.0  # summed separately, because a difference would lose the other categories in rounding
    others = odds.sum(axis=1)
    against = others[images] + np.where(categories == best[images], 0.0, 1 - odds[images, categories])
    found: Doubles = evidence[images, categories] - top[images] - np.log(np.maximum(against, np.finfo(np.float64).tiny))
    return found


def candidate_sets(logits: Logits, scale: float) -> list[CandidateSets | None]:
    """Returns the sets of each image; ``None`` if the calibration has no quantiles for some category.

    Args:
        logits: Evidence of the experts, and the pool with the quantiles.
        scale: `Calibration.scale`. The quantiles are from evidence before scaling.
    """
    pool, names = logits.pool, logits.found.categories
    sets, of_category = covering_sets(logits.coverage)
    tables = [pool.odds.get(pattern(logits.experts, covering), ()) for covering in sets]
    own = {}
    for name, table in pool.category_odds.items():
        column = bisect_left(names, name)
        if names[column : column + 1] == (name,):
            own[column] = table
    used = [*(table for table, covering in zip(tables, sets, strict=True) if covering.any()), *own.values()]
    n_levels = min(map(len, used), default=0)
    if not n_levels:
        return [None] * len(logits.pooled)
    evidence = logits.pooled / scale
    best = evidence.argmax(axis=1)
    evidence -= evidence.max(axis=1, keepdims=True)
    # No category but the best has log odds above its difference to the best.
    least = min(0.0, *(table[n_levels - 1] for table in used))
    images, columns = np.nonzero(evidence >= least)
    odds = log_odds(evidence, images, columns)
    levels = np.full(len(odds), n_levels)
    for number, table in enumerate(tables):
        chosen = of_category[columns] == number
        levels[chosen] = _levels(table[:n_levels], odds[chosen])
    for column in own.keys() & columns.tolist():
        chosen = columns == column
        levels[chosen] = _levels(own[column][:n_levels], odds[chosen])
    is_best = columns == best[images]
    starts = np.searchsorted(images, np.arange(len(evidence)))
    levels[is_best] = np.minimum(np.minimum.reduceat(levels, starts), n_levels - 1)
    order = np.lexsort((-odds, ~is_best, levels, images))
    order = order[levels[order] < n_levels]
    parts = np.split(order, np.searchsorted(images[order], np.arange(1, len(evidence))))
    return [_sets([names[column] for column in columns[part]], levels[part].tolist(), n_levels) for part in parts]


def _levels(table: Sequence[float], odds: Doubles) -> NDArray[np.intp]:
    """Returns the position of the first quantile, in a descending table, that the log odds reach."""
    return np.searchsorted(-np.asarray(table), -odds)


def _sets(names: Sequence[str], levels: Sequence[int], n_levels: int) -> CandidateSets | None:
    """Returns the sets of an image. The levels of the names are ascending."""
    if len(names) > MOST:
        n_levels = levels[MOST]
    entries = tuple((name, COVERAGES[level]) for name, level in zip(names, levels, strict=True) if level < n_levels)
    return CandidateSets(entries=entries, up_to=COVERAGES[n_levels - 1]) if entries else None
