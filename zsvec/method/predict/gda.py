"""Gaussian discriminant analysis with a pooled covariance, and the centred prototype.

Both methods compare an image with the mean reference of each category, after the mean of all categories is subtracted.
The centred prototype is the cosine. The discriminant gives more weight to directions in which images of one category
differ little (Wang et al., "A hard-to-beat baseline for training-free CLIP-based adaptation", ICLR 2024, equations 5 to
7). With about three references per category or more, both are more accurate than the nearest references. A category of
one reference is compared by this reference, moved towards the mean of all categories (`Background.trust`).

Images are represented by their vectors, or by the roots of the vectors if no component is negative. Both methods need
the *background* of an expert besides the means. A calibration learns the background, which then stays fixed while the
number of references hardly changes. So a new category contributes its mean alone, and every process gives the same
answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zsvec.method.arrays import Floats, Product, product
from zsvec.method.calibration import CENTRED, GDA
from zsvec.method.predict.background import FEWEST, Background, ClassMeans, Seen, features
from zsvec.method.similarities import References, category_names, image_experts

_LEAST = 0.05  # lower bound of `Background.between`, as a fraction of the value that includes chance
_TOLERANCE = 0.3  # maximum relative change of mean squared distances; 10 % new references cause 0.1 to 0.2
_SAMPLE = 2048  # maximum number of references for checking a background
_BLOCK = 4096  # references in memory at once while the scatter is summed
_TOGETHER = 64  # maximum number of left-out references in one matrix product


def learn_backgrounds(references: Mapping[str, References]) -> dict[str, Background]:
    """Returns the backgrounds of the experts of `covering_most` that have enough references for `learn_background`."""
    learned = {expert: learn_background(found) for expert, found in covering_most(references).items()}
    return {expert: background for expert, background in learned.items() if background is not None}


def covering_most(references: Mapping[str, References]) -> dict[str, References]:
    """Returns the references of the image experts that cover more than half of the categories.

    A background of fewer categories does not describe images of the others: these may be far from its mean, and have
    much evidence for a category in their direction.
    """
    n_categories = len(category_names(references))
    return {expert: found for expert, found in image_experts(references).items() if 2 * len(found.names) > n_categories}


def learn_background(references: References) -> Background | None:
    """Learns the background of an image expert.

    With N references of C categories in d dimensions, let S be their scatter around the means of their categories, and
    τ = tr S / (d (N - C)) the mean variance. The covariance is (1 - λ) S / (N - C) + λ τ I with λ = r / (1 + r) and
    r = d / (N - 1). Up to a factor, this is the estimate of Kubokawa & Srivastava (2008) that Wang et al. use. A
    category of one reference adds nothing to the scatter, so the other categories determine the covariance.

    The mean is the average of the category means, weighted by the inverse of their variance, as in DerSimonian & Laird
    (1986). With n references, this variance is proportional to B + W / n (`Background.between`, `Background.within`).
    So a category of few references hardly moves the mean. If it did, an image of it that is left out, but stays in the
    mean, would be less similar to the other categories than a new image is.

    Args:
        references: All references of the expert.

    Returns:
        The background. ``None`` if no category has `FEWEST` references, if there is only one category, or if the
        references of each category are equal.
    """
    from scipy.linalg import eigh  # slow to import, and not needed to classify

    of_roots = bool(references.vectors.min(initial=0) >= 0)
    means = references.root_means if of_roots else references.class_means
    counts = means.counts
    (n, dim), n_categories = references.vectors.shape, len(counts)
    if counts.max() < FEWEST or n_categories < 2:
        return None
    rank = min(n - n_categories, dim)
    if n < dim:
        every = np.concatenate(list(_residuals(references, means))).astype(np.float64)
        scatter, vectors = eigh(every @ every.T, subset_by_index=(n - rank, n - 1))
        basis = vectors.T @ every / np.sqrt(np.maximum(scatter, 1e-12))[:, None]
        trace = float((every**2).sum())
    else:
        total = np.zeros((dim, dim))
        for some in _residuals(references, means):
            total += some.T @ some
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
        mean=means.means.mean(axis=0, dtype=np.float64).astype(np.float32),
        basis=basis.astype(np.float32),
        along=along.astype(np.float32),
        elsewhere=elsewhere,
        weight=weight,
        within=within,
        between=0.0,
        references=n,
        of_roots=of_roots,
    )
    background = replace(background, between=_between(background, means))
    mean = np.average(means.means, axis=0, weights=1 / (background.between + within / counts))
    background = replace(background, mean=mean.astype(np.float32))
    return replace(background, between=_between(background, means))


def describes(background: Background, references: References) -> bool:
    """Returns whether a background that was learned from earlier references still describes the present references.

    References added after learning are farther from the mean of their category than the background expects. A few of
    these references hardly change the mean squared distances. If many references were replaced, or categories lie in
    new regions, the mean squared distances change, and the result is False.

    Args:
        background: Background of an image expert.
        references: All references of the expert.
    """
    if len(background.mean) != references.vectors.shape[1]:
        return False
    # As in learning, the mean of a category includes the reference itself. n / (n - C) corrects for this.
    means, n = references.sum_up(background), len(references.vectors)
    rows = np.arange(0, n, 1 + (n - 1) // _SAMPLE)
    owner = references.owners(rows)
    residuals = background.features(references.vectors[rows]) - means.means[owner]
    within = float(background.square(residuals).mean()) * n / max(1, n - len(means)) / background.within
    apart = float(_apart(background, means).mean())
    apart /= background.between + background.within * float((1 / means.counts).mean())
    return max(abs(within - 1), abs(apart - 1)) <= _TOLERANCE


def _between(background: Background, means: ClassMeans) -> float:
    """Returns `Background.between` for the mean of a background."""
    apart = _apart(background, means)
    return max(float((apart - background.within / means.counts).mean()), _LEAST * float(apart.mean()))


def _apart(background: Background, means: ClassMeans) -> Floats:
    """Returns the squared Mahalanobis distance of each category mean from the mean of the background."""
    return background.square(means.means - background.mean)


def _residuals(references: References, means: ClassMeans) -> Iterator[Floats]:
    """Yields the differences of all references from the means of their categories, in blocks."""
    owners = np.repeat(np.arange(len(means)), means.counts)
    for first in range(0, len(owners), _BLOCK):
        some = slice(first, first + _BLOCK)
        yield features(references.vectors[some], of_roots=means.of_roots) - means.means[owners[some]]


def class_similarities(
    queries: Floats,
    means: ClassMeans,
    background: Background,
    product: Product = product,
    *,
    once: bool = False,
) -> tuple[Floats, Floats]:
    """Returns the centred prototype and the discriminant of each category.

    Args:
        queries: float32 ``(n_images, dim)``, unit rows.
        means: Category means of the features that the background describes.
        background: Background of the same image expert.
        product: Matrix product.
        once: Whether to compute `Seen` without caching it.

    Returns:
        Two arrays, float32 ``(n_images, n_categories)``. The first has the cosine of each image and category mean after
        subtracting the mean of the background, -1 to 1. The second has log-likelihood ratios, nats: each category
        against a Gaussian around the mean of the background.
    """
    offsets = background.features(queries) - background.mean
    lengths, of_centre = np.linalg.norm(offsets, axis=1), offsets @ background.mean
    along = product(offsets, background.basis) * (background.along - np.float32(background.elsewhere))
    seen = Seen.of(means.means, means.counts, background) if once else means.seen_from(background)
    inner = product(offsets, means.means) - of_centre[:, None]
    centred = inner / np.maximum(lengths[:, None] * seen.lengths, np.float32(1e-12))
    ratios = np.float32(background.elsewhere) * inner + product(along, seen.along)
    return centred, (seen.trust * ratios - seen.halves).astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class Removal:
    """References of one category that are left out together.

    Attributes:
        category: Position of the category.
        rows: int ``(n_removed,)``, rows of the references.
    """

    category: int
    rows: NDArray[np.intp]


def left_out(
    references: References,
    background: Background,
    queries: Sequence[int] | NDArray[np.intp],
    removals: Sequence[Removal],
) -> dict[str, Floats]:
    """Returns `class_similarities` of references, computed as if each reference and its scene were not in the store.

    The result is exact for a fixed mean, basis and shrinkage of the background: the mean of the category and the
    scatter along the basis are computed without the removed references. Each removal corrects the precision by a matrix
    whose rank is the number of removed references (Woodbury), so no new background is learned.

    Args:
        references: All references of an expert.
        background: Background that was learned from these references.
        queries: Rows of the references that are scored.
        removals: For each query, the scene to leave out. The scene contains the query.

    Returns:
        By aggregation, float32 ``(n_queries, n_categories)``; NaN for the query's own category if no reference is left.
    """
    every, means, centre = references.vectors, references.sum_up(background), background.mean.astype(np.float64)
    trusts, asked = np.asarray(background.trust(means.counts)), np.asarray(queries, dtype=np.intp)
    centred, gda = class_similarities(every[asked], means, background, once=True)
    basis, precision = background.basis.astype(np.float64), background.along.astype(np.float64)
    gains = precision - background.elsewhere
    images: dict[Removal, list[int]] = {}
    for i, removal in enumerate(removals):
        images.setdefault(removal, []).append(i)
    for batch in _batches(list(images)):
        sizes = np.array([len(removal.rows) for removal in batch])
        edges = np.cumsum([0, *sizes])
        counts = means.counts[[removal.category for removal in batch]]
        own = means.means[[removal.category for removal in batch]] - centre
        removed = background.features(every[np.concatenate([removal.rows for removal in batch])])
        residuals = removed - centre - np.repeat(own, sizes, axis=0)
        along = residuals @ basis.T  # (n_removed, rank)
        directions = (along * precision) @ basis
        of_means = directions @ means.means.T - (directions @ centre)[:, None]
        others = own - np.add.reduceat(residuals, edges[:-1]) / np.maximum(counts - sizes, 1)[:, None]
        precise_others = background.elsewhere * others + (others @ basis.T * gains) @ basis
        for j, removal in enumerate(batch):
            part, c, rest = slice(edges[j], edges[j + 1]), removal.category, int(counts[j] - sizes[j])
            of_mean_too = 1 / counts[j] if rest else 0.0  # if no reference is left, there is no new mean
            inverse = (np.eye(sizes[j]) - of_mean_too) / background.weight - (along[part] * precision) @ along[part].T
            solved = np.linalg.solve(inverse, of_means[part])
            drawn = 0.5 * trusts * (of_means[part] * solved).sum(axis=0)
            offsets = background.features(every[asked[images[removal]]]) - centre
            of_offsets = offsets @ directions[part].T  # (n_images, n_removed)
            gda[images[removal]] += trusts * (of_offsets @ solved - drawn)
            if not rest:
                centred[images[removal], c] = gda[images[removal], c] = np.nan
                continue
            mean, trust = others[j], background.trust(rest)
            of_mean = directions[part] @ mean
            halves = offsets - 0.5 * trust * mean
            ratios = halves @ precise_others[j]
            ratios += (of_offsets - 0.5 * trust * of_mean) @ np.linalg.solve(inverse, of_mean)
            gda[images[removal], c] = trust * ratios
            lengths = np.linalg.norm(offsets, axis=1) * np.linalg.norm(mean)
            centred[images[removal], c] = offsets @ mean / np.maximum(lengths, 1e-12)
    return {CENTRED: centred, GDA: gda}


def _batches(removals: Sequence[Removal]) -> Iterator[list[Removal]]:
    """Yields the removals in order, in batches of at most `_TOGETHER` rows; a larger removal is a batch of its own."""
    batch: list[Removal] = []
    for removal in removals:
        if batch and sum(len(other.rows) for other in (*batch, removal)) > _TOGETHER:
            yield batch
            batch = []
        batch.append(removal)
    if batch:
        yield batch
