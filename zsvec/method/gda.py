"""Gaussian discriminant analysis with a pooled covariance, and the centred prototype: what the means of categories say.

Both compare an image with the mean reference of each category, seen from the mean of all categories: by the angle, or
by the directions in which images of one category differ little (Wang et al., "A hard-to-beat baseline for
training-free CLIP-based adaptation", ICLR 2024, equations 5 to 7). From about three references a category on they are
better than the nearest references.

What they need beyond the means is the *background* of an expert. It is learned when the store is calibrated, and stays
as it is until the next calibration: so a category that is added takes its mean alone, and every process answers the
same. Of the directions that tell images of a category apart, those that do so most are kept with the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zsvec.method.background import FEWEST, Background
from zsvec.method.similarities import ClassStatistics, References

Floats = NDArray[np.float32]

CENTRED = "centred"
"""Beside the aggregations: the cosine to a mean reference, seen from the mean of all categories."""
GDA = "gda"
"""Beside the aggregations: the Gaussian discriminant, nats."""

_LEAST = 0.05  # share of the distance of mean references from their centre that is not chance, at least
_BLOCK = 4096  # references whose scatter is summed up at once


def learn_background(references: References) -> Background | None:
    """The background of an image expert.

    With N references of C categories in d dimensions, S their scatter around the means of their categories, and τ the
    mean variance tr S / (d (N - C)), the covariance is (1 - λ) S / (N - C) + λ τ I with λ = r / (1 + r) and
    r = d / (N - 1): up to a factor the estimate of Kubokawa & Srivastava (2008) that Wang et al. take.

    Args:
        references: All of them.

    Returns:
        ``None`` where a category has fewer than `FEWEST`, there is but one, or the references of each are alike.
    """
    from scipy.linalg import eigh  # slow to import, and not needed to classify

    means = references.statistics.means.astype(np.float64)
    n, (n_categories, dim) = len(references.vectors), means.shape
    if np.diff(references.starts).min() < FEWEST or n_categories < 2:
        return None
    owner = np.repeat(np.arange(n_categories), np.diff(references.starts))
    blocks = (slice(first, first + _BLOCK) for first in range(0, n, _BLOCK))
    residuals = (references.vectors[block] - means[owner[block]] for block in blocks)
    rank = min(n - n_categories, dim)
    if n < dim:
        every = np.concatenate(list(residuals))
        scatter, vectors = eigh(every @ every.T, subset_by_index=(n - rank, n - 1))
        basis = vectors.T @ every / np.sqrt(np.maximum(scatter, 1e-12))[:, None]
        trace = float((every**2).sum())
    else:
        total = np.zeros((dim, dim))
        for block in residuals:
            total += block.T @ block
        scatter, vectors = eigh(total)
        basis, trace = vectors.T, float(np.trace(total))
    spread = trace / (dim * (n - n_categories))
    if spread < 1e-9:  # rounding
        return None
    ratio = dim / (n - 1)
    shrinkage = ratio / (1 + ratio)
    weight = (1 - shrinkage) / (n - n_categories)
    elsewhere = 1 / (shrinkage * spread)
    along = 1 / (weight * np.maximum(scatter, 0) + shrinkage * spread)
    within = float(along @ scatter + elsewhere * max(trace - scatter.sum(), 0.0)) / (n - n_categories)
    background = Background(
        mean=means.mean(axis=0).astype(np.float32),
        basis=basis.astype(np.float32),
        along=along.astype(np.float32),
        elsewhere=elsewhere,
        weight=weight,
        within=within,
        between=0.0,
    )
    offsets = means - means.mean(axis=0)
    apart = np.einsum("cd,cd->c", offsets, background.precise(offsets))
    between = max(float((apart - within / np.diff(references.starts)).mean()), _LEAST * float(apart.mean()))
    return replace(background, between=between)


def class_similarities(queries: Floats, statistics: ClassStatistics, background: Background) -> tuple[Floats, Floats]:
    """The centred prototype and the discriminant of each category.

    Args:
        queries: float32 ``(n_images, dim)``, unit rows.
        statistics: Of the references of an image expert.
        background: Of the expert.

    Returns:
        Cosines of images and mean references, both seen from the mean of the background, -1 to 1; and the logarithm of
        the likelihood ratio of each category against one around that mean, nats. Both float32 ``(n_images,
        n_categories)``.
    """
    seen = statistics.seen_from(background)
    offsets = queries - background.mean
    precise = background.precise(offsets)
    centred, gda = np.split(np.concatenate([offsets, precise]) @ statistics.means.T, 2)
    centred -= (offsets @ background.mean)[:, None]
    centred /= np.maximum(np.linalg.norm(offsets, axis=1)[:, None] * seen.lengths, np.float32(1e-12))
    gda -= (precise @ background.mean)[:, None]
    gda *= seen.trust
    gda -= seen.halves
    return centred, gda


@dataclass(frozen=True, slots=True)
class Removal:
    """What leaving some references of a category out changes.

    Attributes:
        category: Their category.
        rows: int ``(n_removed,)``, which references they are.
    """

    category: int
    rows: NDArray[np.intp]


def left_out(
    references: References,
    background: Background,
    queries: Sequence[int] | NDArray[np.intp],
    removals: Sequence[Removal],
) -> dict[str, Floats]:
    """What `class_similarities` would say of references if they, and others of their scenes, were not there.

    That is exact, as long as the mean, the basis and the shrinkage of the background stay what they are: the mean of
    the category and the scatter along the basis are those of the others. It takes no other background for each image,
    but a correction of as many ranks as there are references to be left out (Woodbury).

    Args:
        references: All of an expert.
        background: Learned from them.
        queries: Which of them.
        removals: Of each query: its scene, with itself.

    Returns:
        By aggregation, float32 ``(n_queries, n_categories)``; NaN for the own category where no reference is left.
    """
    statistics = references.statistics
    every, seen = references.vectors, statistics.seen_from(background)
    centred, gda = class_similarities(every[list(queries)], statistics, background)
    basis, precision = background.basis.astype(np.float64), background.along.astype(np.float64)
    gains = precision - background.elsewhere
    means = statistics.means.astype(np.float64) - background.mean
    offsets = every[list(queries)].astype(np.float64) - background.mean
    along_means, along_offsets = means @ basis.T, offsets @ basis.T
    former: Removal | None = None
    for i, removal in enumerate(removals):
        if removal is not former:  # a scene can be long, and all its images have this in common
            former = removal
            c, rows = removal.category, removal.rows
            n, rest = int(statistics.counts[c]), int(statistics.counts[c]) - len(rows)
            residuals = every[rows].astype(np.float64) - background.mean - means[c]
            along = residuals @ basis.T  # (n_removed, rank)
            of_mean_too = 1 / n if rest else 0.0  # where nothing is left, no mean moves
            inverse = (np.eye(len(rows)) - of_mean_too) / background.weight - (along * precision) @ along.T
            of_means = (along * precision) @ along_means.T
            if rest:
                mean, along_mean = means[c] - residuals.sum(axis=0) / rest, along_means[c] - along.sum(axis=0) / rest
                of_mean, trust = (along * precision) @ along_mean, background.trust(rest)
                solved_mean = np.linalg.solve(inverse, of_mean)
            solved = np.linalg.solve(inverse, of_means)
        of_query = (along * precision) @ along_offsets[i]
        gda[i] += seen.trust * (of_query @ solved - 0.5 * seen.trust * (of_means * solved).sum(axis=0))
        if not rest:
            centred[i, c] = gda[i, c] = np.nan
            continue
        half, along_half = offsets[i] - 0.5 * trust * mean, along_offsets[i] - 0.5 * trust * along_mean
        ratio = background.elsewhere * (half @ mean) + (gains * along_half) @ along_mean
        ratio += (of_query - 0.5 * trust * of_mean) @ solved_mean
        gda[i, c] = trust * ratio
        lengths = float(np.linalg.norm(offsets[i]) * np.linalg.norm(mean))
        centred[i, c] = offsets[i] @ mean / max(lengths, 1e-12)
    return {CENTRED: centred, GDA: gda}
